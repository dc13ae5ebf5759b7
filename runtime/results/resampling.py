"""Scaling maps as torch's ``interpolate`` does, a strip at a time, so that large pictures need little memory.

An axis of a scaled map is a few taps: source positions and weights per target position. Chains of scalings and crops
are one set of taps again, since each is linear.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from na_deploy.model_file.tensors import Array
from na_deploy.models.metadata import SegmentRule
from na_deploy.models.preprocessing import Placement

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

STRIP = 1024
"""Columns of a picture computed at a time."""
_NARROW = 192
"""Columns of all maps together computed at a time, likewise."""
BAND = 64
"""Rows of a strip computed at a time: they stay in the processor's cache."""


@dataclass(frozen=True)
class Taps:
    """Scaling of one axis.

    Attributes:
        index: (targets, taps) source positions.
        weight: (targets, taps) weight of each.
    """

    index: IntArray
    weight: FloatArray

    def after(self, first: Taps) -> Taps:
        """Return ``first`` and then these as one."""
        index = first.index[self.index].reshape(len(self.index), -1)
        weight = (first.weight[self.index] * self.weight[..., None]).reshape(len(self.index), -1)
        used = weight.any(0)  # scaling to the same size has taps that count nothing
        return Taps(index[:, used], weight[:, used]) if used.any() else Taps(index, weight)

    def touching(self, sources: NDArray[np.bool_]) -> slice:
        """Return the targets from the first to the last that one of ``sources``, marked by position, counts in."""
        targets = np.flatnonzero(sources[self.index].any(1))
        return slice(int(targets[0]), int(targets[-1]) + 1) if len(targets) else slice(0, 0)

    def cut(self, start: int, stop: int) -> Taps:
        """Return those of the targets from ``start`` to before ``stop``."""
        return Taps(self.index[start:stop], self.weight[start:stop])


def linear(source: int, target: int) -> Taps:
    """Return bilinear scaling of one axis, as torch with ``align_corners=False`` (no antialiasing)."""
    scale = np.float32(source / target)
    place = np.maximum((np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
    low = np.minimum(place.astype(np.int64), source - 1)
    weight = (place - low).astype(np.float32)
    return Taps(np.stack([low, np.minimum(low + 1, source - 1)], 1), np.stack([1 - weight, weight], 1))


def placed(source: int, start: float, stop: float, first: int, last: int) -> Taps:
    """Return bilinear scaling of an axis onto the span from ``start`` to ``stop``, zero beyond it.

    The taps are for the pixels from ``first`` to before ``last``, whose centres lie at one half. As torch's
    ``grid_sample`` with ``align_corners=False`` and zeros beyond, by which detectors paste masks.
    """
    centres = np.arange(first, last, dtype=np.float32) + np.float32(0.5)
    side = (centres - np.float32(start)) / (np.float32(stop) - np.float32(start)) * 2 - 1
    place = ((side + 1) * np.float32(source) - 1) / 2
    low = np.floor(place)
    weights = np.stack([low + 1 - place, place - low], 1)
    sources = np.stack([low, low + 1], 1).astype(np.int64)
    weights[(sources < 0) | (sources >= source)] = 0
    return Taps(np.clip(sources, 0, source - 1), weights.astype(np.float32))


def nearest(source: int, target: int) -> IntArray:
    """Return the source position of every target, as torch's ``nearest``."""
    place = np.arange(target, dtype=np.float32) * np.float32(source / target)
    return np.minimum(place.astype(np.int64), source - 1)


class View(NamedTuple):
    """The place of a network's maps, which cover its whole input, on a picture.

    Attributes:
        placement: the picture's place in the input.
        picture: (H, W) of the picture.
        rule: the rule for scaling maps. "detectron2" (and mmsegmentation): to the input first, padding is cut off,
            then to the picture. "transformers": straight to the picture, where there is no padding.
    """

    placement: Placement
    picture: tuple[int, int]
    rule: SegmentRule = "detectron2"

    @property
    def straight(self) -> bool:
        """Tell whether maps are scaled straight to the picture."""
        return self.rule == "transformers" and self.placement.scaled == self.placement.size


def to_picture(maps: tuple[int, int], view: View) -> tuple[Taps, Taps]:
    """Return the taps of rows and columns that lay a network's maps over the picture it saw.

    Args:
        maps: (h, w) of the maps.
        view: their place on the picture.
    """
    axes = []
    for size, whole, kept, target in zip(maps, view.placement.size, view.placement.scaled, view.picture, strict=True):
        if view.straight:
            axes.append(linear(size, target))
        else:
            axes.append(linear(kept, target).after(linear(size, whole).cut(0, kept)))
    return axes[0], axes[1]


def resize(maps: Array, rows: Taps, columns: Taps) -> FloatArray:
    """Return (…, H, W) of ``maps`` (…, h, w)."""
    return _along_rows(_along_columns(maps.astype(np.float32, copy=False), columns), rows)


def best_map(maps: Array, rows: Taps, columns: Taps) -> NDArray[np.int32]:
    """Return (H, W), which of the scaled ``maps`` (C, h, w) is the largest in each place; of equals the first."""
    best = np.empty((len(rows.index), len(columns.index)), np.int32)
    last = np.ascontiguousarray(np.moveaxis(maps, 0, -1), np.float32)  # (h, w, C): argmax is fast along it
    for left in range(0, best.shape[1], _NARROW):
        own = columns.cut(left, left + _NARROW)
        scaled = np.take(last, own.index[:, 0], axis=1) * own.weight[:, 0, None]
        for number in range(1, own.index.shape[1]):
            scaled += np.take(last, own.index[:, number], axis=1) * own.weight[:, number, None]
        row, part = np.empty(scaled.shape[1:], np.float32), np.empty(scaled.shape[1:], np.float32)
        for target, (sources, weights) in enumerate(zip(rows.index.tolist(), rows.weight, strict=True)):
            np.multiply(scaled[sources[0]], weights[0], out=row)
            for source, weight in zip(sources[1:], weights[1:], strict=True):
                np.multiply(scaled[source], weight, out=part)
                row += part
            best[target, left : left + _NARROW] = row.argmax(-1)
    return best


def strips(maps: Array, rows: Taps, columns: Taps) -> Iterator[tuple[slice, slice, Iterator[FloatArray]]]:
    """Yield parts of the scaled maps: their rows, their columns, and one (rows, columns) array after another.

    Args:
        maps: (C, h, w).
        rows: the scaling of rows.
        columns: that of columns.
    """
    height, width = len(rows.index), len(columns.index)
    for left in range(0, width, STRIP):
        right = min(left + STRIP, width)
        scaled = _along_columns(maps.astype(np.float32, copy=False), columns.cut(left, right))
        for top in range(0, height, BAND):
            bottom = min(top + BAND, height)
            own = rows.cut(top, bottom)
            yield slice(top, bottom), slice(left, right), (_along_rows(one, own) for one in scaled)


def _along_rows(maps: FloatArray, taps: Taps) -> FloatArray:
    result: FloatArray = maps[..., taps.index[:, 0], :] * taps.weight[:, 0, None]
    for number in range(1, taps.index.shape[1]):
        result += maps[..., taps.index[:, number], :] * taps.weight[:, number, None]
    return result


def _along_columns(maps: FloatArray, taps: Taps) -> FloatArray:
    result: FloatArray = np.take(maps, taps.index[:, 0], axis=-1) * taps.weight[:, 0]
    for number in range(1, taps.index.shape[1]):
        result += np.take(maps, taps.index[:, number], axis=-1) * taps.weight[:, number]
    return result
