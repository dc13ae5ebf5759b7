"""An exported file against its checkpoint, some time after the export: what ``na-deploy verify`` does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from torch import nn

from na_deploy.errors import NaDeployError, UsageError
from na_deploy.exporter.options import parse_shape
from na_deploy.exporter.verify import verify_layers
from na_deploy.exporter.verify_masks import judged
from na_deploy.model_file.description import metadata_of
from na_deploy.model_file.differences import Difference
from na_deploy.model_file.graph import read_model
from na_deploy.model_file.tolerances import TOLERANCE
from na_deploy.models.metadata import ModelMetadata
from na_deploy.models.recorded import load_recorded
from na_deploy.progress import Progress, silent


@dataclass(frozen=True)
class VerificationReport:
    """The comparison of a file with its checkpoint.

    Attributes:
        architecture: the model's name.
        dtype: the file's precision.
        input_shape: the input tried.
        tolerance: largest accepted relative difference.
        outputs: the file's outputs.
        layers: the neighborhood attention layers, in order of execution.
        warnings: remarks, such as a checkpoint other than the one the file was made from.
        network: the checkpoint's, in float32.
    """

    architecture: str
    dtype: str
    input_shape: tuple[int, ...]
    tolerance: float
    outputs: tuple[Difference, ...]
    layers: tuple[Difference, ...]
    warnings: tuple[str, ...]
    network: nn.Module = field(repr=False)

    @property
    def worst(self) -> Difference:
        """The largest relative difference of all outputs and layers."""
        return max((*self.outputs, *self.layers), key=lambda difference: difference.relative)

    @property
    def passed(self) -> bool:
        """True if every output and layer is within tolerance."""
        return self.worst.relative <= self.tolerance


def verify_checkpoint(
    checkpoint: str | os.PathLike[str],
    model: str | os.PathLike[str],
    *,
    arch: str | None = None,
    dilations: str | Sequence[Sequence[int]] | None = None,
    input: str | None = None,
    tolerance: float | None = None,
    progress: Progress | None = None,
) -> VerificationReport:
    """Compare every output and attention layer of ``model`` with ``checkpoint`` run in PyTorch float32.

    Args:
        checkpoint: the source of the file.
        model: the ONNX file.
        arch: architecture of the checkpoint; by default what the file's metadata says.
        dilations: dilations of the checkpoint; by default what the file's metadata says.
        input: input shape, as "1x3x224x224"; needed only where the file leaves sizes free and another is wanted.
        tolerance: largest accepted relative difference; by default that of the file's dtype.
        progress: called with a few words at each step.

    Raises:
        NaDeployError: a file cannot be read, or the two are not the same model.
        UsageError: the input does not fit the file.
    """
    report = progress or silent
    path = Path(model)
    proto = read_model(path)
    metadata = metadata_of(proto)
    if metadata is None:
        raise NaDeployError(f"{path.name} has no na-deploy metadata; export it with `na-deploy export` first")
    report("reading the checkpoint")
    dims = proto.graph.output[0].type.tensor_type.shape.dim
    rows = dims[1].dim_value if len(dims) > 1 else None
    loaded = load_recorded(Path(checkpoint), metadata, arch=arch, dilations=dilations, rows=rows)
    warnings = list(loaded.warnings)
    if loaded.metadata.source_sha256 != metadata.source_sha256:
        warnings.append(f"{path.name} was exported from another file than {Path(checkpoint).name} (hashes differ)")
    shape = _input_shape(proto, metadata, input)
    report("running both")
    limit = TOLERANCE[metadata.dtype] if tolerance is None else tolerance
    case = judged(loaded.module, path, shape, limit)
    if case.remark:
        warnings.append(case.remark)
    layers = verify_layers(loaded.module, path, shape)
    return VerificationReport(
        architecture=loaded.title,
        dtype=metadata.dtype,
        input_shape=shape,
        tolerance=limit,
        outputs=case.differences,
        layers=tuple(layers),
        warnings=tuple(warnings),
        network=loaded.module,
    )


def _input_shape(proto: onnx.ModelProto, metadata: ModelMetadata, given: str | None) -> tuple[int, int, int, int]:
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    own = metadata.input_size
    fixed = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
    if given is None:
        batch, channels, height, width = (own[axis] if size is None else size for axis, size in enumerate(fixed))
        return batch, channels, height, width
    shape = parse_shape(given)
    for size, wanted in zip(fixed, shape, strict=True):
        if size not in (None, wanted):
            expected = "x".join("any" if size is None else str(size) for size in fixed)
            raise UsageError(f"the file takes inputs of {expected}, got {given}")
    return shape
