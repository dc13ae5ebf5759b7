"""Segments of a picture: typed results of segmenters, whatever network found them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from na_deploy.model_file.tensors import Array
from na_deploy.models.class_sets import matching
from na_deploy.runtime.results.rle import encode_ids, encode_mask

SegmentTask = Literal["semantic", "instance", "panoptic"]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Segment:
    """One region of a picture: an object, or all that is of one class.

    Attributes:
        id: its number in the id map, from 1.
        class_index: number of its class in the model.
        label: name of its class; ``class 123`` without one.
        score: confidence of 0 to 1. Of a semantic segment, the mean share of its class in its pixels' scores.
        area: pixels.
        box: x, y, width and height of the smallest box around it, in pixels.
        is_thing: true where its class is one of countable objects.
    """

    id: int
    class_index: int
    label: str
    score: float
    area: int
    box: Box
    is_thing: bool


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Segments of one picture.

    Attributes:
        task: "semantic" (a segment per class), "instance" (a segment per object; masks may overlap) or "panoptic"
            (both, without overlap).
        ids: (H, W) int32, the segment of every pixel of the picture, 0 for none. Where instances overlap, the one with
            the highest score.
        segments: the largest first; instances by score.
        crops: masks of instances inside their boxes, by id; empty where the id map says all.
        palette: RGB by class number, empty if the model has none.
    """

    task: SegmentTask
    ids: NDArray[np.int32]
    segments: tuple[Segment, ...]
    crops: Mapping[int, NDArray[np.bool_]] = field(default_factory=dict)
    palette: tuple[tuple[int, int, int], ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the picture."""
        return self.ids.shape[0], self.ids.shape[1]

    def mask(self, segment: Segment) -> NDArray[np.bool_]:
        """Return a segment's pixels (H, W)."""
        if segment.id not in self.crops:
            return np.equal(self.ids, segment.id)
        whole = np.zeros(self.size, np.bool_)
        x, y, width, height = segment.box
        whole[y : y + height, x : x + width] = self.crops[segment.id]
        return whole

    def class_map(self) -> NDArray[np.int32]:
        """Return the class number of every pixel (H, W), -1 where there is no segment."""
        table = np.full(max((segment.id for segment in self.segments), default=0) + 1, -1, np.int32)
        for segment in self.segments:
            table[segment.id] = segment.class_index
        return table[self.ids]

    def to_coco(self, labels: Mapping[int, str] | None = None) -> list[dict[str, Any]]:
        """Return the segments as COCO's results: bbox, area, score and masks as run lengths (RLE).

        Args:
            labels: the model's class names. Those of a known data set give ``category_id`` its numbers; it is the class
                number otherwise.
        """
        known = matching(labels) if labels else None
        numbers = known.ids if known is not None and known.ids else None
        if self.crops:
            masks = [encode_mask(self.mask(segment)) for segment in self.segments]
        else:
            masks = encode_ids(self.ids, [segment.id for segment in self.segments])
        return [
            {
                "id": segment.id,
                "category_id": segment.class_index if numbers is None else numbers[segment.class_index],
                "category": segment.label,
                "class": segment.class_index,
                "isthing": int(segment.is_thing),
                "score": round(segment.score, 6),
                "area": segment.area,
                "bbox": list(segment.box),
                "segmentation": mask,
            }
            for segment, mask in zip(self.segments, masks, strict=True)
        ]


@dataclass(frozen=True)
class Found:
    """A segment before it is measured."""

    class_index: int
    score: float


def from_ids(
    task: SegmentTask,
    ids: Array,
    found: Mapping[int, Found],
    labels: Mapping[int, str],
    things: Sequence[int] | None,
    palette: tuple[tuple[int, int, int], ...] = (),
) -> Segmentation:
    """Measure the segments of an id map (H, W); those without a pixel are left out. Largest first."""
    count = max(found, default=0) + 1
    areas = np.bincount(ids.ravel(), minlength=count)
    boxes = _boxes(ids, count)
    segments = [
        _segment(number, own, int(areas[number]), boxes[number], labels, things)
        for number, own in found.items()
        if areas[number]
    ]
    segments.sort(key=lambda segment: -segment.area)
    return Segmentation(task, ids.astype(np.int32, copy=False), tuple(segments), {}, palette)


def from_masks(
    masks: Sequence[Array],
    found: Sequence[Found],
    size: tuple[int, int],
    labels: Mapping[int, str],
    palette: tuple[tuple[int, int, int], ...] = (),
) -> Segmentation:
    """Measure instances, given by their masks (H, W) from the highest score to the lowest; empty ones are left out."""
    ids = np.zeros(size, np.int32)
    segments: list[Segment] = []
    crops: dict[int, NDArray[np.bool_]] = {}
    for mask, own in zip(masks, found, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            continue
        number = len(segments) + 1
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        crop = np.array(mask[top:bottom, left:right], np.bool_)
        box = (int(left), int(top), int(right - left), int(bottom - top))
        segments.append(_segment(number, own, int(crop.sum()), box, labels, None))
        crops[number] = crop
        below = ids[top:bottom, left:right]
        below[crop & (below == 0)] = number
    return Segmentation("instance", ids, tuple(segments), crops, palette)


def _segment(
    number: int, own: Found, area: int, box: Box, labels: Mapping[int, str], things: Sequence[int] | None
) -> Segment:
    label = labels.get(own.class_index, f"class {own.class_index}")
    is_thing = things is None or own.class_index in things
    return Segment(number, own.class_index, label, own.score, area, box, is_thing)


def _boxes(ids: Array, count: int) -> list[Box]:
    """Return the box around each id below ``count``; an empty one where it has no pixel."""
    edges = []
    for lines in (ids, ids.T):  # rows give tops and bottoms, columns left and right
        first, last = np.full(count, -1), np.full(count, -1)
        for place, line in enumerate(lines):
            present = np.flatnonzero(np.bincount(line, minlength=count))
            last[present] = place
            first[present] = np.where(first[present] < 0, place, first[present])
        edges.append((first, last + 1))
    (top, bottom), (left, right) = edges
    return [
        (int(left[k]), int(top[k]), int(right[k] - left[k]), int(bottom[k] - top[k])) if top[k] >= 0 else (0, 0, 0, 0)
        for k in range(count)
    ]
