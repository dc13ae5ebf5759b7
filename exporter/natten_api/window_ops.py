"""Scores and weighted values of windows as separate operators, which natten up to 0.17 has: (B, H, *X, D), heads first.

They compute what a module is verified with. In a file the pair becomes one neighborhood attention
(:mod:`na_deploy.exporter.unfused_pairs`), since the weights in between are K times larger than anything else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from na_deploy.attention.windows import NeighborhoodSpec, window_bounds


def windows(lengths: Sequence[int], spec: NeighborhoodSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Return each window's flat positions, which of them are seen, and their bias indices, all (N, ΠK)."""
    position, seen, bias = (torch.zeros(1, 1, dtype=torch.long) for _ in range(3))
    seen = seen == 0
    axes = zip(lengths, spec.kernel_size, spec.dilation, spec.is_causal, strict=True)
    for length, kernel, dilation, causal in axes:
        start, end = window_bounds(length, kernel, dilation, 1, causal)
        element = start[:, None] + np.arange(kernel)
        own = np.arange(length)[:, None]
        place = torch.from_numpy(np.minimum(element * dilation + own % dilation, length - 1))
        visible = torch.from_numpy(element < end[:, None])
        offset = torch.from_numpy(np.clip(element - own // dilation + kernel - 1, 0, 2 * kernel - 2))
        position = _outer(position * length, place)
        bias = _outer(bias * (2 * kernel - 1), offset)
        seen = (seen[:, None, :, None] & visible[None, :, None, :]).flatten(2).flatten(0, 1)
    return position, seen, bias


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return (a[:, None, :, None] + b[None, :, None, :]).flatten(2).flatten(0, 1)


def _spec(kernel_size: Sequence[int], dilation: Sequence[int], is_causal: Sequence[int]) -> NeighborhoodSpec:
    return NeighborhoodSpec.create(len(kernel_size), kernel_size, dilation, 1, [bool(flag) for flag in is_causal])


@torch.library.custom_op("na_deploy::window_scores", mutates_args=())
def window_scores(
    query: Tensor,
    key: Tensor,
    rel_pos_bias: Tensor | None,
    additional_key: Tensor | None,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[int],
) -> Tensor:
    """Return (B, H, *X, ΠK + M): query times each key of its window, plus bias; -inf where a causal window is cut.

    Behind them stand the products with M additional keys (B, H, M, D), without bias.
    """
    spec = _spec(kernel_size, dilation, is_causal)
    spec.check_lengths(query.shape[2:-1])
    position, seen, bias = windows(query.shape[2:-1], spec)
    keys = key.flatten(2, -2)[:, :, position].float()  # (B, H, N, ΠK, D)
    scores = torch.einsum("bhnd,bhnkd->bhnk", query.flatten(2, -2).float(), keys)
    if rel_pos_bias is not None:
        scores = scores + rel_pos_bias.float().flatten(1)[:, bias]
    scores = scores.masked_fill(~seen, float("-inf"))
    if additional_key is not None:
        more = query.flatten(2, -2).float() @ additional_key.float().transpose(-1, -2)
        scores = torch.cat([scores, more], dim=-1)
    return scores.reshape(*query.shape[:-1], -1).to(query.dtype)


@window_scores.register_fake
def _(
    query: Tensor,
    key: Tensor,
    rel_pos_bias: Tensor | None,
    additional_key: Tensor | None,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[int],
) -> Tensor:
    more = 0 if additional_key is None else additional_key.shape[2]
    return query.new_empty((*query.shape[:-1], math.prod(kernel_size) + more))


@torch.library.custom_op("na_deploy::window_values", mutates_args=())
def window_values(
    weights: Tensor,
    value: Tensor,
    additional_value: Tensor | None,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[int],
) -> Tensor:
    """Return (B, H, *X, D): each window's values, and M additional ones, times their weights (B, H, *X, ΠK + M)."""
    spec = _spec(kernel_size, dilation, is_causal)
    spec.check_lengths(value.shape[2:-1])
    position, seen, _ = windows(value.shape[2:-1], spec)
    values = value.flatten(2, -2)[:, :, position].float()
    shares = weights.flatten(2, -2).float()
    output = torch.einsum("bhnk,bhnkd->bhnd", shares[..., : seen.shape[-1]] * seen, values)
    if additional_value is not None:
        output = output + shares[..., seen.shape[-1] :] @ additional_value.float()
    return output.reshape(value.shape).to(value.dtype)


@window_values.register_fake
def _(
    weights: Tensor,
    value: Tensor,
    additional_value: Tensor | None,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[int],
) -> Tensor:
    return torch.empty_like(value)
