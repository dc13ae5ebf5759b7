"""All-in-one music structure analysis (Kim and Nam, 2023): DiNAT over time, and over instruments and time.

Each block attends over time at two dilations at once, then over (instrument, time). Maps smaller than a window are
padded with zeros before the projections; projections of query, key and value are separate.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from natten.functional import natten1dav, natten1dqkrpb, natten2dav, natten2dqkrpb
from torch import Tensor, nn

INPUTS = {"small": {"spectrogram": (1, 4, 200, 81)}, "full": {"spectrogram": (1, 4, 11000, 81)}}
INSTRUMENTS = 4


class Attention(nn.Module):
    """Over (B, T, C) or (B, K, T, C), with a relative bias."""

    def __init__(self, rank: int, width: int, heads: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.heads, self.kernel_size, self.dilation = heads, kernel_size, dilation
        self.scores: Callable[..., Tensor] = natten1dqkrpb if rank == 1 else natten2dqkrpb
        self.values: Callable[..., Tensor] = natten1dav if rank == 1 else natten2dav
        self.rpb = nn.Parameter(torch.randn(heads, *[2 * kernel_size - 1] * rank) * 0.02)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over every axis between the first and the last."""

        def heads_first(tensor: Tensor) -> Tensor:
            return tensor.unflatten(-1, (self.heads, -1)).movedim(-2, 1)

        query, key, value = (heads_first(part(x)) for part in (self.query, self.key, self.value))
        query = query * query.shape[-1] ** -0.5
        weights = self.scores(query, key, self.rpb, self.kernel_size, self.dilation).softmax(dim=-1)
        attended = self.values(weights, value, self.kernel_size, self.dilation)
        return self.out(attended.movedim(1, -2).flatten(-2))


class Layer(nn.Module):
    """One or two attentions side by side, and a feed-forward over both."""

    def __init__(self, rank: int, width: int, heads: int, kernel_size: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.least = kernel_size * max(dilations)
        self.before = nn.LayerNorm(width)
        self.attentions = nn.ModuleList(Attention(rank, width, heads, kernel_size, step) for step in dilations)
        joined = width * len(dilations)
        self.after = nn.LayerNorm(joined)
        self.feed_forward = nn.Sequential(nn.Linear(joined, 4 * joined), nn.GELU(), nn.Linear(4 * joined, width))

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, T, C) or (B, K, T, C)."""
        lengths = x.shape[1:-1]
        missing = [max(0, self.least - length) for length in lengths]
        padding = [size for after in reversed(missing) for size in (0, after)]
        padded = F.pad(self.before(x), (0, 0, *padding))
        attended = [attention(padded) for attention in self.attentions]
        for axis, length in enumerate(lengths):
            attended = [part.narrow(axis + 1, 0, length) for part in attended]
        joined = torch.cat([x + part for part in attended], dim=-1)
        return x + self.feed_forward(self.after(joined))


class AllInOne(nn.Module):
    """Beats, downbeats, section boundaries and functions of a song from the spectrograms of its four sources."""

    def __init__(self, depth: int, width: int, heads: int, kernel_size: int, longest: int, functions: int = 10) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *(nn.Conv2d(1, width // 2, 3, padding=(1, 0)), nn.MaxPool2d((1, 3)), nn.ELU()),
            *(nn.Conv2d(width // 2, width, (1, 12)), nn.MaxPool2d((1, 3)), nn.ELU()),
            *(nn.Conv2d(width, width, 3, padding=(1, 0)), nn.MaxPool2d((1, 3)), nn.ELU()),
        )
        self.embedded = nn.LayerNorm(width)
        dilations = [min(2**level, longest) for level in range(depth)]
        self.over_time = nn.ModuleList(Layer(1, width, heads, kernel_size, (step, 2 * step)) for step in dilations)
        self.over_instruments = nn.ModuleList(Layer(2, width, heads, 5, (1,)) for _ in dilations)
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(INSTRUMENTS * width, count) for count in (1, 1, 1, functions))

    def forward(self, spectrogram: Tensor) -> tuple[Tensor, ...]:
        """Return logits over time from (B, 4, T, 81)."""
        batch, sources, frames, bands = spectrogram.shape
        x = self.convolutions(spectrogram.reshape(batch * sources, 1, frames, bands))
        x = self.embedded(x.squeeze(-1).transpose(1, 2))
        for time, instruments in zip(self.over_time, self.over_instruments, strict=True):
            x = instruments(time(x).unflatten(0, (batch, sources))).flatten(0, 1)
        x = self.norm(x).unflatten(0, (batch, sources)).transpose(1, 2).flatten(2)
        return tuple(head(x).transpose(1, 2) for head in self.heads)


def small() -> AllInOne:
    """Three levels."""
    return AllInOne(depth=3, width=16, heads=2, kernel_size=5, longest=8)


def full() -> AllInOne:
    """Eleven levels, dilations to 1,024, as published; on 110 seconds."""
    return AllInOne(depth=11, width=24, heads=2, kernel_size=5, longest=3200)
