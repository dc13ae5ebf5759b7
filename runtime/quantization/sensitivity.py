"""The error that quantization makes in each layer, and the layer's share of the time.

Every layer gets a quantized twin in one model: the network runs in float, and beside each layer its twin reads the same
float input. Signal and noise are summed up in the model, so one run a sample measures all layers.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from na_deploy.progress import Counted
from na_deploy.runtime.quantization.calibration import open_float
from na_deploy.runtime.quantization.layers import Layer


@dataclass(frozen=True)
class Sensitivity:
    """One layer's.

    Attributes:
        layer: its name.
        kind: ``MatMul``, ``Gemm`` or ``Conv``.
        decibels: power of the float result over that of the error, of this layer alone; infinite without error.
        time: share of the float model's time in this layer, 0 to 1.
    """

    layer: str
    kind: str
    decibels: float
    time: float


def measure(
    model: onnx.ModelProto,
    prepared: onnx.ModelProto,
    quantized: onnx.ModelProto,
    layers: Sequence[Layer],
    samples: Any,
    most: int,
    counted: Counted,
) -> list[Sensitivity]:
    """Return each layer's error on samples, the worst first.

    Args:
        model: the float model.
        prepared: the same as quantization takes it.
        quantized: the same with all layers quantized.
        layers: the layers.
        samples: see ``samples.Samples``.
        most: samples to run.
        counted: shows how far it is.
    """
    integers = all(tensor.data_type != TensorProto.FLOAT8E4M3FN for tensor in quantized.graph.initializer)
    session = open_float(_twins(prepared, quantized, layers), fuse=integers)
    names = [f"{part}{index}" for index in range(len(layers)) for part in ("signal.", "noise.")]
    totals = dict.fromkeys(names, 0.0)
    feeds = iter(samples)
    for _ in counted(range(min(most, len(samples))), "measuring each layer's error"):
        for name, value in zip(names, session.run(names, dict(next(feeds))), strict=True):
            totals[name] += float(value)
    times = _times(model, layers, next(iter(samples)))
    found = []
    for index, layer in enumerate(layers):
        signal, noise = totals[f"signal.{index}"], totals[f"noise.{index}"]
        decibels = 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else math.inf if not noise else -math.inf
        found.append(Sensitivity(layer.name, layer.kind, decibels, times[layer.node]))
    return sorted(found, key=lambda each: each.decibels)


def _twins(model: onnx.ModelProto, quantized: onnx.ModelProto, layers: Sequence[Layer]) -> onnx.ModelProto:
    """Return the float model with a quantized twin beside each layer, and the sums of squares as only outputs."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    names = {layer.node for layer in layers}
    twins = {node.name: node for node in quantized.graph.node if node.name in names}
    makers = {
        node.output[0]: node for node in quantized.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    }
    tensors = {tensor.name: tensor for tensor in quantized.graph.initializer}
    have = {tensor.name for tensor in graph.initializer}
    added = set[str]()

    def bring(value: str) -> None:
        if value in tensors and value not in have:
            have.add(value)
            graph.initializer.append(tensors[value])
        if value in makers and value not in added:
            added.add(value)
            for name in makers[value].input:
                bring(name)
            graph.node.append(makers[value])

    del graph.output[:]
    for index, layer in enumerate(layers):
        twin = onnx.NodeProto()
        twin.CopyFrom(twins[layer.node])
        rounded = f"twin.{index}"
        for name in twin.input:
            bring(name)
        twin.name, twin.output[0] = rounded, rounded
        graph.node.append(twin)
        for part, value in (("signal", layer.result), ("noise", f"error.{index}")):
            if part == "noise":
                graph.node.append(helper.make_node("Sub", [layer.result, rounded], [value]))
            wide = f"{part}.wide.{index}"
            graph.node.append(helper.make_node("Cast", [value], [wide], to=TensorProto.FLOAT))
            graph.node.append(helper.make_node("ReduceSumSquare", [wide], [f"{part}.{index}"], keepdims=0))
            graph.output.append(helper.make_tensor_value_info(f"{part}.{index}", TensorProto.FLOAT, []))
    return result


def _times(model: onnx.ModelProto, layers: Sequence[Layer], feeds: Any, runs: int = 5) -> dict[str, float]:
    """Return each layer's share of the time of the float model's nodes, by ONNX Runtime's profiler."""
    with tempfile.TemporaryDirectory(prefix="na-deploy-") as folder:
        session = open_float(model, enable_profiling=True, profile_file_prefix=str(Path(folder) / "profile"))
        for _ in range(runs):
            session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    durations: dict[str, list[float]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            durations.setdefault(name.removesuffix("_kernel_time"), []).append(event["dur"])
    spent = {name: statistics.median(each) for name, each in durations.items()}
    total = sum(spent.values()) or 1.0
    # Fused nodes keep the product's name, with what they were fused into behind a slash.
    own: dict[str, float] = {}
    for name, duration in spent.items():
        own[name.split("/")[0]] = own.get(name.split("/")[0], 0.0) + duration
    return {layer.node: (own.get(layer.node, own.get(layer.node.split("/")[0], 0.0))) / total for layer in layers}
