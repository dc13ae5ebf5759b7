"""Padding before the qkv projection, without a padded copy: NAT's, DiNAT's and NATTEN's modules' up to 0.15."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def projected_zeros(projection: nn.Linear, heads: int, lengths: Sequence[int], reach: Sequence[int]) -> Tensor | None:
    """Return query, key and value (3, H, D) of a position that holds zeros before ``projection``: its bias.

    Args:
        projection: from channels to query, key and value side by side.
        heads: H.
        lengths: sizes of the map, numbers or, while tracing, symbols.
        reach: the least sizes that windows fit on: ``kernel_size * dilation``.

    Returns:
        ``None`` where no window can pass the map's end. Not for free sizes: what a tracer believes of them holds for
        its example (some layers make it rule out maps with a side of 1), and a file has no lower bound.
    """
    if all(isinstance(length, int) and length >= least for length, least in zip(lengths, reach, strict=True)):
        return None
    bias = projection.weight.new_zeros(projection.out_features) if projection.bias is None else projection.bias
    return bias.reshape(3, heads, -1)
