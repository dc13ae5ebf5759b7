"""The PyTorch operators follow their inputs to an accelerator. Fake tensors stand in for one, so none is needed."""

from __future__ import annotations

import torch
from torch._subclasses import FakeTensorMode

from na_deploy.attention import NeighborhoodSpec, torch_tiles


def test_tiles_are_cut_where_the_tensors_are():
    lengths = (17, 19)  # in no other test: tables are cached per size and device
    with FakeTensorMode():  # which refuses to mix devices, as PyTorch does

        def empty(*shape: int) -> torch.Tensor:
            return torch.empty(shape, device="cuda")

        query, key, extra = empty(2, *lengths, 4, 8), empty(2, *lengths, 2, 8), empty(2, 3, 2, 8)
        spec = NeighborhoodSpec.create(2, 3, dilation=2)
        output, lse = torch_tiles.tiled(query, key, key, spec, 0.3, empty(4, 5, 5), extra, extra)
    assert output.device == lse.device == query.device
    assert output.shape == query.shape
    assert lse.shape == query.shape[:-1]
