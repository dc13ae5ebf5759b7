"""The work of one neighborhood attention layer: the least it takes, and the portable path's.

One multiply-add counts as one operation, as in the NAT and DiNAT papers and in fvcore; twice that are FLOPs as data
sheets of processors count them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from na_deploy.attention.tiling import tile_extent
from na_deploy.attention.windows import NeighborhoodSpec, attended_pairs


@dataclass(frozen=True)
class AttentionCost:
    """The work of one layer, whole batch and all heads.

    Attributes:
        pairs: query-key pairs attended to, per head and image; exact under causality, strides and borders.
        multiply_adds: those of QKᵀ and PV over those pairs.
        tiled_multiply_adds: the same over all pairs that tiles compute, masked ones and padded queries included.
        tile: queries per tile and axis in the portable path.
        span: keys that a tile reads, per axis.
    """

    pairs: int
    multiply_adds: int
    tiled_multiply_adds: int
    tile: tuple[int, ...]
    span: tuple[int, ...]


def attention_cost(
    lengths: Sequence[int],
    spec: NeighborhoodSpec,
    heads: int,
    head_dim: int,
    *,
    batch: int = 1,
    value_dim: int | None = None,
    additional: int = 0,
    padded: bool = False,
) -> AttentionCost:
    """Count the work of one layer.

    Args:
        lengths: size of the map, one number per spatial axis.
        spec: window attributes.
        heads: query heads.
        head_dim: numbers per head of query and key.
        batch: images.
        value_dim: numbers per head of value, ``head_dim`` by default.
        additional: keys that every query attends to besides its window.
        padded: true where windows may reach behind the map, onto padding.

    Raises:
        UsageError: a window does not fit its axis.
    """
    if not padded:
        spec.check_lengths(lengths)
    extents = [
        tile_extent(*sizes, spec.rank)
        for sizes in zip(lengths, spec.kernel_size, spec.dilation, spec.stride, strict=True)
    ]
    tile, tiles, span = zip(*extents, strict=True)
    pairs = attended_pairs(lengths, spec)
    tiled_queries = math.prod(spec.dilation) * math.prod(tiles) * math.prod(tile)
    tiled_pairs = tiled_queries * math.prod(span)
    pairs += math.prod(lengths) * additional
    tiled_pairs += tiled_queries * additional
    per_pair = batch * heads * (head_dim + (head_dim if value_dim is None else value_dim))
    return AttentionCost(
        pairs=pairs,
        multiply_adds=per_pair * pairs,
        tiled_multiply_adds=per_pair * tiled_pairs,
        tile=tile,
        span=span,
    )
