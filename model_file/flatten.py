"""Flat models: functions inlined, planning folded into constants, standard operators only.

Runtimes that know ONNX's operators and not its model-local functions (OpenVINO, tract, IREE, converters of NPU vendors)
read the result. Free dimensions stay free. Whatever does not depend on the model's inputs is computed once, here, by
ONNX Runtime. All other nodes stay as they are, unlike in a file that ONNX Runtime itself writes, where casts for the
processor at hand surround float16 nodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference

from na_deploy.errors import NaDeployError, one_line
from na_deploy.model_file.graph import load_weights, read_model

EXTERNAL_DATA_BYTES = 2_000_000_000
"""A protobuf file cannot pass 2 GiB; larger weights go to a file beside the model."""

FOLD_LIMIT = 64 << 20
"""Bytes of the largest tensor that is stored instead of computed at run time."""

FLAT = "na_deploy.flat"
"""Metadata property of flat files: "1"."""

_STANDARD = frozenset({"", "ai.onnx", "ai.onnx.ml"})
Values = NDArray[Any]

_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)

_ROUNDED = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""Operators that stay: quantized weights are stored as integers, and runtimes look for these nodes."""


def flatten(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with standard operators only.

    Args:
        model: with its weights in memory; it is not changed.

    Raises:
        NaDeployError: the model holds operators that are neither standard nor functions of its own.
    """
    flat = (
        onnx.inliner.inline_local_functions(model)
        if model.functions
        else onnx.ModelProto.FromString(model.SerializeToString())
    )
    foreign = [f"{domain}.{kind}" for domain, kind in foreign_operators(flat.graph)]
    if foreign:
        raise NaDeployError(
            f"the model cannot be flattened: {', '.join(foreign)} is no standard operator and no function of the file"
        )
    try:
        _fold(flat)
        _drop_copies(flat)
    except shape_inference.InferenceError as error:
        raise NaDeployError(f"the model cannot be flattened, its shapes contradict: {one_line(error)}") from error
    used = {domain for domain, _ in _operators(flat.graph)}
    opsets = [opset for opset in flat.opset_import if opset.domain in used or opset.domain == ""]
    del flat.opset_import[:]
    flat.opset_import.extend(opsets)
    helper.set_model_props(flat, {entry.key: entry.value for entry in model.metadata_props} | {FLAT: "1"})
    return flat


def flatten_file(source: Path, target: Path) -> list[Path]:
    """Write a flat copy of an ONNX file, with weights beside it where it would pass protobuf's 2 GiB.

    Args:
        source: the file; its weights may lie beside it.
        target: the file to write; may be ``source``.

    Returns:
        The files written, the model first.

    Raises:
        UsageError: the file does not exist.
        NaDeployError: it is not an ONNX model, or holds operators of others.
    """
    model = read_model(source)
    load_weights(source, model)
    flat = flatten(model)
    beside = target.with_name(f"{target.name}.data")
    if sum(tensor.ByteSize() for tensor in flat.graph.initializer) <= EXTERNAL_DATA_BYTES:
        onnx.save(flat, target)
        return [target]
    beside.unlink(missing_ok=True)  # onnx appends to an old one
    onnx.save(flat, target, save_as_external_data=True, location=beside.name)
    return [target, beside]


def is_flat(model: onnx.ModelProto) -> bool:
    """Return whether :func:`flatten` wrote the model."""
    return any(entry.key == FLAT for entry in model.metadata_props)


def foreign_operators(graph: onnx.GraphProto) -> list[tuple[str, str]]:
    """Return domain and name of the graph's operators that are not ONNX's own."""
    return sorted((domain, kind) for domain, kind in _operators(graph) if domain not in _STANDARD)


def _operators(graph: onnx.GraphProto) -> set[tuple[str, str]]:
    return {(node.domain, node.op_type) for node in _all_nodes(graph)}


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _all_nodes(attribute.g)


def _fold(model: onnx.ModelProto) -> None:
    """Replace every value that does not depend on inputs by a constant, until nothing more is found.

    Each round knows more: a folded shape fixes the dimensions of a Reshape, whose result's Shape is then constant.
    """
    while True:
        types = _types(model)
        values = _known_shapes(model, types)
        computed = _constant_nodes(model, types)
        results = _results(model, computed, types)
        if results:
            found = _evaluate(model, computed, results)
            # OpenVINO takes an empty constant for a scalar 0; as the result of ConstantOfShape it is read right.
            values |= {name: value for name, value in found.items() if value.size}
        if not values:
            return
        kept = [node for node in model.graph.node if not (set(node.output) & values.keys())]
        del model.graph.node[:]
        model.graph.node.extend(kept)
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
        _drop_unused(model)


def _drop_unused(model: onnx.ModelProto) -> None:
    """Remove nodes and initializers that no output depends on."""
    graph = model.graph
    wanted = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(_reads(node))
    del graph.node[:]
    graph.node.extend(reversed(kept))
    initializers = [tensor for tensor in graph.initializer if tensor.name in wanted]
    del graph.initializer[:]
    graph.initializer.extend(initializers)
    made = {name for node in graph.node for name in node.output}
    described = [value for value in graph.value_info if value.name in made]
    del graph.value_info[:]
    graph.value_info.extend(described)


def _drop_copies(model: onnx.ModelProto) -> None:
    """Remove Identity and casts to the type a value already has; CastLike becomes Cast, which more runtimes know."""
    types = _types(model)
    outputs = {value.name for value in model.graph.output}
    renamed: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        source = types.get(node.input[0]) if node.input else None
        target = types.get(node.output[0])
        if node.op_type == "CastLike" and target is not None and target.elem_type:
            node.CopyFrom(helper.make_node("Cast", node.input[:1], node.output, name=node.name, to=target.elem_type))
        same = source is not None and target is not None and source.elem_type == target.elem_type
        copies = node.op_type == "Identity" or (node.op_type == "Cast" and same)
        if copies and node.output[0] not in outputs and not node.domain:
            renamed[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    for node in kept:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _rename_reads(attribute.g, renamed)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    _drop_unused(model)


def _rename_reads(graph: onnx.GraphProto, renamed: dict[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _rename_reads(attribute.g, renamed)
    for value in graph.output:
        value.name = renamed.get(value.name, value.name)


def _types(model: onnx.ModelProto) -> dict[str, Any]:
    """Return the tensor types of all values, as far as inference tells, from a copy without large weights."""
    sketch = onnx.ModelProto()
    sketch.CopyFrom(_without_weights(model))
    del sketch.graph.value_info[:]
    inferred = shape_inference.infer_shapes(sketch, data_prop=True)
    graph = inferred.graph
    types = {value.name: value.type.tensor_type for value in [*graph.value_info, *graph.input, *graph.output]}
    for tensor in graph.initializer:
        types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims).tensor_type
    return types


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with weights above 1 KB as inputs: shape inference copies a model several times."""
    sketch = onnx.ModelProto()
    sketch.ir_version = model.ir_version
    sketch.opset_import.extend(model.opset_import)
    graph = sketch.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) > 1024:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        else:
            graph.initializer.append(tensor)
    return sketch


