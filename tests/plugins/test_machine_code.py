"""The GPU kernels' machine code, executed by the interpreter of tests/support/sass: it agrees with float64.

nvcc compiles it from plugins/cuda as for the library; the launch and its parameters are those of the host's own code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cpu_library import Params, Problem, aligned
from non_finite import Spoiled, assert_same
from sass.compiling import MissingToolError, Unit, find_cuobjdump, find_nvcc
from sass.launching import execute, load_unit, place, record_problem
from sass.listing import Instruction
from sass.machine import Machine

from na_deploy.attention.reference import reference_attention, reference_attention_qkv
from na_deploy.attention.windows import NeighborhoodSpec

KINDS = {"float": np.dtype(np.float32), "Half": np.dtype(np.float16), "Bfloat": np.dtype(ml_dtypes.bfloat16)}
TOLERANCE = {"float": 2e-6, "Half": 3e-3, "Bfloat": 2e-2}
"""Largest difference relative to the largest output, as for the emulated kernels."""
PLAIN = 1


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    try:
        find_nvcc()
        find_cuobjdump()
    except MissingToolError as error:
        pytest.skip(str(error))


@dataclass(frozen=True)
class Case:
    """A problem of random numbers."""

    lengths: tuple[int, ...]
    kernel_size: tuple[int, ...]
    dilation: Sequence[int] | int = 1
    stride: Sequence[int] | int = 1
    is_causal: Sequence[bool] | bool = False
    batch: int = 1
    heads: int = 2
    key_heads: int = 0
    """Heads of keys and values where tensors are apart; 0 for packed qkv."""
    value_dim: int = 0
    additional: int = 0
    bias: bool = False
    padding: bool = False
    lse: bool = True
    scale: float = 0.0

    def make(self, kind: str, dim: int) -> tuple[Problem, Any]:
        """Return the problem and the result of float64."""
        random, dtype = np.random.default_rng(7), KINDS[kind]

        def normal(*shape: int) -> np.ndarray:
            array = aligned(int(np.prod(shape)), dtype).reshape(shape)
            array[...] = random.normal(size=shape)
            return array

        spec = NeighborhoodSpec.create(len(self.lengths), self.kernel_size, self.dilation, self.stride, self.is_causal)  # type: ignore[arg-type]
        options: dict[str, Any] = {}
        if self.bias:
            options["rel_pos_bias"] = normal(self.heads, *(2 * k - 1 for k in self.kernel_size))
        if self.key_heads == 0:
            tensors = [normal(self.batch, *self.lengths, 3, self.heads, dim)]
            if self.padding:
                options["padding"] = normal(3, self.heads, dim)
        else:
            value_dim = self.value_dim or dim
            tensors = [normal(self.batch, *self.lengths, self.heads, dim)]
            tensors += [normal(self.batch, *self.lengths, self.key_heads, channels) for channels in (dim, value_dim)]
            if self.additional:
                shape = (self.batch, self.additional, self.key_heads)
                options["additional_key"], options["additional_value"] = normal(*shape, dim), normal(*shape, value_dim)
        problem = Problem(spec, *tensors, scale=self.scale, lse=self.lse, **options)
        arrays = {name: array.astype(np.float64) for name, array in options.items()}
        reference = reference_attention_qkv if self.key_heads == 0 else reference_attention
        wide = [tensor.astype(np.float64) for tensor in tensors]
        return problem, reference(*wide, spec, scale=self.scale or None, **arrays)


def run(unit: Unit, case: Case, dim: int = 0) -> Machine:
    """Execute a case and compare it with float64."""
    problem, expected = case.make(unit.kind, dim or unit.dim)
    problem.output[...] = np.nan
    arrays = {**problem.arrays, "output": problem.output, "lse": problem.lse}
    if problem.lse is not None:
        problem.lse[...] = np.nan
    machine = execute(unit, problem.params, arrays)
    difference = np.abs(problem.output.astype(np.float64) - expected.output).max()
    assert difference < TOLERANCE[unit.kind] * np.abs(expected.output).max()
    if problem.lse is not None:
        assert np.abs(problem.lse - expected.lse).max() < 1e-5 * np.abs(expected.lse).max()
    return machine


NAT = Case((13, 17), (7, 7), batch=2, bias=True)


def told(value: object) -> str | None:
    """Name a test's unit."""
    if not isinstance(value, Unit):
        return ""
    return f"{value.kind} {value.dim} tactic {value.tactic} sm_{value.architecture}"


