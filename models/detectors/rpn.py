"""Region proposals (https://arxiv.org/abs/1506.01497): which anchors of the pyramid hold an object, and where exactly.

Names and rules are those of mmdetection's RPNHead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from na_deploy.models.detectors.boxes import anchor_shapes, anchors_at, decoded, overlap
from na_deploy.models.detectors.selection import NOTHING, highest, survivors, taken
from na_deploy.models.heads.transformer import widened


@dataclass(frozen=True)
class RPNConfig:
    """Anchors and choice of proposals.

    Attributes:
        width: channels of the pyramid's maps.
        hidden: channels of the head.
        strides: pixels between the places of every map.
        bases: sides that scales multiply, one for each map.
        scales: anchors' sizes over their map's base.
        ratios: anchors' heights over their widths.
        centre_offset: place of an anchor's centre, in its map's base.
        means: see :func:`~na_deploy.models.detectors.boxes.decoded`.
        stds: likewise.
        candidates: anchors of a map that are looked at, those with the highest scores.
        most_overlap: intersection over union from which the lower of two boxes of a map falls.
        smallest: width and height that a proposal must exceed, in pixels.
        proposals: proposals of an image.
    """

    width: int
    hidden: int
    strides: tuple[int, ...] = (4, 8, 16, 32, 64)
    bases: tuple[float, ...] = (4, 8, 16, 32, 64)
    scales: tuple[float, ...] = (8,)
    ratios: tuple[float, ...] = (0.5, 1, 2)
    centre_offset: float = 0.0
    means: tuple[float, ...] = (0, 0, 0, 0)
    stds: tuple[float, ...] = (1, 1, 1, 1)
    candidates: int = 1000
    most_overlap: float = 0.7
    smallest: float = 0.0
    proposals: int = 1000


class RPNHead(nn.Module):
    """Scores and deltas of the anchors on every map, and the proposals that follow from them."""

    def __init__(self, config: RPNConfig) -> None:
        super().__init__()
        self.config = config
        anchors = len(config.ratios) * len(config.scales)
        self.rpn_conv = nn.Conv2d(config.width, config.hidden, 3, padding=1)
        self.rpn_cls = nn.Conv2d(config.hidden, anchors, 1)
        self.rpn_reg = nn.Conv2d(config.hidden, 4 * anchors, 1)

    def forward(self, maps: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return for every map (B, C, H, W) logits (B, A, H, W) and deltas (B, 4·A, H, W)."""
        hidden = [self.rpn_conv(x).relu() for x in maps]
        return [(self.rpn_cls(x), self.rpn_reg(x)) for x in hidden]

    def propose(self, predicted: Sequence[tuple[Tensor, Tensor]], extent: Tensor) -> tuple[Tensor, Tensor]:
        """Choose proposals.

        Args:
            predicted: what :meth:`forward` returned.
            extent: width and height of the pictures (B, 1, 2).

        Returns:
            Boxes (B, R, 4) and scores (B, R), the highest first; zeros and
            :data:`~na_deploy.models.detectors.selection.NOTHING` behind the last.
        """
        config = self.config
        found = [self._best(*maps) for maps in predicted]
        scores, places, deltas = (torch.stack(parts, 1) for parts in zip(*found, strict=True))  # (B, maps, K, …)
        of_maps = (
            [logits.shape[3] for logits, _ in predicted],
            [float(stride) for stride in config.strides],
            [config.centre_offset * base for base in config.bases],
            [anchor_shapes(base, config.ratios, config.scales) for base in config.bases],
        )
        boxes = anchors_at(places, *(torch.tensor(each, device=places.device) for each in of_maps))
        boxes = decoded(boxes, deltas, config.means, config.stds, extent[:, None])
        sides = boxes[..., 2:] - boxes[..., :2]
        present = (scores >= 0) & (sides > config.smallest).all(-1)
        kept = survivors(overlap(boxes, boxes) > config.most_overlap, present)
        scores = torch.where(kept, scores, NOTHING).flatten(1)
        scores, places = highest(scores, config.proposals)
        return taken(boxes.flatten(1, 2), places) * (scores >= 0)[..., None], scores

    def _best(self, logits: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best scores of a map (B, K), the numbers of their anchors (B, K), and their deltas (B, K, 4)."""
        scores = widened(logits).permute(0, 2, 3, 1).flatten(1).sigmoid()
        scores, places = highest(scores, self.config.candidates)
        deltas = deltas.permute(0, 2, 3, 1).reshape(deltas.shape[0], -1, 4)
        return scores, places, widened(taken(deltas, places))
