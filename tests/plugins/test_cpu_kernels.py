"""The CPU kernels by themselves: the window is Python's, every case agrees with float64, on every instruction set."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from cpu_library import DTYPES, CpuLibrary, Problem, aligned

from na_deploy.attention.reference import AttentionResult, reference_attention, reference_attention_qkv
from na_deploy.attention.windows import NeighborhoodSpec, window_bounds

pytestmark = pytest.mark.native

TOLERANCE = dict(zip(DTYPES, (2e-6, 1e-3, 8e-3), strict=True))
"""Largest difference relative to the largest output, for inputs that are exact in the type."""


@dataclass
class Case:
    """Random tensors of one problem."""

    spec: NeighborhoodSpec
    arrays: dict[str, np.ndarray]
    scale: float = 0.0

    def problem(self, **options: bool) -> Problem:
        names = {"qkv": "query"}
        return Problem(
            self.spec, scale=self.scale, **options, **{names.get(n, n): array for n, array in self.arrays.items()}
        )

    def expected(self) -> AttentionResult:
        function = reference_attention_qkv if "qkv" in self.arrays else reference_attention
        return function(**self.arrays, spec=self.spec, scale=self.scale or None)  # type: ignore[operator]


def random_array(random: np.random.Generator, *shape: int, dtype: np.dtype) -> np.ndarray:
    array = aligned(int(np.prod(shape)), dtype).reshape(shape)
    array[...] = random.normal(size=shape)
    return array


def random_case(seed: int, dtype: np.dtype = DTYPES[0]) -> Case:
    """Return a problem of any rank, size and attributes, for either operator; no size is a round number."""
    random = np.random.default_rng(seed)
    rank = int(random.integers(1, 4))
    largest = {1: 90, 2: 21, 3: 9}[rank]
    kernel_size = random.integers(1, {1: 25, 2: 8, 3: 4}[rank], rank)
    dilation = random.integers(1, 4, rank)
    lengths = np.minimum(kernel_size * dilation + random.integers(0, largest, rank), 3 * largest)
    lengths = np.maximum(lengths, kernel_size * dilation)
    spec = NeighborhoodSpec.create(
        rank,
        tuple(kernel_size),
        tuple(dilation),
        tuple(int(random.integers(1, size + 1)) for size in kernel_size),
        tuple(bool(random.integers(0, 3) == 0) for _ in range(rank)),
    )
    batch, key_heads = int(random.integers(1, 3)), int(random.integers(1, 4))
    head_dim = int(random.choice([1, 7, 16, 24, 32, 33, 64]))
    heads = key_heads
    if random.integers(0, 2):
        arrays = {"qkv": random_array(random, batch, *lengths, 3, heads, head_dim, dtype=dtype)}
    else:
        heads *= int(random.integers(1, 4))
        value_dim = int(random.choice([head_dim, 5, 32, 80]))
        arrays = {
            "query": random_array(random, batch, *lengths, heads, head_dim, dtype=dtype),
            "key": random_array(random, batch, *lengths, key_heads, head_dim, dtype=dtype),
            "value": random_array(random, batch, *lengths, key_heads, value_dim, dtype=dtype),
        }
        if random.integers(0, 2):
            extra = int(random.integers(1, 40))
            arrays["additional_key"] = random_array(random, batch, extra, key_heads, head_dim, dtype=dtype)
            arrays["additional_value"] = random_array(random, batch, extra, key_heads, value_dim, dtype=dtype)
    if random.integers(0, 2):
        arrays["rel_pos_bias"] = random_array(random, heads, *(2 * kernel_size - 1), dtype=dtype)
    return Case(spec, arrays, scale=float(random.choice([0.0, 0.4])))


def expect(problem: Problem, case: Case, dtype: np.dtype = DTYPES[0]) -> None:
    expected = case.expected()
    difference = np.abs(problem.output.astype(np.float64) - expected.output).max()
    assert difference <= TOLERANCE[dtype] * np.abs(expected.output).max()
    if problem.lse is not None:
        np.testing.assert_allclose(problem.lse, expected.lse, rtol=2e-6, atol=4e-6)


@pytest.fixture(params=range(4), ids=["best", "second best", "third best", "fourth best"])
def on_targets(cpu: CpuLibrary, request: pytest.FixtureRequest) -> Iterator[CpuLibrary]:
    """The kernels on each instruction set that this processor has."""
    bits = [1 << bit for bit in range(63) if cpu.targets() >> bit & 1]
    if request.param >= len(bits):
        pytest.skip(f"this processor has {len(bits)} of the instruction sets")
    cpu.use_targets(bits[request.param])
    yield cpu
    cpu.use_targets(-1)


def test_the_window_is_that_of_python_for_every_attribute(cpu: CpuLibrary):
    checked = 0
    for length, kernel_size, dilation in itertools.product(range(1, 24), range(1, 12), range(1, 5)):
        if kernel_size * dilation > length:
            continue
        for stride, is_causal in itertools.product(range(1, kernel_size + 1), (False, True)):
            ours = cpu.window_bounds(length, kernel_size, dilation, stride, is_causal)
            pythons = window_bounds(length, kernel_size, dilation, stride, is_causal)
            np.testing.assert_array_equal(ours, pythons)
            checked += 1
    assert checked > 3000


@pytest.mark.parametrize("seed", range(45))
def test_random_problems_agree_with_float64(on_targets: CpuLibrary, seed: int):
    case = random_case(seed)
    problem = case.problem()
    assert on_targets.check(problem) == ""
    on_targets.run(problem, on_targets.plan(problem))
    expect(problem, case)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("seed", range(100, 115))
def test_half_precision_is_right_to_its_rounding(on_targets: CpuLibrary, seed: int, dtype: np.dtype):
    case = random_case(seed, dtype)
    problem = case.problem()
    on_targets.run(problem, on_targets.plan(problem))
    expect(problem, case, dtype)


def dense_case(seed: int, dtype: np.dtype) -> Case:
    """Return a problem whose every dilation group is one window, of up to 81 positions."""
    random = np.random.default_rng(seed)
    kernel_size = [(7, 7), (5, 5), (3, 2, 4), (17,), (8, 8), (9, 9), (3, 6), (33,), (2, 3), (11,)][seed % 10]
    rank = len(kernel_size)
    dilation = tuple(random.integers(1, 3, rank).tolist())
    stride = tuple(int(random.integers(1, size + 1)) for size in kernel_size)
    lengths = tuple(size * d for size, d in zip(kernel_size, dilation, strict=True))
    batch, key_heads = (int(number) for number in random.integers(1, 3, 2))
    head_dim = int(random.choice([32, 24, 5, 64]))
    heads = key_heads
    if random.integers(0, 3):
        arrays = {"qkv": random_array(random, batch, *lengths, 3, heads, head_dim, dtype=dtype)}
    else:
        heads *= 2
        value_dim = int(random.choice([head_dim, 40, 7]))
        arrays = {
            "query": random_array(random, batch, *lengths, heads, head_dim, dtype=dtype),
            "key": random_array(random, batch, *lengths, key_heads, head_dim, dtype=dtype),
            "value": random_array(random, batch, *lengths, key_heads, value_dim, dtype=dtype),
        }
    if random.integers(0, 4):
        arrays["rel_pos_bias"] = random_array(random, heads, *(2 * size - 1 for size in kernel_size), dtype=dtype)
    spec = NeighborhoodSpec.create(rank, kernel_size, dilation, stride)
    return Case(spec, arrays, scale=float(random.choice([0.0, 0.4])))


def expect_with_and_without_prepared_bias(cpu: CpuLibrary, case: Case, dtype: np.dtype) -> None:
    plain, prepared = case.problem(), case.problem()
    plan = cpu.plan(plain)
    cpu.run(plain, plan)
    kept = cpu.prepare_bias(prepared, plan)
    cpu.run(prepared, plan)
    assert len(kept) == plan.prepared_bias_elements
    expect(plain, case, dtype)
    expect(prepared, case, dtype)


@pytest.mark.parametrize("seed", range(300, 320))
def test_groups_that_one_window_covers_agree_with_float64(on_targets: CpuLibrary, seed: int):
    for dtype in DTYPES:
        expect_with_and_without_prepared_bias(on_targets, dense_case(seed, dtype), dtype)


def test_a_group_that_one_window_covers_is_one_task(on_targets: CpuLibrary):
    qkv = np.zeros((1, 14, 21, 3, 2, 32), np.float32)
    plan = on_targets.plan(Problem(NeighborhoodSpec.create(2, 7, (2, 3)), qkv))
    assert (list(plan.tile), plan.tasks) == ([1, 7, 7], 2 * 2 * 3)


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_number_that_is_none_stays_in_its_group_and_head(on_targets: CpuLibrary, number: float, dtype: np.dtype):
    random = np.random.default_rng(0)
    case = Case(NeighborhoodSpec.create(2, 7, 2), {"qkv": random_array(random, 1, 14, 14, 3, 2, 32, dtype=dtype)})
    value = case.arrays["qkv"][0, :, :, 2, 1]
    value[13, 12, 3] = number  # of the group of odd rows and even columns
    problem = case.problem()
    on_targets.run(problem, on_targets.plan(problem))
    shown = ~np.isfinite(problem.output[0].astype(np.float32)).all(axis=-1)
    group = np.zeros((14, 14), bool)
    group[1::2, ::2] = True
    np.testing.assert_array_equal(shown[..., 0], np.zeros_like(group))
    np.testing.assert_array_equal(shown[..., 1], group)


@pytest.mark.parametrize("dtype", [DTYPES[0], DTYPES[2]], ids=str)
@pytest.mark.parametrize(("side", "heads", "dilation"), [(56, 2, 1), (29, 4, 1), (14, 8, 1), (7, 16, 1), (30, 4, 4)])
def test_nat_layers_agree_with_float64(cpu: CpuLibrary, side: int, heads: int, dilation: int, dtype: np.dtype):
    """In bfloat16 beside a float32 bias, as OpenVINO calls them."""
    random = np.random.default_rng(side)
    spec = NeighborhoodSpec.create(2, 7, dilation)
    arrays = {
        "qkv": random_array(random, 1, side, side, 3, heads, 32, dtype=dtype),
        "rel_pos_bias": random_array(random, heads, 13, 13, dtype=DTYPES[0]),
    }
    case = Case(spec, arrays)
    problem = case.problem()
    problem.params.bias_is_float32 = 1
    cpu.run(problem, cpu.plan(problem))
    expect(problem, case, dtype)


@pytest.mark.parametrize("seed", range(200, 212))
def test_a_prepared_bias_changes_nothing(on_targets: CpuLibrary, seed: int):
    case = random_case(seed)
    lengths = next(iter(case.arrays.values())).shape[1 : 1 + case.spec.rank]
    heads = next(iter(case.arrays.values())).shape[-2]
    bias = np.random.default_rng(seed).normal(size=(heads, *(2 * k - 1 for k in case.spec.kernel_size)))
    case.arrays["rel_pos_bias"] = bias.astype(np.float32)
    assert min(lengths) > 0
    expect_with_and_without_prepared_bias(on_targets, case, DTYPES[0])


@pytest.mark.parametrize("threads", [2, 3, 5, 16])
def test_any_number_of_threads_gives_the_same_bits(cpu: CpuLibrary, threads: int):
    case = random_case(3)
    whole, shared = case.problem(), case.problem()
    plan = cpu.plan(whole)
    cpu.run(whole, plan)
    cpu.run_in_threads(shared, plan, threads)
    np.testing.assert_array_equal(whole.output, shared.output)
    np.testing.assert_array_equal(whole.lse, shared.lse)


def test_an_empty_batch_has_no_tasks(cpu: CpuLibrary):
    problem = Problem(NeighborhoodSpec.create(2, 3), np.empty((0, 5, 6, 3, 2, 8), np.float32))
    assert cpu.check(problem) == ""
    assert cpu.plan(problem).tasks == 0


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_number_that_is_none_stays_visible(cpu: CpuLibrary, number: float):
    random = np.random.default_rng(0)
    case = Case(NeighborhoodSpec.create(1, 5), {"qkv": random_array(random, 1, 40, 3, 1, 16, dtype=DTYPES[0])})
    case.arrays["qkv"][0, 20, 2] = number  # a value: its 5 neighbours must show it, and no distant position
    problem = case.problem()
    cpu.run(problem, cpu.plan(problem))
    finite = np.isfinite(problem.output).all(axis=(0, 2, 3))
    assert not finite[18:23].any()
    assert finite[:2].all()
    assert finite[38:].all()


def test_scores_of_any_size_do_not_overflow(cpu: CpuLibrary):
    random = np.random.default_rng(0)
    case = Case(NeighborhoodSpec.create(2, 3), {"qkv": random_array(random, 1, 9, 9, 3, 2, 16, dtype=DTYPES[0])}, 400.0)
    problem = case.problem()
    cpu.run(problem, cpu.plan(problem))
    assert np.isfinite(problem.output).all()
    # The softmax then selects one key; rounding of scores in the thousands decides between close ones.
    expected = case.expected().output
    close = np.isclose(problem.output, expected, rtol=1e-2, atol=1e-2)
    assert close.mean() > 0.98


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 4}, "1 to 3 spatial axes, got 4"),
        ({"dtype": 7}, "float32, float16 or bfloat16, got number 7"),
        ({"batch": -1}, "batch must not be negative, got -1"),
        ({"heads": 3, "packed": 0, "key": 1, "value": 1}, "3 heads, which is not a multiple of key's 2"),
        ({"head_dim": 0, "value_dim": 0}, "at least one channel"),
        ({"additional": 3}, "no additional keys"),
        ({"query": None}, "query, key and value must be given"),
        ({"batch": 2**60}, "more elements than can be addressed"),
    ],
)
def test_what_cannot_be_computed_is_refused_in_a_sentence(cpu: CpuLibrary, change: dict, message: str):
    problem = Problem(NeighborhoodSpec.create(1, 3), np.ones((1, 9, 3, 2, 8), np.float32))
    assert cpu.check(problem) == ""
    for name, value in change.items():
        setattr(problem.params, name, value)
    assert message in cpu.check(problem)


@pytest.mark.parametrize(
    ("packed", "dilation", "message"),
    [
        (1, 1, "the CPU kernels take no padding; give them a map that is filled up with it"),
        (1, 9, "the CPU kernels take no padding"),  # valid for kernels that take padding
        (0, 1, "padding is for packed qkv alone"),
        (1, 2**59, "dilation must lie between 1 and 2147483647, got 576460752303423488 on axis 0"),
        (1, 2**62, "dilation must lie between 1 and 2147483647"),
    ],
)
def test_padding_is_refused_in_a_sentence(cpu: CpuLibrary, packed: int, dilation: int, message: str):
    ones = np.ones((1, 9, 3, 2, 8), np.float32)
    problem = Problem(NeighborhoodSpec.create(1, 3), ones, padding=np.ones((3, 2, 8), np.float32))
    problem.params.packed, problem.params.dilation[0] = packed, dilation
    assert message in cpu.check(problem)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("length", 0, "spatial axis 0 must have at least one position, got 0"),
        ("kernel_size", 0, "kernel_size must lie between 1 and 2147483647, got 0 on axis 0"),
        ("dilation", 0, "dilation must lie between 1 and 2147483647, got 0 on axis 0"),
        ("dilation", 4, "kernel_size*dilation = 3*4 = 12 exceeds the length 9 of spatial axis 0"),
        ("stride", 4, "stride must lie between 1 and kernel_size=3, got 4 on axis 0"),
        ("is_causal", 2, "is_causal must be 0 or 1, got 2 on axis 0"),
    ],
)
def test_attributes_out_of_range_are_refused_by_axis(cpu: CpuLibrary, attribute: str, value: int, message: str):
    problem = Problem(NeighborhoodSpec.create(1, 3), np.ones((1, 9, 3, 2, 8), np.float32))
    getattr(problem.params, attribute)[0] = value
    assert message in cpu.check(problem)
