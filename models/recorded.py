"""The network that an exported file was made from, loaded from its checkpoint as the file's metadata says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from na_deploy.models.architecture_evidence import DILATED_KINDS
from na_deploy.models.loading import LoadedModel, load_model
from na_deploy.models.metadata import DETECTORS, ModelMetadata
from na_deploy.models.registry import normalise


def load_recorded(
    checkpoint: str | Path,
    metadata: ModelMetadata,
    *,
    arch: str | None = None,
    dilations: str | Sequence[Sequence[int]] | None = None,
    rows: int | None = None,
) -> LoadedModel:
    """Load a checkpoint with the architecture, dilations, levels and task of a file that was exported from it.

    Args:
        checkpoint: the file's source.
        metadata: the file's.
        arch: architecture in place of the file's.
        dilations: dilations in place of the file's.
        rows: second size of the file's first output; a detector's detections.

    Raises:
        As :func:`~na_deploy.models.loading.load_model`.
    """
    return load_model(
        checkpoint,
        **recorded_arguments(metadata, arch, dilations),
        out_indices=metadata.config.out_indices if metadata.config and metadata.task == "backbone" else None,
        detections=rows if metadata.head in DETECTORS else None,
    )


def recorded_arguments(
    metadata: ModelMetadata, arch: str | None = None, dilations: str | Sequence[Sequence[int]] | None = None
) -> dict[str, Any]:
    """Return architecture, dilations and task of a file's checkpoint, as ``load_model`` and ``load`` take them."""
    return {
        "arch": arch or (None if dilations else metadata.architecture),
        "dilations": dilations or _dilations(metadata, arch),
        "task": metadata.task if metadata.head else None,
    }


def _dilations(metadata: ModelMetadata, arch: str | None) -> tuple[tuple[int, ...], ...] | None:
    """Return the file's dilations, but where an architecture is asked for that brings its own."""
    if arch is None or normalise(arch) in (normalise(metadata.architecture), *DILATED_KINDS):
        return metadata.dilations or None
    return None
