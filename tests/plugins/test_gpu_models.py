"""The benchmark of whole models on a GPU, on the CPU's provider: everything but the device is real."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from na_deploy.runtime.native_libraries import onnxruntime_library

pytestmark = pytest.mark.native


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("gpu_models")


def measured(benchmark: Any, path: Path, reference: Path, library: Path | None) -> list[dict[str, str]]:
    return list(benchmark.time_file(path, reference, library, benchmark.CPU, [1, 3], 3, 0.05))


def test_a_model_is_timed_at_every_batch_and_compared(benchmark: Any, write_model: Callable[..., Path]):
    path = write_model(batch="batch")
    rows = measured(benchmark, path, path, onnxruntime_library())
    assert [row["batch"] for row in rows] == ["1", "3"]
    for row in rows:
        assert row[benchmark.WHERE] == "CPU"
        for column in (benchmark.LIBRARY, benchmark.BODIES, benchmark.FLOOR, benchmark.LOADED, benchmark.RATE):
            assert float(row[column]) >= 0
        compared = (benchmark.DIFFERENCES[benchmark.LIBRARY], benchmark.DIFFERENCES[benchmark.LOADED])
        for column in (*compared, benchmark.EXACT, benchmark.IN_TURN):
            assert float(row[column]) < 1e-5


def test_other_scores_are_seen(benchmark: Any, write_model: Callable[..., Path]):
    path, other = write_model("a.onnx", batch="batch"), write_model("b.onnx", batch="batch", seed=1)
    for row in measured(benchmark, path, other, onnxruntime_library()):
        for column in (
            *(benchmark.DIFFERENCES[name] for name in (benchmark.LIBRARY, benchmark.BODIES)),
            benchmark.IN_TURN,
        ):
            assert float(row[column]) > 0.1


def test_a_candidate_that_fails_leaves_the_others(
    benchmark: Any, write_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = write_model(batch="batch")
    for row in measured(benchmark, path, path, tmp_path / "missing.so"):
        assert benchmark.LIBRARY not in row
        assert float(row[benchmark.BODIES]) >= 0
    assert "small.onnx, library, ms: " in capsys.readouterr().err
