"""The positions that a query attends to, on one axis and on several.

This is the single Python statement of the neighborhood window; the reference, the tiling, the ONNX function body and
the plots all follow it. Formulas: NATTEN 0.21's documentation and reference mask, for kernel_size ``K``, dilation
``d``, stride ``s`` on an axis of length ``L``. They work inside a query's dilation group: position ``i`` is element
``p = i div d`` of group ``g = i mod d``, which holds ``Lg = ceil((L - g) / d)`` elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from na_deploy.errors import UsageError

IntArray = NDArray[np.int64]

MAX_RANK = 3


@dataclass(frozen=True)
class NeighborhoodSpec:
    """The attributes of one neighborhood attention, one value per spatial axis.

    Build it with :meth:`create`, which accepts the short forms people write and checks what does not depend on sizes.
    """

    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...]
    stride: tuple[int, ...]
    is_causal: tuple[bool, ...]

    @property
    def rank(self) -> int:
        """The number of spatial axes, 1 to 3."""
        return len(self.kernel_size)

    @classmethod
    def create(
        cls,
        rank: int,
        kernel_size: int | Sequence[int],
        dilation: int | Sequence[int] = 1,
        stride: int | Sequence[int] = 1,
        is_causal: bool | Sequence[bool] = False,
    ) -> NeighborhoodSpec:
        """Return a checked spec; a number, or or one value (except for kernel_size), stands for every axis.

        Raises:
            UsageError: the rank, a count of values, or a value is out of its range.
        """
        if not 1 <= rank <= MAX_RANK:
            raise UsageError(f"neighborhood attention has 1 to {MAX_RANK} spatial axes, got {rank}")
        spec = cls(
            _per_axis("kernel_size", kernel_size, rank),
            _per_axis("dilation", dilation, rank),
            _per_axis("stride", stride, rank),
            tuple(bool(c) for c in _per_axis("is_causal", is_causal, rank)),
        )
        for axis, (kernel, step, hop) in enumerate(zip(spec.kernel_size, spec.dilation, spec.stride, strict=True)):
            if kernel < 1:
                raise UsageError(f"kernel_size must be at least 1 on every axis, got {kernel} on axis {axis}")
            if step < 1:
                raise UsageError(f"dilation must be at least 1 on every axis, got {step} on axis {axis}")
            if not 1 <= hop <= kernel:
                raise UsageError(f"stride must lie between 1 and kernel_size={kernel}, got {hop} on axis {axis}")
        return spec

    def describe(self) -> str:
        """Return the window in words, without attributes at their defaults: ``7×7, dilation 2×2``."""
        words = ["×".join(map(str, self.kernel_size))]
        for name, values in (("dilation", self.dilation), ("stride", self.stride)):
            if any(value != 1 for value in values):
                words.append(f"{name} {'×'.join(map(str, values))}")
        if any(self.is_causal):
            words.append("causal on axis " + " and ".join(str(a) for a, causal in enumerate(self.is_causal) if causal))
        return ", ".join(words)

    def check_lengths(self, lengths: Sequence[int]) -> None:
        """Raise unless every window fits its axis: ``kernel_size * dilation <= length``.

        Raises:
            UsageError: names the axis, its length and the length it needs.
        """
        if len(lengths) != self.rank:
            raise UsageError(f"expected {self.rank} spatial axes (one per kernel_size value), got {len(lengths)}")
        for axis, (length, kernel, step) in enumerate(zip(lengths, self.kernel_size, self.dilation, strict=True)):
            if kernel * step > length:
                raise UsageError(
                    f"kernel_size*dilation = {kernel}*{step} = {kernel * step} exceeds the length {length} of spatial "
                    f"axis {axis}; use a larger map, a smaller kernel_size or a smaller dilation"
                )

    def padded_lengths(self, lengths: Sequence[int]) -> tuple[int, ...]:
        """Return the sizes of the map that windows are laid over where an operator is given ``padding``.

        They are the map's own on every axis that a window fits on.
        """
        axes = zip(lengths, self.kernel_size, self.dilation, strict=True)
        return tuple(max(length, kernel * step) for length, kernel, step in axes)


def _per_axis(name: str, value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    values = tuple(int(v) for v in value) if isinstance(value, Sequence) else (int(value),) * rank
    if len(values) == 1 and name != "kernel_size":  # as the operators' defaults have it; kernel_size tells the rank
        values *= rank
    if len(values) != rank:
        raise UsageError(f"{name} has {len(values)} values {values} for {rank} spatial axes; give one per axis")
    return values


WHOLE_AXIS = -1
"""A kernel size that stands for the whole axis, as NATTEN's interface has it."""


