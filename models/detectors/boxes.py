"""Boxes: anchors, decoding of deltas, overlap. Boxes are (…, 4) as x1, y1, x2, y2 in pixels of the image, in float32.

The arithmetic is mmdetection's (AnchorGenerator, DeltaXYWHBBoxCoder), whose boxes have no "+ 1" in their widths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LARGEST_LOG_RATIO = abs(math.log(16 / 1000))
"""Bound of the logarithm by which a delta scales a side."""


def anchor_shapes(base: float, ratios: Sequence[float], scales: Sequence[float]) -> list[tuple[float, float]]:
    """Return (width, height) of the anchors of one place, ratios (height over width) before scales."""
    return [(base * scale / math.sqrt(ratio), base * scale * math.sqrt(ratio)) for ratio in ratios for scale in scales]


def anchors_at(index: Tensor, columns: Tensor, strides: Tensor, offsets: Tensor, shapes: Tensor) -> Tensor:
    """Return some anchors of every map, (B, L, K, 4).

    Args:
        index: numbers of the anchors (B, L, K), counted along their map, those of a place one after the other.
        columns: columns of the maps (L).
        strides: pixels between their places (L).
        offsets: pixels from a place's first pixel to the centres of its anchors (L).
        shapes: width and height of the anchors of a place (L, A, 2).
    """
    maps, anchors, _ = shapes.shape
    place = torch.div(index, anchors, rounding_mode="floor")
    row = torch.div(place, columns[:, None], rounding_mode="floor")
    column = place - row * columns[:, None]
    centre = torch.stack((column, row), -1).float() * strides[:, None, None] + offsets[:, None, None]
    own = index - place * anchors + torch.arange(0, maps * anchors, anchors, device=index.device)[:, None]
    half = shapes.flatten(0, 1)[own] / 2
    return torch.cat((centre - half, centre + half), -1)


def decoded(boxes: Tensor, deltas: Tensor, means: Sequence[float], stds: Sequence[float], extent: Tensor) -> Tensor:
    """Move and scale boxes by what a head predicts for them, and cut off what lies outside the picture.

    Args:
        boxes: (…, 4).
        deltas: (…, 4): shift of the centre by the box's size, and logarithm of the factor on its size.
        means: added to deltas after ``stds`` have been multiplied.
        stds: units of the four deltas.
        extent: width and height of the picture (…, 2), which broadcasts against the boxes.
    """
    deltas = deltas * deltas.new_tensor(stds) + deltas.new_tensor(means)
    centre = (boxes[..., :2] + boxes[..., 2:]) * 0.5
    size = boxes[..., 2:] - boxes[..., :2]
    centre = centre + size * deltas[..., :2]
    half = size * deltas[..., 2:].clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp() * 0.5
    corners = (torch.minimum((centre + sign * half).clamp(min=0), extent) for sign in (-1, 1))
    return torch.cat(tuple(corners), -1)


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """Return intersection over union (…, N, M) of boxes (…, N, 4) and (…, M, 4); 0 where neither has an area."""
    one, other = one[..., :, None, :], other[..., None, :, :]
    sides = torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])
    shared = _area(sides.clamp(min=0))
    union = _area(one[..., 2:] - one[..., :2]) + _area(other[..., 2:] - other[..., :2]) - shared
    return shared / union.clamp(min=1e-12)


def _area(sides: Tensor) -> Tensor:
    return sides[..., 0] * sides[..., 1]


def picture_extent(image: Tensor) -> Tensor:
    """Return width and height (B, 1, 2) of the pictures in images (B, C, H, W) that are padded right and below.

    Padding is zero in all channels, which no pixel of a picture is, since it is normalised by means that are no whole
    numbers. An image of zeros alone has the extent 0.
    """
    filled = (image != 0).any(1)  # (B, H, W)
    sides = []
    for axis in (1, 2):  # columns, then rows
        line = filled.any(axis).to(torch.float32)
        behind = torch.arange(1, line.shape[1] + 1, dtype=torch.float32, device=image.device)
        sides.append((line * behind).amax(1))
    return torch.stack(sides, 1)[:, None]
