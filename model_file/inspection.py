"""Inspection of an exported model: its neighborhood attention layers and their share of the work.

Reads the file only; nothing is run. ``runtime/pictures/model.py`` draws the result, ``cli/inspect.py`` prints it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from na_deploy.attention import schema
from na_deploy.attention.cost import attention_cost
from na_deploy.attention.windows import NeighborhoodSpec
from na_deploy.errors import NaDeployError, UsageError
from na_deploy.model_file import graph
from na_deploy.model_file.description import description_of
from na_deploy.model_file.example_inputs import example_shapes, parse_inputs
from na_deploy.model_file.executions import Execution, executions
from na_deploy.model_file.flatten import is_flat
from na_deploy.model_file.products import Product, read_products, stored_weights
from na_deploy.model_file.tensors import TensorSpec
from na_deploy.models.metadata import ModelMetadata

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}


@dataclass(frozen=True)
class NeighborhoodLayer:
    """One neighborhood attention node. Sizes are those of one run with the inspected input size.

    Work and bytes of a node in a loop are those of all its turns.

    Attributes:
        name: the module's name in the model, such as ``levels.0.blocks.1.attn``.
        operator: the ONNX operator.
        batch: items in the batch.
        lengths: size of the map, one number per spatial axis.
        heads: query heads.
        head_dim: numbers per head in query and key.
        kernel_size: window per axis; likewise ``dilation``, ``stride`` and ``is_causal``.
        has_bias: true where a relative position bias is added.
        is_padded: true where the map may be smaller than a window; the node has keys for positions behind it.
        additional_keys: keys that every query attends to besides its window.
        dtype: element type of the tensors.
        tile: queries per tile and axis in the portable path.
        span: keys that a tile reads, per axis.
        multiply_adds: those of QKᵀ and PV over attended pairs; papers call these FLOPs.
        tiled_multiply_adds: the same over all pairs that tiles compute, masked ones included.
        memory_bytes: inputs and output, each counted once.
        share: the part of the multiply-adds of all layers, 0 to 1.
    """

    name: str
    operator: str
    batch: int
    lengths: tuple[int, ...]
    heads: int
    head_dim: int
    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...]
    stride: tuple[int, ...]
    is_causal: tuple[bool, ...]
    has_bias: bool
    is_padded: bool
    additional_keys: int
    dtype: str
    tile: tuple[int, ...]
    span: tuple[int, ...]
    multiply_adds: int
    tiled_multiply_adds: int
    memory_bytes: int
    share: float = 0.0

    @property
    def reach(self) -> tuple[int, ...]:
        """Size of the map that windows are laid over: ``lengths``, or more where they reach behind a small map."""
        axes = zip(self.lengths, self.kernel_size, self.dilation, strict=True)
        return tuple(max(length, kernel * step) for length, kernel, step in axes)

    @property
    def configuration(self) -> tuple[object, ...]:
        """The attributes that two layers share if they attend alike."""
        return (
            self.lengths,
            self.heads,
            self.head_dim,
            self.kernel_size,
            self.dilation,
            self.stride,
            self.is_causal,
        )


@dataclass(frozen=True)
class ModelSummary:
    """An exported model, read from its file.

    Attributes:
        path: the file.
        metadata: the exporter's record, ``None`` for a model from elsewhere.
        inputs: the model's inputs as declared; likewise ``outputs``.
        input_sizes: the sizes that the layers' figures hold for.
        opset: version of the standard operators.
        file_bytes: the file and the weight files beside it.
        parameters: numbers in floating-point initializers.
        nodes: nodes in the graph.
        functions: operators of na-deploy whose body the file carries.
        flat: functions were inlined: attention runs in standard operators, which stand for no layer.
        layers: neighborhood attention nodes in graph order.
        other_multiply_adds: those of MatMul, Gemm, Conv and ConvTranspose, in branches and loops too.
        parts: multiply-adds of a segmenter's or detector's parts by name, attention included; empty for other models.
        products: MatMul, Gemm and Conv nodes with constant weights, and the types they read.
        uncounted: matrix products and convolutions whose shapes the file does not state; they are not in
            ``other_multiply_adds``.
        counted_once: matrix products, convolutions and layers in loops that end when their work is done; one turn of
            each loop is counted.
        once_multiply_adds: those of that one turn.
    """

    path: Path
    metadata: ModelMetadata | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    input_sizes: Mapping[str, tuple[int, ...]]
    opset: int
    file_bytes: int
    parameters: int
    nodes: int
    functions: tuple[str, ...]
    flat: bool
    layers: tuple[NeighborhoodLayer, ...]
    other_multiply_adds: int
    uncounted: int
    counted_once: int = 0
    once_multiply_adds: int = 0
    parts: Mapping[str, int] = field(default_factory=dict)
    products: tuple[Product, ...] = ()

    @property
    def attention_multiply_adds(self) -> int:
        """Multiply-adds of all neighborhood attention layers."""
        return sum(layer.multiply_adds for layer in self.layers)

    @property
    def attention_share(self) -> float:
        """Neighborhood attention's part of the counted multiply-adds, 0 to 1."""
        total = self.attention_multiply_adds + self.other_multiply_adds
        return self.attention_multiply_adds / total if total else 0.0


