"""MaskFormer's pixel decoder: a feature pyramid (https://arxiv.org/abs/1612.03144) under its repository's names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from na_deploy.models.heads.transformer import NormedConv


class PyramidPixelDecoder(nn.Module):
    """From the backbone's maps to mask features.

    ``layer_4`` reads the smallest map; ``adapter_3`` and ``layer_3`` add the next larger one, and so on.
    """

    def __init__(self, in_widths: Sequence[int], width: int, mask_width: int) -> None:
        super().__init__()
        self.count = len(in_widths)
        for number, in_width in enumerate(in_widths[:-1], start=1):
            self.add_module(f"adapter_{number}", NormedConv(in_width, width, 1))
            self.add_module(f"layer_{number}", NormedConv(width, width, 3, relu=True))
        self.add_module(f"layer_{self.count}", NormedConv(in_widths[-1], width, 3, relu=True))
        self.mask_features = nn.Conv2d(width, mask_width, 3, padding=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map the backbone's maps, the largest first, to (B, M, H/4, W/4)."""
        x = self.get_submodule(f"layer_{self.count}")(maps[-1])
        for number in range(self.count - 1, 0, -1):
            lateral = self.get_submodule(f"adapter_{number}")(maps[number - 1])
            x = functional.interpolate(x, size=tuple(lateral.shape[2:]), mode="nearest")
            x = self.get_submodule(f"layer_{number}")(lateral + x)
        return self.mask_features(x)  # type: ignore[no-any-return]
