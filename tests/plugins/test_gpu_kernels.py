"""The GPU kernels' own source on an emulated GPU: every tactic agrees with float64, and reads only what it may."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import pytest
from cpu_library import DTYPES, Params, Problem, aligned

from na_deploy.attention.reference import AttentionResult, reference_attention, reference_attention_qkv
from na_deploy.attention.windows import NeighborhoodSpec, axis_mask

pytestmark = pytest.mark.native

FLOAT, HALF, BFLOAT = DTYPES
TOLERANCE = dict(zip(DTYPES, (2e-6, 3e-3, 2e-2), strict=True))
"""Largest difference relative to the largest output; weights are rounded to the type before values are summed."""
PLAIN = 1
BOXES = {1: (1, 1, 64), 2: (1, 8, 8), 3: (4, 4, 4)}
WIDE = {1: set(), 2: {10, 11}, 3: {12}}
"""Tactics with boxes of 128 keys."""
HOPPER = {1: {20}, 2: {21, 22}, 3: {23, 24}}
ONE_PASS = (30, 31, 32)
TILES = {2: (1, 1, 64), 3: (1, 1, 128), 4: (1, 8, 8), 5: (1, 16, 8), 6: (1, 4, 16), 7: (4, 4, 4), 8: (2, 4, 8)}


class EmulatedGpu:
    """The kernels behind their C interface, run by an emulator."""

    def __init__(self, folder: Path) -> None:
        self._library = ctypes.CDLL(str(folder / "plugins/tests/libna_deploy_cuda_emulated.so"))
        self._library.na_tile_count.restype = self._library.na_onepass_rows.restype = ctypes.c_int64
        self._library.na_computed_again.restype = ctypes.c_int64
        self._library.na_tile_boxes.argtypes = (
            [ctypes.c_void_p] * 3 + [ctypes.c_int64] + [ctypes.c_void_p] * 4 + [ctypes.c_int32]
        )

    def check(self, problem: Problem) -> str:
        """Return what is wrong with a problem; empty if nothing is wrong."""
        message = ctypes.create_string_buffer(512)
        refused = self._library.na_cuda_check(ctypes.byref(problem.params), message, len(message))
        return message.value.decode() if refused else ""

    def tactics(self, problem: Problem) -> list[int]:
        """Return the tactics of a problem, the default first."""
        found = (ctypes.c_int32 * 16)()
        count = self._library.na_cuda_tactics(ctypes.byref(problem.params), found, len(found))
        return list(found[:count])

    def run(self, problem: Problem, tactic: int = 0, *, finite: bool = True) -> None:
        """Compute a problem; of finite numbers no query may need a second time, which would hide a read of poison."""
        self._library.na_computed_again()
        assert self._library.na_forward_emulated(ctypes.byref(problem.params), tactic) == 0
        assert not finite or self._library.na_computed_again() == 0

    def one_pass_rows(self, problem: Problem, tactic: int) -> int:
        """Return how many rows of queries the one-pass kernel's warps take, empty rows included."""
        return int(self._library.na_onepass_rows(ctypes.byref(problem.params), tactic))

    def one_pass_chunks(self, problem: Problem, tactic: int) -> int:
        """Return how many chunks of 16 keys a warp of the one-pass kernel goes through."""
        return int(self._library.na_onepass_chunks(ctypes.byref(problem.params), tactic))

    def accepts(self, problem: Problem, tactic: int) -> bool:
        """Compute a problem; return whether the tactic was accepted."""
        return bool(self._library.na_forward_emulated(ctypes.byref(problem.params), tactic) == 0)

    def knows(self, tactic: int) -> bool:
        """Return whether a kernel has this number."""
        return bool(self._library.na_cuda_knows(tactic))

    def tile_count(self, params: Params, tile: Sequence[int]) -> int:
        """Return how many tiles a problem has."""
        return int(self._library.na_tile_count(ctypes.byref(params), (ctypes.c_int32 * 3)(*tile)))

    def tile_boxes(
        self, params: Params, tile: Sequence[int], box: Sequence[int], number: int
    ) -> tuple[list[int], list[int], np.ndarray, list[bool]] | None:
        """Return a tile's first query, group, boxes and which of them need no mask; None for an empty tile."""
        capacity = 4096
        first, group = (ctypes.c_int32 * 3)(), (ctypes.c_int32 * 3)()
        firsts, inside = (ctypes.c_int32 * (3 * capacity))(), (ctypes.c_int32 * capacity)()
        count = self._library.na_tile_boxes(
            ctypes.byref(params),
            (ctypes.c_int32 * 3)(*tile),
            (ctypes.c_int32 * 3)(*box),
            number,
            first,
            group,
            firsts,
            inside,
            capacity,
        )
        if count < 0:
            return None
        return list(first), list(group), np.array(firsts[: 3 * count]).reshape(-1, 3), [bool(i) for i in inside[:count]]