@dataclass(frozen=True)
class LayerGroup:
    """Layers of the same configuration, with a name such as ``levels.0 blocks 0, 2``."""

    label: str
    layers: tuple[NeighborhoodLayer, ...]

    @property
    def share(self) -> float:
        """The group's part of the multiply-adds of all layers, 0 to 1."""
        return sum(layer.share for layer in self.layers)


def inspect_model(path: str | Path, sizes: Sequence[str] = ()) -> ModelSummary:
    """Read an exported model.

    Args:
        path: the ONNX file.
        sizes: of inputs with free axes, as users write them, ``1x3x512x512`` or ``name=1x3x512x512``; by default batch
            1 and what the model's metadata says.

    Raises:
        UsageError: the file does not exist, or the input size does not fit the model.
        NaDeployError: the file is not an ONNX model, or a neighborhood attention node in it is malformed.
    """
    path = Path(path)
    model = graph.read_model(path)
    described = description_of(model)
    inputs, metadata = described.inputs, described.metadata
    chosen = example_shapes(inputs, metadata, parse_inputs(sizes, [spec.name for spec in inputs]))
    executed = executions(model, graph.bind_sizes(inputs, chosen))

    layers = []
    other, uncounted, once = 0, 0, list[int]()
    parts: dict[str, int] = {}
    for each in executed:
        attends = each.node.domain == schema.DOMAIN
        if attends:
            layers.append(_layer(path, each))
        multiply_adds = layers[-1].multiply_adds if attends else each.multiply_adds
        other += 0 if attends else multiply_adds or 0
        uncounted += multiply_adds is None
        if each.counted_once and multiply_adds:
            once.append(multiply_adds)
        _count(parts, each, multiply_adds or 0)
    total = sum(layer.multiply_adds for layer in layers)
    return ModelSummary(
        path=path,
        metadata=metadata,
        inputs=inputs,
        outputs=described.outputs,
        input_sizes=chosen,
        opset=max((entry.version for entry in model.opset_import if entry.domain in graph.STANDARD), default=0),
        file_bytes=graph.bytes_on_disk(path, model),
        parameters=graph.parameter_count(model) + sum(math.prod(tensor.dims) for tensor in stored_weights(model)),
        nodes=len(model.graph.node),
        functions=tuple(function.name for function in model.functions if function.domain == schema.DOMAIN),
        flat=is_flat(model),
        layers=tuple(replace(layer, share=layer.multiply_adds / total if total else 0.0) for layer in layers),
        other_multiply_adds=other,
        uncounted=uncounted,
        counted_once=len(once),
        once_multiply_adds=sum(once),
        products=tuple(read_products(model, executed)),
        parts=parts if metadata is not None and metadata.head else {},
    )


LOOPS = "loops"
"""The part of a detector that reads regions and suppresses boxes: its nodes carry no module's name."""
_PARTS = {
    "backbone.": "backbone",
    "decode_head.": "head",
    "neck.": "pyramid",
    "rpn_head.": "proposals",
    "roi_head.bbox_head.": "boxes",
    "roi_head.mask_head.": "masks",
    "sem_seg_head.pixel_decoder.": "pixel decoder",
    "sem_seg_head.predictor.": "queries and masks",
}


def _count(parts: dict[str, int], executed: Execution, multiply_adds: int) -> None:
    """Add a node's work to the part of a segmenter or detector that its name says, or to that of the loops."""
    name = executed.node.name
    part = next((part for prefix, part in _PARTS.items() if name.startswith(prefix)), None)
    part = LOOPS if part is None and executed.nested else part
    if part is not None and multiply_adds:
        parts[part] = parts.get(part, 0) + multiply_adds


def group_layers(layers: Sequence[NeighborhoodLayer]) -> list[LayerGroup]:
    """Group layers that attend alike, in order of first appearance."""
    groups: dict[tuple[object, ...], list[NeighborhoodLayer]] = {}
    for layer in layers:
        groups.setdefault(layer.configuration, []).append(layer)
    return [LayerGroup(_label([layer.name for layer in group]), tuple(group)) for group in groups.values()]


