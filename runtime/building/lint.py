"""The nodes of a model that a backend would refuse, with reasons, before its parser is asked.

Looks at names, versions and types in the file. It loads no weights and runs nothing; the backend's own parser has the
last word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from na_deploy.attention.schema import DOMAIN
from na_deploy.model_file.graph import STANDARD, read_model
from na_deploy.runtime.backend_names import ENGINE_BACKENDS

_SHOWN = 60
#: Operators of ONNX that TensorRT's parsers do not take in any form, by their operators.md.
_NOT_IN_TENSORRT = frozenset(
    [
        "AffineGrid",
        "Bernoulli",
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "CenterCropPad",
        "Col2Im",
        "ConcatFromSequence",
        "ConvInteger",
        "DFT",
        "Det",
        "GlobalLpPool",
        "LpPool",
        "MatMulInteger",
        "MaxRoiPool",
        "MaxUnpool",
        "MelWeightMatrix",
        "Multinomial",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "QLinearConv",
        "QLinearMatMul",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "SequenceMap",
        "SplitToSequence",
        "STFT",
        "StringNormalizer",
        "TfIdfVectorizer",
        "Unique",
    ]
)


@dataclass(frozen=True)
class RefusedNode:
    """A node that will be refused.

    Attributes:
        node: its name, or its place in the graph.
        operator: domain and operator.
        reason: the reason, and advice.
    """

    node: str
    operator: str
    reason: str

    def __str__(self) -> str:
        return f"node {self.node!r} ({self.operator}): {self.reason}"


def lint(path: Path, backend: str, plugins: bool = False) -> list[RefusedNode]:
    """Return the nodes of an ONNX file that ``backend`` would refuse.

    Args:
        path: the file.
        backend: ``onnxruntime``, ``openvino``, ``tensorrt`` or ``tensorrt-rtx``.
        plugins: true if the plugin or operator library will be registered, so that its nodes need no function body.

    Raises:
        UsageError: the file does not exist.
        NaDeployError: it is not an ONNX model.
    """
    model = read_model(path)
    return list(_refused_nodes(model, backend, plugins))


def _refused_nodes(model: onnx.ModelProto, backend: str, plugins: bool) -> Iterator[RefusedNode]:
    functions = {(function.domain, function.name): function for function in model.functions}
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    yield from _nodes(model.graph.node, opsets, functions, backend, plugins, "")
    used = {(node.domain, node.op_type) for node in model.graph.node}
    for key, function in functions.items():
        if key in used and not (plugins and key[0] == DOMAIN):
            own = {opset.domain: opset.version for opset in function.opset_import}
            yield from _nodes(function.node, own, functions, backend, plugins, f"{function.name} > ")
    if backend in ENGINE_BACKENDS:
        for value in model.graph.input:
            if value.type.tensor_type.elem_type == TensorProto.DOUBLE:
                yield RefusedNode(value.name, "input", "is float64, which TensorRT does not take; export in float32")


def _nodes(
    nodes: object,
    opsets: dict[str, int],
    functions: dict[tuple[str, str], onnx.FunctionProto],
    backend: str,
    plugins: bool,
    place: str,
) -> Iterator[RefusedNode]:
    for index, node in enumerate(nodes):  # type: ignore[arg-type, var-annotated]
        name = place + (node.name or f"#{index}")
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs]:
                yield from _nodes(graph.node, opsets, functions, backend, plugins, f"{name} > ")
        reason = _reason(node, opsets, functions, backend, plugins)
        if reason:
            yield RefusedNode(name[:_SHOWN], operator, reason)


def _reason(
    node: onnx.NodeProto,
    opsets: dict[str, int],
    functions: dict[tuple[str, str], onnx.FunctionProto],
    backend: str,
    plugins: bool,
) -> str | None:
    if (node.domain, node.op_type) in functions or (node.domain == DOMAIN and plugins):
        return None
    if node.domain == DOMAIN:
        return "the file holds no function body for it and no plugin is registered; export the model with na-deploy"
    if node.domain in STANDARD:
        version = opsets.get(node.domain, opsets.get("", 0))
        try:
            onnx.defs.get_schema(node.op_type, version, "")
        except onnx.defs.SchemaError:
            return f"ONNX's operator set {version} has no such operator; export the model again"
        if backend in ENGINE_BACKENDS and node.op_type in _NOT_IN_TENSORRT:
            return "TensorRT's ONNX parser has no such operator; change the model, or write a plugin for it"
        return None
    if backend == "onnxruntime" and node.domain in ("com.microsoft", "com.microsoft.nchwc", "ai.onnx.ml"):
        return None
    return (
        f"{backend} has no operators of domain {node.domain!r} and the file holds no function body; export without it"
    )
