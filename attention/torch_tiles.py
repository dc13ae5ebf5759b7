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
from torch._subclasses.fake_tensor import FakeTensor

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
    """Dense attention on tiles, masked inside; the default. See :data:`Implementation`.

    Numbers that are not finite reach only the queries that see them.
    """
    asked = query.shape[1:-2]
    query = over_map_of(key, query)
    tensors = (query, key, value)
    rest = (scale, rel_pos_bias, additional_key, additional_value)
    found = _all_tiles(_attend_tiles, *tensors, spec, *rest)
    if _is_spoiled(*found):
        found = _all_tiles(_attend_tiles_apart, *tensors, spec, *rest)
    output, lse = (tensor.view(*query.shape[:-1], tensor.shape[-1]) for tensor in found)
    return _crop(output, asked), _crop(lse.squeeze(-1), asked)


def _all_tiles(
    attend: Callable[..., tuple[Tensor, Tensor]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spec: NeighborhoodSpec,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    """Return output and lse (B, N, H, e); large problems are computed some tiles at a time."""
    batch, *lengths, heads, _ = query.shape
    images = max(batch, 1) * heads
    if images * tiled_pairs(lengths, spec) <= LARGE_SCORES:
        *tables, home = _tile_tensors(tuple(lengths), spec, query.device)
        output, lse = attend(query, key, value, *rest, *tables)
        return output.index_select(1, home), lse.index_select(1, home)
    output, lse = (query.new_empty(batch, math.prod(lengths), heads, width) for width in (value.shape[-1], 1))
    for plan in plan_parts(lengths, spec, LARGE_SCORES // (4 * images)):
        tables = list(plan_tensors(plan, query.device))
        for whole, part in zip((output, lse), attend(query, key, value, *rest, *tables), strict=True):
            whole[:, tables[0].flatten()] = part  # a padded query repeats another and computes the same
    return output, lse


def _is_spoiled(output: Tensor, lse: Tensor) -> bool:
    """Return whether masked pairs may have left their mark on a result.

    Zero times infinity is not a number, and masked scores count where all others are as low. The answer waits for a
    GPU; where a graph is captured, which must not wait, and for tensors without numbers it is no.
    """
    if (
        output.is_meta
        or isinstance(output, FakeTensor)
        or (output.is_cuda and torch.cuda.is_current_stream_capturing())
    ):
        return False
    return bool(output.isnan().any() | (lse < MASKED / 2).any())


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


def _attend_tiles_apart(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Return what :func:`_attend_tiles` does, with what is not finite kept apart from queries that do not see it."""
    tiles, mask = tile_scores(*arguments), arguments[-1]
    extra = tiles.scores.shape[-1] - mask.shape[-1]
    seen = torch.nn.functional.pad(mask == 0, (0, extra), value=True).unsqueeze(1)  # (NT, 1, Tq, Wk + M)
    scores = tiles.scores.masked_fill(~seen, -math.inf)
    weights, values = scores.softmax(-1), tiles.values
    output = torch.matmul(weights, values.where(values.isfinite(), 0))

    def add(pairs: Tensor, kind: Tensor, number: float) -> None:  # where any pair's value is of the kind
        nonlocal output
        hit = torch.matmul(pairs.to(values), kind.to(values)) > 0
        output = output + torch.zeros_like(output).masked_fill(hit, number)

    add(weights > 0, values == math.inf, math.inf)
    add(weights > 0, values == -math.inf, -math.inf)
    add(seen.expand_as(weights), values.isnan(), math.nan)
    add(seen & (weights == 0), values.isinf(), math.nan)
    lse = torch.logsumexp(scores, -1, keepdim=True)
    lse = lse.masked_fill(lse == math.inf, math.nan)
    return (output.transpose(2, 3).flatten(1, 2), lse.transpose(2, 3).flatten(1, 2))


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
