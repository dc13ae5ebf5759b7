"""Faster, Mask and Cascade (Mask) R-CNN: the pyramid, proposals, and one or several heads that look at each proposal.

https://arxiv.org/abs/1506.01497, https://arxiv.org/abs/1703.06870, https://arxiv.org/abs/1712.00726, with the names and
the arithmetic of mmdetection's TwoStageDetector, StandardRoIHead and CascadeRoIHead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from na_deploy.models.detectors.boxes import decoded, picture_extent
from na_deploy.models.detectors.fpn import FPN
from na_deploy.models.detectors.heads import BoxHead, BoxHeadConfig, MaskHead, MaskHeadConfig
from na_deploy.models.detectors.regions import region_features
from na_deploy.models.detectors.rpn import RPNConfig, RPNHead
from na_deploy.models.detectors.selection import NOTHING, best_of_classes
from na_deploy.models.heads.transformer import widened

Values = dict[str, Tensor]


@dataclass(frozen=True)
class DetectorConfig:
    """A detector without its backbone.

    Attributes:
        in_widths: channels of the backbone's maps.
        levels: maps of the pyramid.
        rpn: proposals.
        boxes: the box heads, several in a cascade.
        masks: the mask heads: none, or one for each box head.
        strides: pixels between the places of the maps that regions are cut from.
        finest: scale by which regions are given to maps.
        samples: samples of a bin along each side, 0 for as many as it has places.
        score: score that a detection must exceed.
        most_overlap: intersection over union from which the lower of two boxes of a class falls.
        detections: detections of an image; outputs have that many rows.
        mask_threshold: probability from which a pixel belongs to a mask; for those who paste masks.
        cascade: true where heads are numbered in files.
        padded: true where an image's zeros right and below are padding, see
            :func:`~na_deploy.models.detectors.boxes.picture_extent`.
    """

    in_widths: tuple[int, ...]
    levels: int
    rpn: RPNConfig
    boxes: tuple[BoxHeadConfig, ...]
    masks: tuple[MaskHeadConfig, ...] = ()
    strides: tuple[int, ...] = (4, 8, 16, 32)
    finest: float = 56
    samples: int = 0
    score: float = 0.05
    most_overlap: float = 0.5
    detections: int = 100
    mask_threshold: float = 0.5
    cascade: bool = False
    padded: bool = True

    @property
    def num_classes(self) -> int:
        """Classes, "nothing" not counted."""
        return self.boxes[0].num_classes


class RoIHead(nn.Module):
    """The heads, numbered in a cascade as in files."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        boxes, masks = [BoxHead(each) for each in config.boxes], [MaskHead(each) for each in config.masks]
        self.bbox_head = nn.ModuleList(boxes) if config.cascade else boxes[0]
        if masks:
            self.mask_head = nn.ModuleList(masks) if config.cascade else masks[0]
        self.config = config

    @property
    def box_heads(self) -> Sequence[BoxHead]:
        """The stages in order."""
        return list(self.bbox_head) if self.config.cascade else [self.bbox_head]  # type: ignore[arg-type, list-item]

    @property
    def mask_heads(self) -> Sequence[MaskHead]:
        """The mask heads in order."""
        if not self.config.masks:
            return []
        return list(self.mask_head) if self.config.cascade else [self.mask_head]  # type: ignore[arg-type, list-item]