TF32 = Case((150,), (37,), stride=5, key_heads=1, value_dim=16, additional=9, scale=0.4)


@pytest.mark.parametrize(
    ("unit", "case"),
    [
        (Unit("Half", 32, 4, "90a"), NAT),
        (Unit("Half", 32, 4, "80"), NAT),
        (Unit("Half", 32, 10, "90a"), Case((4, 23), (7, 7), (1, 2), bias=True, padding=True)),
        pytest.param(
            Unit("Bfloat", 64, 6, "90a"),
            Case((19, 9), (5, 3), (2, 1), is_causal=(False, True), lse=False),
            marks=pytest.mark.slow,
        ),
        (Unit("float", 32, 2, "90a"), TF32),
        pytest.param(Unit("float", 32, 2, "80"), TF32, marks=pytest.mark.slow),
        (Unit("Half", 128, 7, "80"), Case((5, 9, 6), (3, 5, 4), stride=(1, 2, 1), heads=1)),
    ],
    ids=told,
)
def test_the_tile_kernels_machine_code_agrees_with_float64(unit: Unit, case: Case):
    machine = run(unit, case)
    taken, least = machine.wavefronts.sum(0)
    assert taken >= least > 0


@pytest.mark.parametrize(
    ("kind", "architecture", "case"),
    [
        ("Half", "90a", Case((6, 9), (5, 7), (1, 2), padding=True, bias=True)),
        ("Half", "80", Case((6, 9), (5, 7), (1, 2), padding=True, bias=True)),
        ("float", "80", Case((11,), (4,), key_heads=1, additional=3, is_causal=True)),
        ("Bfloat", "90a", Case((3, 4, 5), (2, 3, 3), stride=(1, 2, 1))),
    ],
    ids=told,
)
def test_the_plain_kernels_machine_code_agrees_with_float64(kind: str, architecture: str, case: Case):
    run(Unit(kind, 0, PLAIN, architecture), case, dim=33)


@pytest.mark.parametrize(
    ("unit", "case"),
    [
        (Unit("Half", 128, 21), Case((20, 37), (11, 30), stride=(1, 3), heads=1)),
        (Unit("Half", 64, 20), Case((300,), (201,), heads=2, key_heads=1, additional=150)),
        (Unit("Bfloat", 64, 23), Case((3, 9, 14), (2, 7, 11), is_causal=(True, False, False), bias=True, heads=1)),
    ],
    ids=told,
)
def test_hoppers_machine_code_agrees_with_float64(unit: Unit, case: Case):
    machine = run(unit, case)
    taken, least = machine.wavefronts.sum(0)
    assert taken == least > 0


@pytest.mark.parametrize(
    ("unit", "case"),
    [
        (Unit("Half", 32, 30), Case((17, 15), (7, 7), batch=2, bias=True)),
        (Unit("Half", 32, 31, "80"), Case((7, 7), (7, 7), batch=5, bias=True)),
        (Unit("Half", 32, 30), Case((14, 13), (11, 11), batch=2, heads=1, bias=True)),
        (Unit("Half", 32, 31, "80"), Case((5, 6, 9), (5, 4, 5), heads=1)),
        pytest.param(
            Unit("Bfloat", 64, 31), Case((4, 23), (5, 3), (1, 2), bias=True, padding=True), marks=pytest.mark.slow
        ),
    ],
    ids=told,
)
def test_the_one_pass_kernels_machine_code_agrees_with_float64(unit: Unit, case: Case):
    machine = run(unit, case)
    taken, least = machine.wavefronts.sum(0)
    assert taken >= least > 0


