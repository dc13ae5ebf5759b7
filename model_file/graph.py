"""Reading an ONNX file's structure: shapes, parameters, sizes on disk, arithmetic of the standard operators.

Runs nothing, and loads weights that lie in external files in :func:`load_weights` alone. Knows nothing of neighborhood
attention.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx
from onnx import TensorProto, ValueInfoProto, external_data_helper, helper

from na_deploy.errors import NaDeployError, UsageError
from na_deploy.model_file.symbolic_dims import dimension_value
from na_deploy.model_file.tensors import Dimension, TensorSpec, format_shape

Shapes = dict[str, tuple[Dimension, ...]]


def read_model(path: Path) -> onnx.ModelProto:
    """Read an ONNX file without the weights it keeps in other files.

    Raises:
        UsageError: the file does not exist.
        NaDeployError: the file is not an ONNX model, or is damaged.
    """
    if not path.is_file():
        given = "is not a file" if path.exists() else "does not exist"
        raise UsageError(f"{path} {given}; give the path of an exported .onnx file")
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception:  # protobuf's DecodeError, which has several homes
        model = onnx.ModelProto()
    if not model.graph.node or not model.opset_import:
        raise NaDeployError(f"{path} is not an ONNX model, or is damaged; give a file written by `na-deploy export`")
    return model


def tensor_specs(values: list[ValueInfoProto], skip: frozenset[str] = frozenset()) -> tuple[TensorSpec, ...]:
    """Return the specs of graph inputs or outputs, less those named in ``skip``."""
    return tuple(
        TensorSpec(value.name, element_type(value.type.tensor_type.elem_type), _dimensions(value))
        for value in values
        if value.name not in skip
    )


STANDARD = ("", "ai.onnx")
"""Names of the domain of ONNX's own operators."""


def element_type(code: int) -> str:
    """Return the name of an ONNX element type, ``float32`` for ``TensorProto.FLOAT``."""
    if code == TensorProto.UNDEFINED:
        return "unknown"
    name: str = TensorProto.DataType.Name(code).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def known_types(graph: onnx.GraphProto, sizes: Mapping[str, int]) -> tuple[Shapes, dict[str, str]]:
    """Return shape and element type by value name, as far as the file states them.

    Args:
        graph: a model's, or that of a branch or loop, without what is around it.
        sizes: values of the names that dynamic dimensions are written in, from :func:`bind_sizes`.
    """
    shapes: Shapes = {}
    types: dict[str, str] = {}
    for value in [*graph.value_info, *graph.input, *graph.output]:
        if value.type.HasField("tensor_type"):
            types[value.name] = element_type(value.type.tensor_type.elem_type)
            if value.type.tensor_type.HasField("shape"):
                shapes[value.name] = tuple(_bound(size, sizes) for size in _dimensions(value))
    for tensor in graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
        types[tensor.name] = element_type(tensor.data_type)
    return shapes, types


def _bound(size: Dimension, sizes: Mapping[str, int]) -> Dimension:
    value = size if isinstance(size, int) else dimension_value(size, sizes)
    return size if value is None else value


