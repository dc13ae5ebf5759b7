"""Segments from the outputs of segmenters: semantic maps, and the queries of MaskFormer, Mask2Former and OneFormer.

Two rules turn queries into segments. "transformers" is that of its ``post_process_*`` functions (4.53.3); "detectron2"
is that of the networks' authors (``instance_inference`` and ``panoptic_inference`` of Mask2Former and OneFormer), which
scales masks smoothly before it cuts them. Semantic maps are the same by both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from na_deploy.model_file.tensors import Array
from na_deploy.models.metadata import THRESHOLDS
from na_deploy.runtime.results.classification import softmax
from na_deploy.runtime.results.resampling import FloatArray, View, best_map, linear, nearest, resize, strips, to_picture
from na_deploy.runtime.results.segments import Found

IdMap = NDArray[np.int32]


def semantic_map(scores: Array, view: View, *, logits: bool) -> tuple[IdMap, dict[int, Found]]:
    """Return the best class of every pixel, and its confidence.

    Args:
        scores: (classes, h, w).
        view: their place in the picture.
        logits: true for logits, false for the scores of :func:`semantic_scores`.

    Returns:
        (H, W), the class number plus one; by that number, the class with its mean share in the map's own pixels
        that show it: of the softmax of logits, of the sum of other scores.
    """
    ids = best_map(scores, *to_picture(scores.shape[1:], view)) + np.int32(1)
    return ids, _semantic_confidence(scores, ids, view, logits=logits)


def _semantic_confidence(scores: Array, ids: IdMap, view: View, *, logits: bool) -> dict[int, Found]:
    classes, height, width = scores.shape
    kept = (
        min(-(-height * view.placement.scaled[0] // view.placement.size[0]), height),
        min(-(-width * view.placement.scaled[1] // view.placement.size[1]), width),
    )
    values = scores[:, : kept[0], : kept[1]]
    if logits:
        values = np.exp(values - values.max(0))
    values = values / np.maximum(values.sum(0), np.float32(1e-30))
    own = ids[nearest(view.picture[0], kept[0])][:, nearest(view.picture[1], kept[1])] - 1
    confidence = np.take_along_axis(values, own[None], 0).ravel()
    totals = np.bincount(own.ravel(), confidence, classes)
    counts = np.bincount(own.ravel(), minlength=classes)
    everywhere = np.bincount(ids.ravel(), minlength=classes + 1)[1:]
    found = {}
    for index in np.flatnonzero(everywhere).tolist():
        # A class of a few pixels of the picture may fall between the map's: its largest share there is closest.
        score = totals[index] / counts[index] if counts[index] else values[index].max()
        found[index + 1] = Found(index, float(score))
    return found


def semantic_scores(class_logits: Array, mask_logits: Array, thresholds: Mapping[str, float]) -> FloatArray:
    """Return the classes' scores (classes, h, w) of queries: masks weighted by class probabilities.

    Args:
        class_logits: (Q, classes + 1), the last for no object.
        mask_logits: (Q, h, w).
        thresholds: ``mask_size`` is used.
    """
    masks = _sigmoid(_first_size(mask_logits, thresholds))
    classes = softmax(class_logits)[:, :-1].astype(np.float32)
    return np.tensordot(classes, masks, (0, 0))


def instances(
    class_logits: Array,
    mask_logits: Array,
    view: View,
    thresholds: Mapping[str, float],
    things: Collection[int] | None = None,
) -> tuple[list[NDArray[np.bool_]], list[Found]]:
    """Return the masks (H, W) and classes of objects, the highest score first.

    The Q best pairs of a query and a class count; a score is the class probability times the mean probability inside
    the mask.

    Args:
        class_logits: (Q, classes + 1), the last for no object.
        mask_logits: (Q, h, w).
        view: the masks' place in the picture, and whose rule holds.
        thresholds: ``score`` and ``mask_size`` are used.
        things: classes that are taken; ``None`` for all.
    """
    least = _threshold(thresholds, "score")
    maps = _first_size(mask_logits, thresholds)
    probability = softmax(class_logits)[:, :-1]
    order = np.argsort(-probability, axis=None, kind="stable")[: len(class_logits)]
    candidates = []
    for query, index in zip(*(place.tolist() for place in np.unravel_index(order, probability.shape)), strict=True):
        own = float(probability[query, index])
        if own >= least and (things is None or index in things):
            candidates.append((query, index, own))
    rows, columns = to_picture(maps.shape[1:], view)
    picked = {}
    for query in dict.fromkeys(query for query, _, _ in candidates):
        logits = maps[query]
        mask = logits > 0
        if view.rule == "detectron2":
            # Places that no positive value counts in cannot become positive.
            tall, wide = rows.touching(mask.any(1)), columns.touching(mask.any(0))
            logits = resize(logits, rows.cut(tall.start, tall.stop), columns.cut(wide.start, wide.stop))
            mask = np.zeros(view.picture, np.bool_)
            mask[tall, wide] = logits > 0
            positive = logits[mask[tall, wide]]
        else:
            positive = logits[mask]
            mask = _nearest_on(mask, view)
        picked[query] = mask, float(_sigmoid(positive).sum(dtype=np.float64)) / (positive.size + 1e-6)
    found = [(own * picked[query][1], query, index) for query, index, own in candidates]
    kept = sorted((each for each in found if each[0] >= least and picked[each[1]][0].any()), key=lambda each: -each[0])
    return [picked[query][0] for _, query, _ in kept], [Found(index, score) for score, _, index in kept]


def panoptic_map(
    class_logits: Array,
    mask_logits: Array,
    view: View,
    thresholds: Mapping[str, float],
    fused: Collection[int] = (),
) -> tuple[IdMap, dict[int, Found]]:
    """Return a segment for every pixel: each goes to the query with the most probable mask times score.

    A segment that keeps too small a part of its mask is dropped.

    Args:
        class_logits: (Q, classes + 1), the last for no object.
        mask_logits: (Q, h, w).
        view: the masks' place in the picture, and whose rule holds.
        thresholds: ``score``, ``mask``, ``overlap`` and ``mask_size`` are used.
        fused: classes whose queries make one segment together, as stuff does.

    Returns:
        The id map (H, W), 0 for none, and the segments by id. Ids count up from 1; transformers gives some twice where
        a class is fused.
    """
    probability = softmax(class_logits)
    classes, scores = probability.argmax(-1), probability.max(-1).astype(np.float32)
    kept = np.flatnonzero((classes < class_logits.shape[-1] - 1) & (scores > _threshold(thresholds, "score")))
    ids = np.zeros(view.picture, np.int32)
    if not len(kept):
        return ids, {}
    least = np.float32(_threshold(thresholds, "mask"))
    maps = _first_size(mask_logits[kept], thresholds)
    if view.rule == "transformers":
        maps = _sigmoid(maps)
    owner = np.zeros(view.picture, np.int32)
    sure = np.ones(view.picture, np.bool_)
    original = np.zeros(len(kept), np.int64)
    for rows, columns, masks in strips(maps, *to_picture(maps.shape[1:], view)):
        shape = owner[rows, columns].shape
        best = np.full(shape, -np.inf, np.float32)
        for number, mask in enumerate(masks):
            likely = mask if view.rule == "transformers" else _sigmoid(mask)
            weighted = likely * scores[kept[number]]
            inside = (weighted if view.rule == "transformers" else likely) >= least
            original[number] += int(inside.sum())
            better = weighted > best
            np.copyto(best, weighted, where=better)
            owner[rows, columns][better] = number
            if view.rule == "detectron2":
                np.copyto(sure[rows, columns], inside, where=better)
    own = np.bincount(owner[sure], minlength=len(kept))
    if view.rule == "detectron2":
        owner[~sure] = -1
    numbers = np.zeros(len(kept) + 1, np.int32)  # the last for pixels of no query
    found: dict[int, Found] = {}
    shared: dict[int, int] = {}
    for query, area, whole in zip(range(len(kept)), own.tolist(), original.tolist(), strict=True):
        overlap = _threshold(thresholds, "overlap")
        if (
            not area
            or not whole
            or (area / whole <= overlap if view.rule == "transformers" else area / whole < overlap)
        ):
            continue
        index, score = int(classes[kept[query]]), float(scores[kept[query]])
        number = shared.get(index) or len(found) + 1
        numbers[query] = number
        found[number] = Found(index, max(score, found[number].score) if number in found else score)
        if index in fused:
            shared[index] = number
    return numbers[owner], found


def _threshold(thresholds: Mapping[str, float], name: str) -> float:
    return float(thresholds.get(name, THRESHOLDS[name]))


def _first_size(mask_logits: Array, thresholds: Mapping[str, float]) -> FloatArray:
    """Return masks, scaled to the square that transformers scales Mask2Former's to, if that is asked for."""
    side = int(_threshold(thresholds, "mask_size"))
    maps = mask_logits.astype(np.float32, copy=False)
    if not side or maps.shape[1:] == (side, side):
        return maps
    return resize(maps, linear(maps.shape[1], side), linear(maps.shape[2], side))


def _nearest_on(mask: NDArray[np.bool_], view: View) -> NDArray[np.bool_]:
    """Return a mask of the network's input on the picture, each pixel taking the nearest."""
    axes = []
    for size, whole, kept, target in zip(
        mask.shape, view.placement.size, view.placement.scaled, view.picture, strict=True
    ):
        axes.append(nearest(size, target) if view.straight else nearest(size, whole)[nearest(kept, target)])
    return mask[axes[0]][:, axes[1]]


def _sigmoid(values: FloatArray) -> FloatArray:
    # exp of a number that is not positive does not overflow.
    small = np.exp(-np.abs(values))
    result: FloatArray = np.where(values >= 0, np.float32(1), small) / (1 + small)
    return result
