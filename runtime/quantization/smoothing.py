"""Outliers of a normalisation's output moved into the weights that read it.

One channel that is far larger than the others takes the range of all. Dividing the channel by a factor, in the
LayerNormalization's own scale and bias, and multiplying the weights' row by it leaves the product as it is
(SmoothQuant, https://arxiv.org/abs/2211.10438). It is done where it lowers the layer's own error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from na_deploy.model_file.tensors import Array
from na_deploy.runtime.quantization.calibration import Statistics
from na_deploy.runtime.quantization.layers import Layer, weight_of

STRENGTH = 0.5
"""Share of the difficulty that moves into the weights, alpha in the paper."""


def smoothable(model: onnx.ModelProto, layers: Sequence[Layer]) -> dict[Layer, onnx.NodeProto]:
    """Return the normalisation of each MatMul that alone reads it, where scale and bias belong to it alone."""
    uses = Counter(name for node in model.graph.node for name in node.input)
    uses.update(value.name for value in model.graph.output)
    weights = {tensor.name for tensor in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node if node.op_type == "LayerNormalization"}
    found = {}
    for layer in layers:
        norm = makers.get(layer.source)
        if layer.kind != "MatMul" or norm is None or uses[layer.source] != 1 or uses[layer.weight] != 1:
            continue
        own = [name for name in norm.input[1:] if name]
        if all(name in weights and uses[name] == 1 for name in own):
            found[layer] = norm
    return found


def smooth(model: onnx.ModelProto, layers: Sequence[Layer], statistics: Statistics) -> list[str]:
    """Move outliers where that helps, in place, and return the names of those layers; ranges follow."""
    moved = []
    for layer, norm in smoothable(model, layers).items():
        rows, most = statistics.rows.get(layer.source), statistics.channels.get(layer.source)
        if rows is None or most is None or not len(rows):
            continue
        weight = weight_of(model, layer.weight).astype(np.float32)
        by_weight = np.abs(weight).max(1)
        usable = (most > 1e-6) & (by_weight > 1e-6)
        factor = np.ones_like(most)
        factor[usable] = most[usable] ** STRENGTH / by_weight[usable] ** (1 - STRENGTH)
        factor[usable] /= np.exp(np.log(factor[usable]).mean()) if usable.any() else 1.0
        factor = np.clip(factor, 1e-3, 1e3)
        if _error(rows / factor, weight * factor[:, None], most / factor) >= 0.9 * _error(rows, weight, most):
            continue
        for name in norm.input[1:]:
            if name:
                _replace(model, name, weight_of(model, name).astype(np.float32) / factor)
        _replace(model, layer.weight, weight * factor[:, None])
        low, high = statistics.ranges[layer.source]
        share = float((most / factor).max() / max(most.max(), 1e-12))
        statistics.ranges[layer.source] = (low * share, high * share)
        moved.append(layer.name)
    return moved


def _error(rows: Array, weight: Array, most: Array) -> float:
    """Return the squared error of a product of int8 rows with one scale and int8 weights with one for each column."""
    step = float(most.max()) / 127 or 1.0
    steps = np.abs(weight).max(0) / 127
    steps[steps == 0] = 1.0
    rounded = np.clip(np.round(rows / step), -127, 127) * step
    product = rounded @ (np.round(weight / steps) * steps)
    return float(np.square(product - rows @ weight).sum())


def _replace(model: onnx.ModelProto, name: str, values: Array) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    kind = numpy_helper.to_array(tensor).dtype
    tensor.CopyFrom(numpy_helper.from_array(values.astype(kind), name))