@pytest.fixture(scope="module")
def gpu(native_build: Path) -> EmulatedGpu:
    return EmulatedGpu(native_build)


def random_problem(
    seed: int, dtype: np.dtype, head_dims: Sequence[int], *, large_windows: bool = False, batch: int | None = None
) -> tuple[Problem, NeighborhoodSpec, float]:
    """Return a problem of any rank and attributes whose sizes fill tiles only partly; large windows are not dilated."""
    random = np.random.default_rng(seed)
    rank = seed % 3 + 1
    kernel = random.integers(1, ({1: 400, 2: 26, 3: 11} if large_windows else {1: 30, 2: 8, 3: 5})[rank], rank)
    dilation = random.integers(1, 4, rank) if random.random() < 0.6 and not large_windows else np.ones(rank, int)
    spare = ({1: 400, 2: 20, 3: 9} if large_windows else {1: 90, 2: 12, 3: 5})[rank]
    lengths = [int(k * d + random.integers(0, spare)) for k, d in zip(kernel, dilation, strict=True)]
    stride = [int(random.integers(1, k + 1)) if random.random() < 0.5 else 1 for k in kernel]
    spec = NeighborhoodSpec.create(
        rank, tuple(kernel), tuple(dilation), tuple(stride), tuple(bool(random.random() < 0.3) for _ in range(rank))
    )
    head_dim, key_heads = int(random.choice(head_dims)), int(random.integers(1, 3))

    def normal(*shape: int) -> np.ndarray:
        array = aligned(int(np.prod(shape)), dtype).reshape(shape)
        array[...] = random.normal(size=shape)
        return array

    options = {"rel_pos_bias": None, "additional_key": None, "additional_value": None}
    heads, drawn = key_heads, 1 if large_windows else int(random.integers(1, 3))
    batch = batch or drawn
    if random.random() < 0.5:
        arrays = [normal(batch, *lengths, 3, heads, head_dim)]
    else:
        heads *= int(random.integers(1, 3))
        value_dim = int(random.choice([d for d in head_dims if (d > 64) == (head_dim > 64)]))
        value_dim = head_dim if large_windows else value_dim
        arrays = [
            normal(batch, *lengths, heads, head_dim),
            normal(batch, *lengths, key_heads, head_dim),
            normal(batch, *lengths, key_heads, value_dim),
        ]
        if random.random() < 0.5:
            extra = int(random.integers(1, 300 if large_windows else 100))
            options["additional_key"] = normal(batch, extra, key_heads, head_dim)
            options["additional_value"] = normal(batch, extra, key_heads, value_dim)
    if random.random() < 0.5:
        options["rel_pos_bias"] = normal(heads, *(2 * k - 1 for k in kernel))
    scale = 0.0 if random.random() < 0.5 else 0.4
    return Problem(spec, *arrays, scale=scale, lse=bool(random.random() < 0.7), **options), spec, scale


def expect(problem: Problem, spec: NeighborhoodSpec, scale: float) -> AttentionResult:
    """Return the result of float64, computed once for every tactic."""
    if problem.expected is None:
        arrays = {n: a.astype(np.float64) for n, a in problem.arrays.items() if a is not None}
        if problem.params.packed:
            problem.expected = reference_attention_qkv(arrays.pop("query"), spec, scale=scale or None, **arrays)
        else:
            tensors = [arrays.pop(name) for name in ("query", "key", "value")]
            problem.expected = reference_attention(*tensors, spec, scale=scale or None, **arrays)
    return problem.expected


def agree(problem: Problem, spec: NeighborhoodSpec, scale: float, dtype: np.dtype) -> None:
    output, lse = expect(problem, spec, scale)
    assert np.abs(problem.output.astype(np.float64) - output).max() < TOLERANCE[dtype] * np.abs(output).max()
    if problem.lse is not None:
        assert np.abs(problem.lse - lse).max() < 1e-5 * max(np.abs(lse).max(), 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2, 3, 5, 6])
