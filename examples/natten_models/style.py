"""StyleNAT's synthesis blocks (Walton et al., 2022): heads split into groups, each with its own window and dilation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from natten.functional import natten2dav, natten2dqkrpb
from torch import Tensor, nn

INPUTS = {"small": {"style": (1, 32)}, "full": {"style": (1, 512)}}


class HydraAttention(nn.Module):
    """Several neighborhood attentions side by side, over shares of the heads."""

    def __init__(self, width: int, heads: int, kernel_size: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.heads, self.kernel_size, self.dilations = heads, kernel_size, tuple(dilations)
        shares = [heads // len(dilations)] * len(dilations)
        for late in range(heads - sum(shares)):  # what is left over goes to the last groups
            shares[-1 - late] += 1
        self.shares = shares
        self.rpb = nn.ParameterList(torch.randn(s, 2 * kernel_size - 1, 2 * kernel_size - 1) * 0.02 for s in shares)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over (B, H, W, C)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 4, 1, 2, 5)
        query, key, value = (part.split(self.shares, dim=1) for part in qkv.unbind(0))
        scale = query[0].shape[-1] ** -0.5
        groups = []
        for q, k, v, bias, dilation in zip(query, key, value, self.rpb, self.dilations, strict=True):
            weights = natten2dqkrpb(q * scale, k, bias, self.kernel_size, dilation).softmax(dim=-1)
            groups.append(natten2dav(weights, v, self.kernel_size, dilation))
        return self.proj(torch.cat(groups, dim=1).permute(0, 2, 3, 1, 4).flatten(-2))


class AdaptiveInstanceNorm(nn.Module):
    """Instance normalisation whose scale and shift follow the style."""

    def __init__(self, width: int, style: int) -> None:
        super().__init__()
        self.norm, self.style = nn.InstanceNorm2d(width), nn.Linear(style, 2 * width)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Normalise (B, H, W, C)."""
        scale, shift = self.style(style)[:, None, None].chunk(2, -1)
        return scale * self.norm(x.movedim(-1, 1)).movedim(1, -1) + shift


class Block(nn.Module):
    """Attention and feed-forward at one resolution."""

    def __init__(self, width: int, heads: int, kernel_size: int, dilations: Sequence[int], style: int) -> None:
        super().__init__()
        self.before, self.after = AdaptiveInstanceNorm(width, style), AdaptiveInstanceNorm(width, style)
        self.attention = HydraAttention(width, heads, kernel_size, dilations)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Transform (B, H, W, C)."""
        x = x + self.attention(self.before(x, style))
        return x + self.feed_forward(self.after(x, style))


class Generator(nn.Module):
    """From a constant map upwards, doubling between levels, colours summed over levels."""

    def __init__(self, widths: Sequence[int], first: int, heads: Sequence[int], kernel_size: int, style: int) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.randn(1, first, first, widths[0]))
        self.blocks, self.colours, self.next = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, (width, count) in enumerate(zip(widths, heads, strict=True)):
            room = (first << level) // kernel_size
            dilations = [1 << power for power in range(room.bit_length())][-count:]  # 1, 2, 4 … while they fit
            self.blocks.append(Block(width, count, kernel_size, dilations, style))
            self.colours.append(nn.Linear(width, 3))
            following = widths[min(level + 1, len(widths) - 1)]
            self.next.append(nn.Linear(width, following))
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")

    def forward(self, style: Tensor) -> Tensor:
        """Draw pictures (B, 3, H, W) from style vectors (B, S)."""
        x, picture = self.constant.expand(style.shape[0], -1, -1, -1), None
        for level, (block, colour, following) in enumerate(zip(self.blocks, self.colours, self.next, strict=True)):
            if level:
                x = self.up(x.movedim(-1, 1)).movedim(1, -1)
            x = block(x, style)
            seen = colour(x).movedim(-1, 1)
            picture = seen if picture is None else self.up(picture) + seen
            x = following(x)
        assert picture is not None
        return picture


def small() -> Generator:
    """8 x 8 to 32 x 32."""
    return Generator((32, 32, 16), first=8, heads=(4, 4, 4), kernel_size=3, style=32)


def full() -> Generator:
    """8 x 8 to 256 x 256, kernel 7, dilations up to 32."""
    return Generator((512, 512, 512, 256, 128, 64), first=8, heads=(16, 16, 16, 8, 4, 4), kernel_size=7, style=512)
