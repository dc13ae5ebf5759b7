"""Weather models on a latitude-longitude grid: a PhysicsNeMo-style DiT layer, and Atlas's circular longitude.

The globe has no border in longitude: Atlas pads the width circularly by half a window before attention and crops after.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from natten import NeighborhoodAttention2D
from natten.functional import na2d
from torch import Tensor, nn

INPUTS = {"small": {"state": (1, 8, 24, 48)}, "full": {"state": (1, 75, 180, 360)}}


class Grid(nn.Module):
    """Self-attention by ``na2d`` with normalised queries and keys."""

    def __init__(self, width: int, heads: int, kernel_size: int) -> None:
        super().__init__()
        self.heads, self.kernel_size = heads, kernel_size
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.query_norm, self.key_norm = nn.LayerNorm(width // heads), nn.LayerNorm(width // heads)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over (B, H, W, C)."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        attended = na2d(self.query_norm(query), self.key_norm(key), value, kernel_size=self.kernel_size, dilation=1)
        assert isinstance(attended, Tensor)
        return self.out(attended.flatten(-2))


class Circular(nn.Module):
    """natten's module on a map padded circularly in width."""

    def __init__(self, width: int, heads: int, kernel_size: int) -> None:
        super().__init__()
        self.margin = kernel_size // 2
        self.attention = NeighborhoodAttention2D(width, heads, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over (B, H, W, C), W closed to a ring."""
        wrapped = torch.cat([x[:, :, -self.margin :], x, x[:, :, : self.margin]], dim=2)
        return self.attention(wrapped)[:, :, self.margin : -self.margin]


class Layer(nn.Module):
    """Attention and feed-forward."""

    def __init__(self, attention: nn.Module, width: int) -> None:
        super().__init__()
        self.before, self.attention, self.after = nn.LayerNorm(width), attention, nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, H, W, C)."""
        x = x + self.attention(self.before(x))
        return x + self.feed_forward(self.after(x))


class Forecast(nn.Module):
    """One step ahead: patches, layers of both kinds in turn, and back to the grid."""

    def __init__(self, channels: int, width: int, heads: int, kernel_size: int, depth: int, patch: int) -> None:
        super().__init__()
        self.patch_in = nn.Conv2d(channels, width, patch, patch)
        kinds = (Grid, Circular)
        self.layers = nn.Sequential(
            *(Layer(kinds[number % 2](width, heads, kernel_size), width) for number in range(depth))
        )
        self.patch_out = nn.Linear(width, channels * patch * patch)
        self.patch = patch

    def forward(self, state: Tensor) -> Tensor:
        """(B, channels, latitudes, longitudes) to the same, later."""
        x = self.layers(self.patch_in(state).movedim(1, -1))
        return state + F.pixel_shuffle(self.patch_out(x).movedim(-1, 1), self.patch)


def small() -> Forecast:
    """Two layers."""
    return Forecast(channels=8, width=32, heads=2, kernel_size=5, depth=2, patch=2)


def full() -> Forecast:
    """One degree, 75 variables, four layers of each kind."""
    return Forecast(channels=75, width=768, heads=12, kernel_size=11, depth=8, patch=2)