def test_the_plain_kernel_computes_any_problem(gpu: EmulatedGpu, seed: int, dtype: np.dtype):
    problem, spec, scale = random_problem(seed, dtype, [1, 7, 24, 33, 100])
    assert gpu.check(problem) == ""
    gpu.run(problem, PLAIN)
    agree(problem, spec, scale, dtype)


def small_map(
    seed: int, dtype: np.dtype, head_dims: Sequence[int], *, batch: int | None = None
) -> tuple[Problem, NeighborhoodSpec, float]:
    """A packed problem with padding; most axes are too short for their window, down to one position."""
    random = np.random.default_rng(seed)
    rank = seed % 3 + 1
    kernel = random.integers(1, {1: 30, 2: 8, 3: 4}[rank], rank)
    dilation = random.integers(1, 4, rank)
    pairs = list(zip(kernel, dilation, strict=True))
    lengths = [int(random.integers(1, k * d + (3 if random.random() < 0.3 else 1))) for k, d in pairs]
    stride = [int(random.integers(1, k + 1)) if random.random() < 0.5 else 1 for k in kernel]
    causal = tuple(bool(random.random() < 0.3) for _ in range(rank))
    spec = NeighborhoodSpec.create(rank, tuple(kernel), tuple(dilation), tuple(stride), causal)

    def normal(*shape: int) -> np.ndarray:
        array = aligned(int(np.prod(shape)), dtype).reshape(shape)
        array[...] = random.normal(size=shape)
        return array

    heads, head_dim = int(random.integers(1, 4)), int(random.choice(head_dims))
    drawn = int(random.integers(1, 3))
    qkv, padding = normal(batch or drawn, *lengths, 3, heads, head_dim), normal(3, heads, head_dim)
    bias = normal(heads, *(2 * k - 1 for k in kernel)) if random.random() < 0.6 else None
    scale = 0.0 if random.random() < 0.5 else 0.4
    return Problem(spec, qkv, rel_pos_bias=bias, padding=padding, scale=scale), spec, scale


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(20, 32))
def test_windows_reach_behind_small_maps_onto_padding(gpu: EmulatedGpu, seed: int, dtype: np.dtype):
    problem, spec, scale = small_map(seed, dtype, [1, 8, 32, 33, 60] if seed % 2 else [8, 16, 32, 64])
    assert gpu.check(problem) == ""
    for tactic in gpu.tactics(problem):
        problem.output[...] = np.nan
        gpu.run(problem, tactic)
        agree(problem, spec, scale, dtype)


def test_hopper_s_kernels_are_not_offered_where_windows_reach_behind_the_map(gpu: EmulatedGpu):
    spec = NeighborhoodSpec.create(2, 7)
    random = np.random.default_rng(0)
    tiles = [PLAIN, 4, 5, 6]
    for lengths, tactics in (((20, 6), tiles), ((20, 7), [*tiles, 21, 22])):
        qkv, padding = aligned(2 * 20 * lengths[1] * 3 * 64, HALF), aligned(3 * 64, HALF)
        qkv[...], padding[...] = random.normal(size=qkv.shape), random.normal(size=padding.shape)
        qkv, padding = qkv.reshape(2, *lengths, 3, 1, 64), padding.reshape(3, 1, 64)
        problem = Problem(spec, qkv, padding=padding)
        assert sorted(set(gpu.tactics(problem)) - set(ONE_PASS)) == tactics
        for tactic in (0, *tactics):
            problem.output[...] = np.nan
            gpu.run(problem, tactic)
            agree(problem, spec, 0.0, HALF)


def test_a_small_map_without_padding_is_refused(gpu: EmulatedGpu):
    problem, *_ = small_map(21, HALF, [32])
    problem.params.padding = None
    assert "exceeds the length" in gpu.check(problem)


