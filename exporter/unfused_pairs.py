"""Scores, softmax and values of natten's separate calls become one neighborhood attention node.

The tracer writes the two calls as nodes of their own; no runtime ever sees them. Between them may stand the softmax
over the window, a constant factor on scores without a bias, and what does nothing at inference. Other pairs are written
with standard operators (:mod:`unfused_lowering`).
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnx import defs
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.values import Opset

from na_deploy.attention.schema import DOMAIN, PLUGIN_ATTRIBUTES, SEPARATE_OPERATOR, VERSION
from na_deploy.exporter.unfused_lowering import lower_scores, lower_values, replace_value

SCORES, VALUES = "WindowScores", "WindowValues"
_TRANSPARENT = ("Identity", "Dropout", "Cast")  # the node computes in float32 whatever is cast to
_ATTRIBUTES = ("kernel_size", "dilation", "is_causal")
_INPUTS = {SCORES: ("query", "key", "rel_pos_bias", "additional_key"), VALUES: ("weights", "value", "additional_value")}
_OPTIONAL = ("rel_pos_bias", "additional_key", "additional_value")
_operators = Opset(DOMAIN, VERSION)


def register_pair_schemas() -> None:
    """Make ``onnx`` know the two nodes. May be called again."""
    for name, inputs in _INPUTS.items():
        if defs.has(name, DOMAIN):
            continue
        schema = defs.OpSchema
        option = schema.FormalParameterOption
        parameters = [
            schema.FormalParameter(each, "T", param_option=option.Optional if each in _OPTIONAL else option.Single)
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
    additional_key: Any,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[int],
) -> Any:
    sizes = {"kernel_size": list(kernel_size), "dilation": list(dilation), "is_causal": list(is_causal)}
    return _operators.WindowScores(query, key, rel_pos_bias, additional_key, **sizes)


def _values(
    weights: Any,
    value: Any,
    additional_value: Any,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[int],
) -> Any:
    sizes = {"kernel_size": list(kernel_size), "dilation": list(dilation), "is_causal": list(is_causal)}
    return _operators.WindowValues(weights, value, additional_value, **sizes)


def pair_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return what ``torch.onnx.export`` needs to write the two calls."""
    from na_deploy.exporter.natten_api import window_ops  # noqa: F401  (registers the operators)

    return {
        torch.ops.na_deploy.window_scores.default: _scores,
        torch.ops.na_deploy.window_values.default: _values,
    }


def fuse_pairs(model: ir.Model) -> list[str]:
    """Replace every pair by one node between transposes to heads last, and what is no such pair by standard operators.

    Returns:
        A sentence for each call that could not be fused: which, and why.

    Raises:
        UsageError: a call that cannot be fused has free spatial sizes.
    """
    notices = []
    for node in window_nodes(model, VALUES):
        try:
            _fuse(model, node)
        except _FusionError as reason:
            notices.append(f"natten's separate scores and values are not fused at {_module(node)}: {reason}")
    RemoveUnusedNodesPass()(model)
    for node in window_nodes(model, SCORES):
        if not notices:
            notices.append(f"natten's scores at {_module(node)} are used for more than a softmax and the values")
        lower_scores(model, node)
    for node in window_nodes(model, VALUES):
        lower_values(model, node)
    if notices:
        notices[-1] += "; they became standard operators that copy every window's keys and values"
    return notices


def window_nodes(model: ir.Model, kind: str) -> list[ir.Node]:
    """Return the graph's nodes of one of the two kinds."""
    return [node for node in model.graph if node.domain == DOMAIN and node.op_type == kind]


class _FusionError(Exception):
    """Reason for which a pair is no neighborhood attention."""


def _fuse(model: ir.Model, values: ir.Node) -> None:
    softmax = _behind(values.inputs[0])
    if softmax is None or softmax.op_type != "Softmax" or not _over_last_axis(softmax):
        raise _cannot("is not a softmax over the window", softmax)
    scores, factor = _scaled(_behind(softmax.inputs[0]))
    if scores is None or scores.domain != DOMAIN or scores.op_type != SCORES:
        raise _cannot("changes the scores before the softmax", scores)
    for name in _ATTRIBUTES:
        if list(scores.attributes[name].as_ints()) != list(values.attributes[name].as_ints()):
            raise _cannot(f"has another {name} than the scores", values)
    query, key, bias, additional_key = _inputs(scores)
    _, value, additional_value = _inputs(values)
    if (additional_key is None) != (additional_value is None):
        raise _FusionError("only one of scores and values has additional keys")
    if bias is not None and factor != 1:
        raise _FusionError("the scores are scaled after a bias was added")
    _replace(model, scores, values, [query, key, value, bias, additional_key, additional_value], factor)


def _replace(
    model: ir.Model, scores: ir.Node, values: ir.Node, tensors: Sequence[ir.Value | None], factor: float
) -> None:
    rank = len(scores.attributes["kernel_size"].as_ints())
    last = [0, *range(2, rank + 2), 1, rank + 2]  # heads first to heads last
    first = [0, rank + 1, *range(1, rank + 1), rank + 2]
    bias, made, inputs = tensors[3], [], []
    for tensor in tensors:
        if tensor is None or tensor is bias:
            inputs.append(tensor)
            continue
        order = [0, 2, 1, 3] if any(tensor is extra for extra in tensors[4:]) else last
        made.append(ir.node("Transpose", [tensor], {"perm": order}))
        _describe(made[-1].outputs[0], tensor, order)
        inputs.append(made[-1].outputs[0])
    while inputs[-1] is None:
        inputs.pop()
    attributes: dict[str, Any] = {name: list(scores.attributes[name].as_ints()) for name in _ATTRIBUTES}
    # natten's callers scale the query themselves.
    attributes |= {"stride": [1] * rank, "scale": factor, **PLUGIN_ATTRIBUTES}
    attention = ir.node(SEPARATE_OPERATOR, inputs, attributes, domain=DOMAIN, version=VERSION)
    attention.metadata_props.update(scores.metadata_props)
    value = tensors[2]
    _describe(attention.outputs[0], value, last)
    back = ir.node("Transpose", [attention.outputs[0]], {"perm": first})
    _describe(back.outputs[0], value, list(range(rank + 3)))
    model.graph.insert_before(values, [*made, attention, back])
    replace_value(values.outputs[0], back.outputs[0])
    model.graph.remove(values, safe=True)


def _inputs(node: ir.Node) -> list[ir.Value | None]:
    count = len(_INPUTS[node.op_type])
    return [*node.inputs, *[None] * (count - len(node.inputs))]


def _scaled(node: ir.Node | None) -> tuple[ir.Node | None, float]:
    """Look past a product with one constant number; return the node behind it and the number."""
    if node is None or node.op_type not in ("Mul", "Div"):
        return node, 1.0
    numbers = [None if value is None else ir.convenience.get_const_tensor(value) for value in node.inputs]
    for at, number in enumerate(numbers):
        if number is not None and number.size == 1 and not (node.op_type == "Div" and at == 0):
            factor = float(number.numpy().reshape(()))
            behind = _behind(node.inputs[1 - at])
            if behind is not None and behind.op_type == SCORES:
                return behind, 1 / factor if node.op_type == "Div" else factor
    return node, 1.0


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


def _module(node: ir.Node) -> str:
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    return next((scope for scope in reversed(scopes[:-1]) if scope), "the top level")


def _cannot(why: str, node: ir.Node | None) -> _FusionError:
    what = "an input of the model" if node is None else f"{node.op_type} {node.name or ''}".strip()
    return _FusionError(f"{what} {why}")
