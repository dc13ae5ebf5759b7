"""Fixtures that tests of several folders use."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from operator_table import share_operator_table
from small_models import small_model

from na_deploy.exporter.collector import THRESHOLDS


def pytest_configure() -> None:
    """Make PyTorch's table of operators once for all exports of a process; search for garbage as rarely as they do."""
    share_operator_table()
    gc.set_threshold(*THRESHOLDS)


LONGEST_FIRST = (
    "plugins/test_gpu_kernels.py",
    "third_party/",
    "exporter/test_segmenters.py",
    "plugins/",
    "runtime/tensorrt_rtx/",
    "model_file/test_flatten.py",
    "exporter/",
    "examples/",
    "serving/",
    "deployment/test_triton_server.py",
    "test_documents.py",
    "runtime/tensorrt/",
    "test_public_api.py",
    "cli/",
    "models/",
)
"""Files whose tests take longest, for processes that share the work to end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""

    def rank(item: pytest.Item) -> int:
        path = item.path.relative_to(Path(__file__).parent).as_posix()
        return next((i for i, start in enumerate(LONGEST_FIRST) if path.startswith(start)), len(LONGEST_FIRST))

    items.sort(key=rank)


@pytest.fixture(scope="session")
def small_model_maker() -> Callable[..., onnx.ModelProto]:
    """Return :func:`small_model`, for fixtures that make one model for many tests."""
    return small_model


@pytest.fixture
def write_model(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes :func:`small_model` with its arguments into a file."""

    def write(name: str = "small.onnx", **options: object) -> Path:
        path = tmp_path / name
        onnx.save(small_model(**options), path)  # type: ignore[arg-type]
        return path

    return write
