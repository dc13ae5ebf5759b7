"""Isotropic models: patches of 16, twelve blocks at one resolution, with NA, dilated NA or full attention.

The last (ViT-rpb) is neighborhood attention whose window is the map: key minus query indexes the same bias.
Source: DiNAT (https://arxiv.org/abs/2209.15001), isotropic variants. Parameter names are the official ones.
"""

from __future__ import annotations

from torch import Tensor, nn

from na_deploy.models.config import ModelConfig
from na_deploy.models.layers import PatchEmbed, mean_over_map
from na_deploy.models.nat import level_blocks


class IsotropicNAT(nn.Module):
    """A classifier of one level, see :class:`ModelConfig`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.in_channels, config.embed_dim, config.patch_size)
        self.layers = nn.Sequential(*level_blocks(config, 0))
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        if config.num_classes:
            self.head = nn.Linear(config.embed_dim, config.num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to class scores (B, classes), or to features (B, C) without a head."""
        x = mean_over_map(self.norm(self.layers(self.patch_embed(image))))
        return self.head(x) if self.config.num_classes else x
