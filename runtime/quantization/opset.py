"""An earlier opset for quantized files, with GroupNormalization, which means something else there, written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from na_deploy.model_file.graph import STANDARD

OPSET = 20
"""Version that quantized files state. From 21 on, ONNX Runtime's own pass moves int8 activations to uint8 for x86 and
forgets the attribute ``output_dtype``; it then refuses the file unless session.qdqisint8allowed is set (1.31)."""
_CHANGED = "GroupNormalization"
"""It has a scale for each channel from opset 21 on, for each group before."""


def lower_opset(model: onnx.ModelProto) -> None:
    """State opset :data:`OPSET` where the model's operators mean the same in it; else leave the model as it is."""
    later = [entry for entry in model.opset_import if entry.domain in STANDARD and entry.version > OPSET]
    inside = [node for function in model.functions for node in function.node]
    others = [node for node in [*model.graph.node, *inside] if node.domain in STANDARD and node.op_type != _CHANGED]
    known = all(_known(node) for node in others) and not any(node.op_type == _CHANGED for node in inside)
    if not later or not known:
        return
    _write_out_group_norms(model)
    for owner in (model, *model.functions):
        for entry in owner.opset_import:
            if entry.domain in STANDARD:
                entry.version = min(entry.version, OPSET)


def _known(node: onnx.NodeProto) -> bool:
    """Tell whether :data:`OPSET` has the operator with these attributes."""
    try:
        schema = onnx.defs.get_schema(node.op_type, OPSET)
    except onnx.defs.SchemaError:
        return False
    return all(attribute.name in schema.attributes for attribute in node.attribute)


def _write_out_group_norms(model: onnx.ModelProto) -> None:
    """Replace GroupNormalization (B, C, …) by InstanceNormalization of groups, scale and bias, in float32."""
    graph = model.graph
    values = {value.name: value.type.tensor_type for value in [*graph.value_info, *graph.input, *graph.output]}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != _CHANGED or node.domain not in STANDARD:
            nodes.append(node)
            continue
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        source, scale, bias = node.input
        name, result, groups = node.name or node.output[0], node.output[0], int(given["num_groups"])
        kind = tensors[scale].data_type if scale in tensors else values[scale].elem_type
        known = values.get(source) or values.get(result)
        rank = len(known.shape.dim) if known is not None else 4

        def constant(end: str, array: np.ndarray, name: str = name) -> str:
            graph.initializer.append(numpy_helper.from_array(array, f"{name}.{end}"))
            return f"{name}.{end}"

        def add(operator: str, inputs: list[str], end: str, name: str = name, **attributes: Any) -> str:
            nodes.append(helper.make_node(operator, inputs, [f"{name}.{end}"], f"{name}.{end}", **attributes))
            return f"{name}.{end}"

        apart = constant("apart", np.array([0, groups, -1], np.int64))
        along = constant("along", np.array([-1, *[1] * (rank - 2)], np.int64))
        wide = add("Cast", [source], "wide", to=TensorProto.FLOAT)
        grouped = add("Reshape", [wide, apart], "grouped")
        unit = [constant("ones", np.ones(groups, np.float32)), constant("zeros", np.zeros(groups, np.float32))]
        normal = add("InstanceNormalization", [grouped, *unit], "normal", epsilon=float(given.get("epsilon", 1e-5)))
        whole = add("Reshape", [normal, add("Shape", [source], "shape")], "whole")
        factors = [
            add("Reshape", [add("Cast", [each], f"{end}.wide", to=TensorProto.FLOAT), along], f"{end}.along")
            for each, end in ((scale, "scale"), (bias, "bias"))
        ]
        scaled = add("Mul", [whole, factors[0]], "scaled")
        shifted = add("Add", [scaled, factors[1]], "shifted")
        nodes.append(helper.make_node("Cast", [shifted], [result], name, to=kind))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
