"""Exports search for garbage rarely, and leave the collector as it was."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from na_deploy import export
from na_deploy.errors import NaDeployError
from na_deploy.exporter.collector import THRESHOLDS, rare_collections


@pytest.fixture(autouse=True)
def kept() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


class Refuses(nn.Module):
    """A module whose forward tells the collector's thresholds and fails."""

    def forward(self, x: Tensor) -> Tensor:
        raise ValueError(f"thresholds {gc.get_threshold()}")


def test_an_export_raises_the_thresholds_and_puts_them_back(tmp_path: Path):
    gc.set_threshold(700, 10, 10)
    with pytest.raises(NaDeployError, match=f"thresholds .{', '.join(map(str, THRESHOLDS))}"):
        export(Refuses(), torch.zeros(1), tmp_path / "refuses.onnx")
    assert gc.get_threshold() == (700, 10, 10)


@pytest.mark.parametrize("given", [(1_000_000, 1_000, 1_000), (0, 10, 10)])
def test_rarer_collections_and_none_stay_as_they_are(given: tuple[int, int, int]):
    gc.set_threshold(*given)
    with rare_collections():
        assert gc.get_threshold()[0] == given[0]
    assert gc.get_threshold() == given
