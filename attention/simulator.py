"""Bounds on the speedup of neighborhood attention over full attention: exact counts of work, in scores and tiles.

The model is that of Generalized Neighborhood Attention (Hassani et al., arXiv:2504.16922, there called NATTENSim): a
fused kernel computes whole tiles of queries by keys; a tile that any of its queries sees is computed whole. Queries and
keys are cut into multi-dimensional tiles within each dilation group. Then

- the *FLOP-wise* bound on the speedup is all pairs of tokens over the pairs that attend;
- the *tile-wise* bound is the tiles of full attention over the tiles that are visited;
- a visited tile that all its queries see whole needs no mask; if all are such, the attention is block-sparse and the
  two bounds differ by padding alone.

All three conditions are products over axes, so counts are products of sums over axes: exact for any size, in the time
that one axis takes. Not for predicting milliseconds: that takes a machine.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from na_deploy.attention.windows import NeighborhoodSpec, group_length, group_window
from na_deploy.errors import UsageError

DEFAULT_TILE = 128
"""Queries and keys of a tile on current tensor cores at head_dim 128."""

_NEARLY = 0.98
"""Share of the best bound from which on a stride counts as equally good; the model is no finer."""


@dataclass(frozen=True)
class AxisCounts:
    """The counts of one axis; totals are products over axes.

    Attributes:
        attended: pairs of positions that attend.
        visited: pairs of a query tile and a key tile in which some pair of positions attends.
        unmasked: those in which all pairs attend, and no position is padding.
    """

    attended: int
    visited: int
    unmasked: int


@dataclass(frozen=True)
class Simulation:
    """The counts of one problem.

    Attributes:
        lengths: tokens along each axis.
        spec: the window.
        tile_q: queries of a tile along each axis.
        tile_kv: keys of a tile along each axis.
        attended_pairs: pairs of tokens that attend.
        visited_tiles: tiles that are computed.
        unmasked_tiles: those that need no mask.
        full_tiles: tiles of full attention over the same tokens, flattened.
    """

    lengths: tuple[int, ...]
    spec: NeighborhoodSpec
    tile_q: tuple[int, ...]
    tile_kv: tuple[int, ...]
    attended_pairs: int
    visited_tiles: int
    unmasked_tiles: int
    full_tiles: int

    @property
    def flop_bound(self) -> float:
        """Upper bound on the speedup over full attention, in arithmetic that counts."""
        return math.prod(self.lengths) ** 2 / self.attended_pairs

    @property
    def tile_bound(self) -> float:
        """Upper bound on the speedup over full attention, in tiles computed."""
        return self.full_tiles / self.visited_tiles

    @property
    def unmasked_share(self) -> float:
        """Share of visited tiles that need no mask."""
        return self.unmasked_tiles / self.visited_tiles

    @property
    def useful_share(self) -> float:
        """Share of computed scores that count."""
        return self.attended_pairs / (self.visited_tiles * math.prod(self.tile_q) * math.prod(self.tile_kv))

    @property
    def block_sparse(self) -> bool:
        """Tell whether no visited tile needs a mask."""
        return self.unmasked_tiles == self.visited_tiles


@lru_cache(maxsize=1 << 16)
def count_axis(
    length: int, kernel_size: int, dilation: int, stride: int, is_causal: bool, tile_q: int, tile_kv: int
) -> AxisCounts:
    """Count one axis of ``length`` positions cut into tiles of ``tile_q`` queries and ``tile_kv`` keys."""
    attended = visited = unmasked = 0
    sizes, repeats = np.unique(group_length(length, dilation), return_counts=True)
    for size, repeat in zip(sizes.tolist(), repeats.tolist(), strict=True):
        element = np.arange(size, dtype=np.int64)
        start, end = group_window(element, np.asarray(size), kernel_size, stride, is_causal)
        attended += repeat * int((end - start).sum())
        first = np.arange(0, size, tile_q)
        some_start, some_end = np.minimum.reduceat(start, first), np.maximum.reduceat(end, first)
        all_start, all_end = np.maximum.reduceat(start, first), np.minimum.reduceat(end, first)
        visited += repeat * int((-(-some_end // tile_kv) - some_start // tile_kv).sum())
        # Whole key tiles within what all queries of the tile see; a tile with padded queries or keys is masked.
        whole = np.maximum(all_end // tile_kv - -(-all_start // tile_kv), 0)
        whole[(first + tile_q) > size] = 0
        unmasked += repeat * int(whole.sum())
    return AxisCounts(attended, visited, unmasked)


def simulate(
    lengths: Sequence[int], spec: NeighborhoodSpec, tile_q: Sequence[int], tile_kv: Sequence[int]
) -> Simulation:
    """Count one problem.

    Args:
        lengths: tokens along each axis.
        spec: the window; ``kernel_size * dilation`` must fit each axis.
        tile_q: queries of a tile along each axis.
        tile_kv: keys of a tile along each axis.

    Raises:
        UsageError: a window does not fit its axis, or tiles do not have one positive size per axis.
    """
    spec.check_lengths(lengths)
    for name, tile in (("query", tile_q), ("key", tile_kv)):
        if len(tile) != spec.rank or min(tile) < 1:
            raise UsageError(f"the {name} tile {_times(tile)} must have one size of at least 1 for {spec.rank} axes")
    axes = [
        count_axis(*values)
        for values in zip(
            lengths, spec.kernel_size, spec.dilation, spec.stride, spec.is_causal, tile_q, tile_kv, strict=True
        )
    ]
    return _combined(lengths, spec, tile_q, tile_kv, axes)


def _combined(
    lengths: Sequence[int],
    spec: NeighborhoodSpec,
    tile_q: Sequence[int],
    tile_kv: Sequence[int],
    axes: Sequence[AxisCounts],
) -> Simulation:
    tokens = math.prod(lengths)
    return Simulation(
        tuple(lengths),
        spec,
        tuple(tile_q),
        tuple(tile_kv),
        math.prod(axis.attended for axis in axes),
        math.prod(axis.visited for axis in axes),
        math.prod(axis.unmasked for axis in axes),
        -(-tokens // math.prod(tile_q)) * -(-tokens // math.prod(tile_kv)),
    )


@dataclass(frozen=True)
class Sweep:
    """Every combination of strides of one problem, tiles fixed.

    Attributes:
        base: the problem; its own stride does not matter.
        axes: per axis, the counts for stride 1, 2, … kernel_size (1 alone along a causal or otherwise fixed axis).
    """

    base: Simulation
    axes: tuple[tuple[AxisCounts, ...], ...]

    @property
    def tile_bounds(self) -> NDArray[np.float64]:
        """The tile-wise bound by stride - 1 along each axis."""
        visited: NDArray[np.float64] = np.ones((), np.float64)
        for counts in self.axes:
            visited = np.multiply.outer(visited, np.array([count.visited for count in counts], np.float64))
        return self.base.full_tiles / visited

    @property
    def combinations(self) -> int:
        """Number of combinations of strides."""
        return math.prod(len(counts) for counts in self.axes)

    def at(self, stride: Sequence[int]) -> Simulation:
        """Return the counts of one combination."""
        spec = self.base.spec
        chosen = NeighborhoodSpec(spec.kernel_size, spec.dilation, tuple(stride), spec.is_causal)
        axes = [counts[step - 1] for counts, step in zip(self.axes, stride, strict=True)]
        return _combined(self.base.lengths, chosen, self.base.tile_q, self.base.tile_kv, axes)

    def front(self) -> list[Simulation]:
        """Return the combinations on the Pareto front: a higher tile-wise bound takes a larger product of strides.

        A larger stride makes neighbouring queries share a window more often, so the product says how far the attention
        is from sliding with every token.
        """
        bounds = self.tile_bounds.reshape(-1)
        strides = np.stack(np.meshgrid(*(range(1, len(c) + 1) for c in self.axes), indexing="ij"), -1)
        strides = strides.reshape(-1, len(self.axes))
        cost = strides.prod(axis=1)
        order = np.lexsort((strides.max(axis=1), -bounds, cost))
        best, found = 0.0, []
        for place in order.tolist():
            if bounds[place] > best * (1 + 1e-9):
                best = float(bounds[place])
                found.append(self.at(strides[place].tolist()))
        return found

    def recommended(self) -> Simulation:
        """Return the smallest strides whose tile-wise bound is within 2 % of the best."""
        front = self.front()
        return next(each for each in front if each.tile_bound >= _NEARLY * front[-1].tile_bound)


def sweep_strides(
    lengths: Sequence[int], spec: NeighborhoodSpec, tile_q: Sequence[int], tile_kv: Sequence[int]
) -> Sweep:
    """Count every combination of strides. See :func:`simulate` for arguments and errors."""
    base = simulate(lengths, spec, tile_q, tile_kv)
    axes = tuple(
        tuple(count_axis(length, kernel, step, stride, causal, q, kv) for stride in range(1, kernel + 1))
        for length, kernel, step, causal, q, kv in zip(
            lengths, spec.kernel_size, spec.dilation, spec.is_causal, tile_q, tile_kv, strict=True
        )
    )
    return Sweep(base, axes)


def tile_shapes(size: int, rank: int) -> Iterator[tuple[int, ...]]:
    """Yield all shapes of ``size`` elements, a power of two, whose sides are powers of two."""
    exponent = size.bit_length() - 1
    if size != 1 << exponent:
        raise UsageError(f"tiles hold a power of two of tokens, got {size}")
    for sides in itertools.product(range(exponent + 1), repeat=rank):
        if sum(sides) == exponent:
            yield tuple(1 << side for side in sides)


def best_tiles(
    lengths: Sequence[int],
    spec: NeighborhoodSpec,
    size_q: int = DEFAULT_TILE,
    size_kv: int = DEFAULT_TILE,
    any_stride: bool = False,
) -> list[Simulation]:
    """Return all tile shapes of the given sizes, the one with the highest tile-wise bound first.

    Args:
        lengths: tokens along each axis.
        spec: the window and stride.
        size_q: queries of a tile, a power of two.
        size_kv: keys of a tile, a power of two.
        any_stride: judge each shape with the strides that suit it best instead of the given ones.
    """
    spec.check_lengths(lengths)
    shapes = itertools.product(tile_shapes(size_q, spec.rank), tile_shapes(size_kv, spec.rank))
    results = [
        simulate(lengths, _best_strides(lengths, spec, q, kv) if any_stride else spec, q, kv) for q, kv in shapes
    ]
    # Among equals, the shape nearest to a cube: it serves other sizes as well.
    return sorted(results, key=lambda s: (-round(s.tile_bound, 9), -s.unmasked_share, max(s.tile_q) + max(s.tile_kv)))


def _best_strides(
    lengths: Sequence[int], spec: NeighborhoodSpec, tile_q: Sequence[int], tile_kv: Sequence[int]
) -> NeighborhoodSpec:
    """Return the smallest strides that visit the fewest tiles: totals are products, so each axis has its own."""
    strides = []
    axes = zip(lengths, spec.kernel_size, spec.dilation, spec.is_causal, tile_q, tile_kv, strict=True)
    for length, kernel, step, causal, q, kv in axes:
        visited = [count_axis(length, kernel, step, stride, causal, q, kv).visited for stride in range(1, kernel + 1)]
        strides.append(1 + visited.index(min(visited)))
    return NeighborhoodSpec(spec.kernel_size, spec.dilation, tuple(strides), spec.is_causal)


def _times(numbers: Sequence[int]) -> str:
    return "×".join(map(str, numbers))


__all__ = [
    "AxisCounts",
    "Simulation",
    "Sweep",
    "best_tiles",
    "count_axis",
    "simulate",
    "sweep_strides",
    "tile_shapes",
]
