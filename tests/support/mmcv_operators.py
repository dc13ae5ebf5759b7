"""Plain stand-ins for two of mmcv's compiled operators, which mmcv-lite lacks: RoIAlign and non-maximum suppression.

Written from the definitions in torchvision's sources (roi_align_kernel.cpp with ``aligned``, nms_kernel.cpp), one
box after the other. The other operators refuse. mmcv's own Python around them runs as it is.
"""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Map = NDArray[np.float64]


def roi_align(x: Map, box: NDArray[np.float32], size: int, scale: float, sampling_ratio: int) -> Map:
    """Return (C, size, size): the means of bilinear samples of a map (C, H, W) in the bins of a box."""
    scaled = box * np.float32(scale) - np.float32(0.5)
    left, top = scaled[:2]
    width, height = scaled[2:] - scaled[:2]
    across = sampling_ratio or math.ceil(width / np.float32(size))
    down = sampling_ratio or math.ceil(height / np.float32(size))
    if not across * down:
        return np.zeros((x.shape[0], size, size))
    at_y = top + (np.arange(size * down) + 0.5) / down * height / size
    at_x = left + (np.arange(size * across) + 0.5) / across * width / size
    values = bilinear(x, *np.meshgrid(at_y, at_x, indexing="ij"))
    bins: Map = values.reshape(-1, size, down, size, across).mean((2, 4))
    return bins


def bilinear(x: Map, at_y: Map, at_x: Map) -> Map:
    """Return a map's values (C, …) between places: zero more than a place outside, the edge's up to there."""
    _, height, width = x.shape
    inside = (at_y >= -1) & (at_y <= height) & (at_x >= -1) & (at_x <= width)
    at_y, at_x = at_y.clip(0, height - 1), at_x.clip(0, width - 1)
    y, left = at_y.astype(int), at_x.astype(int)
    below, right = np.minimum(y + 1, height - 1), np.minimum(left + 1, width - 1)
    down, across = at_y - y, at_x - left
    upper = x[:, y, left] * (1 - across) + x[:, y, right] * across
    lower = x[:, below, left] * (1 - across) + x[:, below, right] * across
    mixed: Map = (upper * (1 - down) + lower * down) * inside
    return mixed


def suppressed(boxes: NDArray[np.floating], scores: NDArray[np.floating], most_overlap: float) -> list[int]:
    """Return the numbers of the boxes that greedy suppression keeps, the highest score first."""
    kept: list[int] = []
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for number in np.argsort(-scores, kind="stable"):
        sides = np.minimum(boxes[kept, 2:], boxes[number, 2:]) - np.maximum(boxes[kept, :2], boxes[number, :2])
        shared = sides.clip(min=0).prod(1)
        union = areas[kept] + areas[number] - shared
        if not (shared > most_overlap * union).any():
            kept.append(int(number))
    return kept


def _roi_align_forward(
    x: Tensor, rois: Tensor, output: Tensor, _y: Tensor, _x: Tensor, *, aligned_height: int, spatial_scale: float,
    sampling_ratio: int, pool_mode: int, aligned: bool, **_: Any
) -> None:  # fmt: skip
    assert aligned
    assert pool_mode == 1
    maps = x.numpy().astype(np.float64)
    for number, (image, *box) in enumerate(rois.numpy()):
        found = roi_align(maps[int(image)], np.array(box), aligned_height, spatial_scale, sampling_ratio)
        output[number] = torch.from_numpy(found)


def _nms(boxes: Tensor, scores: Tensor, *, iou_threshold: float, offset: int) -> Tensor:
    assert offset == 0
    kept = suppressed(boxes.numpy().astype(np.float64), scores.numpy(), iou_threshold)
    return torch.tensor(kept, dtype=torch.long)


_OPERATORS: dict[str, Callable[..., Any]] = {"roi_align_forward": _roi_align_forward, "nms": _nms}


def _operator(name: str) -> Callable[..., Any]:
    if name.startswith("__"):
        raise AttributeError(name)

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError(f"mmcv._ext.{name} has no stand-in")

    return _OPERATORS.get(name, refuse)


def install() -> None:
    """Let ``mmcv.ops`` be imported."""
    if "mmcv._ext" not in sys.modules:
        module = types.ModuleType("mmcv._ext")
        module.__spec__ = ModuleSpec("mmcv._ext", None)
        module.__getattr__ = _operator  # type: ignore[method-assign]
        sys.modules["mmcv._ext"] = module
