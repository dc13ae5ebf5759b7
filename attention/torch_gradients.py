"""Gradients of neighborhood attention in plain PyTorch, on the tiles that the forward pass runs on.

Nothing is kept of the forward pass: scores are computed again, some tiles at a time, so that memory stays bounded.
With P the softmax of a query's scores, dO and dL the gradients of its output and of its lse:
dV = Pᵀ dO, dP = dO Vᵀ, dS = P (dP - sum(P dP) + dL), dQ = scale dS K, dK = scale dSᵀ Q (FlashAttention, section 3.1,
https://arxiv.org/abs/2205.14135, with the lse as a second output); dS is the gradient of the bias too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from na_deploy.attention.tiling import TilePlan, plan_parts
from na_deploy.attention.torch_tiles import LARGE_SCORES, cut_tiles, over_map_of, plan_tensors, tile_scores
from na_deploy.attention.windows import NeighborhoodSpec

_TEMPORARIES = 4
"""Tensors of the scores' size that stand side by side."""


def tiled_gradients(
    grad_output: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spec: NeighborhoodSpec,
    scale: float,
    rel_pos_bias: Tensor | None,
    additional_key: Tensor | None,
    additional_value: Tensor | None,
) -> list[Tensor | None]:
    """Return the gradients of query, key, value, rel_pos_bias, additional_key and additional_value, ``None`` likewise.

    Args:
        grad_output: (B, *X, H, Dv), in query's type, as all others: float32 or float64.
        grad_lse: (B, *X, H), ``None`` for zeros.
        query: the forward pass's arguments from here on; see ``torch_tiles.Implementation``.
        key: as there.
        value: as there.
        spec: as there.
        scale: as there.
        rel_pos_bias: as there.
        additional_key: as there.
        additional_value: as there.
    """
    asked = query.shape
    query, grad_output = over_map_of(key, query), over_map_of(key, grad_output)
    lse_rows = None if grad_lse is None else over_map_of(key, grad_lse.unsqueeze(-1))
    lengths, heads, key_heads = query.shape[1:-2], query.shape[-2], key.shape[-2]
    arguments = (rel_pos_bias, additional_key, additional_value)
    totals = [None if tensor is None else torch.zeros_like(tensor) for tensor in (query, key, value, *arguments)]
    d_query, d_key, d_value, d_bias, d_extra_key, d_extra_value = totals
    assert d_query is not None and d_key is not None and d_value is not None  # noqa: PT018  # for the type checker

    def unshare(tensor: Tensor) -> Tensor:  # (B, …, H, a, e) -> (B, …, Hkv, a, e)
        if heads == key_heads:
            return tensor
        return tensor.reshape(*tensor.shape[:-3], key_heads, heads // key_heads, *tensor.shape[-2:]).sum(-3)

    def put(total: Tensor, table: Tensor, tiles: Tensor) -> None:  # tiles: (B, NT, h, a, e)
        total.flatten(1, -3).index_add_(1, table.flatten(), tiles.transpose(2, 3).flatten(1, 2))

    images = max(query.shape[0], 1) * heads
    for plan, first in _parts(lengths, spec, LARGE_SCORES // (_TEMPORARIES * images)):
        query_at, key_at, bias_index, mask = plan_tensors(plan, query.device)
        real = torch.from_numpy(first).to(query).view(len(query_at), 1, -1, 1)
        tiles = tile_scores(query, key, value, scale, *arguments, query_at, key_at, bias_index, mask)
        span = tiles.keys.shape[-2]
        probability = tiles.scores.softmax(-1)
        d_output = cut_tiles(grad_output, query_at) * real
        d_probability = torch.matmul(d_output, tiles.values.transpose(-1, -2))
        d_scores = d_probability - (probability * d_probability).sum(-1, keepdim=True)
        if lse_rows is not None:
            d_scores = d_scores + cut_tiles(lse_rows, query_at) * real
        d_scores = d_scores * probability
        d_values = torch.matmul(probability.transpose(-1, -2), d_output)
        of_map, of_extra = d_scores[..., :span], d_scores[..., span:]
        d_queries = torch.matmul(of_map, tiles.keys)
        put(d_key, key_at, unshare(torch.matmul(of_map.transpose(-1, -2), tiles.queries)))
        put(d_value, key_at, unshare(d_values[..., :span, :]))
        if d_bias is not None:
            of_entries = of_map.sum(0).transpose(0, 1).reshape(heads, -1)
            d_bias.flatten(1).index_add_(1, bias_index.flatten(), of_entries)
        if tiles.extra_keys is not None and d_extra_key is not None and d_extra_value is not None:
            d_queries = d_queries + torch.matmul(of_extra, tiles.extra_keys)
            of_keys = torch.matmul(of_extra.transpose(-1, -2), tiles.queries).sum(1)
            d_extra_key += unshare(of_keys).transpose(1, 2)
            d_extra_value += unshare(d_values[..., span:, :].sum(1)).transpose(1, 2)
        put(d_query, query_at, d_queries * scale)
    for axis, length in enumerate(asked[1:-2], start=1):
        d_query = d_query.narrow(axis, 0, length)
    return [d_query, d_key, d_value, d_bias, d_extra_key, d_extra_value]


def _parts(lengths: Sequence[int], spec: NeighborhoodSpec, pairs: int) -> Iterator[tuple[TilePlan, np.ndarray]]:
    """Yield tiles with, per query of theirs, whether it is the first that stands for its position.

    Tiles that are not full repeat a query, and gradients must be counted once.
    """
    seen = np.zeros(int(np.prod(lengths)), np.bool_)
    for plan in plan_parts(lengths, spec, pairs):
        flat = plan.query.reshape(-1)
        first = np.zeros(flat.size, np.bool_)
        first[np.unique(flat, return_index=True)[1]] = True
        first &= ~seen[flat]
        seen[flat] = True
        yield plan, first