def bind_sizes(inputs: tuple[TensorSpec, ...], wanted: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the values that dynamic dimensions take when the inputs have the sizes ``wanted``.

    Raises:
        UsageError: a size does not fit the input's declared shape, or contradicts another.
    """
    sizes: dict[str, int] = {}
    for spec in inputs:
        given = wanted[spec.name]
        fits = len(given) == len(spec.shape) and all(
            size == declared if isinstance(declared, int) else sizes.setdefault(declared, size) == size
            for declared, size in zip(spec.shape, given, strict=True)
        )
        if not fits:
            shown = "×".join(map(str, given))
            raise UsageError(
                f"input {spec.name} is {format_shape(spec.shape)} in the model, which {shown} does not fit"
            )
    return sizes


def parameter_count(model: onnx.ModelProto) -> int:
    """Return the number of values in floating-point initializers."""
    floating = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
    return sum(
        math.prod(tensor.dims)
        for graph in graphs(model.graph)
        for tensor in graph.initializer
        if tensor.data_type in floating
    )


def bytes_on_disk(path: Path, model: onnx.ModelProto) -> int:
    """Return the size of the file and of the weight files beside it; missing ones count as nothing."""
    others = [path.parent / name for name in weight_files(model)]
    return path.stat().st_size + sum(other.stat().st_size for other in others if other.is_file())


def load_weights(path: Path, model: onnx.ModelProto) -> None:
    """Read the weights into a model that keeps them in files beside its own, ``path``."""
    onnx.load_external_data_for_model(model, str(path.resolve().parent))


def ask_for(model: onnx.ModelProto, names: Iterable[str]) -> None:
    """Add values to the outputs of a model, in place; those that it gives or takes already stay as they are."""
    known = {value.name: value for value in model.graph.value_info}
    given = {value.name for value in [*model.graph.output, *model.graph.input]}
    for name in names:
        if name not in given:
            given.add(name)
            model.graph.output.append(known.get(name) or ValueInfoProto(name=name))


def weight_files(model: onnx.ModelProto) -> list[str]:
    """Return the names of the files beside the model that hold its initializers."""
    locations = (
        external_data_helper.ExternalDataInfo(tensor).location
        for graph in graphs(model.graph)
        for tensor in graph.initializer
        if external_data_helper.uses_external_data(tensor)
    )
    return list(dict.fromkeys(locations))


def embed_weights(model: onnx.ModelProto, weights: Mapping[str, bytes]) -> None:
    """Put weights into the model that it keeps in files.

    Args:
        model: changed in place; what is in none of the files stays outside.
        weights: content of files by the names that the model calls them.
    """
    for graph in graphs(model.graph):
        for tensor in graph.initializer:
            if not external_data_helper.uses_external_data(tensor):
                continue
            info = external_data_helper.ExternalDataInfo(tensor)
            data = weights.get(info.location)
            if data is None:
                continue
            start = info.offset or 0
            tensor.raw_data = data[start : len(data) if info.length is None else start + info.length]
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and those of its branches and loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from graphs(inner)


def matrix_multiply_adds(node: onnx.NodeProto, shapes: Shapes) -> int | None:
    """Return the multiply-adds of a MatMul, Gemm, Conv or ConvTranspose; ``None`` where a shape is not known.

    Other operators count as 0; beside these their arithmetic is negligible.
    """
    if node.domain not in STANDARD or node.op_type not in ("MatMul", "Gemm", "Conv", "ConvTranspose"):
        return 0
    first, second, result = (_sizes(shapes, name) for name in (node.input[0], node.input[1], node.output[0]))
    if node.op_type == "ConvTranspose":
        return None if first is None or second is None else math.prod(first) * math.prod(second[1:])
    if node.op_type == "Conv":
        if second is None or result is None:
            return None
        return math.prod(result) * math.prod(second[1:])
    if node.op_type == "Gemm":
        if first is None or second is None:
            return None
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        rows, depth = first[::-1] if attributes.get("transA") else first
        columns = second[0] if attributes.get("transB") else second[1]
        return rows * depth * columns
    if first is None or second is None:
        return None
    if result is None:
        if len(second) != 2:
            return None
        return math.prod(first) * second[-1]
    return math.prod(result) * first[-1]


def _sizes(shapes: Shapes, name: str) -> tuple[int, ...] | None:
    shape = shapes.get(name)
    if shape is None:
        return None
    sizes = tuple(size for size in shape if isinstance(size, int))
    return sizes if len(sizes) == len(shape) else None


def _dimensions(value: ValueInfoProto) -> tuple[Dimension, ...]:
    return tuple(
        dimension.dim_value if dimension.HasField("dim_value") else dimension.dim_param or f"{value.name}.{axis}"
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim)
    )


def attributes_of(node: onnx.NodeProto) -> dict[str, object]:
    """Return a node's attributes by name, as Python values."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
