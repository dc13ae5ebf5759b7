"""A 3-D transformer on natten's own modules, as WeatherMesh's (window 5 x 7 x 7) and video models use them."""

from __future__ import annotations

from collections.abc import Sequence

from natten import NeighborhoodAttention3D
from torch import Tensor, nn

INPUTS = {"small": {"volume": (1, 3, 4, 32, 32)}, "full": {"volume": (1, 3, 16, 128, 256)}}


class Layer(nn.Module):
    """Attention and feed-forward."""

    def __init__(self, width: int, heads: int, window: Sequence[int], is_causal: bool) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        causal = (is_causal, False, False)  # over time alone
        self.attention = NeighborhoodAttention3D(width, heads, kernel_size=tuple(window), is_causal=causal)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, T, H, W, C)."""
        x = x + self.attention(self.before(x))
        return x + self.feed_forward(self.after(x))


class Video(nn.Module):
    """Patches of (1, 4, 4), layers, and back."""

    def __init__(self, width: int, heads: int, window: Sequence[int], depth: int) -> None:
        super().__init__()
        self.patch_in = nn.Conv3d(3, width, (1, 4, 4), (1, 4, 4))
        self.layers = nn.Sequential(*(Layer(width, heads, window, number % 2 == 1) for number in range(depth)))
        self.patch_out = nn.ConvTranspose3d(width, 3, (1, 4, 4), (1, 4, 4))

    def forward(self, volume: Tensor) -> Tensor:
        """(B, 3, T, H, W) to the same."""
        x = self.layers(self.patch_in(volume).movedim(1, -1))
        return self.patch_out(x.movedim(-1, 1))


def small() -> Video:
    """Two layers, one of them causal in time."""
    return Video(width=32, heads=4, window=(3, 5, 5), depth=2)


def full() -> Video:
    """Window 5 x 7 x 7, twelve layers."""
    return Video(width=384, heads=12, window=(5, 7, 7), depth=12)