@pytest.mark.parametrize(
    ("unit", "lengths", "kernel_size"),
    [
        (Unit("Half", 32, 4), (9, 17), (3, 5)),
        (Unit("Half", 32, 30), (9, 17), (3, 5)),
        (Unit("Half", 64, 20), (150,), (9,)),
        (Unit("Half", 0, PLAIN), (13,), (3,)),
    ],
    ids=told,
)
def test_what_is_infinite_reaches_only_the_queries_that_see_it(unit: Unit, lengths, kernel_size):
    middle, dim = tuple(length // 2 for length in lengths), unit.dim or 33
    spoiled = (("qkv", (0, *middle, 1, 0, 3)), -np.inf), (("qkv", (1, *middle, 2, 1, 5)), np.inf)
    case = Spoiled("", lengths, kernel_size, (), 0.0, batch=2)
    arrays = case.arrays(dim, KINDS[unit.kind])
    for (_, index), number in spoiled:
        arrays["qkv"][index] = number
    placed = aligned(arrays["qkv"].size, KINDS[unit.kind]).reshape(arrays["qkv"].shape)
    placed[...] = arrays["qkv"]
    problem, expected = Problem(case.spec, placed), case.expected(arrays)
    execute(unit, problem.params, {**problem.arrays, "output": problem.output, "lse": problem.lse})
    assert problem.lse is not None
    assert_same(problem.output, expected.output, TOLERANCE[unit.kind])
    assert_same(problem.lse, expected.lse, 1e-5)


def test_the_tile_kernel_has_no_bank_conflicts():
    machine = run(Unit("Half", 32, 4), NAT)
    taken, least = machine.wavefronts.sum(0)
    assert taken == least


def test_an_access_outside_the_tensors_is_found():
    # The kernel gets the size of a larger map than there is.
    problem = Case((22, 22), (7, 7), 3, bias=True).make("Half", 32)[0]
    params: Params = problem.params
    params.length[0] = params.length[1] = 30
    memory = place(params, {**problem.arrays, "output": problem.output, "lse": problem.lse})
    launch = record_problem(load_unit(Unit("Half", 32, 4)), params, 4).launch
    with pytest.raises(RuntimeError, match="belongs to no array"):
        Machine(launch, memory).run()


@pytest.mark.parametrize("scale", [0.02, 2.0], ids=["slowly", "fast"])
@pytest.mark.parametrize("unit", [Unit("Half", 32, 4), Unit("Half", 64, 20)], ids=told)
def test_scores_may_rise_slowly_or_fast_from_box_to_box(unit: Unit, scale: float):
    """Earlier sums are scaled down where scores rise by more than 8 in units of log2; below that, weights exceed 1."""
    case = Case((300,), (201,), heads=1, scale=scale) if unit.tactic == 20 else Case((13, 17), (7, 7), scale=scale)
    run(unit, case)


def without(wait: str, own: Instruction) -> Instruction:
    """Return an instruction that waits for nothing."""
    if own.name != wait or "ARRIVE" in own.modifiers or "EXCH" in own.modifiers:
        return own
    if "TRYWAIT" in own.modifiers:  # asks whether the wait is over: always yes
        true = (own.operands[0], "PT", "PT", "PT", "PT", "0x80", "0x0")
        return replace(own, name="PLOP3", modifiers=("LUT",), operands=true)
    return replace(own, name="NOP", modifiers=(), operands=())


@pytest.mark.parametrize(
    ("unit", "wait"),
    [(Unit("Half", 32, 4), "DEPBAR"), (Unit("Half", 64, 20), "WARPGROUP"), (Unit("Half", 64, 20), "SYNCS")],
    ids=["copies", "products", "barriers in memory"],
)
def test_a_wait_that_is_left_out_is_found(unit: Unit, wait: str):
    """By a wrong result, or by queries that are computed again because their result is no number."""
    case = Case((140,), (70,), heads=1) if unit.tactic == 20 else Case((9, 17), (5, 7), heads=1)
    problem, expected = case.make(unit.kind, unit.dim)
    memory = place(problem.params, {**problem.arrays, "output": problem.output, "lse": problem.lse})
    launch = record_problem(load_unit(unit), problem.params, unit.tactic).launch
    kept = [without(wait, own) for own in launch.instructions]
    assert kept != launch.instructions
    right = Machine(launch, memory).run()
    problem.output[...] = 0
    wrong = Machine(replace(launch, instructions=kept), memory).run()
    difference = np.abs(problem.output.astype(np.float64) - expected.output).max()
    is_right = difference < TOLERANCE[unit.kind] * np.abs(expected.output).max()
    assert not is_right or wrong.executed.sum() > 1.5 * right.executed.sum()
