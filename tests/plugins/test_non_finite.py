"""Infinity and NaN in the native kernels: who does not see them is untouched, the others get float64's answer."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cpu_library import DTYPES, Problem, aligned
from non_finite import Spoiled, assert_same, cases

pytestmark = pytest.mark.native
TOLERANCE = dict(zip(DTYPES, (2e-6, 3e-3, 2e-2), strict=True))


def problem_of(case: Spoiled, dim: int, dtype: np.dtype) -> tuple[Problem, Callable[[], None]]:
    """Return a problem, and what compares its result with float64's."""
    arrays = case.arrays(dim, dtype)
    placed = {}
    for name, array in arrays.items():
        placed[name] = aligned(array.size, dtype).reshape(array.shape)
        placed[name][...] = array
    first = [placed.pop(name) for name in ("qkv", "query", "key", "value") if name in placed]
    problem, expected = Problem(case.spec, *first, **placed), case.expected(arrays)

    def compare() -> None:
        assert problem.lse is not None
        assert_same(problem.output, expected.output, TOLERANCE[dtype])
        assert_same(problem.lse, expected.lse, 1e-5)

    return problem, compare


@pytest.fixture(scope="module")
def gpu(native_build: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(native_build / "plugins/tests/libna_deploy_cuda_emulated.so"))


FLOAT, HALF, BFLOAT = DTYPES
HOPPER = [(case, BFLOAT, 64) for case in cases() if case.number == np.inf]
"""Problems that Hopper's kernels take too."""


@pytest.mark.parametrize(
    ("case", "dtype", "dim"), [(case, dtype, 16) for case in cases() for dtype in (FLOAT, HALF)] + HOPPER, ids=str
)
def test_every_gpu_tactic_gives_the_answer_of_float64(gpu: ctypes.CDLL, case: Spoiled, dtype: np.dtype, dim: int):
    problem, compare = problem_of(case, dim, dtype)
    tactics = (ctypes.c_int32 * 16)()
    count = gpu.na_cuda_tactics(ctypes.byref(problem.params), tactics, len(tactics))
    assert count > 1
    for tactic in tactics[:count]:
        problem.output[...], problem.lse[...] = 7, 7
        assert gpu.na_forward_emulated(ctypes.byref(problem.params), tactic) == 0
        compare()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [case for case in cases() if not case.padding], ids=lambda case: case.name)
@pytest.mark.parametrize("dim", [24, 32])
def test_the_cpu_kernels_give_the_answer_of_float64(cpu, case: Spoiled, dtype: np.dtype, dim: int):
    """Padding is filled in by the adapter, before the kernels."""
    problem, compare = problem_of(case, dim, dtype)
    cpu.run(problem, cpu.plan(problem))
    compare()
