"""Padding before the qkv projection, without a padded copy: NAT's, DiNAT's and NATTEN's modules' up to 0.15."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true


def projected_zeros(projection: nn.Linear, heads: int, lengths: Sequence[int], reach: Sequence[int]) -> Tensor | None:
    """Return query, key and value (3, H, D) of a position that holds zeros before ``projection``: its bias.

    Args:
        projection: from channels to query, key and value side by side.
        heads: H.
        lengths: sizes of the map, numbers or, while tracing, symbols.
        reach: the least sizes that windows fit on: ``kernel_size * dilation``.

    Returns:
        ``None`` where no window can pass the map's end.
    """
    if all(statically_known_true(length >= least) for length, least in zip(lengths, reach, strict=True)):
        return None
    bias = projection.weight.new_zeros(projection.out_features) if projection.bias is None else projection.bias
    return bias.reshape(3, heads, -1)
