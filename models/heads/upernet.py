"""UPerNet: pooled context over the last map, a pyramid of all maps, one class per place.

https://arxiv.org/abs/1807.10221, with the names and the arithmetic of mmsegmentation's UPerHead, which transformers
shares. The auxiliary head of training is no part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from na_deploy.models.heads.transformer import resized


@dataclass(frozen=True)
class UPerNetConfig:
    """The size of a head.

    Attributes:
        in_widths: channels of the backbone's maps.
        width: channels of the head.
        num_classes: classes.
        pool_scales: sides of the maps that the last map is pooled to.
        align_corners: the rule by which maps are scaled.
    """

    in_widths: tuple[int, ...]
    width: int
    num_classes: int
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    align_corners: bool = False


class ConvBlock(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, in_width: int, width: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_width, width, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, width, H, W)."""
        return self.bn(self.conv(x)).relu()  # type: ignore[no-any-return]


def pooling_matrix(length: int, side: int, like: Tensor) -> Tensor:
    """Return (side, length): row i averages what adaptive pooling to ``side`` averages for place i of an axis."""
    place = torch.arange(length, device=like.device)
    cell = torch.arange(side, device=like.device)[:, None]
    first = cell * length // side
    behind = ((cell + 1) * length + side - 1) // side
    inside = ((place >= first) & (place < behind)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


class Pool(nn.Module):
    """Average a map to ``side`` × ``side``, whatever its size: two matrix products, which every runtime has."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, side, side)."""
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        if self.side == 1:
            return wide.mean((2, 3), keepdim=True).to(x.dtype)
        rows, columns = (pooling_matrix(length, self.side, wide) for length in x.shape[2:])
        return (rows @ wide @ columns.T).to(x.dtype)


class UPerHead(nn.Module):
    """Class scores at the resolution of the backbone's first map."""

    def __init__(self, config: UPerNetConfig) -> None:
        super().__init__()
        width, last = config.width, config.in_widths[-1]
        self.align_corners = config.align_corners
        self.psp_modules = nn.ModuleList(
            nn.Sequential(Pool(side), ConvBlock(last, width, 1)) for side in config.pool_scales
        )
        self.bottleneck = ConvBlock(last + len(config.pool_scales) * width, width, 3)
        self.lateral_convs = nn.ModuleList(ConvBlock(in_width, width, 1) for in_width in config.in_widths[:-1])
        self.fpn_convs = nn.ModuleList(ConvBlock(width, width, 3) for _ in config.in_widths[:-1])
        self.fpn_bottleneck = ConvBlock(len(config.in_widths) * width, width, 3)
        self.conv_seg = nn.Conv2d(width, config.num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map the backbone's maps, the largest first, to (B, classes, h, w) of the first one's size."""
        last = maps[-1]
        context = [last, *(self._like(pool(last), last) for pool in self.psp_modules)]
        top = self.bottleneck(torch.cat(context, 1))
        levels = [lateral(x) for lateral, x in zip(self.lateral_convs, maps[:-1], strict=True)]
        levels.append(top)
        for index in range(len(levels) - 1, 0, -1):
            levels[index - 1] = levels[index - 1] + self._like(levels[index], levels[index - 1])
        outputs = [conv(x) for conv, x in zip(self.fpn_convs, levels[:-1], strict=True)]
        outputs.append(top)
        largest = outputs[0]
        together = torch.cat([largest, *(self._like(x, largest) for x in outputs[1:])], 1)
        return self.conv_seg(self.fpn_bottleneck(together))  # type: ignore[no-any-return]

    def _like(self, x: Tensor, other: Tensor) -> Tensor:
        return resized(x, other.shape[2:], align_corners=self.align_corners)


class UPerNet(nn.Module):
    """A backbone and its head: class scores at the image's own size."""

    def __init__(self, backbone: nn.Module, config: UPerNetConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.decode_head = UPerHead(config)

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to class scores (B, classes, H, W)."""
        scores = self.decode_head(self.backbone(image))
        return resized(scores, image.shape[2:], align_corners=self.decode_head.align_corners)
