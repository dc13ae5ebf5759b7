"""TensorRT and CUDA that are not there: fakes of their Python modules, in this process and in those it starts."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from na_deploy.runtime.building.build import build
from na_deploy.runtime.building.options import BuildOptions
from na_deploy.runtime.tensorrt.api import load_module
from na_deploy.runtime.tensorrt.cuda import load_cuda

FAKES = Path(__file__).parent / "fakes"
_NAMES = ("tensorrt", "tensorrt_rtx", "cuda", "fake_tensorrt", "fake_tensorrt_run", "fake_tensorrt_build")


def _forget() -> dict[str, Any]:
    load_module.cache_clear()
    load_cuda.cache_clear()
    names = [name for name in sys.modules if name.split(".")[0] in _NAMES]
    return {name: sys.modules.pop(name) for name in names}


class Machine:
    """The pretended machine: a GPU, CUDA, and one version of TensorRT."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    @property
    def cuda(self) -> Any:
        """The fake CUDA runtime's module."""
        return import_module("cuda.bindings.runtime")

    @property
    def state(self) -> Any:
        """Return the state of the fake CUDA runtime."""
        return self.cuda.STATE

    def set(self, **variables: object) -> None:
        """Set environment variables, here and for child processes; a new version of TensorRT is imported anew."""
        for name, value in variables.items():
            self._monkeypatch.setenv(name, str(value))
        if "FAKE_TENSORRT" in variables:
            _forget()


@pytest.fixture(params=["10", "11"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine with TensorRT 10, and one with 11; everything that was allocated on it must be freed."""
    kept = _forget()
    path = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FAKES), *([path] if path else [])]))
    monkeypatch.setenv("NA_DEPLOY_TRT_LIBRARY", "")
    monkeypatch.syspath_prepend(str(FAKES))
    found = Machine(monkeypatch)
    found.set(FAKE_TENSORRT=request.param)
    yield found
    leaks = found.state.leaks()
    _forget()
    sys.modules.update(kept)
    assert not any(leaks.values()), leaks


@pytest.fixture
def plugin_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library that the fake's registry takes for ours."""
    library = tmp_path / "libna_deploy_trt.so"
    library.write_text('{"operators": ["NeighborhoodAttention", "NeighborhoodAttentionQKV"]}')
    monkeypatch.setenv("NA_DEPLOY_TRT_LIBRARY", str(library))
    return library


@pytest.fixture(scope="session")
def built_bundles() -> dict[str, Path]:
    """Bundles built so far, by version: building takes a second."""
    return {}


@pytest.fixture
def bundle(
    machine: Machine,
    built_bundles: dict[str, Path],
    write_model: Callable[..., Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A bundle for TensorRT, of a model with batches from 1 to 8, and a folder of its own."""
    version = os.environ["FAKE_TENSORRT"]
    if version not in built_bundles:
        built_bundles[version] = tmp_path_factory.mktemp("bundle") / "small.bundle"
        options = BuildOptions(backend="tensorrt", batch=(1, 2, 8))
        build(write_model(batch="batch"), built_bundles[version], options)
    return Path(shutil.copytree(built_bundles[version], tmp_path / "small.bundle"))


@pytest.fixture
def engine(bundle: Path) -> Path:
    """The engine of the bundle, as a file without manifest."""
    target = bundle.parent / "small.engine"
    target.write_bytes((bundle / "model.engine").read_bytes())
    return target


def images(batch: int, seed: int = 0) -> np.ndarray:
    """Random input of the small model."""
    return np.random.default_rng(seed).standard_normal((batch, 3, 32, 32), dtype=np.float32)


@pytest.fixture
def make_images() -> Callable[..., np.ndarray]:
    return images
