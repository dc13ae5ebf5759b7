"""natten's separate scores or values in standard operators, where they are no part of a neighborhood attention.

Every query's window is gathered, which copies each key and value once for every query that sees it: right everywhere,
fast nowhere. Positions are tables, so spatial sizes must be known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from na_deploy.attention.windows import NeighborhoodSpec
from na_deploy.errors import UsageError
from na_deploy.exporter.natten_api.window_ops import windows


class _Writer:
    """Collects nodes before one node of the graph."""

    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        self.model, self.node = model, node
        self.nodes: list[ir.Node] = []

    def op(self, operator: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        self.nodes.append(ir.node(operator, list(inputs), attributes))
        return self.nodes[-1].outputs[0]

    def constant(self, array: np.ndarray[Any, Any]) -> ir.Value:
        return self.op("Constant", value=ir.tensor(array))

    def ints(self, *values: int) -> ir.Value:
        return self.constant(np.array(values, np.int64))

    def wide(self, value: ir.Value) -> ir.Value:
        return self.op("Cast", value, to=ir.DataType.FLOAT.value)

    def replace(self, like: ir.Value, value: ir.Value) -> None:
        """Put ``value``, in the type of ``like``, in the node's place."""
        result = self.op("CastLike", value, like)
        old = self.node.outputs[0]
        result.shape, result.type = old.shape, old.type
        self.model.graph.insert_before(self.node, self.nodes)
        replace_value(old, result)
        self.model.graph.remove(self.node, safe=True)


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Let everything read ``new``, which takes the old one's name."""
    new.name = old.name
    old.name = f"{old.name}.separate"
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def lower_scores(model: ir.Model, node: ir.Node) -> None:
    """Write WindowScores with a Gather of every window's keys.

    Raises:
        UsageError: spatial sizes are free.
    """
    query, key, bias, additional = [*node.inputs, None, None][:4]
    assert query is not None
    assert key is not None
    lengths, (position, seen, index) = _tables(node, query)
    write = _Writer(model, node)
    queries = write.wide(write.op("Reshape", query, write.ints(0, 0, -1, 1, _width(query))))  # (B, H, N, 1, D)
    keys = _windows_of(write, key, position)  # (B, H, N, K, D)
    scores = write.op("ReduceSum", write.op("Mul", queries, keys), write.ints(-1), keepdims=0)
    if bias is not None:
        flat = write.wide(write.op("Reshape", bias, write.ints(0, -1)))
        scores = write.op("Add", scores, write.op("Gather", flat, write.constant(index), axis=1))
    if not seen.all():
        scores = write.op("Add", scores, write.constant(np.where(seen, 0, -np.inf).astype(np.float32)))
    if additional is not None:
        flat = write.op("Squeeze", queries, write.ints(3))
        across = write.op("Transpose", write.wide(additional), perm=[0, 1, 3, 2])
        scores = write.op("Concat", scores, write.op("MatMul", flat, across), axis=-1)
    write.replace(query, write.op("Reshape", scores, write.ints(0, 0, *lengths, -1)))


def lower_values(model: ir.Model, node: ir.Node) -> None:
    """Write WindowValues with a Gather of every window's values.

    Raises:
        UsageError: spatial sizes are free.
    """
    weights, value, additional = [*node.inputs, None][:3]
    assert weights is not None
    assert value is not None
    lengths, (position, seen, _) = _tables(node, value)
    count = seen.shape[1]
    write = _Writer(model, node)
    shares = write.wide(write.op("Reshape", weights, write.ints(0, 0, seen.shape[0], -1)))  # (B, H, N, K + M)
    own = write.op("Slice", shares, write.ints(0), write.ints(count), write.ints(3)) if additional else shares
    if not seen.all():
        own = write.op("Mul", own, write.constant(seen.astype(np.float32)))
    rows = write.op("Unsqueeze", own, write.ints(3))
    output = write.op("Squeeze", write.op("MatMul", rows, _windows_of(write, value, position)), write.ints(3))
    if additional is not None:
        more = write.op("Slice", shares, write.ints(count), write.ints(2**31 - 1), write.ints(3))
        output = write.op("Add", output, write.op("MatMul", more, write.wide(additional)))
    write.replace(value, write.op("Reshape", output, write.ints(0, 0, *lengths, -1)))


def _windows_of(write: _Writer, tensor: ir.Value, position: np.ndarray[Any, Any]) -> ir.Value:
    rows = write.wide(write.op("Reshape", tensor, write.ints(0, 0, -1, _width(tensor))))
    return write.op("Gather", rows, write.constant(position), axis=2)


def _width(tensor: ir.Value) -> int:
    assert tensor.shape is not None
    width = tensor.shape[-1]
    assert isinstance(width, int)
    return width


def _tables(node: ir.Node, tensor: ir.Value) -> tuple[Sequence[int], tuple[np.ndarray[Any, Any], ...]]:
    """Return the spatial sizes of (B, H, *X, D) and each window's positions, visibility and bias indices, (N, ΠK)."""
    kernel, dilation, causal = (
        [int(size) for size in node.attributes[name].as_ints()] for name in ("kernel_size", "dilation", "is_causal")
    )
    sizes = [] if tensor.shape is None else list(tensor.shape[2 : 2 + len(kernel)])
    lengths = [size for size in sizes if isinstance(size, int)]
    if len(lengths) < len(kernel):
        raise UsageError(
            "natten's separate scores and values that cannot be fused into one node need fixed spatial sizes; leave "
            "them out of the dynamic axes, or use the fused na1d, na2d or na3d"
        )
    spec = NeighborhoodSpec.create(len(kernel), kernel, dilation, 1, [bool(flag) for flag in causal])
    return lengths, tuple(table.numpy() for table in windows(lengths, spec))