def _known_shapes(model: onnx.ModelProto, types: dict[str, Any]) -> dict[str, Values]:
    """Return the results of Shape nodes over values whose dimensions are all known."""
    shapes = {}
    for node in model.graph.node:
        if node.op_type == "Shape" and not node.domain:
            sizes = _dimensions(types.get(node.input[0]))
            if sizes is not None:
                given = {attribute.name: attribute.i for attribute in node.attribute}
                shapes[node.output[0]] = np.array(sizes[given.get("start", 0) : given.get("end")], np.int64)
    return shapes


def _constant_nodes(model: onnx.ModelProto, types: dict[str, Any]) -> list[onnx.NodeProto]:
    """Return the nodes that depend on no input, in order, less those on bfloat16, which ONNX Runtime cannot run."""
    constant = {tensor.name for tensor in model.graph.initializer if tensor.data_type != TensorProto.BFLOAT16}
    found = []
    for node in model.graph.node:
        if node.op_type in _RANDOM | _ROUNDED or any(
            attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute
        ):
            continue
        if any(_is_bfloat16(types.get(name)) for name in node.output):
            continue
        if all(name in constant for name in node.input if name):
            constant.update(name for name in node.output if name)
            found.append(node)
    return found


def _is_bfloat16(kind: Any) -> bool:
    return kind is not None and kind.elem_type == TensorProto.BFLOAT16


def _dimensions(kind: Any) -> tuple[int, ...] | None:
    if kind is None or not kind.HasField("shape"):
        return None
    sizes = kind.shape.dim
    return tuple(size.dim_value for size in sizes) if all(size.HasField("dim_value") for size in sizes) else None


def _results(model: onnx.ModelProto, computed: list[onnx.NodeProto], types: dict[str, Any]) -> list[str]:
    """Return the computed values that others need: read by a node that stays, or outputs of the graph.

    A value too large to store is not asked for; the node that makes it stays, and reads constants.
    """
    made = {name for node in computed for name in node.output if name}
    kinds = {name: types.get(name) for name in made}

    def storable(name: str) -> bool:
        sizes = _dimensions(kinds[name])
        return sizes is None or math.prod(sizes) * 4 <= FOLD_LIMIT

    stays = {id(node) for node in computed if not all(storable(name) for name in node.output if name)}
    readers = [node for node in model.graph.node if id(node) in stays or not (set(node.output) & made)]
    read = {name for node in readers for name in _reads(node)} | {value.name for value in model.graph.output}
    unstorable = {name for node in computed if id(node) in stays for name in node.output}
    return sorted((read & made) - unstorable)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            for inner in attribute.g.node:
                yield from _reads(inner)
            yield from (value.name for value in attribute.g.output)


def _evaluate(model: onnx.ModelProto, computed: list[onnx.NodeProto], results: list[str]) -> dict[str, Values]:
    """Return the values of ``results``, computed by ONNX Runtime from a model of the nodes they need."""
    import onnxruntime

    producers = {name: node for node in computed for name in node.output if name}
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    needed: dict[int, onnx.NodeProto] = {}
    tensors: dict[str, onnx.TensorProto] = {}
    open_values = list(results)
    while open_values:
        name = open_values.pop()
        if name in initializers:
            tensors[name] = initializers[name]
        elif name in producers and id(producers[name]) not in needed:
            needed[id(producers[name])] = producers[name]
            open_values += [value for value in producers[name].input if value]
    graph = helper.make_graph(
        [node for node in computed if id(node) in needed],
        "constants",
        [],
        [onnx.ValueInfoProto(name=name) for name in results],
        list(tensors.values()),
    )
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return dict(zip(results, session.run(results, {}), strict=True))
    except Exception as error:
        raise NaDeployError(f"ONNX Runtime cannot fold the model's constants: {one_line(error)}") from error
