"""How the portable path cuts neighborhood attention into dense matrix products.

Queries of one dilation group are cut into tiles of ``tile`` consecutive elements; each tile reads the ``span``
consecutive elements that cover the windows of all its queries, and masks inside. This module plans one axis in NumPy;
axes combine as a product. ``exporter/function_body.py`` states the same arithmetic in ONNX operators, for sizes known
only at run time, and a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from na_deploy.attention.windows import IntArray, NeighborhoodSpec, group_length, group_window

TILE_MINIMUM = {1: 8, 2: 4, 3: 2}
"""Shortest tile side aimed at, by rank: shorter ones make matrix products too small to be efficient."""

TILE_LIMIT = {1: 48, 2: 8, 3: 4}
"""Longest tile side aimed at, by rank: longer ones compute more masked scores than they save copies of keys."""


@dataclass(frozen=True)
class AxisPlan:
    """The tiling of one axis. Elements count positions of a dilation group, from 0.

    Attributes:
        length: positions on the axis.
        dilation: number of dilation groups.
        tile: queries per tile.
        tiles: tiles per dilation group.
        span: keys each tile reads.
        query: (dilation, tiles, tile) position of each query on the axis, clamped into the axis.
        key: (dilation, tiles, span) position of each key on the axis, clamped into the axis.
        visible: (dilation, tiles, tile, span) whether the query attends to the key.
        offset: (dilation, tiles, tile, span) ``(key - query) / dilation + kernel_size - 1``, the bias index; it is
            within [0, 2 * kernel_size - 2] wherever ``visible``.
    """

    length: int
    dilation: int
    tile: int
    tiles: int
    span: int
    query: IntArray
    key: IntArray
    visible: NDArray[np.bool_]
    offset: IntArray


def tile_size(group: int, kernel_size: int, stride: int, rank: int) -> int:
    """Return the tile side for a dilation group of ``group`` elements.

    Half the kernel, within [TILE_MINIMUM, TILE_LIMIT] of the rank, was the fastest or within a tenth of it for kernels
    of 5 to 512 (benchmarks/function_body.py). A group that is hardly longer than the kernel is one tile, since every
    tile would read all its keys. Other tiles are made longer rather than left partly empty, and rounded up to the
    stride so that each starts with a stride group.
    """
    aim = min(max((kernel_size + 1) // 2, TILE_MINIMUM[rank]), TILE_LIMIT[rank])
    whole = min(kernel_size + 1, 2 * aim)
    tiles = 1 if group <= whole else max(group // aim, 1)
    balanced = -(-group // tiles)
    return -(-balanced // stride) * stride


def plan_axis(
    length: int,
    kernel_size: int,
    dilation: int = 1,
    stride: int = 1,
    is_causal: bool = False,
    rank: int = 2,
    tile: int | None = None,
) -> AxisPlan:
    """Plan one axis of ``length`` positions of a problem with ``rank`` spatial axes.

    ``tile``, a multiple of ``stride``, overrules :func:`tile_size`; benchmarks use it to try others.
    """
    longest = -(-length // dilation)
    tile = tile or tile_size(longest, kernel_size, stride, rank)
    tiles = -(-longest // tile)
    span = min(kernel_size + tile - stride, longest)

    sizes = group_length(length, dilation)[:, None, None]  # (groups, 1, 1)
    group = np.arange(dilation, dtype=np.int64)[:, None, None]
    query_element = (np.arange(tiles, dtype=np.int64)[:, None] * tile + np.arange(tile, dtype=np.int64))[None]
    start, end = group_window(query_element, sizes, kernel_size, stride, is_causal)  # (groups, tiles, tile)
    key_start = np.minimum(start[..., :1], longest - span)  # the first query's window starts first
    key_element = key_start + np.arange(span, dtype=np.int64)  # (groups, tiles, span)

    query_element = np.minimum(query_element, sizes - 1)
    visible = (key_element[..., None, :] >= start[..., None]) & (key_element[..., None, :] < end[..., None])
    offset = key_element[..., None, :] - query_element[..., None] + kernel_size - 1
    return AxisPlan(
        length=length,
        dilation=dilation,
        tile=tile,
        tiles=tiles,
        span=span,
        query=query_element * dilation + group,
        key=np.minimum(key_element * dilation + group, length - 1),
        visible=visible,
        offset=offset,
    )


@dataclass(frozen=True)
class TilePlan:
    """The tiling of a whole problem: axes combined, positions flattened row-major.

    Attributes:
        query: (tiles, queries) flat position of each query of a tile.
        key: (tiles, keys) flat position of each key a tile reads.
        visible: (tiles, queries, keys) whether the query attends to the key.
        bias_index: (tiles, queries, keys) index into the flattened (2*K0-1)*… bias table, 0 where not visible.
        home: (positions,) where in the flattened (tiles, queries) a position's output stands.
    """

    query: IntArray
    key: IntArray
    visible: NDArray[np.bool_]
    bias_index: IntArray
    home: IntArray


def plan_tiles(lengths: Sequence[int], spec: NeighborhoodSpec) -> TilePlan:
    """Combine the plans of all axes of a problem with spatial sizes ``lengths``.

    Raises:
        UsageError: a window does not fit its axis.
    """
    spec.check_lengths(lengths)
    rank = spec.rank
    query, key, index = (np.zeros((1,) * dims, np.int64) for dims in (2, 2, 3))
    misses = np.zeros((1, 1, 1), np.int64)  # axes on which a pair is not visible
    for length, kernel, dilation, stride, causal in zip(
        lengths, spec.kernel_size, spec.dilation, spec.stride, spec.is_causal, strict=True
    ):
        axis = plan_axis(length, kernel, dilation, stride, causal, rank)
        own_query = axis.query.reshape(-1, axis.tile)
        own_key = axis.key.reshape(-1, axis.span)
        own_pair = (-1, axis.tile, axis.span)
        query = _combine(query * length, own_query)
        key = _combine(key * length, own_key)
        misses = _combine_pairs(misses, np.logical_not(axis.visible).reshape(own_pair).astype(np.int64))
        offset = np.where(axis.visible, axis.offset, 0).reshape(own_pair)
        index = _combine_pairs(index * (2 * kernel - 1), offset)
    visible = misses == 0
    home = np.empty(int(np.prod(lengths)), np.int64)
    flat = query.reshape(-1)
    # A padded query repeats the last position of its group, behind it: the first occurrence is the real one.
    home[flat[::-1]] = np.arange(flat.size - 1, -1, -1, dtype=np.int64)
    return TilePlan(query, key, visible, np.where(visible, index, 0), home)


def _combine(outer: IntArray, inner: IntArray) -> IntArray:
    """Combine (a, b) and (c, d) into the (a*c, b*d) sums."""
    total = outer[:, None, :, None] + inner[None, :, None, :]
    return total.reshape(outer.shape[0] * inner.shape[0], -1)


def _combine_pairs(outer: IntArray, inner: IntArray) -> IntArray:
    """Combine (a, b, e) and (c, d, f) into the (a*c, b*d, e*f) sums."""
    total = outer[:, None, :, None, :, None] + inner[None, :, None, :, None, :]
    tiles, queries = outer.shape[0] * inner.shape[0], outer.shape[1] * inner.shape[1]
    return total.reshape(tiles, queries, outer.shape[2] * inner.shape[2])
