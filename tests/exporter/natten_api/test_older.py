"""natten 0.17's functions, on a stand-in of that version, and a video block with strided windows and text tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import natten
import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from na_deploy import export
from na_deploy.attention.reference import reference_attention
from na_deploy.attention.windows import NeighborhoodSpec


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("natten's own function ran")


@pytest.fixture
def old_natten(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    package, functional = ModuleType("natten"), ModuleType("natten.functional")
    package.__version__ = "0.17.5"  # type: ignore[attr-defined]
    for number, name in enumerate(("na2d", "na2d_qk", "na2d_av")):
        vars(functional)[name] = lambda *a, number=number: never(number)
    monkeypatch.setitem(sys.modules, "natten", package)
    monkeypatch.setitem(sys.modules, "natten.functional", functional)
    return functional


def run(path: Path, *inputs: Tensor) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {v.name: t.numpy() for v, t in zip(session.get_inputs(), inputs, strict=True)})[0]


class Biased(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rpb = nn.Parameter(torch.randn(2, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        # dilation comes before is_causal and rpb in 0.17
        return sys.modules["natten.functional"].na2d(x, 2 * x, -x, 3, 2, False, self.rpb)


def test_the_order_of_arguments_and_the_bias_are_those_of_017(old_natten: ModuleType, tmp_path: Path):
    torch.manual_seed(3)
    module, x = Biased(), torch.randn(1, 8, 9, 2, 12)
    found = run(export(module, x, tmp_path / "model.onnx").path, x)
    spec = NeighborhoodSpec.create(2, 3, dilation=2)
    array, bias = x.numpy(), module.rpb.detach().numpy()
    expected = reference_attention(array, 2 * array, -array, spec, rel_pos_bias=bias)
    np.testing.assert_allclose(found, expected.output, atol=1e-5)


class Unfused(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return sys.modules["natten.functional"].na2d_qk(x, x, 3, 1)


def test_scores_without_their_values_become_standard_operators(old_natten: ModuleType, tmp_path: Path):
    report = export(Unfused(), torch.randn(1, 2, 8, 9, 12), tmp_path / "model.onnx")
    assert report.difference < 1e-5
    assert report.attention_layers == 0
    assert "used for more than a softmax" in report.notices[0]


class VideoBlock(nn.Module):
    """Attention of a video transformer: strided windows over (T, H, W), text tokens as additional keys."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.text, self.proj = nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, video: Tensor, text: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(video)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        text_key, text_value = self.text(text).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        attended = natten.na3d(
            query, key, value, kernel_size=(video.shape[1], 4, 4), stride=(1, 2, 4),
            additional_keys=text_key, additional_values=text_value,
        )  # fmt: skip
        return video + self.proj(attended.flatten(-2))


def test_a_video_block_with_text_tokens_computes_what_natten_computes(tmp_path: Path):
    torch.manual_seed(4)
    block, video, text = VideoBlock().eval(), torch.randn(2, 3, 6, 8, 32), torch.randn(2, 5, 32)
    with torch.no_grad():
        expected = block(video, text).numpy()
    found = run(export(block, (video, text), tmp_path / "model.onnx").path, video, text)
    np.testing.assert_allclose(found, expected, atol=1e-5)
