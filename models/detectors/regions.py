"""RoIAlign over the maps of a pyramid, each region from the map that suits its size.

RoIAlign (https://arxiv.org/abs/1703.06870) averages bilinear samples of every bin. As mmdetection uses it (aligned,
sampling ratio 0), a bin has ⌈bin height⌉ × ⌈bin width⌉ samples, which no tensor of a fixed shape holds. But bilinear
samples on a grid separate: a bin's mean is the map's places, weighted by a factor for their row and one for their
column. Both factors are computed for all rows and all columns; then the places that a region covers, a few hundred, are
read and multiplied, some at a time until the largest region is done. The result is the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from na_deploy.models.detectors.selection import State, repeat
from na_deploy.models.heads.transformer import tokens

PLACES = 128
"""Places of every region that are read together."""


def levels_of(boxes: Tensor, levels: int, finest: float) -> Tensor:
    """Return the map of every box (…): the first for a square root of the area below ``2 · finest``, then doubling."""
    sides = boxes[..., 2:] - boxes[..., :2]
    scale = (sides[..., 0] * sides[..., 1]).sqrt()
    return (scale / finest + 1e-6).log2().floor().clamp(0, levels - 1).long()


def region_features(
    maps: Sequence[Tensor], boxes: Tensor, size: int, strides: Sequence[int], finest: float, samples: int = 0
) -> Tensor:
    """Cut regions out of a pyramid.

    Args:
        maps: (B, C, H, W), the largest first.
        boxes: (B, R, 4) in pixels of the image.
        size: side of the result.
        strides: pixels of the image for each place of a map.
        finest: scale that decides the maps, see :func:`levels_of`.
        samples: samples of a bin along each side; 0 for as many as it has places.

    Returns:
        Features (B, R, C, size, size) in the maps' type, summed in float32. A box without an area gives zeros.
    """
    batch, regions, _ = boxes.shape
    level = levels_of(boxes, len(maps), finest)
    heights, widths = (torch.tensor([x.shape[axis] for x in maps], device=boxes.device) for axis in (2, 3))
    stride = boxes.new_tensor(strides)[level]
    left, top, right, bottom = (boxes[..., side] / stride - 0.5 for side in range(4))  # (B, R) in places
    columns, rows = widths[level], heights[level]
    by_column = _factors(left, right, columns, maps[0].shape[3], size, samples)
    by_row = _factors(top, bottom, rows, maps[0].shape[2], size, samples)
    first_column, across = _covered(left, right, columns)
    first_row, down = _covered(top, bottom, rows)
    table = torch.cat([tokens(x) for x in maps], 1)  # (B, places of all maps, C)
    corner = (torch.cumsum(heights * widths, 0) - heights * widths)[level]

    def unread(read: Tensor, most: Tensor, _sum: Tensor) -> Tensor:
        return read < most

    def step(read: Tensor, most: Tensor, total: Tensor) -> State:
        place = read + torch.arange(PLACES, device=boxes.device)
        inside = place < (across * down)[..., None]  # (B, R, places)
        row = torch.div(place, across[..., None], rounding_mode="floor")
        column = torch.where(inside, place - row * across[..., None] + first_column[..., None], 0)
        row = torch.where(inside, row + first_row[..., None], 0)
        weights = (_taken(by_row, row) * inside[:, :, None])[:, :, :, None] * _taken(by_column, column)[:, :, None]
        values = _places_of(table, corner[..., None] + row * columns[..., None] + column)  # (B, R, places, C)
        total = total + weights.flatten(2, 3).to(total.dtype) @ values.to(total.dtype)
        return read + PLACES, most.clone(), total

    zero = torch.zeros((), dtype=torch.long, device=boxes.device)
    wide = torch.float64 if maps[0].dtype == torch.float64 else torch.float32
    total = torch.zeros((batch, regions, size * size, maps[0].shape[1]), dtype=wide, device=boxes.device)
    total = repeat(unread, step, (zero, (across * down).max(), total))[2]
    return total.transpose(2, 3).reshape(batch, regions, -1, size, size).to(maps[0].dtype)


def _covered(start: Tensor, end: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first place that regions need along an axis and the number of places, at least 1; both (B, R)."""
    first = start.floor().long().clamp(min=0)
    return first, (torch.minimum(end.floor().long() + 1, length - 1) - first + 1).clamp(min=1)


def _factors(start: Tensor, end: Tensor, length: Tensor, longest: int, size: int, samples: int) -> Tensor:
    """Return the factors of an axis's places for every bin (B, R, size, longest): shares of its samples' weights.

    Args:
        start: first edge of the regions (B, R), in places.
        end: the other edge.
        length: places of their maps.
        longest: places of the longest map.
        size: bins.
        samples: samples of a bin, 0 for ⌈its width⌉.
    """
    width = ((end - start) / size)[..., None, None]
    count = torch.full_like(width, samples) if samples else width.ceil()
    step = width / count.clamp(min=1)
    edge = start[..., None, None] + torch.arange(size, dtype=start.dtype, device=start.device)[:, None] * width
    place = torch.arange(longest, dtype=start.dtype, device=start.device)
    # A place weighs samples less than 1 away. They are more than half a place apart, so there are four at most.
    first = (((place - 1 - edge) / step.clamp(min=1e-6) - 0.5).floor() + 1).clamp(min=0)
    near = torch.arange(max(4, samples), dtype=start.dtype, device=start.device)
    sample = first[..., None] + near  # (B, R, size, longest, 4)
    at = edge[..., None] + (sample + 0.5) * step[..., None]
    at = torch.minimum(at.clamp(min=0), (length - 1).to(start.dtype)[..., None, None, None])
    weights = (1 - (at - place[:, None]).abs()).clamp(min=0) * (sample < count[..., None])
    return weights.sum(-1) / count.clamp(min=1)


def _taken(factors: Tensor, place: Tensor) -> Tensor:
    """Return factors (B, R, size, places) at places (B, R, P): (B, R, size, P)."""
    return torch.gather(factors, 3, place[:, :, None].expand(-1, -1, factors.shape[2], -1))


def _places_of(table: Tensor, at: Tensor) -> Tensor:
    """Return rows of a table (B, places, C) at (B, R, P): (B, R, P, C)."""
    image = torch.arange(table.shape[0], device=table.device)[:, None, None]
    return table.flatten(0, 1)[at + image * table.shape[1]]
