"""TensorRT-RTX takes what is exported from modules that call natten."""

from __future__ import annotations

from pathlib import Path

import natten
import pytest
import torch
from rtx_engines import build_rtx_engine
from torch import Tensor, nn

from na_deploy import export


class Block(nn.Module):
    """Strided windows over (T, H, W) with text tokens as additional keys."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.text = nn.Linear(32, 96), nn.Linear(32, 64)

    def forward(self, video: Tensor, text: Tensor) -> Tensor:
        query, key, value = self.qkv(video).unflatten(-1, (3, 4, 8)).unbind(-3)
        more_key, more_value = self.text(text).unflatten(-1, (2, 4, 8)).unbind(-3)
        arguments = {"kernel_size": (3, 4, 4), "stride": (1, 2, 4)}
        attended = natten.na3d(query, key, value, **arguments, additional_keys=more_key, additional_values=more_value)
        return video + attended.flatten(-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_video_block_with_text_tokens_is_built(dtype: torch.dtype, tmp_path: Path):
    torch.manual_seed(1)
    inputs = torch.randn(1, 3, 6, 8, 32).to(dtype), torch.randn(1, 5, 32).to(dtype)
    exported = export(Block().to(dtype).eval(), inputs, tmp_path / "model.onnx")
    assert exported.difference < exported.tolerance
    built = build_rtx_engine(exported.path)
    assert built.engine_bytes > 10_000
    assert built.report.layers > 10
