"""Transformer blocks of video and image diffusion models with strided windows (Cosmos-Predict2, FLUX).

A window of -1 on an axis is the whole axis. Text tokens stand beside the map and are additional keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from natten.functional import neighborhood_attention_generic
from torch import Tensor, nn

INPUTS = {
    "small": {"video": (1, 4, 8, 12, 64), "text": (1, 7, 64), "time": (1, 64)},
    "full": {"video": (1, 16, 44, 80, 2048), "text": (1, 512, 2048), "time": (1, 2048)},
}


class Attention(nn.Module):
    """Neighborhood attention over (T, H, W) with normalised queries and keys, and text seen by all."""

    def __init__(self, width: int, heads: int, window: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        self.heads, self.window, self.stride = heads, window, stride
        self.qkv, self.text = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.query_norm, self.key_norm = nn.RMSNorm(width // heads, 1e-6), nn.RMSNorm(width // heads, 1e-6)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, video: Tensor, text: Tensor) -> Tensor:
        """Attend from (B, T, H, W, C) to its windows and to text (B, M, C)."""
        query, key, value = self.qkv(video).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        text_key, text_value = self.text(text).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        sizes = video.shape[1:-1]
        window = tuple(size if asked < 0 else asked for asked, size in zip(self.window, sizes, strict=True))
        attended = neighborhood_attention_generic(
            self.query_norm(query),
            self.key_norm(key),
            value,
            kernel_size=window,
            stride=tuple(self.stride),
            additional_keys=self.key_norm(text_key),
            additional_values=text_value,
        )
        assert isinstance(attended, Tensor)
        return self.out(attended.flatten(-2))


class Block(nn.Module):
    """Adaptive LayerNorm, attention, feed-forward, both gated by the time embedding."""

    def __init__(self, width: int, heads: int, window: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.attention = Attention(width, heads, window, stride)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, video: Tensor, text: Tensor, time: Tensor) -> Tensor:
        """Transform (B, T, H, W, C)."""
        parts = self.modulation(F.silu(time))[:, None, None, None].chunk(6, -1)
        shift, scale, gate, shift_after, scale_after, gate_after = parts
        width = video.shape[-1:]
        inner = F.layer_norm(video, width) * (1 + scale) + shift
        video = video + gate * self.attention(inner, text)
        inner = F.layer_norm(video, width) * (1 + scale_after) + shift_after
        return torch.add(video, gate_after * self.feed_forward(inner))


def small() -> Block:
    """Four heads."""
    return Block(64, 4, window=(-1, 4, 6), stride=(1, 2, 3))


def full() -> Block:
    """One block of Cosmos-Predict2 2B at 720p: window (-1, 12, 24), stride (1, 4, 8), 16 heads of 128."""
    return Block(2048, 16, window=(-1, 12, 24), stride=(1, 4, 8))
