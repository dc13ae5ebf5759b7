"""Mask2Former's and OneFormer's pixel decoder: deformable attention over three maps, then a pyramid to the largest.

Deformable DETR (https://arxiv.org/abs/2010.04159) as Mask2Former uses it (https://arxiv.org/abs/2112.01527); names are
those of its repository.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from na_deploy.models.heads.transformer import (
    GroupNorm,
    NormedConv,
    places,
    resized,
    sine_positions,
    tokens,
    widened,
)

Size = Sequence[int]


@dataclass(frozen=True)
class DeformableConfig:
    """The size of a pixel decoder.

    Attributes:
        in_widths: channels of the backbone's maps, the largest map first.
        width: channels of the decoder.
        mask_width: channels of the mask features.
        layers: layers of deformable attention.
        heads: attention heads.
        feedforward: hidden width of each layer.
        pyramid: larger maps that are added after the attention: 1 where masks have a quarter of the image's size.
        levels: maps that attention reads, from the smallest.
        points: places that a head reads on each map.
        eps: epsilon of the layers' norms.
    """

    in_widths: tuple[int, ...]
    width: int
    mask_width: int
    layers: int
    heads: int
    feedforward: int
    pyramid: int = 1
    levels: int = 3
    points: int = 4
    eps: float = 1e-5


class DeformableAttention(nn.Module):
    """Each token reads a few places of every map, near its own, and averages them with weights of its own."""

    def __init__(self, config: DeformableConfig) -> None:
        super().__init__()
        width, count = config.width, config.heads * config.levels * config.points
        self.heads, self.levels, self.points = config.heads, config.levels, config.points
        self.sampling_offsets = nn.Linear(width, 2 * count)
        self.attention_weights = nn.Linear(width, count)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, value: Tensor, sizes: Sequence[Size], centres: Tensor) -> Tensor:
        """Read the maps.

        Args:
            query: tokens with their positions (B, N, C).
            value: tokens of all maps, one after the other (B, N, C).
            sizes: (H, W) of every map.
            centres: each token's own place (1, N, 2) as x and y, 0 to 1 over its map.
        """
        batch, count, _ = query.shape
        offsets = widened(self.sampling_offsets(query))
        offsets = offsets.reshape(batch, count, self.heads, self.levels, self.points, 2)
        weights = widened(self.attention_weights(query)).reshape(batch, count, self.heads, self.levels * self.points)
        weights = weights.softmax(-1).reshape(batch, count, self.heads, self.levels, self.points)
        maps = self.value_proj(value).split([height * width for height, width in sizes], dim=1)
        total = None
        for level, (height, width) in enumerate(sizes):
            # Sampled in float32: half precision cannot name a place on a large map.
            pixels = widened(maps[level]).transpose(1, 2).reshape(batch * self.heads, -1, height, width)
            step = torch.cat((offsets.new_ones(1) / width, offsets.new_ones(1) / height))
            grid = centres[:, :, None, None] + offsets[:, :, :, level] * step  # (B, N, heads, points, 2)
            grid = (2 * grid - 1).transpose(1, 2).flatten(0, 1)
            read = functional.grid_sample(pixels, grid, align_corners=False)  # (B·heads, D, N, points)
            share = weights[:, :, :, level].transpose(1, 2).flatten(0, 1).unsqueeze(1)
            part = (read * share).sum(-1)
            total = part if total is None else total + part
        assert total is not None
        mixed = total.reshape(batch, -1, count).transpose(1, 2)
        return self.output_proj(mixed.to(query.dtype))  # type: ignore[no-any-return]


class EncoderLayer(nn.Module):
    """Deformable attention and a feed-forward network, each with a residual and a norm."""

    def __init__(self, config: DeformableConfig) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(config)
        self.norm1 = nn.LayerNorm(config.width, eps=config.eps)
        self.linear1 = nn.Linear(config.width, config.feedforward)
        self.linear2 = nn.Linear(config.feedforward, config.width)
        self.norm2 = nn.LayerNorm(config.width, eps=config.eps)

    def forward(self, x: Tensor, positions: Tensor, sizes: Sequence[Size], centres: Tensor) -> Tensor:
        """Map tokens (B, N, C) to (B, N, C)."""
        x = self.norm1(x + self.self_attn(x + positions, x, sizes, centres))
        return self.norm2(x + self.linear2(self.linear1(x).relu()))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """The layers of deformable attention, under the names of the official files."""

    def __init__(self, config: DeformableConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))


class Transformer(nn.Module):
    """The encoder and a learned code for every map."""

    def __init__(self, config: DeformableConfig) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.zeros(config.levels, config.width))
        self.encoder = Encoder(config)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Mix maps (B, C, H, W); each keeps its size."""
        sizes = [x.shape[2:] for x in maps]
        x = torch.cat([tokens(each) for each in maps], 1)
        positions = torch.cat(
            [
                sine_positions(height, width, x.shape[-1], x) + self.level_embed[level]
                for level, (height, width) in enumerate(sizes)
            ],
            1,
        )
        centres = torch.cat([_centres(height, width, x) for height, width in sizes], 1)
        for layer in self.encoder.layers:
            x = layer(x, positions, sizes, centres)
        parts = torch.split(x, [height * width for height, width in sizes], dim=1)
        return [
            part.transpose(1, 2).reshape(x.shape[0], -1, height, width)
            for part, (height, width) in zip(parts, sizes, strict=True)
        ]


def _centres(height: int, width: int, like: Tensor) -> Tensor:
    """Return the centres of a map's places (1, H·W, 2) as x and y, 0 to 1."""
    rows, columns = places(height, width, like)
    return torch.stack(((columns + 0.5) / width, (rows + 0.5) / height), -1)[None]


class DeformablePixelDecoder(nn.Module):
    """From the backbone's maps to mask features and the maps that queries read."""

    def __init__(self, config: DeformableConfig) -> None:
        super().__init__()
        self.levels, self.pyramid = config.levels, config.pyramid
        smallest_first = config.in_widths[::-1][: config.levels]
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(in_width, config.width, 1), GroupNorm(config.width)) for in_width in smallest_first
        )
        self.transformer = Transformer(config)
        for index in range(config.pyramid):
            self.add_module(f"adapter_{index + 1}", NormedConv(config.in_widths[index], config.width, 1))
            self.add_module(f"layer_{index + 1}", NormedConv(config.width, config.width, 3, relu=True))
        self.mask_features = nn.Conv2d(config.width, config.mask_width, 1)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return mask features (B, M, H/4, W/4), and the attended maps (B, C, h, w), the smallest first."""
        smallest_first = list(maps)[::-1][: self.levels]
        attended = self.transformer([project(x) for project, x in zip(self.input_proj, smallest_first, strict=True)])
        x = attended[-1]
        for index in reversed(range(self.pyramid)):
            lateral = self.get_submodule(f"adapter_{index + 1}")(maps[index])
            x = self.get_submodule(f"layer_{index + 1}")(lateral + resized(x, lateral.shape[2:]))
        return self.mask_features(x), attended
