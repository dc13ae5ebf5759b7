"""``quantize``: from an exported file and samples to a file with int8 or fp8 products, its error measured."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from na_deploy.errors import UsageError, VerificationError
from na_deploy.files import check_output, staged_output
from na_deploy.model_file.graph import bytes_on_disk, load_weights, read_model
from na_deploy.models.metadata import ModelMetadata
from na_deploy.progress import Counted, Progress, silent, silently
from na_deploy.runtime.quantization.calibration import calibrate
from na_deploy.runtime.quantization.choices import FORMATS, METHODS, TARGETS
from na_deploy.runtime.quantization.insertion import insert
from na_deploy.runtime.quantization.layers import (
    Layer,
    chosen_layers,
    find_layers,
    keep_bias_apart,
)
from na_deploy.runtime.quantization.opset import lower_opset
from na_deploy.runtime.quantization.samples import read_samples
from na_deploy.runtime.quantization.sensitivity import Sensitivity, measure
from na_deploy.runtime.quantization.smoothing import smooth, smoothable
from na_deploy.runtime.quantization.trial import MEASURED, Trial, class_output, finds_objects
from na_deploy.runtime.session import load

STEPS = 16
"""Parts in which layers go back to float."""
USUAL = 100
"""Samples below which ranges are likely to be too narrow."""


@dataclass(frozen=True)
class QuantizationOptions:
    """Wishes.

    Attributes:
        kind: "int8" or "fp8", floating point of 8 bits (E4M3).
        target: "any", "tensorrt" or "cpu"; see :func:`~na_deploy.runtime.quantization.insertion.insert`.
        calibration: one of :data:`~na_deploy.runtime.quantization.choices.METHODS`.
        percentile: share of values in percent that "percentile" keeps.
        limit: most samples.
        exclude: layers to keep in float, by patterns of their names.
        max_drop: largest loss, in percentage points, of accuracy, or of answers equal to the float model's.
        smooth: move outliers of normalisations into weights where that helps.
    """

    kind: str = "int8"
    target: str = "any"
    calibration: str = "minmax"
    percentile: float = 99.99
    limit: int = 128
    exclude: tuple[str, ...] = ()
    max_drop: float | None = None
    smooth: bool = True

    def __post_init__(self) -> None:
        """Check each.

        Raises:
            UsageError: names the value and the possible ones.
        """
        for name, value, possible in (
            ("format", self.kind, FORMATS),
            ("target", self.target, TARGETS),
            ("calibration", self.calibration, METHODS),
        ):
            if value not in possible:
                raise UsageError(f"there is no {name} {value!r}; choose {', '.join(possible)}")
        if not 50 < self.percentile <= 100:
            raise UsageError(f"--percentile must lie above 50 and be at most 100, got {self.percentile:g}")
        if self.limit < 1:
            raise UsageError(f"--limit must be at least 1, got {self.limit}")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise UsageError(f"--max-drop is in percentage points, 0 to 100, got {self.max_drop:g}")


@dataclass(frozen=True)
class QuantizationReport:
    """The outcome.

    Attributes:
        path: the file written.
        options: as given.
        samples: those calibrated on, in words.
        layers: each layer's error and time, the worst first; of quantized layers and of those kept in float.
        kept: layers kept in float.
        smoothed: layers whose input's outliers moved into weights.
        bytes_before: size of the float file; likewise ``bytes_after``.
        difference: largest relative difference of an output to the float model's, on the samples measured; ``None`` for
            models that find objects, whose order changes.
        agreement: share of samples (of pixels, for segmenters) with the float model's class; ``None`` without classes.
        accuracy: shares of right classes before and after, where folders name them.
        seconds: time by step.
        warnings: sentences.
    """

    path: Path
    options: QuantizationOptions
    samples: str
    layers: tuple[Sensitivity, ...]
    kept: tuple[str, ...]
    smoothed: tuple[str, ...]
    bytes_before: int
    bytes_after: int
    difference: float | None
    agreement: float | None
    accuracy: tuple[float, float] | None
    seconds: Mapping[str, float]
    warnings: tuple[str, ...]


def quantize(
    source: Path,
    target: Path,
    options: QuantizationOptions | None = None,
    *,
    images: Path | None = None,
    data: Path | None = None,
    progress: Progress | None = None,
    counted: Counted | None = None,
) -> QuantizationReport:
    """Write a quantized copy of an exported file, and measure it.

    Args:
        source: an ONNX file in fp32 or fp16.
        target: the file to write.
        options: wishes.
        images: folder of pictures to calibrate on; with a folder for each class, classifiers are scored, too.
        data: .npz file of arrays by input name, or .npy file, in place of pictures.
        progress: called with a few words at each step.
        counted: shows how far a loop over samples is.

    Raises:
        UsageError: the file, the samples or an option do not fit; nothing is written.
        NaDeployError: a runtime failed.
        VerificationError: the written file does not run as it should, or no choice of layers keeps ``max_drop``.
    """
    options = options or QuantizationOptions()
    say, counted = progress or silent, counted or silently
    if (images is None) == (data is None):
        raise UsageError("give either --images, a folder of pictures, or --data, a .npz file; activations need samples")
    check_output(target, (source,), (".onnx",))
    model = read_model(source)
    size_before = bytes_on_disk(source, model)
    load_weights(source, model)
    found = find_layers(model, source.name)
    # TensorRT convolves in fp8 on few GPUs, and convolutions are a small part.
    layers = chosen_layers(found, options.exclude)
    layers = [layer for layer in layers if options.kind == "int8" or layer.kind != "Conv"]
    if not layers:
        raise UsageError(f"{source.name} has convolutions alone, which fp8 leaves in float; take --format int8")
    clock = _Clock()
    warnings = []
    with load(source) as session:
        if options.max_drop is not None and class_output(session) is None:
            raise UsageError(f"--max-drop compares classes, and {source.name} has none; choose layers with --exclude")
        objects = finds_objects(session)
        samples = read_samples(session, options.limit, images=images, data=data)
        if len(samples) < USUAL:
            warnings.append(
                f"calibrated on {len(samples)} {'sample' if len(samples) == 1 else 'samples'}; "
                f"{USUAL} or more are usual, rarer activations are cut off"
            )
        say("calibrating")
        sources = [layer.source for layer in layers] + [layer.result for layer in layers if layer.kind == "Conv"]
        detailed = [layer.source for layer in smoothable(model, layers)] if options.smooth else []
        statistics = calibrate(
            model, sources, samples, options.calibration, options.percentile, detailed=detailed, counted=counted
        )
        smoothed = smooth(model, layers, statistics) if options.smooth else []
        clock.lap("calibrate")
        say("quantizing")
        floats = _prepared(model, layers, options.kind)
        quantized = insert(floats, layers, statistics.ranges, options.kind, options.target)
        clock.lap("quantize")
        sensitivities = measure(model, floats, quantized, layers, samples, MEASURED, counted)
        clock.lap("measure")
        with staged_output(target) as staged:
            trial = Trial(session, samples, counted)
            kept: list[str] = []
            while True:
                say("comparing with the float model")
                _write(quantized, staged, session.metadata, options, samples.name, [*_left(found, layers), *kept])
                measured = trial.compare(staged)
                if options.max_drop is None or measured.drop <= options.max_drop:
                    break
                kept = _more(sensitivities, kept, options.max_drop)
                say(f"keeping {len(kept)} layers in float")
                chosen = [layer for layer in layers if layer.name not in kept]
                quantized = insert(
                    _prepared(model, chosen, options.kind), chosen, statistics.ranges, options.kind, options.target
                )
            size = bytes_on_disk(staged, quantized)
        clock.lap("compare")
    return QuantizationReport(
        target,
        options,
        samples.name,
        tuple(sensitivities),
        (*_left(found, layers), *kept),
        tuple(smoothed),
        size_before,
        size,
        None if objects else measured.worst.relative,
        measured.agreement,
        measured.accuracy,
        clock.laps,
        tuple(warnings),
    )


def _left(found: Sequence[Layer], layers: Sequence[Layer]) -> list[str]:
    return [layer.name for layer in found if layer not in layers]


def _prepared(model: onnx.ModelProto, layers: Sequence[Layer], kind: str) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    lower_opset(result)
    if kind == "int8":
        keep_bias_apart(result, layers)
    return result


def _more(order: Sequence[Sensitivity], kept: Sequence[str], limit: float) -> list[str]:
    """Return the most sensitive layers, a part of all more than before.

    Raises:
        VerificationError: that would be all.
    """
    count = len(kept) + max(1, len(order) // STEPS)
    if count >= len(order):
        raise VerificationError(
            f"no choice of layers keeps --max-drop {limit:g}: even the least sensitive lose more; calibrate on more "
            "samples or with --calibration percentile, or keep the model in float"
        )
    return [each.layer for each in order[:count]]


def _write(
    model: onnx.ModelProto,
    path: Path,
    metadata: ModelMetadata | None,
    options: QuantizationOptions,
    samples: str,
    kept: Sequence[str],
) -> None:
    """Save the model, with the way it was quantized in its metadata."""
    if metadata is not None:
        words = f"{options.calibration}, {samples.split(' in ')[0].split(' of ')[0]}, for {options.target}"
        changed = replace(
            metadata, quantized=options.kind, quantization=words + (f", {len(kept)} in float" if kept else "")
        )
        onnx.helper.set_model_props(
            model, {entry.key: entry.value for entry in model.metadata_props} | changed.to_props()
        )
    onnx.save(model, path)


class _Clock:
    """Seconds by step."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Close a step."""
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now
