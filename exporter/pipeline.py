"""Checkpoint to verified ONNX file: the steps of ``na-deploy export``, in order."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from na_deploy.errors import UsageError, VerificationError
from na_deploy.exporter import passes
from na_deploy.exporter.file_check import check_file
from na_deploy.exporter.options import PARTS, ExportOptions, parse_dynamic, parse_shape
from na_deploy.exporter.saving import drop_stale_weights, save
from na_deploy.exporter.tracing import trace
from na_deploy.exporter.verify import VerificationCase, refusal
from na_deploy.exporter.verify_masks import judged
from na_deploy.files import check_output, staged_output
from na_deploy.models import LoadedModel, load_model
from na_deploy.progress import Progress, silent

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class ExportReport:
    """The written file, and its agreement with the PyTorch model.

    Attributes:
        path: the ONNX file.
        files: every file written, the ONNX file first.
        architecture: the model's name.
        options: the request, with the shape filled in.
        nodes: operators in the graph, function bodies not counted.
        attention_layers: neighborhood attention nodes among them.
        cases: verification results, one for each input shape tried.
        warnings: remarks of the checkpoint loader, and on runtimes that cannot run the file.
        seconds: time taken by each step.
    """

    path: Path
    files: tuple[Path, ...]
    architecture: str
    options: ExportOptions
    nodes: int
    attention_layers: int
    cases: tuple[VerificationCase, ...]
    warnings: tuple[str, ...]
    seconds: dict[str, float]

    @property
    def size(self) -> int:
        """Bytes written."""
        return sum(path.stat().st_size for path in self.files)

    @property
    def difference(self) -> float:
        """The largest relative difference to PyTorch float32."""
        return max(case.worst for case in self.cases)


def export(
    source: str | os.PathLike[str] | LoadedModel,
    output: str | os.PathLike[str] | None = None,
    *,
    arch: str | None = None,
    dilations: str | Sequence[Sequence[int]] | None = None,
    out_indices: Sequence[int] | None = None,
    part: str = "whole",
    task: str | None = None,
    detections: int | None = None,
    input: str | Sequence[int] | None = None,
    dynamic: str | Sequence[str] = (),
    dtype: str = "fp32",
    opset: int | None = None,
    external_data: bool = False,
    tolerance: float | None = None,
    flat: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Turn a NAT or DiNAT checkpoint into one ONNX file, verified in ONNX Runtime before it is kept.

    Args:
        source: a checkpoint (``.pth``, ``.safetensors``, a Hugging Face folder, ``hf://owner/name``), or an already
            loaded model.
        output: the file to write; by default the source's name with ``.onnx``, in the current folder.
        arch: architecture name (``na-deploy models``); needed where the weights alone do not settle it.
        dilations: dilations by preset name or text, where they differ from the architecture's own.
        out_indices: levels whose feature maps a backbone returns.
        part: "whole", or "backbone" for the feature maps of a segmenter or a detector.
        task: "semantic", "instance" or "panoptic", for segmenters: how answers are read, and what OneFormer is asked.
        detections: rows of a detector's outputs; by default as many as its configuration says, 100 for most.
        input: example size, as "1x3x224x224" or four numbers; by default the architecture's own.
        dynamic: "batch", "spatial" or both: dimensions left free.
        dtype: "fp32", "fp16" or "bf16".
        opset: ONNX operator set.
        external_data: write weights to a file beside the model whatever their size.
        tolerance: largest accepted relative difference to PyTorch float32.
        flat: write standard operators only, without functions: for runtimes that know none (:mod:`flatten`).
        progress: called with a few words at each step.

    Returns:
        What was written and measured.

    Raises:
        UsageError: a request that cannot be met.
        CheckpointError: the checkpoint cannot be read or is not such a model.
        VerificationError: the file differs from PyTorch beyond the tolerance; it is not kept.
    """
    given = {} if opset is None else {"opset": opset}
    options = ExportOptions(
        shape=None if input is None else parse_shape(input if isinstance(input, str) else "x".join(map(str, input))),
        dynamic=parse_dynamic([dynamic] if isinstance(dynamic, str) else dynamic),
        dtype=dtype,
        external_data=external_data,
        tolerance=tolerance,
        flat=flat,
        **given,
    )
    if output is not None:
        check_output(Path(output), () if isinstance(source, LoadedModel) else (Path(source),), (".onnx",))
    report = progress or silent
    clock = _Clock()
    if isinstance(source, LoadedModel):
        loaded = source
    else:
        if part not in PARTS:
            raise UsageError(f"unknown part {part!r}; choose one of {', '.join(PARTS)}")
        report("reading the checkpoint")
        loaded = load_model(
            os.fspath(source),
            arch=arch,
            dilations=dilations,
            out_indices=out_indices,
            backbone=part == "backbone",
            task=task,
            detections=detections,
        )
    clock.lap("read")
    if output is None:
        name = loaded.metadata.source_name or loaded.architecture
        output = Path(name).with_suffix(".onnx").name
    target = Path(output)
    shape = options.shape or (1, loaded.config.in_channels, *loaded.input_size)
    options = replace(options, shape=shape)
    preprocessing = loaded.metadata.preprocessing
    if "spatial" not in options.dynamic or preprocessing.mode != "shortest-side":
        preprocessing = preprocessing.with_size(shape[2:])
    metadata = replace(loaded.metadata, preprocessing=preprocessing)
    check_size(loaded, shape, options)

    with staged_output(target) as staged:
        report("tracing")
        names = list(loaded.output_names)
        smallest = loaded.config.total_stride + 1
        model = trace(loaded.module, _traced_shape(loaded, shape, options), names, options, smallest)
        clock.lap("trace")
        report("writing")
        passes.finish(model, metadata.architecture, options.opset)
        model.metadata_props.update(replace(metadata, dtype=options.dtype, inputs={"image": shape}).to_props())
        files = save(model, staged, external_data=options.external_data, flat=options.flat)
        nodes, layers = len(list(model.graph)), len(passes.attention_nodes(model))
        del model
        clock.lap("write")
        report("verifying in ONNX Runtime")
        no_kernels = check_file(staged)
        limit = options.accepted_difference
        shapes = verification_shapes(loaded, shape, options)
        cases = [judged(loaded.module, staged, each, limit) for each in shapes]
        clock.lap("verify")
        for case in cases:
            for found in case.differences:
                if not found.relative <= options.accepted_difference:
                    size = "x".join(map(str, case.input_shape))
                    raise VerificationError(refusal(target.name, found, size, options.accepted_difference))
    drop_stale_weights(target, files)
    return ExportReport(
        path=target,
        files=tuple(target.with_name(path.name) for path in files),
        architecture=loaded.title,
        options=options,
        nodes=nodes,
        attention_layers=layers,
        cases=tuple(cases),
        warnings=(*loaded.warnings, *([no_kernels] if no_kernels else [])),
        seconds=clock.laps,
    )


