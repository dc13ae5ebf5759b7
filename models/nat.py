"""NAT and DiNAT: overlapping convolutions as tokenizer and downsampler, neighborhood attention between.

NAT (https://arxiv.org/abs/2204.07143) has dilation 1 everywhere; DiNAT (https://arxiv.org/abs/2209.15001) is
the same network with other dilations. Parameter names are those of the official repository.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from na_deploy.models.config import ModelConfig
from na_deploy.models.layers import Block, mean_over_map


class ConvTokenizer(nn.Module):
    """Two 3×3 stride-2 convolutions with nothing between, then LayerNorm: an image reduced 4 times."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(in_channels, width // 2, 3, stride=2, padding=1),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, ⌈H/4⌉, ⌈W/4⌉, C)."""
        return self.norm(self.proj(image).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


class ConvDownsampler(nn.Module):
    """One 3×3 stride-2 convolution without bias, then LayerNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(2 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, ⌈H/2⌉, ⌈W/2⌉, 2C)."""
        return self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


class Level(nn.Module):
    """The blocks of one resolution, and the way down to the next."""

    def __init__(self, blocks: Sequence[Block], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks; the map keeps its shape. The network downsamples."""
        for block in self.blocks:
            x = block(x)
        return x


def level_blocks(config: ModelConfig, level: int) -> list[Block]:
    """Build the blocks of one level."""
    return [
        Block(
            config.widths[level],
            config.heads[level],
            config.kernel_size,
            dilation,
            config.mlp_ratio,
            layer_scale=config.layer_scale,
            qkv_bias=config.qkv_bias,
            layer_norm_eps=config.layer_norm_eps,
            fixed_map=config.fixed_map,
        )
        for dilation in config.dilations[level]
    ]


class HierarchicalNetwork(nn.Module):
    """The common part of NAT and DiNAT_s: levels, then a classifier or feature maps of several levels.

    Subclasses register ``patch_embed`` and the levels under their official names.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def add_outputs(self) -> None:
        """Register the last layers: per-level norms of a backbone, or the final norm and the head."""
        config = self.config
        if config.is_backbone:
            for index in config.out_indices:
                self.add_module(f"norm{index}", nn.LayerNorm(config.widths[index]))
            return
        self.norm = nn.LayerNorm(config.widths[-1], eps=config.layer_norm_eps)
        if config.num_classes:
            self.head = nn.Linear(config.widths[-1], config.num_classes)

    def run_levels(self, x: Tensor, levels: nn.ModuleList) -> Tensor | tuple[Tensor, ...]:
        """Run the levels and the last layers.

        Returns:
            Class scores (B, classes); pooled features (B, C) without a head; a backbone's maps (B, C, H, W).
        """
        maps = []
        for index, level in enumerate(levels):
            x = level(x)
            if index in self.config.out_indices:
                maps.append(self.get_submodule(f"norm{index}")(x).permute(0, 3, 1, 2))
                if index == max(self.config.out_indices):
                    return tuple(maps)
            if isinstance(level.downsample, nn.Module):
                x = level.downsample(x)
        x = mean_over_map(self.norm(x))
        return self.head(x) if self.config.num_classes else x


class NAT(HierarchicalNetwork):
    """NAT and DiNAT, as classifier or as backbone, see :class:`ModelConfig`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.patch_embed = ConvTokenizer(config.in_channels, config.embed_dim)
        last = len(config.depths) - 1
        self.levels = nn.ModuleList(
            Level(level_blocks(config, index), ConvDownsampler(width) if index < last else None)
            for index, width in enumerate(config.widths)
        )
        self.add_outputs()

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Map images (B, 3, H, W) to what :meth:`run_levels` returns."""
        return self.run_levels(self.patch_embed(image), self.levels)
