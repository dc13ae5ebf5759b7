"""The simulator's counts are those of counting every pair, and its bounds those of published cases."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from na_deploy.attention.simulator import best_tiles, simulate, sweep_strides, tile_shapes
from na_deploy.attention.windows import NeighborhoodSpec, axis_mask
from na_deploy.errors import UsageError


def brute_force(
    lengths: tuple[int, ...], spec: NeighborhoodSpec, tile_q: tuple[int, ...], tile_kv: tuple[int, ...]
) -> tuple[int, int, int]:
    """Attended pairs, visited tiles and unmasked tiles, by going through every pair of tiles of every group."""
    mask = np.ones((1, 1), bool)
    for axis, length in enumerate(lengths):
        own = axis_mask(length, spec.kernel_size[axis], spec.dilation[axis], spec.stride[axis], spec.is_causal[axis])
        mask = np.einsum("ab,cd->acbd", mask, own).reshape(mask.shape[0] * length, -1)
    places = list(itertools.product(*(range(length) for length in lengths)))
    visited = unmasked = 0
    for group in itertools.product(*(range(d) for d in spec.dilation)):
        tiles: list[dict[tuple[int, ...], list[int]]] = [{}, {}]
        for number, place in enumerate(places):
            if any(p % d != g for p, d, g in zip(place, spec.dilation, group, strict=True)):
                continue
            for found, tile in zip(tiles, (tile_q, tile_kv), strict=True):
                key = tuple(p // d // t for p, d, t in zip(place, spec.dilation, tile, strict=True))
                found.setdefault(key, []).append(number)
        for queries in tiles[0].values():
            for keys in tiles[1].values():
                part = mask[np.ix_(queries, keys)]
                visited += bool(part.any())
                whole = len(queries) == math.prod(tile_q) and len(keys) == math.prod(tile_kv)
                unmasked += bool(part.all()) and whole
    return int(mask.sum()), visited, unmasked


@st.composite
def problems(draw: st.DrawFn) -> tuple:
    rank = draw(st.integers(1, 3))
    kernel, dilation, stride, causal, lengths, tile_q, tile_kv = [], [], [], [], [], [], []
    for _ in range(rank):
        kernel.append(draw(st.integers(1, {1: 9, 2: 5, 3: 3}[rank])))
        dilation.append(draw(st.integers(1, 3)))
        stride.append(draw(st.integers(1, kernel[-1])))
        causal.append(draw(st.booleans()))
        lengths.append(kernel[-1] * dilation[-1] + draw(st.integers(0, {1: 20, 2: 6, 3: 2}[rank])))
        tile_q.append(draw(st.integers(1, 5)))
        tile_kv.append(draw(st.integers(1, 5)))
    spec = NeighborhoodSpec.create(rank, kernel, dilation, stride, causal)
    return tuple(lengths), spec, tuple(tile_q), tuple(tile_kv)


@settings(max_examples=150, deadline=None)
@given(problems())
def test_counts_are_those_of_every_pair(problem: tuple):
    found = simulate(*problem)
    assert (found.attended_pairs, found.visited_tiles, found.unmasked_tiles) == brute_force(*problem)


@settings(max_examples=40, deadline=None)
@given(problems())
def test_a_sweep_holds_what_each_stride_gives(problem: tuple):
    spec = problem[1]
    sweep = sweep_strides(*problem)
    assert sweep.at(spec.stride) == simulate(*problem)
    index = tuple(step - 1 for step in spec.stride)
    assert sweep.tile_bounds[index] == pytest.approx(simulate(*problem).tile_bound)
    front = sweep.front()
    assert (
        front[0].spec.stride == (1,) * spec.rank or front[0].tile_bound > sweep.at((1,) * spec.rank).tile_bound - 1e-9
    )
    assert front[-1].tile_bound == pytest.approx(sweep.tile_bounds.max())
    assert [each.tile_bound for each in front] == sorted(each.tile_bound for each in front)
    assert sweep.recommended().tile_bound >= 0.98 * front[-1].tile_bound


def test_full_attention_gains_nothing():
    spec = NeighborhoodSpec.create(2, (16, 16))
    found = simulate((16, 16), spec, (8, 8), (8, 8))
    assert found.flop_bound == found.tile_bound == 1.0
    assert found.block_sparse


def test_the_published_block_sparse_cases_are_block_sparse():
    # NATTEN's own examples: 2-D 256x256, window 80x80, stride 16x16; 3-D 30x48x80, window 18x24x24, stride 16x8x8.
    square = simulate((256, 256), NeighborhoodSpec.create(2, 80, stride=16), (16, 8), (16, 8))
    assert square.block_sparse
    assert square.flop_bound == square.tile_bound == pytest.approx(10.24)
    sliding = simulate((256, 256), NeighborhoodSpec.create(2, 80), (16, 8), (16, 8))
    assert sliding.tile_bound < 0.8 * sliding.flop_bound
    assert sliding.flop_bound == pytest.approx(10.24)
    video = simulate((30, 48, 80), NeighborhoodSpec.create(3, (18, 24, 24), stride=(16, 8, 8)), (2, 8, 8), (2, 8, 8))
    assert video.tile_bound == pytest.approx(video.flop_bound, rel=0.02)


def test_a_full_sweep_of_a_video_takes_seconds():
    spec = NeighborhoodSpec.create(3, (18, 24, 24))
    started = time.perf_counter()
    sweep = sweep_strides((30, 48, 80), spec, (2, 8, 8), (2, 8, 8))
    best = sweep.recommended()
    assert time.perf_counter() - started < 10
    assert sweep.combinations == 18 * 24 * 24
    assert best.tile_bound > 1.3 * sweep.at((1, 1, 1)).tile_bound
    assert best.tile_bound <= best.flop_bound * 1.02


def test_the_best_tiles_are_the_best_of_all():
    spec = NeighborhoodSpec.create(2, (9, 24))
    found = best_tiles((40, 96), spec, 64, 64)
    assert len(found) == 7 * 7
    assert found[0].tile_bound == max(simulate((40, 96), spec, q, kv).tile_bound
                                      for q in tile_shapes(64, 2) for kv in tile_shapes(64, 2))  # fmt: skip


def test_tiles_judged_at_their_best_stride_are_the_best_of_all_strides():
    spec = NeighborhoodSpec.create(2, (6, 5))
    found = best_tiles((20, 18), spec, 8, 8, any_stride=True)
    for each in found:
        sweep = sweep_strides((20, 18), spec, each.tile_q, each.tile_kv)
        assert each.tile_bound == pytest.approx(sweep.tile_bounds.max())
    assert [each.tile_bound for each in found] == sorted((each.tile_bound for each in found), reverse=True)


def test_wrong_use_is_told():
    spec = NeighborhoodSpec.create(2, 7)
    with pytest.raises(UsageError, match="exceeds the length 5"):
        simulate((5, 9), spec, (2, 2), (2, 2))
    with pytest.raises(UsageError, match="one size of at least 1 for 2 axes"):
        simulate((9, 9), spec, (2,), (2, 2))
    with pytest.raises(UsageError, match="power of two"):
        list(tile_shapes(96, 2))
