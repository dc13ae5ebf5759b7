"""Layers that can be quantized: products with constant weights. Attention, normalisation and softmax are none of them.

Everything here reads or changes an ONNX model in memory; nothing is run.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from na_deploy.errors import UsageError
from na_deploy.model_file.graph import STANDARD
from na_deploy.model_file.products import KINDS, module_name

QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
QUANTIZED_PRODUCTS = frozenset({"QLinearMatMul", "QLinearConv", "MatMulInteger", "ConvInteger", "MatMulNBits"})
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass(frozen=True)
class Layer:
    """A product with constant weights.

    Attributes:
        name: its module's name, such as ``levels.0.blocks.1.attn.qkv``.
        node: the node's name, unique in the graph.
        kind: ``MatMul``, ``Gemm`` or ``Conv``.
        source: the value it reads; likewise ``weight`` and ``result``.
    """

    name: str
    node: str
    kind: str
    source: str
    weight: str
    result: str


def find_layers(model: onnx.ModelProto, name: str) -> list[Layer]:
    """Return the layers that can be quantized, in graph order; nodes without a name get one.

    Args:
        model: with its weights in memory.
        name: the file's, for messages.

    Raises:
        UsageError: the model is quantized already, is in bfloat16, or has no such layer.
    """
    kinds = {node.op_type for node in model.graph.node}
    if kinds & (QUANTIZERS | QUANTIZED_PRODUCTS):
        raise UsageError(f"{name} is quantized already; give the file in fp32 or fp16 that it was made from")
    if any(tensor.data_type == TensorProto.BFLOAT16 for tensor in model.graph.initializer):
        raise UsageError(
            f"{name} is in bfloat16, which ONNX Runtime cannot run for calibration; export with --dtype fp32 or fp16"
        )
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    taken = {node.name for node in model.graph.node}
    found, modules = [], set[str]()
    for index, node in enumerate(model.graph.node):
        if node.op_type not in KINDS or node.domain not in STANDARD or len(node.input) < 2:
            continue
        weight = weights.get(node.input[1])
        if weight is None or weight.data_type not in _FLOATS or node.input[0] in weights:
            continue
        if node.op_type == "MatMul" and len(weight.dims) != 2:
            continue
        if not node.name or sum(other.name == node.name for other in model.graph.node) > 1:
            node.name = next(
                each for n in range(len(taken) + 1) if (each := f"{node.op_type}_{index + n}") not in taken
            )
            taken.add(node.name)
        module = module_name(node.name)
        module = module if module not in modules else node.name
        modules.add(module)
        found.append(Layer(module, node.name, node.op_type, node.input[0], node.input[1], node.output[0]))
    if not found:
        raise UsageError(f"{name} has no MatMul, Gemm or Conv with constant weights, so there is nothing to quantize")
    return found


def chosen_layers(layers: Sequence[Layer], exclude: Sequence[str]) -> list[Layer]:
    """Return the layers that no pattern names; ``*`` stands for anything.

    Raises:
        UsageError: a pattern names no layer, or nothing is left.
    """
    for pattern in exclude:
        if not any(fnmatch.fnmatch(layer.name, pattern) for layer in layers):
            shown = ", ".join(layer.name for layer in layers[:4])
            raise UsageError(f"--exclude {pattern} names no layer; there are {len(layers)}: {shown} …")
    kept = [layer for layer in layers if not any(fnmatch.fnmatch(layer.name, each) for each in exclude)]
    if not kept:
        raise UsageError("--exclude leaves no layer to quantize; name fewer")
    return kept


def keep_bias_apart(model: onnx.ModelProto, layers: Sequence[Layer]) -> None:
    """Give the bias that is added to a quantized product leading axes of 1.

    ONNX Runtime fuses MatMul and the Add of a vector into a float Gemm before it looks for quantized products, and
    would then compute in float (1.31). With leading axes the sum is the same, and MatMul becomes an integer product.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    results = {layer.result for layer in layers if layer.kind == "MatMul"}
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in [*graph.value_info, *graph.output]
        if value.type.tensor_type.HasField("shape")
    }
    for node in graph.node:
        if node.op_type != "Add" or node.domain not in STANDARD:
            continue
        for place, name in enumerate(node.input):
            product = node.input[1 - place]
            if product not in results or name not in weights or len(weights[name].dims) != 1:
                continue
            rank = ranks.get(product, ranks.get(node.output[0], 0))
            if rank > 2:
                apart = f"{name}_rank{rank}"
                if apart not in weights:
                    values = numpy_helper.to_array(weights[name])
                    weights[apart] = numpy_helper.from_array(values.reshape((1,) * (rank - 1) + (-1,)), apart)
                    graph.initializer.append(weights[apart])
                node.input[place] = apart
    drop_unused(model)


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove initializers that nothing reads."""
    read = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                return  # branches read names of the graph around them; leave all
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def weight_of(model: onnx.ModelProto, name: str) -> np.ndarray:
    """Return an initializer's values."""
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))
