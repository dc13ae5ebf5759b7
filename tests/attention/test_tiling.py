"""Tiles cover every window exactly once, and outputs find their way back."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest

from na_deploy.attention import NeighborhoodSpec, axis_mask
from na_deploy.attention.tiling import (
    TILE_LIMIT,
    TILE_MINIMUM,
    plan_axis,
    plan_parts,
    plan_tiles,
    tile_size,
    tiled_pairs,
)
from na_deploy.errors import UsageError


def random_axes(count: int, seed: int) -> list[tuple[int, int, int, int, bool]]:
    random = np.random.default_rng(seed)
    axes = []
    for _ in range(count):
        kernel = int(random.integers(1, 14))
        dilation = int(random.integers(1, 6))
        length = kernel * dilation + int(random.integers(0, 40))
        axes.append((length, kernel, dilation, int(random.integers(1, kernel + 1)), bool(random.random() < 0.4)))
    return axes


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_tiles_of_an_axis_hold_every_visible_pair_once(rank: int):
    for length, kernel, dilation, stride, causal in random_axes(150, rank):
        plan = plan_axis(length, kernel, dilation, stride, causal, rank)
        counts = np.zeros((length, length), np.int64)
        seen = np.zeros(length, bool)
        for group, tile, place in np.ndindex(plan.query.shape):
            position = plan.query[group, tile, place]
            if seen[position]:
                continue  # a padded query repeats its group's last position
            seen[position] = True
            visible = plan.visible[group, tile, place]
            np.add.at(counts, (position, plan.key[group, tile][visible]), 1)
        assert seen.all()
        np.testing.assert_array_equal(counts, axis_mask(length, kernel, dilation, stride, causal))


def test_bias_indices_are_distances_between_positions():
    for length, kernel, dilation, stride, causal in random_axes(60, 7):
        plan = plan_axis(length, kernel, dilation, stride, causal)
        distance = plan.key[:, :, None, :] - plan.query[..., None]
        expected = distance // dilation + kernel - 1
        np.testing.assert_array_equal(plan.offset[plan.visible], expected[plan.visible])
        assert plan.offset[plan.visible].min() >= 0
        assert plan.offset[plan.visible].max() <= 2 * kernel - 2


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_tile_sides_are_whole_strides_and_bounded(rank: int):
    for kernel in range(1, 80, 3):
        for stride in {1, 2, max(1, kernel // 2), kernel} & set(range(1, kernel + 1)):
            for group in range(kernel, kernel + 120, 7):
                side = tile_size(group, kernel, stride, rank)
                assert side % stride == 0
                assert 1 <= side < 2 * TILE_LIMIT[rank] + stride
                tiles = -(-group // side)
                assert (tiles - 1) * side < group  # no tile is empty
                assert side >= min(group, TILE_MINIMUM[rank])


def test_a_group_hardly_longer_than_its_window_is_one_tile():
    assert [tile_size(group, 7, 1, 2) for group in (7, 8, 14, 28, 56)] == [7, 8, 5, 4, 4]


def random_problem(seed: int) -> tuple[tuple[int, ...], NeighborhoodSpec]:
    random = np.random.default_rng(seed)
    rank = seed % 3 + 1
    kernels = [int(random.integers(1, 6)) for _ in range(rank)]
    dilations = [int(random.integers(1, 4)) for _ in range(rank)]
    strides = [int(random.integers(1, kernel + 1)) for kernel in kernels]
    room = {1: 30, 2: 9, 3: 3}[rank]
    lengths = [k * d + int(random.integers(0, room)) for k, d in zip(kernels, dilations, strict=True)]
    return tuple(lengths), NeighborhoodSpec.create(rank, kernels, dilations, strides, list(random.random(rank) < 0.3))


@pytest.mark.parametrize("seed", range(45))
def test_flattened_plans_combine_axes(seed: int):
    lengths, spec = random_problem(seed)
    plan = plan_tiles(lengths, spec)
    count = int(np.prod(lengths))
    np.testing.assert_array_equal(plan.query.reshape(-1)[plan.home(count)], np.arange(count))
    bias_shape = [2 * kernel - 1 for kernel in spec.kernel_size]
    pairs = np.zeros((count, count), np.int64)
    for slot in plan.home(count):
        tile, place = divmod(int(slot), plan.query.shape[1])
        keys = plan.key[tile][plan.visible[tile, place]]
        query = plan.query[tile, place]
        np.add.at(pairs, (query, keys), 1)
        here, there = (np.array(np.unravel_index(at, lengths)) for at in (np.full_like(keys, query), keys))
        distance, remainder = np.divmod(there - here, np.array(spec.dilation)[:, None])
        assert not remainder.any()
        index = distance + np.array(spec.kernel_size)[:, None] - 1
        expected = np.ravel_multi_index(tuple(index), bias_shape)
        np.testing.assert_array_equal(plan.bias_index[tile, place][plan.visible[tile, place]], expected)
    axes = zip(lengths, spec.kernel_size, spec.dilation, spec.stride, spec.is_causal, strict=True)
    np.testing.assert_array_equal(pairs, reduce(np.kron, [axis_mask(*axis).astype(np.int64) for axis in axes]))


def test_every_tile_given_by_hand_is_right_too():
    for tile in (2, 4, 6, 20):
        plan = plan_axis(41, 7, dilation=2, stride=2, tile=tile)
        assert plan.tile == tile
        pairs = np.zeros((41, 41), bool)
        for place in np.ndindex(plan.query.shape):
            pairs[plan.query[place], plan.key[place[:2]][plan.visible[place]]] = True
        np.testing.assert_array_equal(pairs, axis_mask(41, 7, 2, 2))


def test_a_window_longer_than_its_axis_has_no_plan():
    with pytest.raises(UsageError, match=r"3\*4 = 12 exceeds the length 11 of spatial axis 1"):
        plan_tiles((9, 11), NeighborhoodSpec.create(2, 3, (1, 4)))


@pytest.mark.parametrize("pairs", [1, 700])
@pytest.mark.parametrize("seed", range(12))
def test_parts_are_the_whole_plan_cut_up(seed: int, pairs: int):
    lengths, spec = random_problem(seed)
    whole, parts = plan_tiles(lengths, spec), list(plan_parts(lengths, spec, pairs))
    assert tiled_pairs(lengths, spec) == whole.visible.size
    assert all(part.visible.size <= pairs or len(part.query) == 1 for part in parts)
    for name in ("query", "key", "visible", "bias_index"):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
