"""Compiles the native tests once for all that need them."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pretended_cuda
import pytest

from na_deploy.runtime.native_libraries import onnxruntime_library, why_missing

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("cpu_library", Path(__file__).with_name("cpu_library.py"))
assert _spec is not None
assert _spec.loader is not None
cpu_library = importlib.util.module_from_spec(_spec)
sys.modules["cpu_library"] = cpu_library
_spec.loader.exec_module(cpu_library)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests of the native library where it could not be compiled, unless it was asked for."""
    if onnxruntime_library() is not None or os.environ.get("NA_DEPLOY_NATIVE") == "ON":
        return
    for item in items:
        if item.get_closest_marker("native"):
            item.add_marker(pytest.mark.skip(reason=f"the operator library is {why_missing()}"))


@pytest.fixture(scope="session")
def native_build() -> Path:
    """The folder of the compiled native tests, where the libraries of the package stand too."""
    return Path(cpu_library.build(ROOT / "build" / "tree"))


@pytest.fixture(scope="session")
def cpu(native_build: Path):
    return cpu_library.CpuLibrary(native_build)


@pytest.fixture(scope="session")
def gpu(native_build: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has a GPU, and our library for it."""
    library = native_build / "plugins/tests/libna_deploy_ort_with_gpu.so"
    made = pretended_cuda.environment(tmp_path_factory.mktemp("pretended_cuda"))
    return made | {"NA_DEPLOY_ORT_LIBRARY": str(library)}
