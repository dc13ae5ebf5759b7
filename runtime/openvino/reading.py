"""ONNX files as OpenVINO's graphs: with the operator library's nodes in them where it is there, else flattened."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx.inliner

from na_deploy.attention.schema import DOMAIN, OPERATORS
from na_deploy.errors import NaDeployError
from na_deploy.model_file.flatten import flatten, foreign_operators, is_flat
from na_deploy.model_file.graph import load_weights
from na_deploy.runtime.native_libraries import openvino_library
from na_deploy.runtime.openvino.library import AXES, OpenVinoLibrary
from na_deploy.runtime.session import SessionOptions

if TYPE_CHECKING:
    from na_deploy.runtime.openvino.operators import OperatorNodes


@dataclass
class Graph:
    """A model as OpenVINO compiles it.

    Attributes:
        model: an ``openvino.Model``.
        nodes: its attention nodes in the operator library; ``None`` where attention is standard operators.
    """

    model: Any
    nodes: OperatorNodes | None = None

    def failure(self) -> str | None:
        """Return a node's sentence about inputs or attributes that it refused, once; ``None`` where there is none."""
        return self.nodes.failures.popleft() if self.nodes is not None and self.nodes.failures else None

    @property
    def library(self) -> Path | None:
        """The operator library's file, where attention runs in it."""
        return None if self.nodes is None else self.nodes.library.path


def read_graph(core: Any, path: Path, model: onnx.ModelProto, options: SessionOptions, bfloat16: bool) -> Graph:
    """Read an ONNX file with OpenVINO.

    Args:
        core: an ``openvino.Core`` for this model alone.
        path: the file.
        model: the same, read without weights that lie beside it.
        options: custom_operators and library say whether the operator library is used, and its file.
        bfloat16: attention in the library reads and writes bfloat16.

    Raises:
        NaDeployError: the file cannot be flattened.
        Exception: OpenVINO refuses the file; its own words.
    """
    library = operator_library(options) if options.custom_operators and _holds_attention(model) else None
    if library is not None:
        others = sorted({(function.domain, function.name) for function in model.functions} - _attention())
        inlined = _inlined(path, model, others) if others else model
        if _takes_operators(inlined):
            from na_deploy.runtime.openvino.operators import OperatorNodes

            _check_attributes(path, inlined)
            nodes = OperatorNodes(core, library)
            in_memory = bool(others) or options.manifest is not None
            graph = core.read_model(_serialized(path, inlined) if in_memory else str(path))
            nodes.complete(graph, bfloat16)
            return Graph(graph, nodes)
    return Graph(core.read_model(_flat_bytes(path, model)))


def operator_library(options: SessionOptions) -> OpenVinoLibrary | None:
    """Return the operator library, loaded; ``None`` where it is not there, with a warning where it does not load."""
    path = options.library or openvino_library()
    if path is None:
        return None
    try:
        return OpenVinoLibrary(path)
    except NaDeployError as error:
        warnings.warn(f"{error}; the model runs on its function bodies", RuntimeWarning, stacklevel=4)
        return None


def _attention() -> set[tuple[str, str]]:
    return {(DOMAIN, name) for name in OPERATORS}


def _holds_attention(model: onnx.ModelProto) -> bool:
    return any(opset.domain == DOMAIN for opset in model.opset_import)


def _takes_operators(model: onnx.ModelProto) -> bool:
    """Return whether OpenVINO and the library know all nodes, with attention nowhere but at the top."""
    at_top = {(node.domain, node.op_type) for node in model.graph.node}
    inside = {(node.domain, node.op_type) for graph in _inner_graphs(model.graph) for node in graph.node}
    ours = _attention()
    return bool(ours & at_top) and not ours & inside and ours.issuperset(foreign_operators(model.graph))


def _check_attributes(path: Path, model: onnx.ModelProto) -> None:
    """Refuse attributes of another type than the operators', for which OpenVINO has no words."""
    expected = dict.fromkeys(AXES, (onnx.AttributeProto.INTS, "a list of integers (INTS), one per spatial axis"))
    expected["scale"] = (onnx.AttributeProto.FLOAT, "a number (FLOAT)")
    for node in model.graph.node:
        if (node.domain, node.op_type) not in _attention():
            continue
        for attribute in node.attribute:
            kind, words = expected.get(attribute.name, (attribute.type, ""))
            if attribute.type != kind:
                raise NaDeployError(
                    f"{path}: {node.op_type} node {node.name!r}: the attribute {attribute.name} must be {words}"
                )


def _inner_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield attribute.g
                yield from _inner_graphs(attribute.g)


def _inlined(path: Path, model: onnx.ModelProto, functions: list[tuple[str, str]]) -> onnx.ModelProto:
    load_weights(path, model)
    return onnx.inliner.inline_selected_functions(model, functions)


def _flat_bytes(path: Path, model: onnx.ModelProto) -> bytes:
    load_weights(path, model)
    return _serialized(path, model if is_flat(model) else flatten(model))


def _serialized(path: Path, model: onnx.ModelProto) -> bytes:
    try:
        content: bytes = model.SerializeToString()
        return content
    except ValueError:  # protobuf's limit of 2 GiB
        raise NaDeployError(
            f"{path} is too large to be read into memory; write a flat file with: na-deploy flatten {path}"
        ) from None
