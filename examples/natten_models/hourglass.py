"""The hourglass diffusion transformer of k-diffusion (Crowson et al., 2024): windows outside, full attention inside.

Queries and keys are scaled to cosine similarity before axial rotary embedding, so that the attention's own scale is 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from natten.functional import natten2dav, natten2dqk
from torch import Tensor, nn

INPUTS = {
    "small": {"image": (1, 3, 64, 64), "sigma": (1,)},
    "full": {"image": (1, 3, 256, 256), "sigma": (1,)},
}


class ConditionedNorm(nn.Module):
    """RMSNorm whose scale follows the noise level."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.linear = nn.Linear(condition, width, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Normalise (B, H, W, C)."""
        scale = (self.linear(condition) + 1)[:, None, None, :]
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * scale


class GatedFeedForward(nn.Module):
    """Conditioned GEGLU block."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.norm = ConditionedNorm(width, condition)
        self.up, self.down = nn.Linear(width, 6 * width, bias=False), nn.Linear(3 * width, width, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Transform (B, H, W, C)."""
        value, gate = self.up(self.norm(x, condition)).chunk(2, -1)
        return x + self.down(value * F.gelu(gate))


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate the first half of each head by ``angles`` (H, W, heads, head_dim / 4)."""
    turned, kept = x.split(2 * angles.shape[-1], -1)
    first, second = turned.chunk(2, -1)
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine, kept], -1)


class SelfAttention(nn.Module):
    """Over a window, or over everything where ``kernel_size`` is None."""

    def __init__(self, width: int, head_dim: int, condition: int, kernel_size: int | None) -> None:
        super().__init__()
        self.heads, self.kernel_size = width // head_dim, kernel_size
        self.norm = ConditionedNorm(width, condition)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.scale = nn.Parameter(torch.full([self.heads], 10.0))
        frequencies = torch.linspace(math.log(math.pi), math.log(10 * math.pi), self.heads * head_dim // 8 + 1)[:-1]
        self.register_buffer("frequencies", frequencies.view(head_dim // 8, self.heads).T.exp())

    def forward(self, x: Tensor, position: Tensor, condition: Tensor) -> Tensor:
        """Attend over (B, H, W, C) whose tokens stand at ``position`` (H, W, 2)."""
        height, width = x.shape[1:3]
        qkv = self.qkv(self.norm(x, condition)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.unbind(-3)
        scale = self.scale.sqrt()[:, None]
        query, key = (F.normalize(part, dim=-1) * scale for part in (query, key))
        angles = (position[..., None, :, None] * self.frequencies[:, None, :]).flatten(-2)  # (H, W, heads, D / 4)
        query, key = rotate(query, angles), rotate(key, angles)
        query, key, value = (part.permute(0, 3, 1, 2, 4) for part in (query, key, value))  # heads first
        if self.kernel_size is None:
            flat = (part.flatten(2, 3) for part in (query, key, value))
            attended = F.scaled_dot_product_attention(*flat, scale=1.0).unflatten(2, (height, width))
        else:
            weights = torch.softmax(natten2dqk(query, key, self.kernel_size, 1), dim=-1)
            attended = natten2dav(weights, value, self.kernel_size, 1)
        return x + self.out(attended.permute(0, 2, 3, 1, 4).flatten(-2))


class Layer(nn.Module):
    """Attention and feed-forward."""

    def __init__(self, width: int, head_dim: int, condition: int, kernel_size: int | None) -> None:
        super().__init__()
        self.attention = SelfAttention(width, head_dim, condition, kernel_size)
        self.feed_forward = GatedFeedForward(width, condition)

    def forward(self, x: Tensor, position: Tensor, condition: Tensor) -> Tensor:
        """Transform (B, H, W, C)."""
        return self.feed_forward(self.attention(x, position, condition), condition)


class Merge(nn.Module):
    """Fold ``size`` x ``size`` tokens into one."""

    def __init__(self, inside: int, outside: int, size: int) -> None:
        super().__init__()
        self.size, self.linear = size, nn.Linear(inside * size * size, outside, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H / size, W / size, C')."""
        batch, height, width, _ = x.shape
        folded = x.view(batch, height // self.size, self.size, width // self.size, self.size, -1)
        return self.linear(folded.permute(0, 1, 3, 2, 4, 5).flatten(3))


class Split(nn.Module):
    """Unfold one token into ``size`` x ``size``."""

    def __init__(self, inside: int, outside: int, size: int) -> None:
        super().__init__()
        self.size, self.linear = size, nn.Linear(inside, outside * size * size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H * size, W * size, C')."""
        batch, height, width, _ = x.shape
        unfolded = self.linear(x).view(batch, height, width, self.size, self.size, -1).permute(0, 1, 3, 2, 4, 5)
        return unfolded.reshape(batch, height * self.size, width * self.size, -1)


class Hourglass(nn.Module):
    """The denoiser: patches, levels of falling resolution, the deepest one global, and back with skips."""

    def __init__(
        self, widths: Sequence[int], depths: Sequence[int], kernel_size: int, head_dim: int, patch: int, condition: int
    ) -> None:
        super().__init__()
        self.register_buffer("fourier", torch.randn(condition // 2))
        self.mapping = nn.Sequential(
            nn.Linear(condition, condition), nn.GELU(), nn.Linear(condition, condition), nn.LayerNorm(condition)
        )
        self.patch_in, self.patch_out = Merge(3, widths[0], patch), Split(widths[0], 3, patch)

        def level(number: int) -> nn.ModuleList:
            window = kernel_size if number < len(widths) - 1 else None
            return nn.ModuleList(Layer(widths[number], head_dim, condition, window) for _ in range(depths[number]))

        outer = range(len(widths) - 1)
        self.down, self.up = nn.ModuleList(map(level, outer)), nn.ModuleList(map(level, outer))
        self.middle = level(len(widths) - 1)
        self.merges = nn.ModuleList(Merge(widths[n], widths[n + 1], 2) for n in outer)
        self.splits = nn.ModuleList(Split(widths[n + 1], widths[n], 2) for n in outer)
        self.skips = nn.Parameter(torch.ones(len(widths) - 1))
        self.norm = nn.LayerNorm(widths[0])

    def forward(self, image: Tensor, sigma: Tensor) -> Tensor:
        """Denoise (B, 3, H, W) of noise level ``sigma`` (B,)."""
        wave = 2 * math.pi * (sigma.log() / 4)[:, None] * self.fourier
        condition = self.mapping(torch.cat([wave.cos(), wave.sin()], -1))
        x = self.patch_in(image.movedim(1, -1))
        kept = []
        for layers, merge in zip(self.down, self.merges, strict=True):
            for layer in layers:
                x = layer(x, self.positions(x), condition)
            kept.append(x)
            x = merge(x)
        for layer in self.middle:
            x = layer(x, self.positions(x), condition)
        for number in reversed(range(len(kept))):
            x = kept[number] + self.skips[number] * self.splits[number](x)
            for layer in self.up[number]:
                x = layer(x, self.positions(x), condition)
        return self.patch_out(self.norm(x)).movedim(-1, 1)

    @staticmethod
    def positions(x: Tensor) -> Tensor:
        """Return the tokens' centres in [-1, 1], (H, W, 2)."""
        axes = [(torch.arange(size, device=x.device) + 0.5) * (2 / size) - 1 for size in x.shape[1:3]]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).to(x.dtype)


def small() -> Hourglass:
    """Two levels of one layer."""
    return Hourglass((64, 128), (1, 1), kernel_size=5, head_dim=32, patch=4, condition=64)


def full() -> Hourglass:
    """k-diffusion's configuration for Oxford Flowers at 256 x 256."""
    return Hourglass((128, 256, 512), (2, 2, 4), kernel_size=7, head_dim=64, patch=4, condition=256)
