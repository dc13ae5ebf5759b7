"""DiNAT_s: Swin Transformer's patches and merging, with neighborhood attention in place of windows.

DiNAT (https://arxiv.org/abs/2209.15001), section on alternative models. Parameter names are the official
ones.
"""

from __future__ import annotations

from torch import Tensor, nn

from na_deploy.models.config import ModelConfig
from na_deploy.models.layers import PatchEmbed, pad_to_multiple
from na_deploy.models.nat import HierarchicalNetwork, Level, level_blocks


class PatchMerging(nn.Module):
    """Concatenate 2×2 neighbours, LayerNorm, halve the channels; odd maps are zero-padded at their end."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, ⌈H/2⌉, ⌈W/2⌉, 2C)."""
        batch, height, width, channels = x.shape
        rows, columns = (height + 1) // 2, (width + 1) // 2
        x = pad_to_multiple(x, 2, (1, 2)).reshape(batch, rows, 2, columns, 2, channels)
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)  # neighbours in the order (0,0), (1,0), (0,1), (1,1)
        return self.reduction(self.norm(x))  # type: ignore[no-any-return]


class DiNATs(HierarchicalNetwork):
    """DiNAT_s, as classifier or as backbone, see :class:`ModelConfig`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.patch_embed = PatchEmbed(config.in_channels, config.embed_dim, config.patch_size)
        last = len(config.depths) - 1
        self.layers = nn.ModuleList(
            Level(level_blocks(config, index), PatchMerging(width) if index < last else None)
            for index, width in enumerate(config.widths)
        )
        self.add_outputs()

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Map images (B, 3, H, W) to what :meth:`HierarchicalNetwork.run_levels` returns."""
        return self.run_levels(self.patch_embed(image), self.layers)
