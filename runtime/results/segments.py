"""Segments of a picture: typed results of segmenters and detectors, whatever network found them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from na_deploy.model_file.tensors import Array
from na_deploy.models.class_sets import matching
from na_deploy.runtime.results.rle import encode_ids, encode_mask

SegmentTask = Literal["semantic", "instance", "panoptic", "detection"]
Box = tuple[float, float, float, float]


class Crop(NamedTuple):
    """The part of a mask that holds all its pixels, with its place in the picture."""

    left: int
    top: int
    pixels: NDArray[np.bool_]

    @property
    def place(self) -> tuple[slice, slice]:
        """Rows and columns of the picture."""
        height, width = self.pixels.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


@dataclass(frozen=True)
class Segment:
    """One region of a picture: an object, or all that is of one class.

    Attributes:
        id: its number in the id map, from 1.
        class_index: number of its class in the model.
        label: name of its class; ``class 123`` without one.
        score: confidence of 0 to 1. Of a semantic segment, the mean share of its class in its pixels' scores.
        area: pixels; of an object without mask, those of its box.
        box: x, y, width and height in pixels: of the smallest box around it; of a detector the box that the network
            gives, with fractions.
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
        task: "semantic" (a segment per class), "instance" (a segment per object; masks may overlap), "panoptic"
            (both, without overlap) or "detection" (objects with boxes; masks may overlap).
        ids: (H, W) int32, the segment of every pixel of the picture, 0 for none. Where objects overlap, the one with
            the highest score.
        segments: the largest first; objects by score.
        crops: masks of objects, by id; empty where the id map says all.
        palette: RGB by class number, empty if the model has none.
        has_masks: false for objects with boxes alone.
    """

    task: SegmentTask
    ids: NDArray[np.int32]
    segments: tuple[Segment, ...]
    crops: Mapping[int, Crop] = field(default_factory=dict)
    palette: tuple[tuple[int, int, int], ...] = ()
    has_masks: bool = True

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the picture."""
        return self.ids.shape[0], self.ids.shape[1]

    def mask(self, segment: Segment) -> NDArray[np.bool_]:
        """Return a segment's pixels (H, W)."""
        if segment.id not in self.crops:
            return np.equal(self.ids, segment.id)
        crop = self.crops[segment.id]
        whole = np.zeros(self.size, np.bool_)
        whole[crop.place] = crop.pixels
        return whole

    def class_map(self) -> NDArray[np.int32]:
        """Return the class number of every pixel (H, W), -1 where there is no segment."""
        table = np.full(max((segment.id for segment in self.segments), default=0) + 1, -1, np.int32)
        for segment in self.segments:
            table[segment.id] = segment.class_index
        return table[self.ids]

    def to_coco(self, labels: Mapping[int, str] | None = None) -> list[dict[str, Any]]:
        """Return the segments as COCO's results: bbox, area, score, and masks as run lengths (RLE) where there are any.

        Args:
            labels: the model's class names. Those of a known data set give ``category_id`` its numbers; it is the class
                number otherwise.
        """
        known = matching(labels) if labels else None
        numbers = known.ids if known is not None and known.ids else None
        masks: list[dict[str, Any]]
        if not self.has_masks:
            masks = [{} for _ in self.segments]
        elif self.crops:
            crops = [self.crops[segment.id] for segment in self.segments]
            masks = [{"segmentation": encode_mask(crop.pixels, self.size, crop.left, crop.top)} for crop in crops]
        else:
            ids = [segment.id for segment in self.segments]
            masks = [{"segmentation": mask} for mask in encode_ids(self.ids, ids)]
        return [
            {
                "id": segment.id,
                "category_id": segment.class_index if numbers is None else numbers[segment.class_index],
                "category": segment.label,
                "class": segment.class_index,
                "isthing": int(segment.is_thing),
                "score": round(segment.score, 6),
                "area": segment.area,
                "bbox": [round(side, 3) for side in segment.box],
                **mask,
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
    kept: list[Found] = []
    crops: list[Crop] = []
    boxes: list[Box] = []
    for mask, own in zip(masks, found, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            continue
        top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        kept.append(own)
        crops.append(Crop(left, top, np.array(mask[top:bottom, left:right], np.bool_)))
        boxes.append((left, top, right - left, bottom - top))
    return from_objects("instance", boxes, crops, kept, size, labels, palette)


def from_objects(
    task: SegmentTask,
    boxes: Sequence[Box],
    crops: Sequence[Crop] | None,
    found: Sequence[Found],
    size: tuple[int, int],
    labels: Mapping[int, str],
    palette: tuple[tuple[int, int, int], ...] = (),
) -> Segmentation:
    """Measure objects, given from the highest score to the lowest, and lay their masks over each other.

    Args:
        task: "instance" or "detection".
        boxes: x, y, width and height of each.
        crops: their masks; ``None`` for objects with boxes alone.
        found: their classes and scores.
        size: (H, W) of the picture.
        labels: class names.
        palette: RGB by class number.
    """
    ids = np.zeros(size, np.int32)
    segments: list[Segment] = []
    for number, (box, own) in enumerate(zip(boxes, found, strict=True), 1):
        area = round(box[2] * box[3])
        if crops is not None:
            crop = crops[number - 1]
            area = int(crop.pixels.sum())
            below = ids[crop.place]
            below[crop.pixels & (below == 0)] = number
        segments.append(_segment(number, own, area, box, labels, None))
    numbered = {} if crops is None else dict(enumerate(crops, 1))
    return Segmentation(task, ids, tuple(segments), numbered, palette, crops is not None)


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
