"""Choosing boxes with fixed shapes: the highest scores, and greedy non-maximum suppression.

Suppression is exact: a box falls if an earlier one that stands overlaps it too much. On tensors that is a fixed point,
reached by repeating one matrix product until nothing changes, once for each link of the longest chain of boxes that
free each other; a handful of times in practice. The loops run in PyTorch and become ONNX's ``Loop`` when traced.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from na_deploy.models.detectors.boxes import overlap

State = tuple[Tensor, ...]
NOTHING = -1.0
"""Score of padding."""
BLOCK = 1000
"""Candidates that :func:`best_of_classes` looks at together."""


def repeat(while_true: Callable[..., Tensor], step: Callable[..., State], state: State) -> State:
    """Replace ``state`` by ``step(*state)`` while ``while_true(*state)``; no tensor may change its shape."""
    if torch.compiler.is_exporting():
        return while_loop(while_true, step, state)  # type: ignore[no-any-return, no-untyped-call]
    while bool(while_true(*state)):
        state = step(*state)
    return state


def highest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the highest of scores (…, M) and their places, both (…, count); of equal ones the first.

    Fewer than ``count`` are filled up with :data:`NOTHING`, at places that exist.
    """
    length = scores.shape[-1]
    if not (isinstance(length, int) and length >= count):
        scores = torch.cat((scores, scores.new_full((*scores.shape[:-1], count), NOTHING)), -1)
    if torch.compiler.is_exporting():  # ONNX's TopK prefers the first, PyTorch's does not promise it
        values, places = torch.topk(scores, count)
    else:
        values, places = (x[..., :count] for x in torch.sort(scores, dim=-1, descending=True, stable=True))
    return values, places.clamp(max=length - 1)


def taken(x: Tensor, places: Tensor) -> Tensor:
    """Return rows of ``x`` (…, M, C) at ``places`` (…, K): (…, K, C)."""
    return torch.gather(x, -2, places[..., None].expand(*places.shape, x.shape[-1]))


def survivors(clashes: Tensor, present: Tensor) -> Tensor:
    """Return what greedy suppression keeps.

    Args:
        clashes: (…, M, M), true where the first of two cannot stand beside the second, in order of preference.
        present: (…, M), true for the boxes that take part.
    """
    count = present.shape[-1]
    place = torch.arange(count, device=present.device)
    fells = (clashes & (place[:, None] < place)).float()
    present = present.float()

    def changes(_kept: Tensor, changed: Tensor) -> Tensor:
        return changed > 0

    def step(kept: Tensor, _changed: Tensor) -> State:
        fallen = (kept[..., None, :] @ fells).squeeze(-2)
        now = present * (fallen < 0.5)
        return now, (now - kept).abs().max()

    return repeat(changes, step, (present.clone(), present.new_ones(())))[0] > 0.5


def best_of_classes(scores: Tensor, boxes: Tensor, threshold: float, most_overlap: float, count: int) -> State:
    """Return the detections after suppression among boxes of each class.

    Blocks of candidates are taken in order of their scores until ``count`` detections stand or no candidate is left, so
    nothing is lost however many candidates there are; one block does for nearly every picture.

    Args:
        scores: (B, R, C) of every region for every class.
        boxes: (B, R, C, 4), or (B, R, 1, 4) where all classes share them.
        threshold: score that a detection must exceed.
        most_overlap: intersection over union from which the lower of two boxes of a class falls.
        count: detections that are returned.

    Returns:
        Scores (B, N), :data:`NOTHING` behind the last detection; boxes (B, N, 4); classes (B, N); the numbers of their
        regions (B, N).
    """
    batch, _, classes = scores.shape
    per_region = boxes.shape[2]
    flat = boxes.flatten(1, 2)
    block = min(BLOCK, scores.shape[1] * classes)

    def unfinished(left: Tensor, best: Tensor, _places: Tensor) -> Tensor:
        more = (left.amax(1) > threshold) & (best.amin(1) < 0)
        return more.float().max() > 0

    def described(places: Tensor) -> tuple[Tensor, Tensor]:
        region = torch.div(places, classes, rounding_mode="floor")
        of_class = places - region * classes
        return taken(flat, region * per_region + (of_class if per_region > 1 else 0)), of_class

    def step(left: Tensor, best: Tensor, places: Tensor) -> State:
        values, candidates = highest(left, block)
        own, own_class = described(candidates)
        standing, standing_class = described(places)
        clashes = (overlap(standing, own) > most_overlap) & (standing_class[:, :, None] == own_class[:, None])
        free = ~(clashes & (best >= 0)[:, :, None]).any(1)
        among = (overlap(own, own) > most_overlap) & (own_class[:, :, None] == own_class[:, None])
        kept = survivors(among, free & (values > threshold))
        values = torch.where(kept, values, NOTHING)
        best, order = highest(torch.cat((best, values), 1), count)
        places = torch.gather(torch.cat((places, candidates), 1), 1, order)
        return left.scatter(1, candidates, NOTHING), best, places

    none = scores.new_full((batch, count), NOTHING)
    start = (scores.flatten(1), none, torch.zeros((batch, count), dtype=torch.long, device=scores.device))
    _, best, places = repeat(unfinished, step, start)
    of_box, of_class = described(places)
    return best, of_box, of_class, torch.div(places, classes, rounding_mode="floor")
