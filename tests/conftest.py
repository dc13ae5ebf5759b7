"""Fixtures that tests of several folders use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from small_models import small_model


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
