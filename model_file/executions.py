"""The nodes of a model with those of its branches and loops, and how often one run executes each.

Reads the graph only; nothing is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from na_deploy.model_file.graph import STANDARD, Shapes, known_types, matrix_multiply_adds


@dataclass(frozen=True)
class Execution:
    """A node.

    Attributes:
        node: the node.
        shapes: shapes of the values that it can read, its own graph's and those around it.
        types: element types of these values.
        times: how often a run executes it, as far as the file says.
        counted_once: true inside a loop whose number of turns depends on the data; ``times`` then takes one turn.
        nested: true in a branch or a loop.
    """

    node: NodeProto
    shapes: Shapes
    types: Mapping[str, str]
    times: int = 1
    counted_once: bool = False
    nested: bool = False

    @property
    def multiply_adds(self) -> int | None:
        """Those of a matrix product or convolution, all executions; ``None`` where a shape is not known."""
        once = matrix_multiply_adds(self.node, self.shapes)
        return None if once is None else once * self.times


def executions(model: onnx.ModelProto, sizes: Mapping[str, int]) -> list[Execution]:
    """Return the nodes in order, those of a branch or loop behind the node that holds it.

    Of two branches, one runs: the one with more work is taken. A Loop's turns are known where it has a constant number
    of them and no condition that may end it, a Scan's where its sequence has a known length.

    Args:
        model: the model; its weights need not be in memory.
        sizes: values of the names that dynamic dimensions are written in, from ``graph.bind_sizes``.
    """
    return list(_executions(model.graph, sizes, {}, {}, {}, _Turns(1, False, False)))


@dataclass(frozen=True)
class _Turns:
    times: int
    counted_once: bool
    nested: bool

    def inside(self, turns: int | None) -> _Turns:
        return _Turns(self.times * (1 if turns is None else turns), self.counted_once or turns is None, True)


def _executions(
    graph: GraphProto,
    sizes: Mapping[str, int],
    outer_shapes: Shapes,
    outer_types: Mapping[str, str],
    outer_constants: Mapping[str, int],
    turns: _Turns,
) -> Iterator[Execution]:
    own_shapes, own_types = known_types(graph, sizes)
    shapes, types = outer_shapes | own_shapes, {**outer_types, **own_types}
    constants = {**outer_constants, **_constants(graph)}
    for node in graph.node:
        yield Execution(node, shapes, types, turns.times, turns.counted_once, turns.nested)
        bodies = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
        if not bodies:
            continue
        count = 1 if node.op_type == "If" else _turns(node, bodies[0], shapes, constants)
        parts = [list(_executions(body, sizes, shapes, types, constants, turns.inside(count))) for body in bodies]
        yield from max(parts, key=lambda part: (sum(each.multiply_adds or 0 for each in part), len(part)))


def _turns(node: NodeProto, body: GraphProto, shapes: Shapes, constants: Mapping[str, int]) -> int | None:
    """Return how often a Loop's or Scan's body runs, ``None`` where the file does not say."""
    if node.domain in STANDARD and node.op_type == "Loop":
        goes_on = len(node.input) < 2 or not node.input[1] or constants.get(node.input[1]) == 1
        return constants.get(node.input[0]) if goes_on and _never_ends(body, constants) else None
    if node.domain in STANDARD and node.op_type == "Scan":
        attributes = {attribute.name: attribute for attribute in node.attribute}
        sequences = attributes["num_scan_inputs"].i
        axes = attributes["scan_input_axes"].ints if "scan_input_axes" in attributes else (0,)
        shape = shapes.get(node.input[len(node.input) - sequences], ()) if sequences else ()
        length = shape[axes[0]] if -len(shape) <= axes[0] < len(shape) else None
        return length if isinstance(length, int) else None
    return None


def _never_ends(body: GraphProto, constants: Mapping[str, int]) -> bool:
    """Say whether a Loop's body hands its condition on, or a constant true."""
    makers = {node.output[0]: node for node in body.node if node.op_type == "Identity"}
    value = body.output[0].name
    while value in makers:
        value = makers[value].input[0]
    return value == body.input[1].name or {**constants, **_constants(body)}.get(value) == 1


def _constants(graph: GraphProto) -> dict[str, int]:
    """Return the whole numbers and truth values among a graph's constants of one element."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in STANDARD:
            for attribute in node.attribute:
                if attribute.name == "value":
                    tensors[node.output[0]] = attribute.t
                elif attribute.name == "value_int":
                    found[node.output[0]] = attribute.i
    kinds = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)
    for name, tensor in tensors.items():
        single = tensor.data_type in kinds and all(size == 1 for size in tensor.dims)
        if single and tensor.data_location != TensorProto.EXTERNAL:
            found[name] = int(numpy_helper.to_array(tensor).item())
    return found