def check_size(loaded: LoadedModel, shape: tuple[int, int, int, int], options: ExportOptions) -> None:
    """Refuse images of other channels, or smaller than one step of the network's last level.

    Raises:
        UsageError: names the channels or the smallest size.
    """
    channels = loaded.config.in_channels
    if shape[1] != channels:
        raise UsageError(
            f"an input of {'x'.join(map(str, shape))} has {shape[1]} channels, {loaded.architecture} takes {channels}; "
            f"give {shape[0]}x{channels}x{shape[2]}x{shape[3]}"
        )
    least = loaded.config.total_stride
    if min(shape[2:]) < least:
        raise UsageError(
            f"an input of {shape[2]}x{shape[3]} is too small for {loaded.architecture}, which reduces images {least} "
            f"times; use at least {least}x{least}"
        )
    if loaded.config.fixed_map:
        side = loaded.config.kernel_size * loaded.config.patch_size
        if "spatial" in options.dynamic or shape[2:] != (side, side):
            raise UsageError(f"{loaded.architecture} attends over its whole map and takes images of {side}x{side} only")


def _traced_shape(loaded: LoadedModel, shape: Shape, options: ExportOptions) -> Shape:
    """Return the shape to trace with: free sizes are large enough that no map has a side of 1, which would be fixed."""
    if "spatial" not in options.dynamic:
        return shape
    least = 2 * loaded.config.total_stride
    return (*shape[:2], max(shape[2], least), max(shape[3], least))


def verification_shapes(loaded: LoadedModel, shape: tuple[int, int, int, int], options: ExportOptions) -> list[Shape]:
    """Return the shapes to verify: the example's and, where sizes are free, others.

    A smaller and a larger image, neither square nor a multiple of anything, reach the padding of small maps and odd
    sizes.
    """
    batch, channels, height, width = shape
    other = batch + 1 if "batch" in options.dynamic else batch
    if "spatial" not in options.dynamic:
        return [shape] if other == batch else [shape, (other, channels, height, width)]
    least = loaded.config.total_stride
    small = (batch, channels, max(least, height // 3 + 2), max(least, width // 2 - 3))
    return list(dict.fromkeys([shape, small, (other, channels, height + 37, width + 81)]))


class _Clock:
    """Seconds since the last lap, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now
