"""A pass that gives every operator inputs of one type where ONNX asks for one, as autocast and mixed modules need.

PyTorch computes a LayerNorm of bfloat16 values with float32 weights in float32 and returns bfloat16; the tracer writes
the same types on the node, which no runtime takes. Such nodes compute in the wider type, between casts, so that every
value keeps the type it has in PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_ir as ir

from na_deploy.attention.schema import DOMAIN, OPERATORS
from na_deploy.model_file.graph import STANDARD

_FLOATS = {
    ir.DataType.BFLOAT16: "tensor(bfloat16)",
    ir.DataType.FLOAT16: "tensor(float16)",
    ir.DataType.FLOAT: "tensor(float)",
    ir.DataType.DOUBLE: "tensor(double)",
}


def make_types_agree(model: ir.Model, opset: int) -> None:
    """Insert casts around nodes whose inputs have several types, or one that the operator does not take.

    Args:
        model: with the type of every value.
        opset: the operator set, which says what each operator takes.
    """
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        for inputs, outputs, allowed in _groups(node, opset):
            _agree(model, node, inputs, outputs, allowed)


def _groups(node: ir.Node, opset: int) -> Iterable[tuple[list[int], list[int], frozenset[str]]]:
    """Return the inputs and outputs that share a type, with the types allowed for them."""
    if node.domain == DOMAIN and node.op_type in OPERATORS:
        yield list(range(len(node.inputs))), [0], frozenset(_FLOATS.values()) - {"tensor(double)"}
        return
    if node.domain not in STANDARD or not onnx.defs.has(node.op_type, opset):
        return
    schema = onnx.defs.get_schema(node.op_type, opset)
    for constraint in schema.type_constraints:
        inputs, outputs = (
            [index for index in range(count) if formal and formal[min(index, len(formal) - 1)].type_str == name]
            for count, formal, name in (
                (len(node.inputs), schema.inputs, constraint.type_param_str),
                (len(node.outputs), schema.outputs, constraint.type_param_str),
            )
        )
        yield inputs, outputs, frozenset(constraint.allowed_type_strs)


def _agree(model: ir.Model, node: ir.Node, inputs: list[int], outputs: list[int], allowed: frozenset[str]) -> None:
    values = {index: value for index in inputs if (value := node.inputs[index]) is not None}
    types = {value.dtype for value in values.values() if value.dtype is not None}
    if not types or not types <= _FLOATS.keys():
        return
    (first, *others) = types
    common = first
    if others or _FLOATS[first] not in allowed:
        common = ir.DataType.DOUBLE if ir.DataType.DOUBLE in types else ir.DataType.FLOAT
    if _FLOATS[common] not in allowed:
        return
    for index, value in values.items():
        if value.dtype != common:
            name = f"{value.name}.{common.name.lower()}"
            node.replace_input_with(index, _cast(node, value, common, name, before=True))
    for index in outputs:
        output = node.outputs[index]
        recorded = output.dtype
        output.type = ir.TensorType(common)
        if recorded is None or recorded == common:
            continue
        name = str(output.name)
        output.name = f"{name}.before_cast"
        rounded = _cast(node, output, recorded, name, before=False)
        cast = rounded.producer()
        for use in list(output.uses()):
            if use.node is not cast:
                use.node.replace_input_with(use.idx, rounded)
        for graph in (model.graph, node.graph):
            for place, value in enumerate(graph.outputs if isinstance(graph, ir.Graph) else ()):
                if value is output:
                    graph.outputs[place] = rounded  # type: ignore[union-attr]


def _cast(node: ir.Node, value: ir.Value, to: ir.DataType, name: str, *, before: bool) -> ir.Value:
    """Insert a cast beside ``node`` and return its output; a cast of one value is shared."""
    for use in value.uses():
        if use.node.op_type == "Cast" and use.node.outputs[0].name == name and use.node.graph is node.graph:
            return use.node.outputs[0]
    cast = ir.node("Cast", [value], attributes={"to": int(to)})
    cast.outputs[0].name, cast.outputs[0].type, cast.outputs[0].shape = name, ir.TensorType(to), value.shape
    cast.metadata_props.update(node.metadata_props)
    graph = node.graph
    assert graph is not None
    if before:
        graph.insert_before(node, cast)
    else:
        graph.insert_after(node, cast)
    return cast.outputs[0]
