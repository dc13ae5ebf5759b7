"""Parameters and operations of a network, counted from its description alone.

One multiply-add counts as one operation, as in the papers and in fvcore.
"""

from __future__ import annotations

from dataclasses import dataclass

from na_deploy.attention.cost import attention_cost
from na_deploy.attention.windows import NeighborhoodSpec
from na_deploy.models.config import ModelConfig


def count_parameters(config: ModelConfig) -> int:
    """Return the number of trained values; buffers do not count."""
    width = config.embed_dim
    if config.family == "nat":
        half = width // 2
        total = 9 * config.in_channels * half + half + 9 * half * width + width
    else:
        total = config.in_channels * width * config.patch_size**2 + width
    total += 2 * width
    for level, (channels, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
        total += depth * _block_parameters(config, channels, config.heads[level])
        if level < len(config.depths) - 1:  # downsampling
            total += 18 * channels**2 + 4 * channels if config.family == "nat" else 8 * channels**2 + 8 * channels
    if config.is_backbone:
        return total + sum(2 * config.widths[index] for index in config.out_indices)
    last = config.widths[-1]
    return total + 2 * last + (config.num_classes * (last + 1) if config.num_classes else 0)


def _block_parameters(config: ModelConfig, width: int, heads: int) -> int:
    hidden = int(width * config.mlp_ratio)
    attention = 3 * width * (width + config.qkv_bias) + width * (width + 1)
    bias_table = heads * (2 * config.kernel_size - 1) ** 2
    mlp = hidden * (width + 1) + width * (hidden + 1)
    return attention + bias_table + mlp + 4 * width + (2 * width if config.layer_scale else 0)


@dataclass(frozen=True)
class Operations:
    """Multiply-adds for one image.

    Attributes:
        attention: scores and weighted sums of neighborhood attention, projections not included.
        other: convolutions and linear layers.
    """

    attention: int
    other: int

    @property
    def total(self) -> int:
        """All multiply-adds."""
        return self.attention + self.other


def count_operations(config: ModelConfig, height: int, width: int) -> Operations:
    """Count one image's multiply-adds at ``height`` × ``width``, without normalisations and activations."""
    sizes = config.level_sizes(height, width)
    channels = config.embed_dim
    rows, columns = sizes[0]
    if config.family == "nat":
        middle = -(-height // 2) * -(-width // 2) * 9 * config.in_channels * (channels // 2)
        other = middle + rows * columns * 9 * (channels // 2) * channels
    else:
        other = rows * columns * config.patch_size**2 * config.in_channels * channels
    attention = 0
    for level, (channels, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
        rows, columns = sizes[level]
        hidden = int(channels * config.mlp_ratio)
        other += depth * rows * columns * 2 * channels * hidden
        for dilation in config.dilations[level]:
            other += rows * columns * 4 * channels**2
            heads = config.heads[level]
            spec = NeighborhoodSpec.create(2, config.kernel_size, dilation)
            attention += attention_cost((rows, columns), spec, heads, channels // heads, padded=True).multiply_adds
        if level < len(config.depths) - 1:
            next_rows, next_columns = sizes[level + 1]
            other += next_rows * next_columns * (18 if config.family == "nat" else 8) * channels**2
    if not config.is_backbone:
        other += config.widths[-1] * config.num_classes
    return Operations(attention, other)
