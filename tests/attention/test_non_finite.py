"""Infinity and NaN in PyTorch's operators and in the reference: only queries that see them are touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from non_finite import Spoiled, assert_same, cases

from na_deploy.attention import torch_tiles
from na_deploy.attention.torch_ops import neighborhood_attention, neighborhood_attention_qkv


def computed(case: Spoiled, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return output and, of separate tensors, lse."""
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    window = {"kernel_size": case.kernel_size, "dilation": case.dilation}
    if "qkv" in tensors:
        return [neighborhood_attention_qkv(**tensors, **window).numpy()]
    return [tensor.numpy() for tensor in neighborhood_attention(**tensors, **window)]


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_pytorchs_operators_give_the_answer_of_float64(case: Spoiled, monkeypatch: pytest.MonkeyPatch):
    arrays = case.arrays(8, np.dtype(np.float32))
    expected = case.expected(arrays)
    for limit in (torch_tiles.LARGE_SCORES, 64):  # at once, and some tiles at a time
        monkeypatch.setattr(torch_tiles, "LARGE_SCORES", limit)
        for own, wanted in zip(computed(case, arrays), expected, strict=False):
            assert_same(own, wanted, 1e-5)


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("part", [1, 2], ids=["key", "value"])
def test_the_reference_leaves_alone_who_does_not_see_the_number(part: int, number: float):
    clean = Spoiled("", (9,), (3,), (), number)
    spoiled = Spoiled("", (9,), (3,), (("qkv", (0, 4, part, 0, 3)),), number)
    before, after = (case.expected(case.arrays(8, np.dtype(np.float64))).output for case in (clean, spoiled))
    differs = ~np.isclose(before, after, rtol=1e-12).all((0, 2, 3))
    np.testing.assert_array_equal(np.flatnonzero(differs), [3, 4, 5])