@pytest.mark.parametrize(
    ("seed", "dtype"),
    [(seed, dtype) for dtype in (FLOAT, HALF) for seed in range(100, 112)]
    + [(seed, BFLOAT) for seed in (100, 102, 104)],
)
def test_every_tile_shape_agrees_with_float64(gpu: EmulatedGpu, seed: int, dtype: np.dtype):
    half_dims = [8, 16, 24, 32, 48, 64] if seed % 4 else [96, 128]
    problem, spec, scale = random_problem(seed, dtype, [4, 12, 32, 60, 64] if dtype == FLOAT else half_dims)
    tactics = [tactic for tactic in gpu.tactics(problem) if tactic < 20]
    wide = WIDE[spec.rank] if problem.params.head_dim <= 32 >= problem.params.value_dim and dtype != FLOAT else set()
    assert set(tactics) == {1: {2, 3, 1}, 2: {4, 5, 6, 1}, 3: {7, 8, 9, 1}}[spec.rank] | wide
    assert tactics[-1] == PLAIN
    for tactic in tactics[:-1]:
        problem.output[...] = np.nan
        gpu.run(problem, tactic)
        agree(problem, spec, scale, dtype)


@pytest.mark.parametrize(
    ("seed", "dtype"), [(seed, HALF) for seed in (200, 201, 202, 204, 205, 207, 208)] + [(210, BFLOAT), (211, BFLOAT)]
)
def test_hopper_s_kernels_agree_with_float64(gpu: EmulatedGpu, seed: int, dtype: np.dtype):
    problem, spec, scale = random_problem(seed, dtype, [64, 128], large_windows=True)
    tactics = [tactic for tactic in gpu.tactics(problem) if tactic in HOPPER[spec.rank]]
    if problem.arrays["rel_pos_bias"] is None:  # with a bias: only those whose shared memory has room for it
        assert set(tactics) == HOPPER[spec.rank]
    for tactic in tactics:
        problem.output[...] = np.nan
        gpu.run(problem, tactic)
        agree(problem, spec, scale, dtype)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT], ids=str)
@pytest.mark.parametrize("make", [random_problem, small_map])
def test_the_one_pass_kernel_agrees_with_float64(gpu: EmulatedGpu, make, dtype: np.dtype):
    taken = 0
    for seed in range(300, 312):
        problem, spec, scale = make(seed, dtype, [8, 16, 24, 32, 48, 64])
        for tactic in set(gpu.tactics(problem)) & set(ONE_PASS):
            problem.output[...] = np.nan
            if problem.lse is not None:
                problem.lse[...] = np.nan
            gpu.run(problem, tactic)
            agree(problem, spec, scale, dtype)
            taken += 1
    assert taken >= 5


def nat_problem(side: int, heads: int, dilation: int, batch: int, kernel_size: int = 7) -> Problem:
    """A layer of NAT or DiNAT in float16, random numbers with bias."""
    random = np.random.default_rng(side)
    qkv = aligned(batch * side * side * 3 * heads * 32, HALF).reshape(batch, side, side, 3, heads, 32)
    sides = (2 * kernel_size - 1,) * 2
    bias = aligned(heads * prod(sides), HALF).reshape(heads, *sides)
    for array in (qkv, bias):
        array[...] = random.normal(size=array.shape)
    return Problem(NeighborhoodSpec.create(2, kernel_size, dilation), qkv, rel_pos_bias=bias)


@pytest.mark.parametrize(
    ("side", "dilation", "batch", "kernel_size"),
    [
        (14, 1, 3, 7),
        (14, 2, 2, 7),
        (7, 1, 5, 7),
        (7, 1, 1, 7),
        (3, 1, 9, 3),
        (13, 1, 2, 13),
        (19, 1, 1, 13),
        (17, 2, 3, 5),
    ],
)
def test_the_one_pass_kernel_takes_small_maps_and_several_images(gpu: EmulatedGpu, side, dilation, batch, kernel_size):
    problem = nat_problem(side, 1, dilation, batch, kernel_size)
    tactics = set(gpu.tactics(problem)) & set(ONE_PASS)
    assert tactics
    for tactic in tactics:
        problem.output[...] = np.nan
        gpu.run(problem, tactic)
        agree(problem, NeighborhoodSpec.create(2, kernel_size, dilation), 0.0, HALF)


MOST_CHUNKS_AT_ONCE = 9
"""Above, the one-pass kernel goes through its chunks of 16 keys in groups."""


