"""Losses that train Mask R-CNN: scores and boxes of proposals, classes, boxes and masks of regions.

As in https://arxiv.org/abs/1506.01497 and https://arxiv.org/abs/1703.06870, with mmdetection's thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from draw import LEAST
from torch import Tensor
from torch.nn import functional

from na_deploy.models.detectors.boxes import anchor_shapes, anchors_at, overlap
from na_deploy.models.detectors.rcnn import RCNN

ANCHORS, REGIONS, MASKS = 96, 32, 8
"""Anchors, regions and masks of a picture that the losses look at."""


@dataclass(frozen=True)
class Objects:
    """The objects of one picture.

    Attributes:
        boxes: (G, 4) as left, top, right and bottom.
        kinds: (G), classes from 0.
        masks: (G, H, W) of 0 and 1.
    """

    boxes: Tensor
    kinds: Tensor
    masks: Tensor

    @classmethod
    def of(cls, numbers: Tensor, kinds: Tensor) -> list[Objects]:
        """Return every picture's objects.

        Args:
            numbers: (B, H, W), the shape of every pixel, 0 for none.
            kinds: (B, shapes + 1), classes by shape.
        """
        result = []
        for own, classes in zip(numbers, kinds.long(), strict=True):
            masks = own == torch.arange(1, len(classes))[:, None, None]
            shown = (masks.flatten(1).sum(1) >= LEAST).nonzero().flatten()
            masks = masks[shown]
            sides = []
            for axis in (1, 2):  # columns, then rows
                line = masks.any(axis)
                first = line.int().argmax(1)
                sides.append((first, line.shape[1] - line.flip(1).int().argmax(1)))
            (left, right), (top, bottom) = sides
            boxes = torch.stack((left, top, right, bottom), 1).float()
            result.append(cls(boxes, classes[shown + 1] - 1, masks.float()))
        return result


def detector_loss(network: RCNN, images: Tensor, objects: Sequence[Objects]) -> Tensor:
    """Return five losses: proposals' scores and boxes, regions' classes, boxes and masks.

    Args:
        network: in training mode.
        images: (B, 3, H, W).
        objects: every picture's.
    """
    maps = network.neck(network.backbone(images))
    predicted = network.rpn_head(maps)
    extent = network.extent(images)
    with torch.no_grad():
        proposals, scores = network.rpn_head.propose([(x.detach(), y.detach()) for x, y in predicted], extent)
    picked = [_regions(*each) for each in zip(proposals, scores, objects, strict=True)]
    regions, kinds, owners = (torch.stack(parts) for parts in zip(*picked, strict=True))
    return torch.stack(
        (
            *_proposal_losses(network, predicted, objects),
            *_box_losses(network, maps, objects, regions, kinds, owners),
            _mask_loss(network, maps, objects, regions, kinds, owners),
        )
    )


def _proposal_losses(
    network: RCNN, predicted: Sequence[tuple[Tensor, Tensor]], objects: Sequence[Objects]
) -> tuple[Tensor, Tensor]:
    config = network.rpn_head.config
    anchors = []
    for level, (logits, _) in enumerate(predicted):
        shapes = anchor_shapes(config.bases[level], config.ratios, config.scales)
        numbers = (logits.shape[3], float(config.strides[level]), 0.0, shapes)
        index = torch.arange(logits[0].numel())[None, None]
        anchors.append(anchors_at(index, *(torch.tensor([each]) for each in numbers))[0, 0])
    places = torch.cat(anchors)
    logits = torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x, _ in predicted], 1)
    deltas = torch.cat([y.permute(0, 2, 3, 1).reshape(len(y), -1, 4) for _, y in predicted], 1)
    scored, moved, count = logits.new_zeros(()), logits.new_zeros(()), 0
    for own_logits, own_deltas, there in zip(logits, deltas, objects, strict=True):
        best, owner, nearest = _matched(places, there.boxes)
        positive = best >= 0.7
        positive[nearest] = True
        chosen = _some(positive, ANCHORS // 2)
        others = _some((best < 0.3) & ~positive, ANCHORS - len(chosen))
        both = torch.cat((chosen, others))
        scored = scored + functional.binary_cross_entropy_with_logits(
            own_logits[both], positive[both].float(), reduction="sum"
        )
        wanted = encoded(places[chosen], there.boxes[owner[chosen]], config.stds)
        moved = moved + functional.l1_loss(own_deltas[chosen], wanted, reduction="sum")
        count += len(both)
    return scored / count, moved / count


def _regions(proposals: Tensor, scores: Tensor, there: Objects) -> tuple[Tensor, Tensor, Tensor]:
    """Choose a picture's regions (R, 4), their classes (R), -1 for none and -2 for padding, and their objects (R)."""
    candidates = torch.cat((there.boxes, proposals[scores >= 0]))
    best, owner, _ = _matched(candidates, there.boxes)
    chosen = _some(best >= 0.5, REGIONS // 3)
    others = _some(best < 0.5, REGIONS - len(chosen))
    kinds = torch.full((REGIONS,), -2)
    kinds[: len(chosen)] = there.kinds[owner[chosen]] if len(there.kinds) else -1
    kinds[len(chosen) : len(chosen) + len(others)] = -1
    regions, owners = proposals.new_zeros((REGIONS, 4)), torch.zeros(REGIONS, dtype=torch.long)
    both = torch.cat((chosen, others))
    regions[: len(both)], owners[: len(both)] = candidates[both], owner[both]
    return regions, kinds, owners


def _box_losses(
    network: RCNN, maps: Sequence[Tensor], objects: Sequence[Objects], regions: Tensor, kinds: Tensor, owners: Tensor
) -> tuple[Tensor, Tensor]:
    logits, deltas = network.judge(0, maps, regions)
    counted = kinds > -2
    classes = logits.shape[-1] - 1
    scored = functional.cross_entropy(logits[counted], torch.where(kinds < 0, classes, kinds)[counted])
    moved = logits.new_zeros(())
    for picture, there in enumerate(objects):
        positive = (kinds[picture] >= 0).nonzero().flatten()
        wanted = encoded(
            regions[picture, positive], there.boxes[owners[picture, positive]], network.config.boxes[0].stds
        )
        found = deltas[picture, positive, kinds[picture, positive]]
        moved = moved + functional.l1_loss(found, wanted, reduction="sum")
    return scored, moved / counted.sum()


def _mask_loss(
    network: RCNN, maps: Sequence[Tensor], objects: Sequence[Objects], regions: Tensor, kinds: Tensor, owners: Tensor
) -> Tensor:
    first = kinds[:, :MASKS]  # objects come first
    features = network.cut(maps, regions[:, :MASKS], network.config.masks[0].size).flatten(0, 1)
    logits = network.roi_head.mask_heads[0](features).unflatten(0, first.shape)
    own = torch.gather(logits, 2, first.clamp(min=0)[..., None, None, None].expand(-1, -1, 1, *logits.shape[3:]))[
        :, :, 0
    ]
    wanted = torch.zeros_like(own)
    for picture, there in enumerate(objects):
        if len(there.masks):
            wanted[picture] = _cut_masks(there.masks[owners[picture, :MASKS]], regions[picture, :MASKS], own.shape[-1])
    losses = functional.binary_cross_entropy_with_logits(own, wanted, reduction="none").mean((2, 3))
    positive = first >= 0
    return (losses * positive).sum() / positive.sum().clamp(min=1)


def _cut_masks(masks: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Return the part of each mask (R, H, W) in its box (R, 4), as (R, size, size) of 0 and 1."""
    share = (torch.arange(size) + 0.5) / size
    x, y = (boxes[:, axis, None] + share * (boxes[:, axis + 2] - boxes[:, axis])[:, None] for axis in (0, 1))
    height, width = masks.shape[1:]
    grid = torch.stack(
        ((x / width * 2 - 1)[:, None, :].expand(-1, size, -1), (y / height * 2 - 1)[:, :, None].expand(-1, -1, size)),
        -1,
    )
    return (functional.grid_sample(masks[:, None], grid, align_corners=False)[:, 0] >= 0.5).float()


def encoded(boxes: Tensor, wanted: Tensor, stds: Sequence[float]) -> Tensor:
    """Return the deltas (N, 4) that move boxes onto those wanted: the inverse of ``boxes.decoded``."""
    size, other = (x[:, 2:] - x[:, :2] for x in (boxes, wanted))
    shift = ((wanted[:, :2] + wanted[:, 2:]) - (boxes[:, :2] + boxes[:, 2:])) / 2 / size.clamp(min=1e-3)
    return torch.cat((shift, (other / size.clamp(min=1e-3)).log()), 1) / boxes.new_tensor(stds)


def _matched(boxes: Tensor, objects: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for every box its best overlap and the object's number, and the best box of every object."""
    if not len(objects):
        return torch.zeros(len(boxes)), torch.zeros(len(boxes), dtype=torch.long), torch.zeros(0, dtype=torch.long)
    shared = overlap(boxes, objects)
    best, owner = shared.max(1)
    return best, owner, shared.argmax(0)


def _some(marked: Tensor, most: int) -> Tensor:
    """Return the places of at most so many that are marked, chosen at random."""
    places = marked.nonzero().flatten()
    return places[torch.randperm(len(places))[:most]]
