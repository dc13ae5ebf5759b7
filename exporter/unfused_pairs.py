"""Scores, softmax and values of natten's separate calls become one neighborhood attention node.

The tracer writes the two calls as nodes of their own; no runtime ever sees them. What stands between them may only be
the softmax over the window and what does nothing at inference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnx import defs
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.values import Opset

from na_deploy.attention.schema import DOMAIN, PLUGIN_ATTRIBUTES, SEPARATE_OPERATOR, VERSION
from na_deploy.errors import UsageError

SCORES, VALUES = "WindowScores", "WindowValues"
_TRANSPARENT = ("Identity", "Dropout")
_ATTRIBUTES = ("kernel_size", "dilation", "is_causal")
_operators = Opset(DOMAIN, VERSION)


def register_pair_schemas() -> None:
    """Make ``onnx`` know the two nodes. May be called again."""
    for name, inputs in ((SCORES, ("query", "key", "rel_pos_bias")), (VALUES, ("weights", "value"))):
        if defs.has(name, DOMAIN):
            continue
        schema = defs.OpSchema
        option = schema.FormalParameterOption
        parameters = [
            schema.FormalParameter(each, "T", param_option=option.Optional if each == "rel_pos_bias" else option.Single)
            for each in inputs
        ]
        defs.register_schema(
            schema(
                name,
                DOMAIN,
                VERSION,
                inputs=parameters,
                outputs=[schema.FormalParameter("output", "T")],
                type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "")],
                attributes=[schema.Attribute(each, schema.AttrType.INTS, required=True) for each in _ATTRIBUTES],
            )
        )


def _scores(
    query: Any,
    key: Any,
    rel_pos_bias: Any,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[int],
) -> Any:
    sizes = {"kernel_size": list(kernel_size), "dilation": list(dilation), "is_causal": list(is_causal)}
    return _operators.WindowScores(query, key, rel_pos_bias, **sizes)


def _values(
    weights: Any, value: Any, kernel_size: Sequence[int], dilation: Sequence[int], is_causal: Sequence[int]
) -> Any:
    sizes = {"kernel_size": list(kernel_size), "dilation": list(dilation), "is_causal": list(is_causal)}
    return _operators.WindowValues(weights, value, **sizes)


def pair_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return what ``torch.onnx.export`` needs to write the two calls."""
    from na_deploy.exporter.natten_api import window_ops  # noqa: F401  (registers the operators)

    return {
        torch.ops.na_deploy.window_scores.default: _scores,
        torch.ops.na_deploy.window_values.default: _values,
    }


def fuse_pairs(model: ir.Model) -> int:
    """Replace every pair by one node between transposes to heads last; return how many there were.

    Raises:
        UsageError: a pair cannot be fused; the message says what stands between.
    """
    values = [node for node in model.graph if node.domain == DOMAIN and node.op_type == VALUES]
    for node in values:
        _fuse(model, node)
    RemoveUnusedNodesPass()(model)
    if any(node.domain == DOMAIN and node.op_type == SCORES for node in model.graph):
        raise UsageError(
            "natten's window scores are used for something other than a softmax and the values that follow, which "
            "cannot be exported; use the fused na1d, na2d or na3d instead"
        )
    return len(values)


def _fuse(model: ir.Model, values: ir.Node) -> None:
    softmax = _behind(values.inputs[0])
    if softmax is None or softmax.op_type != "Softmax" or not _over_last_axis(softmax):
        raise _cannot("is not a softmax over the window", softmax)
    scores = _behind(softmax.inputs[0])
    if scores is None or scores.domain != DOMAIN or scores.op_type != SCORES:
        raise _cannot("changes the scores before the softmax", scores)
    for name in _ATTRIBUTES:
        if list(scores.attributes[name].as_ints()) != list(values.attributes[name].as_ints()):
            raise _cannot(f"has another {name} than the scores", values)
    rank = len(scores.attributes["kernel_size"].as_ints())
    query, key, value = scores.inputs[0], scores.inputs[1], values.inputs[1]
    bias = scores.inputs[2] if len(scores.inputs) > 2 else None
    assert query is not None
    last = [0, *range(2, rank + 2), 1, rank + 2]  # heads first to heads last
    first = [0, rank + 1, *range(1, rank + 1), rank + 2]
    turned = [ir.node("Transpose", [tensor], {"perm": last}) for tensor in (query, key, value)]
    for made, tensor in zip(turned, (query, key, value), strict=True):
        _describe(made.outputs[0], tensor, last)
    attributes: dict[str, Any] = {name: list(scores.attributes[name].as_ints()) for name in _ATTRIBUTES}
    # natten's callers scale the query themselves.
    attributes |= {"stride": [1] * rank, "scale": 1.0, **PLUGIN_ATTRIBUTES}
    attention = ir.node(
        SEPARATE_OPERATOR, [*(made.outputs[0] for made in turned), bias], attributes, domain=DOMAIN, version=VERSION
    )
    attention.metadata_props.update(scores.metadata_props)
    _describe(attention.outputs[0], value, last)
    back = ir.node("Transpose", [attention.outputs[0]], {"perm": first})
    _describe(back.outputs[0], value, list(range(rank + 3)))
    model.graph.insert_before(values, [*turned, attention, back])
    old = values.outputs[0]
    back.outputs[0].name = old.name
    old.name = f"{old.name}.separate"
    ir.convenience.replace_all_uses_with(old, back.outputs[0], replace_graph_outputs=True)
    model.graph.remove(values, safe=True)


def _behind(value: ir.Value | None) -> ir.Node | None:
    """Return the node that made a value, past those that do nothing at inference."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in _TRANSPARENT:
        value = node.inputs[0]
        node = None if value is None else value.producer()
    return node


def _over_last_axis(softmax: ir.Node) -> bool:
    axis = softmax.attributes["axis"].as_int() if "axis" in softmax.attributes else -1
    shape = softmax.outputs[0].shape
    return axis == -1 or (shape is not None and axis == shape.rank() - 1)


def _describe(value: ir.Value, like: ir.Value | None, order: Sequence[int]) -> None:
    if like is not None and like.shape is not None:
        value.shape = ir.Shape([like.shape[axis] for axis in order])
        if like.dtype is not None:
            value.dtype = like.dtype


def _cannot(why: str, node: ir.Node | None) -> UsageError:
    what = "an input of the model" if node is None else f"{node.op_type} {node.name or ''}".strip()
    return UsageError(
        f"natten's separate scores and values cannot be fused: {what} {why}; between them there may only be a softmax "
        "over the window. Use the fused na1d, na2d or na3d instead"
    )