@dataclass(frozen=True)
class ManyKeys:
    """A problem whose warps see more keys than one pass holds at once."""

    lengths: tuple[int, ...]
    kernel_size: tuple[int, ...]
    head_dim: int = 16
    dilation: int = 1
    stride: int = 1
    is_causal: bool = False
    batch: int = 1
    heads: int = 1
    bias: bool = True
    padding: bool = False
    size: float = 1.0
    """Factor of queries."""

    def make(self, dtype: np.dtype) -> tuple[Problem, NeighborhoodSpec]:
        """Return the problem, random numbers, and its window."""
        rank, random = len(self.lengths), np.random.default_rng(3)
        spec = NeighborhoodSpec.create(rank, self.kernel_size, self.dilation, self.stride, self.is_causal)
        shapes = {"qkv": (self.batch, *self.lengths, 3, self.heads, self.head_dim)}
        if self.bias:
            shapes["rel_pos_bias"] = (self.heads, *(2 * size - 1 for size in self.kernel_size))
        if self.padding:
            shapes["padding"] = (3, self.heads, self.head_dim)
        arrays = {name: aligned(prod(shape), dtype).reshape(shape) for name, shape in shapes.items()}
        for array in arrays.values():
            array[...] = random.normal(size=array.shape)
        qkv = arrays.pop("qkv")
        qkv[..., 0, :, :] *= self.size
        return Problem(spec, qkv, lse=True, **arrays), spec


MANY_KEYS = {
    "two axes, several images": ManyKeys((20, 13), (11, 11), head_dim=32, batch=3, heads=2),
    "even windows, whose hulls get one more column": ManyKeys((13, 21), (12, 10), head_dim=24, bias=False, batch=2),
    "dilation, with images in turn": ManyKeys((25, 23), (11, 11), dilation=2, batch=4),
    "windows in common": ManyKeys((19, 22), (12, 13), head_dim=64, stride=3),
    "maps smaller than their windows": ManyKeys((9, 30), (13, 11), batch=3, padding=True),
    "one axis": ManyKeys((300,), (245,), head_dim=48, batch=2, heads=2),
    "one axis, causal": ManyKeys((420,), (333,), head_dim=8, is_causal=True),
    "three axes": ManyKeys((7, 9, 11), (5, 5, 5), head_dim=32, bias=False, batch=2),
    "three axes, with a bias": ManyKeys((5, 8, 9), (5, 5, 4), is_causal=True, batch=2),
    "scores that rise by much from group to group": ManyKeys((17, 18), (13, 12), head_dim=64, size=8.0),
    "a line of one column": ManyKeys((150, 3), (130, 1)),
}


@pytest.mark.parametrize("dtype", [HALF, BFLOAT], ids=str)
@pytest.mark.parametrize("case", MANY_KEYS.values(), ids=MANY_KEYS)
def test_the_one_pass_kernel_goes_through_many_keys_in_groups(gpu: EmulatedGpu, case: ManyKeys, dtype: np.dtype):
    problem, spec = case.make(dtype)
    assert problem.lse is not None
    tactics = set(gpu.tactics(problem)) & set(ONE_PASS)
    assert max(gpu.one_pass_chunks(problem, tactic) for tactic in tactics) > MOST_CHUNKS_AT_ONCE
    for tactic in tactics:
        problem.output[...], problem.lse[...] = np.nan, np.nan
        gpu.run(problem, tactic)
        agree(problem, spec, 0.0, dtype)


@pytest.mark.parametrize(
    ("side", "heads", "dilation"),
    [(56, 2, 1), (56, 2, 8), (28, 4, 1), (28, 4, 4), (14, 8, 1), (14, 8, 2), (7, 16, 1)],
)
@pytest.mark.parametrize("batch", [16, 128])
def test_the_one_pass_kernel_is_the_default_at_every_stage_of_nat_and_dinat(
    gpu: EmulatedGpu, side, heads, dilation, batch
):
    problem = nat_problem(side, heads, dilation, 1)
    problem.params.batch = batch  # of which tactics know the number alone
    assert gpu.tactics(problem)[0] in ONE_PASS


@pytest.mark.parametrize(("side", "heads"), [(14, 8), (7, 16)])
def test_single_small_images_take_tiles_which_begin_sooner(gpu: EmulatedGpu, side: int, heads: int):
    assert gpu.tactics(nat_problem(side, heads, 2, 1))[0] in {4, 5, 6}