def _layer(path: Path, executed: Execution) -> NeighborhoodLayer:
    node, shapes = executed.node, executed.shapes
    name = node.name or node.output[0]
    if node.op_type not in schema.OPERATORS:
        raise NaDeployError(f"{path}: node {name} has the operator {node.op_type}, which na_deploy does not define")
    packed = node.op_type == schema.PACKED_OPERATOR
    inputs = [_sizes(path, name, value, shapes) if value else None for value in node.input]
    query = cast("tuple[int, ...]", inputs[0])
    rank = len(query) - (4 if packed else 3)
    is_padded = packed and len(inputs) > 2 and inputs[2] is not None
    attributes = cast("dict[str, Any]", graph.attributes_of(node))
    try:
        spec = NeighborhoodSpec.create(
            rank, *(attributes.get(key, default) for key, default in _ATTRIBUTE_DEFAULTS.items())
        )
        lengths = query[1 : 1 + rank]
        if not is_padded:
            spec.check_lengths(lengths)
    except UsageError as error:
        raise NaDeployError(f"{path}: node {name}: {error}") from None
    batch, heads, head_dim = query[0], query[-2], query[-1]
    value_dim = head_dim if packed or inputs[2] is None else inputs[2][-1]
    bias_at = 1 if packed else 3
    has_bias = len(inputs) > bias_at and inputs[bias_at] is not None
    additional = 0 if packed or len(inputs) < 5 or inputs[4] is None else inputs[4][1]

    of_values = {"value_dim": value_dim, "additional": additional}
    cost = attention_cost(lengths, spec, heads, head_dim, batch=batch, **of_values, padded=is_padded)
    dtype = executed.types.get(node.input[0], "unknown")
    elements = sum(math.prod(sizes) for sizes in inputs if sizes is not None)
    elements += batch * math.prod(lengths) * heads * value_dim
    return NeighborhoodLayer(
        name=_module_name(name),
        operator=node.op_type,
        batch=batch,
        lengths=lengths,
        heads=heads,
        head_dim=head_dim,
        kernel_size=spec.kernel_size,
        dilation=spec.dilation,
        stride=spec.stride,
        is_causal=spec.is_causal,
        has_bias=has_bias,
        is_padded=is_padded,
        additional_keys=additional,
        dtype=dtype,
        tile=cost.tile,
        span=cost.span,
        multiply_adds=cost.multiply_adds * executed.times,
        tiled_multiply_adds=cost.tiled_multiply_adds * executed.times,
        memory_bytes=elements * _BYTES.get(dtype, 4) * executed.times,
    )


_ATTRIBUTE_DEFAULTS: dict[str, int] = {"kernel_size": 0, "dilation": 1, "stride": 1, "is_causal": 0}


def _sizes(path: Path, node: str, value: str, shapes: graph.Shapes) -> tuple[int, ...]:
    shape = shapes.get(value)
    if shape is None or any(isinstance(size, str) for size in shape):
        raise NaDeployError(
            f"{path}: the shape of {value}, an input of node {node}, is not stated in the file "
            f"({'×'.join(map(str, shape)) if shape else 'nothing'}); export the model again with na-deploy"
        )
    return cast("tuple[int, ...]", shape)


def _module_name(node_name: str) -> str:
    """Return the module path in a node name, without the operator's name that exporters append."""
    cleaned = node_name.strip("/").replace("/", ".")
    cleaned = re.sub(r"\.?(node_)?NeighborhoodAttention(QKV)?(_\d+)?$", "", cleaned)
    return cleaned or node_name


def _label(names: Sequence[str]) -> str:
    """Name a set of modules: those that differ in one number share a label, others are listed."""
    parts = [name.split(".") for name in names]
    numbered: dict[tuple[tuple[str, ...], str], list[int]] = {}
    for part in parts:
        numbers = [index for index, word in enumerate(part) if word.isdecimal()]
        if not numbers:
            return ", ".join(names)
        last = numbers[-1]
        owner = part[last - 1] if last else "layer"
        numbered.setdefault((tuple(part[: max(last - 1, 0)]), owner), []).append(int(part[last]))
    labels = []
    for (prefix, owner), values in numbered.items():
        word = owner if len(values) > 1 or not owner.endswith("s") else owner[:-1]
        labels.append(" ".join(filter(None, [".".join(prefix), word, _numbers(values)])))
    return "; ".join(labels)


def _numbers(values: Sequence[int]) -> str:
    """Write 0, 1, 2, 3 as ``0–3`` and 0, 2, 4, 6 as ``0, 2 … 6``."""
    step = values[1] - values[0] if len(values) > 1 else 1
    regular = all(b - a == step for a, b in pairwise(values))
    if len(values) > 2 and regular and step == 1:
        return f"{values[0]}–{values[-1]}"
    if len(values) > 3 and regular:
        return f"{values[0]}, {values[1]} … {values[-1]}"
    return ", ".join(map(str, values))
