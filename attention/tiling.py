"""The portable path's cut of neighborhood attention into dense matrix products.

Queries of one dilation group are cut into tiles of ``tile`` consecutive elements; each tile reads the ``span``
consecutive elements that cover the windows of all its queries, and masks inside. This module plans one axis in NumPy;
axes combine as a product. ``exporter/function_body.py`` states the same arithmetic in ONNX operators, for sizes known
only at run time, and a test holds the two together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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


def tile_extent(
    length: int, kernel_size: int, dilation: int, stride: int, rank: int, tile: int | None = None
) -> tuple[int, int, int]:
    """Return queries per tile, tiles per dilation group and keys each tile reads, on one axis.

    On an axis too short for the window keys behind it count as there, and queries do not.
    """
    longest = -(-length // dilation)
    tile = tile or tile_size(longest, kernel_size, stride, rank)
    return tile, -(-longest // tile), min(kernel_size + tile - stride, max(longest, kernel_size))


def tiled_pairs(lengths: Sequence[int], spec: NeighborhoodSpec) -> int:
    """Return the number of query-key pairs in all tiles of a head, masked ones and padded queries included."""
    pairs = 1
    axes = zip(lengths, spec.kernel_size, spec.dilation, spec.stride, strict=True)
    for length, kernel, dilation, stride in axes:
        tile, tiles, span = tile_extent(length, kernel, dilation, stride, spec.rank)
        pairs *= dilation * tiles * tile * span
    return pairs


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
    tile, tiles, span = tile_extent(length, kernel_size, dilation, stride, rank, tile)

    sizes = group_length(length, dilation)[:, None, None]  # (groups, 1, 1)
    group = np.arange(dilation, dtype=np.int64)[:, None, None]
    query_element = (np.arange(tiles, dtype=np.int64)[:, None] * tile + np.arange(tile, dtype=np.int64))[None]
    start, end = group_window(query_element, sizes, kernel_size, stride, is_causal)  # (groups, tiles, tile)
    key_start = np.minimum(start[..., :1], longest - span)  # the first query has the leftmost window
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
    """The tiling of a whole problem, or some of its tiles: axes combined, positions flattened row-major.

    Attributes:
        query: (tiles, queries) flat position of each query of a tile.
        key: (tiles, keys) flat position of each key a tile reads.
        visible: (tiles, queries, keys) whether the query attends to the key.
        bias_index: (tiles, queries, keys) index into the flattened (2*K0-1)*… bias table, 0 where not visible.
    """

    query: IntArray
    key: IntArray
    visible: NDArray[np.bool_]
    bias_index: IntArray

    def home(self, positions: int) -> IntArray:
        """Return where in the flattened (tiles, queries) each position's output stands; all tiles must be there."""
        home = np.empty(positions, np.int64)
        flat = self.query.reshape(-1)
        # A padded query repeats the last position of its group, behind it: the first occurrence is the real one.
        home[flat[::-1]] = np.arange(flat.size - 1, -1, -1, dtype=np.int64)
        return home


def plan_tiles(lengths: Sequence[int], spec: NeighborhoodSpec) -> TilePlan:
    """Plan a problem with spatial sizes ``lengths``; the tables hold a number for every pair of all tiles.

    Raises:
        UsageError: a window does not fit its axis.
    """
    return next(plan_parts(lengths, spec, math.inf))


def plan_parts(lengths: Sequence[int], spec: NeighborhoodSpec, pairs: float) -> Iterator[TilePlan]:
    """Plan a problem some tiles at a time, as many as hold ``pairs`` query-key pairs together, but at least one.

    Raises:
        UsageError: a window does not fit its axis.
    """
    spec.check_lengths(lengths)
    axes = [
        plan_axis(*sizes, spec.rank)
        for sizes in zip(lengths, spec.kernel_size, spec.dilation, spec.stride, spec.is_causal, strict=True)
    ]
    counts = [axis.dilation * axis.tiles for axis in axes]
    total = math.prod(counts)
    part = max(int(min(pairs / math.prod(axis.tile * axis.span for axis in axes), total)), 1)
    for first in range(0, total, part):
        number = np.arange(first, min(first + part, total), dtype=np.int64)
        yield _combined(axes, spec.kernel_size, np.unravel_index(number, counts))


def _combined(axes: Sequence[AxisPlan], kernels: Sequence[int], combos: Sequence[IntArray]) -> TilePlan:
    """Combine the axes' tables for tiles that are number ``combos[a]`` on axis ``a``."""
    tiles = len(combos[0])
    query, key = np.zeros((2, tiles, 1), np.int64)
    visible, index = np.ones((tiles, 1, 1), np.bool_), np.zeros((tiles, 1, 1), np.int64)
    for axis, kernel, combo in zip(axes, kernels, combos, strict=True):
        own = axis.query.reshape(-1, axis.tile)[combo]
        query = (query[:, :, None] * axis.length + own[:, None, :]).reshape(tiles, -1)
        own = axis.key.reshape(-1, axis.span)[combo]
        key = (key[:, :, None] * axis.length + own[:, None, :]).reshape(tiles, -1)
        seen = axis.visible.reshape(-1, axis.tile, axis.span)[combo]
        offset = np.where(seen, axis.offset.reshape(-1, axis.tile, axis.span)[combo], 0)
        shape = tiles, query.shape[1], key.shape[1]
        visible = (visible[:, :, None, :, None] & seen[:, None, :, None, :]).reshape(shape)
        index = (index * (2 * kernel - 1))[:, :, None, :, None] + offset[:, None, :, None, :]
        index = index.reshape(shape)
    return TilePlan(query, key, visible, np.where(visible, index, 0))