@pytest.mark.parametrize(("side", "least"), [(56, 1.0), (28, 1.0), (14, 0.85), (7, 0.85), (31, 0.9), (9, 0.8)])
def test_some_tactic_wastes_few_rows_on_maps_of_any_size(gpu: EmulatedGpu, side: int, least: float):
    problem = nat_problem(side, 2, 1, 8)
    rows = [gpu.one_pass_rows(problem, tactic) for tactic in set(gpu.tactics(problem)) & set(ONE_PASS)]
    assert max(side * side * 2 * 8 / own for own in rows) >= least


def test_the_one_pass_kernel_is_not_offered_for_what_it_does_not_take(gpu: EmulatedGpu):
    spec = NeighborhoodSpec.create(2, 3)
    for dtype, head_dim in ((FLOAT, 32), (HALF, 96), (HALF, 20)):
        problem = Problem(spec, aligned(81 * 6 * head_dim, dtype).reshape(1, 9, 9, 3, 2, head_dim))
        assert not set(ONE_PASS) & set(gpu.tactics(problem))
    wide = Problem(NeighborhoodSpec.create(2, 25), aligned(625 * 3 * 32, HALF).reshape(1, 25, 25, 3, 1, 32))
    assert not set(ONE_PASS) & set(gpu.tactics(wide))
    negative = Problem(spec, aligned(81 * 3 * 32, HALF).reshape(1, 9, 9, 3, 1, 32), scale=-0.5)
    assert not set(ONE_PASS) & set(gpu.tactics(negative))


@pytest.mark.parametrize(("kernel_size", "offered"), [((7, 7), {21, 22}), ((25, 27), {21}), ((60, 40), set())])
def test_hopper_s_kernels_take_biases_that_fit_shared_memory(gpu: EmulatedGpu, kernel_size, offered: set[int]):
    spec, random = NeighborhoodSpec.create(2, kernel_size), np.random.default_rng(1)
    qkv = aligned(64 * 44 * 3 * 64, HALF).reshape(1, 64, 44, 3, 1, 64)
    bias = aligned(prod(2 * k - 1 for k in kernel_size), HALF).reshape(1, *(2 * k - 1 for k in kernel_size))
    for array in (qkv, bias):
        array[...] = random.normal(size=array.shape)
    problem = Problem(spec, qkv, rel_pos_bias=bias)
    assert set(gpu.tactics(problem)) & HOPPER[2] == offered
    for tactic in sorted(offered):
        gpu.run(problem, tactic)
        agree(problem, spec, 0.0, HALF)


def test_hopper_s_kernels_are_not_offered_for_what_they_do_not_take(gpu: EmulatedGpu):
    offered = HOPPER[1] | HOPPER[2] | HOPPER[3]
    spec = NeighborhoodSpec.create(2, 3)
    for dtype, head_dim in ((FLOAT, 64), (HALF, 32), (HALF, 96)):
        problem = Problem(spec, aligned(81 * 6 * head_dim, dtype).reshape(1, 9, 9, 3, 2, head_dim))
        assert not offered & set(gpu.tactics(problem))
    dilated = Problem(NeighborhoodSpec.create(2, 3, 2), aligned(81 * 6 * 64, HALF).reshape(1, 9, 9, 3, 2, 64))
    assert not offered & set(gpu.tactics(dilated))


def test_a_tactic_that_does_not_compute_the_problem_is_refused(gpu: EmulatedGpu):
    problem, *_ = random_problem(103, HALF, [32])  # two axes
    for tactic in (2, 7, 21, 99):
        problem.output[...] = np.nan
        assert not gpu.accepts(problem, tactic)
        assert np.isnan(problem.output).all()


def test_every_tactic_that_is_offered_is_known(gpu: EmulatedGpu):
    for seed in range(100, 130):
        problem, *_ = random_problem(seed, HALF, [16, 32, 64, 128], large_windows=seed % 2 == 0)
        assert all(gpu.knows(tactic) for tactic in gpu.tactics(problem))
    assert not gpu.knows(0)
    assert not gpu.knows(99)


