"""Engines of TensorRT-RTX, built by its real parser and builder; neither needs a GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from na_deploy.errors import MissingDependencyError
from na_deploy.runtime.building.options import BuildOptions
from na_deploy.runtime.bundle.manifest import Profile
from na_deploy.runtime.tensorrt.api import RTX, load_module
from na_deploy.runtime.tensorrt.building import EngineReport, build_engine

Shape = Sequence[int]
Profiles = Mapping[str, tuple[Shape, Shape, Shape]]


@dataclass(frozen=True)
class Built:
    """A build's report and the size of its engine."""

    report: EngineReport
    engine_bytes: int


def require_rtx() -> None:
    """Skip the test where TensorRT-RTX is not installed."""
    try:
        load_module(RTX)
    except MissingDependencyError as error:
        pytest.skip(str(error))


def build_rtx_engine(model: Path, profiles: Profiles | None = None, timeout_s: float = 900.0) -> Built:
    """Build and discard an engine.

    Args:
        model: an ONNX file.
        profiles: smallest, usual and largest shape of each input with free sizes.
        timeout_s: seconds after which the build is given up.
    """
    require_rtx()
    ranges = {name: Profile(*(tuple(shape) for shape in shapes)) for name, shapes in (profiles or {}).items()}
    with tempfile.TemporaryDirectory(prefix="na-deploy-") as folder:
        engine = Path(folder) / "model.engine"
        report = build_engine(model, engine, BuildOptions(RTX.backend, profiles=ranges, timeout_s=timeout_s))
        return Built(report, engine.stat().st_size)