def whole_axes(
    kernel_size: Sequence[int], lengths: Sequence[int], dilation: int | Sequence[int] = 1
) -> tuple[int, ...]:
    """Return the kernel sizes with -1 replaced by the whole axis: as many elements as every dilation group has.

    Raises:
        UsageError: the counts of values differ.
    """
    if len(kernel_size) != len(lengths):
        raise UsageError(f"{len(kernel_size)} window sizes for {len(lengths)} axes; give one per axis")
    steps = _per_axis("dilation", dilation, len(lengths))
    return tuple(
        length // step if kernel == WHOLE_AXIS else kernel
        for kernel, length, step in zip(kernel_size, lengths, steps, strict=True)
    )


def group_length(length: int, dilation: int) -> IntArray:
    """Return the number of positions in each dilation group: ``ceil((L - g) / d)`` for g = 0 … d-1, shape (d,)."""
    groups = np.arange(dilation, dtype=np.int64)
    return (length - groups + dilation - 1) // dilation


def group_window(
    element: IntArray, group_size: IntArray, kernel_size: int, stride: int, is_causal: bool
) -> tuple[IntArray, IntArray]:
    """Return the window [start, end) of ``element`` of a dilation group that holds ``group_size`` elements.

    Works elementwise on broadcastable arrays. ``element`` may lie past the group's end (tiling asks for padded
    queries); the result is then the last element's window.
    """
    element = np.minimum(element, group_size - 1)
    if is_causal:
        leader = np.minimum((element // stride) * stride + stride - 1, group_size - 1)
        return np.maximum(leader - kernel_size + 1, 0), element + 1
    left = kernel_size // 2
    right = left + kernel_size % 2 - 1
    leader = np.minimum((element // stride) * stride + stride // 2, group_size - 1)
    overhang = np.where(leader + right >= group_size, group_size - right - leader - 1, 0)
    start = np.maximum(leader - left, 0) + overhang
    return start, start + kernel_size


def window_bounds(
    length: int, kernel_size: int, dilation: int = 1, stride: int = 1, is_causal: bool = False
) -> tuple[IntArray, IntArray]:
    """Return the window [start, end) of every position of an axis, each of shape (length,).

    The bounds count elements of the position's own dilation group: position ``i`` attends to ``j * dilation +
    i % dilation`` for ``start[i] <= j < end[i]``.
    """
    position = np.arange(length, dtype=np.int64)
    sizes = group_length(length, dilation)[position % dilation]
    return group_window(position // dilation, sizes, kernel_size, stride, is_causal)


def attended_pairs(lengths: Sequence[int], spec: NeighborhoodSpec) -> int:
    """Return the number of attended query-key pairs of a head over a map of ``lengths``, exact at borders.

    On axes too short for their window keys behind the map count too, see :meth:`NeighborhoodSpec.padded_lengths`.
    """
    pairs = 1
    axes = zip(lengths, spec.kernel_size, spec.dilation, spec.stride, spec.is_causal, strict=True)
    for length, kernel, dilation, stride, causal in axes:
        start, end = window_bounds(max(length, kernel * dilation), kernel, dilation, stride, causal)
        pairs *= int((end - start)[:length].sum())
    return pairs


def attended_positions(
    position: int, length: int, kernel_size: int, dilation: int = 1, stride: int = 1, is_causal: bool = False
) -> IntArray:
    """Return the positions of an axis that ``position`` attends to, ascending."""
    start, end = window_bounds(length, kernel_size, dilation, stride, is_causal)
    return np.arange(start[position], end[position], dtype=np.int64) * dilation + position % dilation


def axis_mask(
    length: int, kernel_size: int, dilation: int = 1, stride: int = 1, is_causal: bool = False
) -> NDArray[np.bool_]:
    """Return (length, length) booleans: query (row) attends to key (column). Axes combine as a product."""
    start, end = window_bounds(length, kernel_size, dilation, stride, is_causal)
    key = np.arange(length, dtype=np.int64)
    same_group = key[None, :] % dilation == key[:, None] % dilation
    element = key[None, :] // dilation
    mask: NDArray[np.bool_] = same_group & (element >= start[:, None]) & (element < end[:, None])
    return mask
