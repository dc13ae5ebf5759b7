"""Messages of tracing that fails."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from na_deploy.attention.torch_ops import neighborhood_attention_qkv
from na_deploy.errors import NaDeployError, UsageError
from na_deploy.exporter.options import ExportOptions
from na_deploy.exporter.tracing import trace


class Branching(nn.Module):
    """Takes another way for bright images, which a graph cannot."""

    def forward(self, image: Tensor) -> Tensor:
        return image if bool(image.mean() > 0) else -image


class Attending(nn.Module):
    """Attends over the image itself, with a window of 9."""

    def forward(self, image: Tensor) -> Tensor:
        qkv = torch.stack([image.permute(0, 2, 3, 1)] * 3, dim=3).unsqueeze(4)
        return neighborhood_attention_qkv(qkv, kernel_size=9, stride=10)


def test_the_first_cause_is_named_in_one_line():
    with pytest.raises(NaDeployError, match="could not be traced with an input of 1x3x8x8: ") as caught:
        trace(Branching(), (1, 3, 8, 8), ["output"], ExportOptions())
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "\x1b" not in sentence
    assert "TorchExportError" not in sentence


def test_what_a_layer_says_is_passed_on():
    with pytest.raises(UsageError, match="stride must lie between 1 and kernel_size=9, got 10"):
        trace(Attending(), (1, 3, 12, 12), ["output"], ExportOptions())