@pytest.mark.parametrize("part", range(3), ids=["query", "key", "value"])
def test_what_is_not_a_number_does_not_get_lost(gpu: EmulatedGpu, part: int):
    """Integer arithmetic splits float32 for tensor cores; a device's NaN is 0x7FFFFFFF."""
    spec = NeighborhoodSpec.create(2, 3)
    for dtype in (FLOAT, HALF):
        qkv = aligned(81 * 3 * 16, dtype).reshape(1, 9, 9, 3, 1, 16)
        qkv[...] = np.random.default_rng(0).normal(size=qkv.shape)
        qkv[0, 4, 4, part, 0, 3] = np.nan
        if dtype == FLOAT:
            qkv.view(np.uint32)[0, 4, 4, part, 0, 3] = 0x7FFFFFFF
        problem = Problem(spec, qkv)
        seen = np.zeros((9, 9), bool)
        seen[4, 4] = True
        if part:
            seen[3:6, 3:6] = True
        for tactic in gpu.tactics(problem):
            gpu.run(problem, tactic, finite=False)
            lost = ~np.isnan(problem.output[0, :, :, 0]).any(-1)
            np.testing.assert_array_equal(~lost[seen], True)


def test_what_tiles_cannot_take_is_left_to_the_plain_kernel(gpu: EmulatedGpu):
    for dtype, head_dim in ((FLOAT, 30), (FLOAT, 128), (HALF, 20), (HALF, 136)):
        problem, *_ = random_problem(4, dtype, [head_dim])
        assert gpu.tactics(problem) == [PLAIN]


def test_heads_too_wide_are_refused_in_a_sentence(gpu: EmulatedGpu):
    problem, *_ = random_problem(0, HALF, [300])
    assert gpu.check(problem) == "heads have at most 256 channels on a GPU, got 300"


def test_no_image_is_no_work(gpu: EmulatedGpu):
    spec = NeighborhoodSpec.create(2, 3)
    for tactic in (PLAIN, 4, 30):
        gpu.run(Problem(spec, aligned(0, HALF).reshape(0, 9, 9, 3, 2, 32)), tactic)


@pytest.mark.parametrize("seed", range(24))
def test_boxes_cover_each_window_once_and_are_called_inside_only_where_all_see_them(gpu: EmulatedGpu, seed: int):
    problem, spec, _ = random_problem(seed, HALF, [16])
    rank = spec.rank
    lengths = list(problem.params.length)[:rank]
    masks = [
        axis_mask(*sizes)
        for sizes in zip(lengths, spec.kernel_size, spec.dilation, spec.stride, spec.is_causal, strict=True)
    ]
    for tile in [TILES[t] for t in {1: (2, 3), 2: (4, 5, 6), 3: (7, 8)}[rank]]:
        box, done = BOXES[rank], np.zeros(lengths, int)
        count = gpu.tile_count(problem.params, tile)
        heads = problem.params.heads * problem.params.batch
        assert count % heads == 0
        for number in range(0, count // problem.params.batch, problem.params.heads):  # head 0 of image 0
            found = gpu.tile_boxes(problem.params, tile, box, number)
            if found is None:
                continue
            first, group, boxes, inside = found
            queries, seen = [], []
            for axis in range(rank):
                at = 3 - rank + axis
                size = -(-(lengths[axis] - group[at]) // spec.dilation[axis])
                elements = np.arange(first[at], min(first[at] + tile[at], size))
                queries.append(elements * spec.dilation[axis] + group[at])
                group_keys = np.arange(size) * spec.dilation[axis] + group[at]
                seen.append(masks[axis][np.ix_(queries[-1], group_keys)])  # (queries, keys of the group)
            done[np.ix_(*queries)] += 1
            total = 0
            for corner, whole in zip(boxes, inside, strict=True):
                parts = [
                    mask[:, corner[3 - rank + axis] : corner[3 - rank + axis] + box[3 - rank + axis]]
                    for axis, mask in enumerate(seen)
                ]
                assert all(part.any() for part in parts)  # some query sees the box
                exact = [part.shape[1] == box[3 - rank + axis] for axis, part in enumerate(parts)]
                assert whole == (all(exact) and all(part.all() for part in parts))
                total += int(np.prod([part.sum() for part in parts]))
            assert total == int(np.prod([mask.sum() for mask in seen]))  # every pair once
        assert (done == 1).all()


def test_the_check_for_gpus_compares_with_float64_on_the_emulated_one_too(native_build: Path):
    library = native_build / "plugins/tests/libna_deploy_cuda_emulated.so"
    script = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"
    command = [sys.executable, str(script), "--emulate", str(library), "--problems", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "random problems that agree with float64 on the emulated GPU: 1\n", done.stdout + done.stderr
