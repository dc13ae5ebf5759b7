"""COCO's run-length encoding of masks: column by column, runs of zeros and ones in turn, packed into text.

Format: the COCO API's maskApi.c (rleToString), which pycocotools reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from na_deploy.errors import UsageError
from na_deploy.model_file.tensors import Array

_BITS, _MORE, _SIGN, _FIRST = 5, 0x20, 0x10, 48


def encode_mask(mask: Array, size: tuple[int, int] | None = None, left: int = 0, top: int = 0) -> dict[str, Any]:
    """Return a mask (H, W) as ``{"size": [H, W], "counts": text}``.

    Args:
        mask: the mask, or the part of it that holds all its pixels; only that part is looked at.
        size: (H, W) of the whole, where ``mask`` is a part.
        left: column of the part's first pixel.
        top: row of the part's first pixel.
    """
    height, width = mask.shape if size is None else size
    rows = np.zeros((mask.shape[1], mask.shape[0] + 2), np.int8)
    rows[:, 1:-1] = np.asarray(mask, np.bool_).T
    steps = np.diff(rows, axis=1)
    starts, ends = (
        (left + columns) * height + top + places for columns, places in (np.nonzero(steps == sign) for sign in (1, -1))
    )
    edges = np.stack([starts, ends], 1).ravel()
    joined = np.flatnonzero(edges[1:-1:2] == edges[2::2])  # runs that go on at the next column's first row
    edges = np.delete(edges, np.concatenate([2 * joined + 1, 2 * joined + 2]))
    runs = np.diff(np.concatenate([[0], edges, [height * width]])).tolist()
    return _encoded((height, width), runs if runs[-1] or len(runs) == 1 else runs[:-1])


def encode_ids(ids: Array, wanted: list[int]) -> list[dict[str, Any]]:
    """Return the masks of the segments ``wanted`` of an id map (H, W), in one pass over it."""
    flat = ids.ravel(order="F")
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1]) if flat.size else np.zeros(0, np.int64)
    ends = np.append(starts[1:], flat.size)
    owners = flat[starts]
    order = np.argsort(owners, kind="stable")
    bounds = {number: np.searchsorted(owners[order], [number, number + 1]) for number in wanted}
    result = []
    for number in wanted:
        own = order[slice(*bounds[number])]
        edges = np.stack([starts[own], ends[own]], 1).ravel()
        runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
        result.append(_encoded(ids.shape, runs if runs[-1] else runs[:-1]))
    return result


def decode_mask(encoded: dict[str, Any]) -> NDArray[np.bool_]:
    """Return the mask (H, W) of an encoding.

    Raises:
        UsageError: the runs do not add up to the size.
    """
    height, width = encoded["size"]
    runs: list[int] = []
    position, text = 0, encoded["counts"]
    while position < len(text):
        value, shift, more = 0, 0, True
        while more:
            if position == len(text):
                raise UsageError("a mask's runs end in the middle of a number; give the text as it was written")
            letter = ord(text[position]) - _FIRST
            value |= (letter & 0x1F) << shift
            more = bool(letter & _MORE)
            position, shift = position + 1, shift + _BITS
            if not more and letter & _SIGN:
                value |= -1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    if sum(runs) != height * width or min(runs, default=0) < 0:
        raise UsageError(f"a mask's runs cover {sum(runs)} pixels, its size is {height}×{width}")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(height, width, order="F")


def _encoded(size: tuple[int, ...], runs: list[int]) -> dict[str, Any]:
    return {"size": [int(side) for side in size], "counts": _as_text(runs)}


def _as_text(runs: list[int]) -> str:
    """Pack runs: from the fourth on as differences to the run two before, five bits a letter."""
    letters = []
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        while True:
            part = value & 0x1F
            value >>= _BITS
            if value == (-1 if part & _SIGN else 0):
                letters.append(part)
                break
            letters.append(part | _MORE)
    return "".join(chr(letter + _FIRST) for letter in letters)
