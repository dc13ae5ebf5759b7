"""Counted work against counting pairs one by one."""

from __future__ import annotations

import numpy as np
import pytest

from na_deploy.attention import NeighborhoodSpec, axis_mask
from na_deploy.attention.cost import attention_cost
from na_deploy.attention.tiling import plan_tiles
from na_deploy.errors import UsageError


@pytest.mark.parametrize("seed", range(30))
def test_pairs_are_counted_exactly(seed: int):
    random = np.random.default_rng(seed)
    rank = seed % 3 + 1
    kernels = random.integers(1, 5, rank)
    dilations = random.integers(1, 4, rank)
    lengths = tuple(int(length) for length in kernels * dilations + random.integers(0, 5, rank))
    strides = [int(random.integers(1, kernel + 1)) for kernel in kernels]
    causal = [bool(flag) for flag in random.random(rank) < 0.4]
    spec = NeighborhoodSpec.create(rank, kernels.tolist(), dilations.tolist(), strides, causal)
    attributes = zip(lengths, spec.kernel_size, spec.dilation, spec.stride, spec.is_causal, strict=True)
    pairs = int(np.prod([axis_mask(*axis).sum() for axis in attributes]))
    extra = 3 * int(np.prod(lengths))
    plan = plan_tiles(lengths, spec)
    computed = plan.visible.size + 3 * plan.query.size  # padded queries read additional keys as well
    cost = attention_cost(lengths, spec, 2, 8, batch=5, value_dim=4, additional=3)
    assert cost.pairs == pairs + extra
    assert cost.multiply_adds == 5 * 2 * (8 + 4) * (pairs + extra)
    assert cost.tiled_multiply_adds == 5 * 2 * (8 + 4) * computed


def test_a_layer_of_nat_mini_costs_what_its_formula_says():
    cost = attention_cost((56, 56), NeighborhoodSpec.create(2, 7), 2, 32)
    assert cost.multiply_adds == 2 * 56 * 56 * 49 * 64
    assert (cost.tile, cost.span) == ((4, 4), (10, 10))


def test_keys_behind_a_small_map_count_and_queries_there_do_not():
    spec = NeighborhoodSpec.create(2, (3, 5), (4, 1), (2, 1), (True, False))
    whole = attention_cost((12, 9), spec, 1, 8)
    cost = attention_cost((5, 9), spec, 1, 8, padded=True)
    of_rows = axis_mask(12, 3, 4, 2, True)[:5].sum()
    assert cost.pairs == of_rows * axis_mask(9, 5).sum() < whole.pairs
    assert (cost.tile, cost.span) == ((2, 5), (3, 9))


def test_a_window_that_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="exceeds the length"):
        attention_cost((6, 6), NeighborhoodSpec.create(2, 7), 2, 32)
