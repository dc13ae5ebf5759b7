"""Parts that the heads with queries share: attention, sine positions, small networks, residual steps.

Tokens are (B, N, C). Softmax, normalisation and mask products are computed in float32 whatever the type of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


def widened(x: Tensor) -> Tensor:
    """Return ``x`` in float32 if its type is narrower."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class Attention(nn.Module):
    """Multi-head attention. Files pack the three projections as ``in_proj_weight``; reading them splits it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Attend from (B, Q, C) to (B, N, C).

        Args:
            query: the vectors that ask.
            key: the vectors they are compared with.
            value: the vectors that are averaged.
            hidden: (B, Q, N), true where a query must not look; never for all of a query's keys.
        """
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        scores = widened((q * self.scale) @ k.transpose(-2, -1))  # (B, heads, Q, N)
        if hidden is not None:
            scores = scores.masked_fill(hidden.unsqueeze(1), -math.inf)
        mixed = scores.softmax(-1).to(v.dtype) @ v
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Linear, ReLU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, C) to (…, C)."""
        return self.linear2(self.linear1(x).relu())  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Linear layers with ReLU between."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(before, behind) for before, behind in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, first width) to (…, last width)."""
        *inner, last = self.layers
        for layer in inner:
            x = layer(x).relu()
        return last(x)  # type: ignore[no-any-return]


def residual(x: Tensor, norm: nn.Module, step: Callable[[Tensor], Tensor], *, pre_norm: bool) -> Tensor:
    """Add a step to what it reads; the norm stands before the step, or after the sum."""
    return x + step(norm(x)) if pre_norm else norm(x + step(x))


def sine_positions(height: int, width: int, channels: int, like: Tensor) -> Tensor:
    """Return the positions of a map's places (1, H·W, C): sines and cosines of rows, then of columns.

    DETR (https://arxiv.org/abs/2005.12872) with both axes scaled to 2π. Computed in float32, given in the type of
    ``like``.
    """
    rows, columns = places(height, width, like)
    half = channels // 2
    step = torch.arange(half, dtype=rows.dtype, device=like.device)
    period = 10000 ** (2 * torch.div(step, 2, rounding_mode="floor") / half)

    def axis(place: Tensor, length: int) -> Tensor:  # (H·W, C/2), sine and cosine alternating
        angle = ((place + 1) / (length + 1e-6) * (2 * math.pi))[:, None] / period
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), 2).flatten(1)

    return torch.cat((axis(rows, height), axis(columns, width)), 1)[None].to(like.dtype)


def places(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row and the column of each of a map's places (H·W), in float32, or float64 if ``like`` is.

    Counted along the map: spreading rows over columns would bind a traced graph to maps of more than one row.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    place = torch.arange(height * width, dtype=dtype, device=like.device)
    rows = ((place + 0.5) / width).floor()  # exact in float32 for maps of up to 2,000 × 2,000 places
    return rows, place - rows * width


def tokens(x: Tensor) -> Tensor:
    """Return a map (B, C, H, W) as tokens (B, H·W, C)."""
    return x.flatten(2).transpose(1, 2)


def mask_logits(embedding: Tensor, features: Tensor) -> Tensor:
    """Multiply mask embeddings (B, Q, C) with features (B, C, H, W) to masks (B, Q, H, W)."""
    batch, _, height, width = features.shape
    product = widened(embedding) @ widened(features).flatten(2)
    return product.reshape(batch, embedding.shape[1], height, width)


class GroupNorm(nn.GroupNorm):
    """Group normalisation in 32 groups; statistics over whole maps need float32."""

    def __init__(self, width: int) -> None:
        super().__init__(32, width)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        weight, bias = widened(self.weight), widened(self.bias)
        return functional.group_norm(widened(x), self.num_groups, weight, bias, self.eps).to(x.dtype)


class NormedConv(nn.Conv2d):
    """Convolution without bias, GroupNorm, perhaps ReLU: Detectron2's convolution with a norm."""

    def __init__(self, in_width: int, width: int, kernel_size: int, *, relu: bool = False) -> None:
        super().__init__(in_width, width, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = GroupNorm(width)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, width, H, W)."""
        x = self.norm(super().forward(x))
        return x.relu() if self.relu else x


def resized(x: Tensor, size: Sequence[int], *, align_corners: bool = False) -> Tensor:
    """Scale maps (B, C, H, W) to ``size`` bilinearly."""
    return functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)
