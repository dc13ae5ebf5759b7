"""Neighborhood attention in plain PyTorch, on tiles and densely: the code behind the operators of :mod:`torch_ops`.

The operators check arguments; nothing here does. Gradients are in :mod:`torch_gradients`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from na_deploy.attention.tiling import TilePlan, plan_parts, plan_tiles, tiled_pairs
from na_deploy.attention.windows import NeighborhoodSpec

MASKED = -1e30

Implementation = Callable[
    [Tensor, Tensor, Tensor, NeighborhoodSpec, float, Tensor | None, Tensor | None, Tensor | None],
    tuple[Tensor, Tensor],
]
"""query, key, value, spec, scale, rel_pos_bias, additional_key, additional_value -> output, lse.

Shapes are those of :func:`neighborhood_attention`. Query, key and value are float32 or
float64, and key and value may hold fewer heads than query. Query may cover the first positions of key's map alone:
where padding lies behind the map, it is attended to and does not attend.
"""

LARGE_SCORES = 1 << 25
"""Scores from which on a call is computed a few tiles at a time: 128 MiB of them in float32."""


@lru_cache(maxsize=64)
def _tile_tensors(lengths: tuple[int, ...], spec: NeighborhoodSpec, device: torch.device) -> tuple[Tensor, ...]:
    plan = plan_tiles(lengths, spec)
    return (*plan_tensors(plan, device), torch.from_numpy(plan.home(math.prod(lengths))).to(device))


def plan_tensors(plan: TilePlan, device: torch.device) -> tuple[Tensor, ...]:
    """Return the plan's tables: query and key positions, bias index, and a float32 mask to add, (NT, Tq, Wk)."""
    query, key, bias_index = (torch.from_numpy(t).to(device) for t in (plan.query, plan.key, plan.bias_index))
    mask = torch.from_numpy(plan.visible).to(device).logical_not() * MASKED
    return query, key, bias_index, mask.float()


def tiled(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spec: NeighborhoodSpec,
    scale: float,
    rel_pos_bias: Tensor | None,
    additional_key: Tensor | None,
    additional_value: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Dense attention on tiles, masked inside; the default. See :data:`Implementation`."""
    asked = query.shape[1:-2]
    query = over_map_of(key, query)
    batch, *lengths, heads, _ = query.shape
    rest = (scale, rel_pos_bias, additional_key, additional_value)
    images = max(batch, 1) * heads
    if images * tiled_pairs(lengths, spec) <= LARGE_SCORES:
        *tables, home = _tile_tensors(tuple(lengths), spec, query.device)
        found = [tensor.index_select(1, home) for tensor in _attend_tiles(query, key, value, *rest, *tables)]
    else:
        widths = (value.shape[-1], 1)
        found = [query.new_empty(batch, math.prod(lengths), heads, width) for width in widths]
        for plan in plan_parts(lengths, spec, LARGE_SCORES // (4 * images)):
            tables = list(plan_tensors(plan, query.device))
            for whole, part in zip(found, _attend_tiles(query, key, value, *rest, *tables), strict=True):
                whole[:, tables[0].flatten()] = part  # a padded query repeats another and computes the same
    output, lse = (tensor.view(batch, *lengths, heads, tensor.shape[-1]) for tensor in found)
    return _crop(output, asked), _crop(lse.squeeze(-1), asked)


def over_map_of(key: Tensor, query: Tensor) -> Tensor:
    """Give ``query`` the spatial sizes of ``key``; results of the added positions are thrown away."""
    missing = [whole - own for whole, own in zip(key.shape[1:-2], query.shape[1:-2], strict=True)]
    if not any(missing):
        return query
    return torch.nn.functional.pad(query, (0, 0, 0, 0, *(size for after in reversed(missing) for size in (0, after))))


def _crop(tensor: Tensor, lengths: Sequence[int]) -> Tensor:
    for axis, length in enumerate(lengths, start=1):
        tensor = tensor.narrow(axis, 0, length)
    return tensor


def _attend_tiles(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Return output and lse (B, NT * Tq, H, e) of tiles; the arguments are those of :func:`tile_scores`."""
    tiles = tile_scores(*arguments)

    def rows(tensor: Tensor) -> Tensor:  # (B, NT, H, Tq, e) -> (B, NT * Tq, H, e)
        return tensor.transpose(2, 3).flatten(1, 2)

    output = torch.matmul(tiles.scores.softmax(-1), tiles.values)
    return rows(output), rows(torch.logsumexp(tiles.scores, -1, keepdim=True))


class TileScores(NamedTuple):
    """Tiles of an attention problem before the softmax. Keys beyond the Wk of the map are the M additional ones.

    Attributes:
        queries: (B, NT, H, Tq, D), scaled.
        keys: (B, NT, H, Wk, D) of the map.
        extra_keys: (B, 1, H, M, D), ``None`` without additional keys.
        values: (B, NT, H, Wk + M, Dv).
        scores: (B, NT, H, Tq, Wk + M), masked and biased.
    """

    queries: Tensor
    keys: Tensor
    extra_keys: Tensor | None
    values: Tensor
    scores: Tensor


def cut_tiles(tensor: Tensor, table: Tensor) -> Tensor:
    """Return (B, NT, h, a, e), the rows of ``tensor`` (B, *X, h, e) at the positions of ``table`` (NT, a)."""
    rows = tensor.flatten(1, -3).index_select(1, table.flatten())
    return rows.view(tensor.shape[0], *table.shape, *tensor.shape[-2:]).transpose(2, 3)


def tile_scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    rel_pos_bias: Tensor | None,
    additional_key: Tensor | None,
    additional_value: Tensor | None,
    query_at: Tensor,
    key_at: Tensor,
    bias_index: Tensor,
    mask: Tensor,
) -> TileScores:
    """Cut a problem into the tiles that the tables of :func:`plan_tensors` describe and score their pairs."""
    heads = query.shape[-2]
    repeat = heads // key.shape[-2]

    def share(tensor: Tensor) -> Tensor:  # grouped-query heads
        return tensor.repeat_interleave(repeat, dim=2) if repeat > 1 else tensor

    bias = mask.to(query.dtype).unsqueeze(1)  # (NT, 1, Tq, Wk)
    if rel_pos_bias is not None:
        bias = bias + rel_pos_bias.flatten(1).index_select(1, bias_index.flatten()).view(
            heads, *bias_index.shape
        ).transpose(0, 1)
    queries = cut_tiles(query, query_at) * scale
    keys, values = share(cut_tiles(key, key_at)), share(cut_tiles(value, key_at))
    scores = torch.matmul(queries, keys.transpose(-1, -2)) + bias
    if additional_key is None or additional_value is None:
        return TileScores(queries, keys, None, values, scores)
    extra_keys = share(additional_key.transpose(1, 2).unsqueeze(1))  # (B, 1, H, M, D)
    extra_values = share(additional_value.transpose(1, 2).unsqueeze(1))
    scores = torch.cat([scores, torch.matmul(queries, extra_keys.transpose(-1, -2))], dim=-1)
    values = torch.cat([values, extra_values.expand(-1, values.shape[1], -1, -1, -1)], dim=-2)
    return TileScores(queries, keys, extra_keys, values, scores)


def dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spec: NeighborhoodSpec,
    scale: float,
    rel_pos_bias: Tensor | None,
    additional_key: Tensor | None,
    additional_value: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Full attention with a dense mask, as without a neighborhood kernel. See :data:`Implementation`."""
    asked = query.shape[1:-2]
    query = over_map_of(key, query)
    batch, *lengths, heads, _ = query.shape
    visible, bias_index = _dense_tensors(tuple(lengths), spec, query.device)
    repeat = heads // key.shape[-2]

    def rows(tensor: Tensor) -> Tensor:  # (B, …, h, e) -> (B, h, N, e)
        flat = tensor.flatten(1, -3) if tensor.dim() > 4 else tensor
        return flat.transpose(1, 2)

    queries = rows(query)
    keys, values = (rows(t).repeat_interleave(repeat, dim=1) for t in (key, value))
    bias = visible.logical_not().to(query.dtype) * MASKED
    if rel_pos_bias is not None:
        bias = bias + rel_pos_bias.flatten(1).index_select(1, bias_index.flatten()).view(heads, *bias_index.shape)
    scores = scale * torch.matmul(queries, keys.transpose(-1, -2)) + bias
    if additional_key is not None and additional_value is not None:
        extra_key, extra_value = (
            t.transpose(1, 2).repeat_interleave(repeat, dim=1) for t in (additional_key, additional_value)
        )
        scores = torch.cat([scores, scale * torch.matmul(queries, extra_key.transpose(-1, -2))], dim=-1)
        values = torch.cat([values, extra_value], dim=-2)
    output = torch.matmul(scores.softmax(-1), values)
    lse = torch.logsumexp(scores, -1)
    shape = (batch, *lengths, heads)
    output, lse = output.transpose(1, 2).reshape(*shape, values.shape[-1]), lse.transpose(1, 2).reshape(shape)
    return _crop(output, asked), _crop(lse, asked)


@lru_cache(maxsize=8)
def _dense_tensors(lengths: tuple[int, ...], spec: NeighborhoodSpec, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return (N, N) visibility and bias index of every pair of positions."""
    plan = plan_tiles(lengths, spec)
    count = math.prod(lengths)
    visible = torch.zeros(count, count, dtype=torch.bool)
    index = torch.zeros(count, count, dtype=torch.int64)
    query = torch.from_numpy(plan.query).unsqueeze(2)
    key = torch.from_numpy(plan.key).unsqueeze(1)
    seen = torch.from_numpy(plan.visible)
    flat = (query * count + key)[seen]
    visible.view(-1)[flat] = True
    index.view(-1)[flat] = torch.from_numpy(plan.bias_index)[seen]
    return visible.to(device), index.to(device)
