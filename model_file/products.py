"""The products of a model with constant weights, and the types they read: of quantized files, the rounded ones.

Reads the graph only; nothing is run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from na_deploy.model_file.executions import Execution
from na_deploy.model_file.graph import STANDARD, element_type, graphs

KINDS = ("MatMul", "Gemm", "Conv")
_SHORT = {"float8e4m3fn": "fp8"}


@dataclass(frozen=True)
class Product:
    """A MatMul, Gemm or Conv with constant weights.

    Attributes:
        name: its module's, such as ``levels.0.blocks.1.attn.qkv``.
        kind: its operator.
        activations: element type that it reads, before it is widened again: "int8", "uint8", "fp8" or a float type.
        weights: element type that its weights are stored in.
        multiply_adds: of one run, one turn of loops of unknown length; 0 where the file does not state the shapes.
    """

    name: str
    kind: str
    activations: str
    weights: str
    multiply_adds: int


def read_products(model: onnx.ModelProto, executed: Sequence[Execution]) -> list[Product]:
    """Return the products in graph order, those in branches and loops too.

    Args:
        model: the model; its weights need not be in memory.
        executed: its nodes.
    """
    weights = {tensor.name: tensor for graph in graphs(model.graph) for tensor in graph.initializer}
    widened = {each.node.output[0]: each.node for each in executed if each.node.op_type == "DequantizeLinear"}

    def stored(value: str, types: Mapping[str, str]) -> str:
        node = widened.get(value)
        if node is None:
            return types.get(value, "unknown")
        zero = weights.get(node.input[2]) if len(node.input) > 2 else None
        kind = element_type(zero.data_type) if zero is not None else types.get(node.input[0], "uint8")
        return _SHORT.get(kind, kind)

    def constant(value: str) -> bool:
        return value in weights or (value in widened and widened[value].input[0] in weights)

    return [
        Product(
            module_name(node.name) if node.name else node.output[0],
            node.op_type,
            stored(node.input[0], each.types),
            stored(node.input[1], each.types),
            each.multiply_adds or 0,
        )
        for each in executed
        for node in (each.node,)
        if node.op_type in KINDS and node.domain in STANDARD and constant(node.input[1])
    ]


def module_name(node: str) -> str:
    """Return the module in a node's name, without the operator's name and number that exporters append."""
    return re.sub(r"[./]?(node_)?(MatMul|Gemm|Conv)(_\d+)?$", "", node.strip("/")).replace("/", ".") or node


def stored_weights(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Return the initializers that DequantizeLinear widens: quantized weights."""
    read = {node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return [tensor for tensor in model.graph.initializer if tensor.name in read]


def by_types(products: Sequence[Product]) -> dict[tuple[str, str, str], list[Product]]:
    """Group products by operator, type of activations and type of weights, in order of first appearance."""
    groups: dict[tuple[str, str, str], list[Product]] = {}
    for product in products:
        groups.setdefault((product.kind, product.activations, product.weights), []).append(product)
    return groups
