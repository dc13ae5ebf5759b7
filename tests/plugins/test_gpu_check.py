"""The timings of the check for GPUs, on a CPU: everything but the clock and the device is real."""

from __future__ import annotations

import ctypes
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.native
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


class EmulatedKernels:
    """The interface of gpu_check_build.Kernels over the emulated GPU."""

    def __init__(self, native_build: Path) -> None:
        self._library = ctypes.CDLL(str(native_build / "plugins/tests/libna_deploy_cuda_emulated.so"))

    def tactics(self, params: Any) -> list[int]:
        """Return the tactics of a problem, the default first."""
        return list(importlib.import_module("gpu_check_build").tactics_of(self._library, params))

    def launch(self, params: Any, tactic: int) -> None:
        """Compute a problem."""
        assert self._library.na_forward_emulated(ctypes.byref(params), tactic) == 0


@pytest.fixture
def timings(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("gpu_check_timings")

    def once(candidates: dict[str, Callable[[int], Any]], sets: int) -> dict[str, float]:
        for run in candidates.values():
            run(sets - 1)
        return {name: 1.0 + place for place, name in enumerate(candidates)}

    monkeypatch.setattr(module, "milliseconds", once)
    monkeypatch.setattr(module, "DEVICE", "cpu")
    monkeypatch.setattr(module, "MOST_SETS", 2)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    return module


def test_a_machine_without_a_gpu_is_told_so_in_a_sentence(tmp_path: Path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, str(BENCHMARKS / "gpu_check.py"), "--output", str(tmp_path / "results")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: PyTorch finds no GPU; run this where torch.cuda.is_available()\n"
    assert not (tmp_path / "results").exists()


def test_a_case_is_timed_beside_its_peers_and_checked(timings: Any, native_build: Path):
    case = timings.Case("stage", 1, (12, 10), 2, 32, (5, 3), (2, 1), bias=True, published_ms="3")
    row = timings.time_case(EmulatedKernels(native_build), case, peers=True)
    peers = {"full attention, SDPA", "dense mask, SDPA", "unfold, borders of zeros", "compiled flex"}
    assert peers < set(row["all"])
    ours = set(row["all"]) - peers - {timings.COPY}
    assert {"one pass, 4 warps", "8×8"} < ours
    assert len(ours) == 8  # three sizes of one pass, five shapes of tiles
    assert row["difference"] < 3e-3
    assert row["published, H100"] == "3"
    operations = 4.0 * 32 * (12 * 5) * (10 * 3) * 2
    assert row["TFLOP/s"] == pytest.approx(operations / 1e9)  # the best took a millisecond
    full = 4.0 * 32 * 120 * 120 * 2 / row["all"]["full attention, SDPA"]
    assert row["of full attention's rate"] == pytest.approx(operations / full)
    assert row["of copy"] == pytest.approx(row["all"][timings.COPY])


def test_hopper_s_kernels_are_timed_too(timings: Any, native_build: Path):
    case = timings.Case("1-D", 1, (300,), 1, 64, (200,), stride=(50,))
    row = timings.time_case(EmulatedKernels(native_build), case, peers=False)
    assert "Hopper 128" in row["all"]
    assert row["difference"] < 3e-3


def test_peers_with_inner_borders_agree_with_ours(timings: Any):
    """Unfold pads borders with zeros, unlike the operator; away from borders both compute the same."""
    case = timings.Case("stage", 1, (9, 11), 2, 8, (3, 3))
    query, key, value = torch.randn(3, 1, 2, 99, 8)
    found = timings.unfolded(case, query, key, value).view(1, 2, 9, 11, 8)
    at = [(y, x) for y in (3, 4, 5) for x in (4, 5, 6)]
    places = torch.tensor([y * 11 + x for y, x in at])
    weights = (query[:, :, 4 * 11 + 5 : 4 * 11 + 6] @ key[:, :, places].transpose(2, 3) * 8**-0.5).softmax(-1)
    torch.testing.assert_close(found[:, :, 4, 5], (weights @ value[:, :, places])[:, :, 0])
    flex = timings.compiled_flex(case, query, key, value)
    torch.testing.assert_close(flex(query, key, value)[:, :, 4 * 11 + 5], found[:, :, 4, 5])
