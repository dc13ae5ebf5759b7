"""Run a bfloat16 graph where no bfloat16 kernels exist: the same graph in float32, each result rounded to bfloat16.

ONNX Runtime's CPU provider has Cast for bfloat16 and little else. The widened copy has the file's nodes one for one;
after every node that yields bfloat16 its result passes through a Cast to bfloat16 and back, so it holds what the
bfloat16 graph stores. It is for checking files, not for running them.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BF16, F32 = TensorProto.BFLOAT16, TensorProto.FLOAT


def holds_bfloat16(model: onnx.ModelProto) -> bool:
    """Return whether any weight, input, output or result is bfloat16."""
    graph = model.graph
    typed = (value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output))
    return BF16 in typed or any(tensor.data_type == BF16 for tensor in graph.initializer)


def widen_bfloat16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the widened copy; ``model`` must carry shape and type information and its weights."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    _widen(wide.graph)
    return wide


def _widen(graph: onnx.GraphProto) -> None:
    """Widen a graph and those of its branches and loops."""
    typed = (*graph.value_info, *graph.output)
    narrow = {value.name for value in typed if value.type.tensor_type.elem_type == BF16}
    for tensor in graph.initializer:
        if tensor.data_type == BF16:
            tensor.CopyFrom(_wide(tensor))
    for value in [*graph.value_info, *graph.input, *graph.output]:
        if value.type.tensor_type.elem_type == BF16:
            value.type.tensor_type.elem_type = F32
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        for attribute in node.attribute:
            if attribute.t.data_type == BF16:
                attribute.t.CopyFrom(_wide(attribute.t))
            if attribute.HasField("g"):
                _widen(attribute.g)
        casts_down = node.op_type == "Cast" and any(a.name == "to" and a.i == BF16 for a in node.attribute)
        if casts_down:
            narrow.update(node.output)
            next(a for a in node.attribute if a.name == "to").i = F32
        rounded = [name for name in node.output if name in narrow]
        for index, name in enumerate(node.output):
            if name in rounded:
                node.output[index] = f"{name}.unrounded"
        graph.node.append(node)
        for name in rounded:
            graph.node.append(helper.make_node("Cast", [f"{name}.unrounded"], [f"{name}.bf16"], to=BF16))
            graph.node.append(helper.make_node("Cast", [f"{name}.bf16"], [name], to=F32))


def _wide(tensor: onnx.TensorProto) -> onnx.TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
