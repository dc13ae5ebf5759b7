"""Ranges of activations, over samples run in float: min-max, percentile and entropy, by ONNX Runtime's histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import numpy as np
import onnx

from na_deploy.errors import NaDeployError, one_line
from na_deploy.model_file.graph import ask_for
from na_deploy.model_file.tensors import Array
from na_deploy.progress import Counted
from na_deploy.runtime.native_libraries import onnxruntime_library, register

BINS = {"percentile": 2048, "entropy": 256}
ROWS = 512
"""Rows of an activation that are kept from all samples together, for decisions on single layers."""


@dataclass
class Statistics:
    """Statistics of activations, by value name.

    Attributes:
        ranges: smallest and largest number, after the method has cut outliers.
        rows: rows (N, channels) out of all samples.
        channels: largest magnitude of each channel (channels,), the last axis.
    """

    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    rows: dict[str, Array] = field(default_factory=dict)
    channels: dict[str, Array] = field(default_factory=dict)


def open_float(model: onnx.ModelProto, extra: Sequence[str] = (), fuse: bool = True, **settings: Any) -> Any:
    """Open a model in memory with the operator library, where it is installed.

    Args:
        model: weights in memory.
        extra: values that become outputs.
        fuse: false to compute rounded values as written, in float.
        settings: attributes of ONNX Runtime's session options.
    """
    import onnxruntime

    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    ask_for(asked, extra)

    def fresh() -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if not fuse:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        for name, value in settings.items():
            setattr(options, name, value)
        return options

    options, library = fresh(), onnxruntime_library()
    if library is not None:
        try:
            register(options, library)
        except NaDeployError:  # the function bodies run
            options = fresh()
    try:
        return onnxruntime.InferenceSession(asked.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise NaDeployError(f"onnxruntime cannot run the model for calibration: {one_line(error)}") from error


def calibrate(
    model: onnx.ModelProto,
    names: Sequence[str],
    samples: Any,
    method: str,
    percentile: float,
    *,
    detailed: Sequence[str] = (),
    counted: Counted,
) -> Statistics:
    """Run samples in float and return the ranges of activations.

    Args:
        model: the float model, weights in memory.
        names: values whose ranges are asked for.
        samples: see :class:`~na_deploy.runtime.quantization.samples.Samples`.
        method: one of :data:`~na_deploy.runtime.quantization.choices.METHODS`.
        percentile: share of values in percent that "percentile" keeps.
        detailed: values whose rows and channels are asked for, too.
        counted: shows how far it is.

    Raises:
        NaDeployError: ONNX Runtime fails, or an activation is not finite.
    """
    asked = list(dict.fromkeys([*names, *detailed]))
    session = open_float(model, asked)
    inputs = {each.name for each in session.get_inputs()}
    fetched = [name for name in asked if name not in inputs]
    found = Statistics()
    collector = None if method == "minmax" else _collector(method, percentile)
    feeds = iter(samples)
    kept: dict[str, list[Array]] = {name: [] for name in detailed}
    each_sample = max(1, ROWS // len(samples))
    random = np.random.default_rng(0)
    for _ in counted(range(len(samples)), "calibrating"):
        given = next(feeds)
        try:
            values = dict(zip(fetched, session.run(fetched, dict(given)), strict=True))
        except Exception as error:
            raise NaDeployError(f"onnxruntime cannot run the model on a sample: {one_line(error)}") from error
        values |= {name: given[name] for name in asked if name in inputs}
        for name, value in values.items():
            _take(found, name, value)
        for name in detailed:
            rows = values[name].reshape(-1, values[name].shape[-1])
            most = np.abs(rows).max(0, initial=0).astype(np.float32)
            found.channels[name] = np.maximum(found.channels.get(name, most), most)
            kept[name].append(rows[random.integers(0, len(rows), each_sample)].astype(np.float32))
        if collector is not None:
            _collect(collector, found, {name: values[name] for name in names})
    found.rows = {name: np.concatenate(parts) for name, parts in kept.items()}
    if collector is not None:
        found.ranges |= _cut(collector, found.ranges)
    return found


def _take(found: Statistics, name: str, value: Array) -> None:
    if not value.size:
        found.ranges.setdefault(name, (0.0, 0.0))
        return
    low, high = float(value.min()), float(value.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise NaDeployError(
            f"the activation {name} is not finite on a sample, so it has no range; check the data, and quantize "
            "the fp32 export where this is fp16"
        )
    before = found.ranges.get(name, (0.0, 0.0))  # zero is always in the range
    found.ranges[name] = (min(before[0], low), max(before[1], high))


def _collector(method: str, percentile: float) -> Any:
    from onnxruntime.quantization.calibrate import HistogramCollector

    return HistogramCollector(method, True, BINS[method], 128, percentile, "same")


def _collect(collector: Any, found: Statistics, values: Mapping[str, Array]) -> None:
    """Add values to the histograms; those that were all zero so far have none yet."""
    varied = {
        name: [value.astype(np.float32)]
        for name, value in values.items()
        if value.size and found.ranges[name] != (0.0, 0.0)
    }
    if varied:
        with redirect_stdout(StringIO()):
            collector.collect(varied)


def _cut(collector: Any, whole: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Return the ranges that the histograms give, inside those of all values; zero stays in."""
    if not collector.histogram_dict:
        return {}
    with redirect_stdout(StringIO()):
        computed = collector.compute_collection_result()
    result = {}
    for name, values in computed.items():
        low, high = (float(np.asarray(value).reshape(-1)[0]) for value in values[:2])
        if np.isfinite(low) and np.isfinite(high) and low < high:
            result[name] = (max(min(low, 0.0), whole[name][0]), min(max(high, 0.0), whole[name][1]))
    return result