class RCNN(nn.Module):
    """A whole detector.

    The steps are methods, so that each can be compared by itself: what a network computes is continuous, and what it
    chooses is not.
    """

    def __init__(self, backbone: nn.Module, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.neck = FPN(config.in_widths, config.rpn.width, config.levels)
        self.rpn_head = RPNHead(config.rpn)
        self.roi_head = RoIHead(config)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Detect objects.

        Args:
            image: (B, 3, H, W).

        Returns:
            Boxes (B, N, 4) in pixels of the image, scores (B, N), classes (B, N), masks (B, N, 28, 28) where the
            detector has them, and the number of detections (B). Behind the last detection, boxes, scores and masks are
            0 and classes -1.
        """
        return tuple(self.steps(image)[0].values())

    def steps(self, image: Tensor) -> tuple[Values, Values]:
        """Return the outputs by name, and all that was computed on the way, as :meth:`forward` computes them."""
        extent = self.extent(image)
        maps = self.neck(self.backbone(image))
        inner: Values = {}
        predicted = self.rpn_head(maps)
        for level, (logits, deltas) in enumerate(predicted):
            inner |= {f"rpn{level}.logits": logits, f"rpn{level}.deltas": deltas}
        regions, scores = self.rpn_head.propose(predicted, extent)
        inner |= {"proposals": regions, "proposals.scores": scores}
        all_logits: list[Tensor] = []
        for stage in range(len(self.config.boxes)):
            logits, deltas = self.judge(stage, maps, regions)
            inner |= {f"stage{stage}.logits": logits, f"stage{stage}.deltas": deltas}
            all_logits.append(logits)
            if stage + 1 < len(self.config.boxes):
                regions = self.refine(stage, regions, logits, deltas, extent)
                inner[f"stage{stage + 1}.regions"] = regions
        outputs = self.choose(regions, scores, all_logits, deltas, extent)
        if self.config.masks:
            count = outputs.pop("count")
            outputs |= {"masks": self.draw(maps, outputs["boxes"], outputs["classes"]), "count": count}
        return outputs, inner

    @property
    def inner_names(self) -> list[str]:
        """Names of the values that :meth:`steps` returns beside the outputs."""
        names = [f"rpn{level}.{what}" for level in range(self.config.levels) for what in ("logits", "deltas")]
        names += ["proposals", "proposals.scores"]
        for stage in range(len(self.config.boxes)):
            regions = [f"stage{stage}.regions"] if stage else []
            names += [*regions, f"stage{stage}.logits", f"stage{stage}.deltas"]
        return names

    def extent(self, image: Tensor) -> Tensor:
        """Return width and height (B, 1, 2) of the pictures in images."""
        if self.config.padded:
            return picture_extent(image)
        height, width = image.shape[2:]
        return torch.tensor([width, height], dtype=torch.float32, device=image.device).expand(image.shape[0], 1, 2)

    def judge(self, stage: int, maps: Sequence[Tensor], regions: Tensor) -> tuple[Tensor, Tensor]:
        """Return a stage's logits (B, R, classes + 1) and deltas (B, R, classes or 1, 4) for regions (B, R, 4)."""
        head = self.roi_head.box_heads[stage]
        features = self.cut(maps, regions, head.config.size)
        logits, deltas = head(features.flatten(0, 1))
        batch = regions.shape[:2]
        return logits.reshape(*batch, -1), deltas.reshape(*batch, -1, 4)

    def refine(self, stage: int, regions: Tensor, logits: Tensor, deltas: Tensor, extent: Tensor) -> Tensor:
        """Return the next stage's regions (B, R, 4): moved as the likeliest class wants."""
        head = self.config.boxes[stage]
        if not head.class_agnostic:
            likeliest = logits[..., :-1].argmax(-1)
            deltas = torch.gather(deltas, 2, likeliest[..., None, None].expand(-1, -1, 1, 4))
        return decoded(regions, widened(deltas.squeeze(2)), head.means, head.stds, extent)

    def choose(
        self, regions: Tensor, proposed: Tensor, logits: Sequence[Tensor], deltas: Tensor, extent: Tensor
    ) -> Values:
        """Return the outputs without masks.

        Args:
            regions: those of the last stage (B, R, 4).
            proposed: scores of the proposals (B, R), below zero for those that are none.
            logits: every stage's.
            deltas: the last stage's.
            extent: width and height of the pictures.
        """
        config, last = self.config, self.config.boxes[-1]
        mean = sum(widened(each) for each in logits) / len(logits)
        assert isinstance(mean, Tensor)
        scores = torch.where((proposed >= 0)[..., None], mean.softmax(-1)[..., :-1], NOTHING)
        boxes = decoded(regions[:, :, None], widened(deltas), last.means, last.stds, extent[:, :, None])
        best, of_box, of_class, _ = best_of_classes(scores, boxes, config.score, config.most_overlap, config.detections)
        present = best >= 0
        return {
            "boxes": of_box * present[..., None],
            "scores": best.clamp(min=0),
            "classes": torch.where(present, of_class, -1),
            "count": present.sum(1),
        }

    def draw(self, maps: Sequence[Tensor], boxes: Tensor, classes: Tensor) -> Tensor:
        """Return the masks (B, N, 28, 28) of boxes (B, N, 4) with their classes (B, N): probabilities."""
        features = self.cut(maps, boxes, self.config.masks[0].size).flatten(0, 1)
        place = classes.clamp(min=0).flatten()[:, None, None, None]
        total = None
        for head, config in zip(self.roi_head.mask_heads, self.config.masks, strict=True):
            logits = widened(head(features))
            if config.num_classes > 1:
                logits = torch.gather(logits, 1, place.expand(-1, 1, *logits.shape[2:]))
            probability = logits.squeeze(1).sigmoid()
            total = probability if total is None else total + probability
        assert total is not None
        masks = (total / len(self.config.masks)).reshape(*boxes.shape[:2], *total.shape[1:])
        return masks * (classes >= 0)[..., None, None]

    def cut(self, maps: Sequence[Tensor], regions: Tensor, size: int) -> Tensor:
        """Return what a head sees of regions (B, R, 4): (B, R, C, size, size)."""
        config = self.config
        return region_features(
            maps[: len(config.strides)], regions, size, config.strides, config.finest, config.samples
        )
