"""Small detectors of mmdetection's own modules, from its own configurations, with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mmcv_operators
import torch
from torch import Tensor, nn

from na_deploy.models import ModelConfig, random_checkpoint
from na_deploy.models.build import build_model

BACKBONE = ModelConfig("nat", 8, (1, 1, 1, 1), (1, 2, 4, 8), 3, ((3,), (2,), (1,), (1,)), 2.0, out_indices=(0, 1, 2, 3))
CLASSES = 3
KINDS = ("mask_rcnn", "cascade_mask_rcnn", "faster_rcnn")
PIPELINE = """
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True)]
"""


@dataclass(frozen=True)
class Theirs:
    """A detector of mmdetection.

    Attributes:
        backbone: ours.
        neck: mmdetection's, as are the others.
        rpn_head: proposals.
        roi_head: the heads on regions.
        text: the configuration as mmengine stores it.
    """

    backbone: nn.Module
    neck: Any
    rpn_head: Any
    roi_head: Any
    text: str

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """The weights as training saves them."""
        parts = ("backbone", "neck", "rpn_head", "roi_head")
        return {f"{part}.{name}": x for part in parts for name, x in getattr(self, part).state_dict().items()}

    def checkpoint(self, meta: dict[str, Any] | None = None) -> dict[str, Any]:
        """The content of a file of mmengine."""
        return {"meta": {"cfg": self.text} if meta is None else meta, "state_dict": self.state_dict}


@cache
def theirs(kind: str) -> Theirs:
    """Return a detector in evaluation mode: one of :data:`KINDS`."""
    mmcv_operators.install()
    import mmdet
    import mmdet.models
    from mmdet.registry import MODELS
    from mmengine.config import Config

    family = "cascade-mask-rcnn" if kind.startswith("cascade") else kind.replace("_", "-")
    file = Path(mmdet.__file__).parent / ".mim/configs/_base_/models" / f"{family}_r50_fpn.py"
    config: Any = Config.fromfile(file)
    model = config.model
    model.backbone = {"type": "DiNAT", "dilations": [list(level) for level in BACKBONE.dilations]}
    model.neck.update(in_channels=list(BACKBONE.widths), out_channels=16)
    model.rpn_head.update(in_channels=16, feat_channels=12)
    heads = model.roi_head
    for part in ("bbox_roi_extractor", "mask_roi_extractor"):
        if part in heads:
            heads[part].out_channels = 16
    several = kind.startswith("cascade")
    for head in heads.bbox_head if several else [heads.bbox_head]:
        head.update(in_channels=16, fc_out_channels=24, num_classes=CLASSES)
        if several:  # as in the published cascades: convolutions first, and boxes for every class
            head.update(
                type="ConvFCBBoxHead", num_shared_convs=4, num_shared_fcs=1, conv_out_channels=10,
                reg_class_agnostic=False, reg_decoded_bbox=True, norm_cfg={"type": "BN", "requires_grad": True},
            )  # fmt: skip
    if "mask_head" in heads:
        heads.mask_head.update(in_channels=16, conv_out_channels=8, num_classes=CLASSES)
    model.test_cfg.rpn.update(nms_pre=40, max_per_img=30)
    model.test_cfg.rcnn.update(max_per_img=12)
    text = config.pretty_text + PIPELINE
    backbone = build_model(BACKBONE)
    backbone.load_state_dict(random_checkpoint(BACKBONE, seed=3))
    built = Theirs(
        backbone.eval().requires_grad_(False),
        MODELS.build(dict(model.neck)),
        MODELS.build(dict(model.rpn_head, num_classes=1, test_cfg=model.test_cfg.rpn)),
        MODELS.build(dict(heads, test_cfg=model.test_cfg.rcnn)),
        text,
    )
    generator = torch.Generator().manual_seed(len(kind))
    for part in (built.neck, built.rpn_head, built.roi_head):
        part.eval().requires_grad_(False)
        for name, value in [*part.named_parameters(), *part.named_buffers()]:
            if value.is_floating_point():
                value.copy_(_random(name, value, generator))
    return built


_GAINS = {"rpn_cls": 0.2, "rpn_reg": 0.3, "fc_reg": 0.5, "fc_cls": 1.0, "conv_logits": 4.0}


def _random(name: str, value: Tensor, generator: torch.Generator) -> Tensor:
    """Return weights that keep activations of order 1, and class scores far apart."""
    noise = torch.randn(value.shape, generator=generator)
    if name.endswith("running_var"):
        return noise.abs() + 0.5
    if value.dim() == 1:
        return 0.1 * noise + (1.0 if ".bn.weight" in name else 0.0)
    gain = next((gain for part, gain in _GAINS.items() if part in name), 1.5)
    return noise * gain * value[0].numel() ** -0.5


def metas(sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Return what mmdetection knows of pictures of these (height, width)."""
    return [
        {"img_shape": size, "ori_shape": size, "scale_factor": (1.0, 1.0), "batch_input_shape": size} for size in sizes
    ]
