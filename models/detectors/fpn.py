"""Feature pyramid (https://arxiv.org/abs/1612.03144): each map gets what the smaller ones know.

Names are mmdetection's.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


class Convolution(nn.Module):
    """Convolution, perhaps batch normalisation, perhaps ReLU: mmcv's ConvModule."""

    def __init__(
        self, in_width: int, width: int, kernel_size: int, *, batch_norm: bool = False, relu: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_width, width, kernel_size, padding=kernel_size // 2, bias=not batch_norm)
        if batch_norm:
            self.bn = nn.BatchNorm2d(width)
        self.batch_norm, self.relu = batch_norm, relu

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, width, H, W)."""
        x = self.conv(x)
        if self.batch_norm:
            x = self.bn(x)
        return x.relu() if self.relu else x


class FPN(nn.Module):
    """The pyramid's maps from the backbone's, and smaller ones of every second place of the last."""

    def __init__(self, in_widths: Sequence[int], width: int, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.lateral_convs = nn.ModuleList(Convolution(in_width, width, 1) for in_width in in_widths)
        self.fpn_convs = nn.ModuleList(Convolution(width, width, 3) for _ in in_widths)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map the backbone's maps, the largest first, to ``levels`` maps (B, width, H, W)."""
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=True)]
        for index in range(len(laterals) - 1, 0, -1):
            size = laterals[index - 1].shape[2:]
            laterals[index - 1] = laterals[index - 1] + functional.interpolate(laterals[index], size=size)
        result = [conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=True)]
        while len(result) < self.levels:
            result.append(functional.max_pool2d(result[-1], 1, stride=2))
        return result
