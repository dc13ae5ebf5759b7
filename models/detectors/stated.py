"""From the shapes of a detector's weights and mmdetection's configuration to the description that builds it.

Numbers that shapes give are read from shapes, and a configuration that says otherwise is refused. What shapes do not
give (strides, anchors, units of deltas, thresholds, counts) comes from the configuration; where it is silent,
mmdetection's defaults hold, which the published detectors use too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from na_deploy.errors import CheckpointError
from na_deploy.models.config import ModelConfig
from na_deploy.models.detectors.heads import BoxHeadConfig, MaskHeadConfig
from na_deploy.models.detectors.rcnn import DetectorConfig
from na_deploy.models.detectors.rpn import RPNConfig
from na_deploy.models.heads.names import HeadWeights
from na_deploy.models.mm_config import MMConfig

CASCADE_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
"""Units of the deltas of Cascade R-CNN's three stages."""

SUPPORTED = "Faster R-CNN, Mask R-CNN, Cascade R-CNN and Cascade Mask R-CNN"

_TYPES: dict[str, set[Any]] = {
    "type": {"FasterRCNN", "MaskRCNN", "CascadeRCNN", "TwoStageDetector"},
    "neck.type": {"FPN"},
    "neck.add_extra_convs": {False},
    "neck.start_level": {0},
    "neck.end_level": {-1},
    "neck.norm_cfg": {None},
    "neck.act_cfg": {None},
    "neck.upsample_cfg.mode": {"nearest"},
    "rpn_head.type": {"RPNHead"},
    "rpn_head.num_convs": {1},
    "rpn_head.anchor_generator.type": {"AnchorGenerator"},
    "rpn_head.anchor_generator.scale_major": {True},
    "rpn_head.anchor_generator.centers": {None},
    "rpn_head.bbox_coder.type": {"DeltaXYWHBBoxCoder"},
    "rpn_head.bbox_coder.clip_border": {True},
    "rpn_head.loss_cls.use_sigmoid": {True},
    "roi_head.type": {"StandardRoIHead", "CascadeRoIHead"},
    "roi_head.shared_head": {None},
    "roi_head.bbox_roi_extractor.type": {"SingleRoIExtractor"},
    "roi_head.bbox_roi_extractor.roi_layer.type": {"RoIAlign"},
    "roi_head.bbox_roi_extractor.roi_layer.aligned": {True},
    "roi_head.bbox_roi_extractor.roi_layer.pool_mode": {"avg"},
    "roi_head.mask_roi_extractor.type": {"SingleRoIExtractor"},
    "roi_head.mask_roi_extractor.roi_layer.type": {"RoIAlign"},
    "roi_head.mask_roi_extractor.roi_layer.aligned": {True},
    "roi_head.mask_roi_extractor.roi_layer.pool_mode": {"avg"},
    "test_cfg.rpn.nms.type": {"nms"},
    "test_cfg.rcnn.nms.type": {"nms"},
    "test_cfg.rcnn.nms.class_agnostic": {False},
}
"""Entries of the configuration and the values that the networks here stand for."""

_BOX_HEAD_TYPES: dict[str, set[Any]] = {
    "type": {"BBoxHead", "ConvFCBBoxHead", "Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead"},
    "with_avg_pool": {False},
    "bbox_coder.type": {"DeltaXYWHBBoxCoder"},
    "bbox_coder.clip_border": {True},
    "loss_cls.type": {"CrossEntropyLoss"},
    "loss_cls.use_sigmoid": {False},
}
_MASK_HEAD_TYPES: dict[str, set[Any]] = {
    "type": {"FCNMaskHead"},
    "upsample_cfg.type": {"deconv"},
    "conv_kernel_size": {3},
}


def read_detector(head: HeadWeights, backbone: ModelConfig, training: MMConfig, path: Path) -> DetectorConfig:
    """Describe the detector whose weights these are.

    Args:
        head: its weights beside the backbone's.
        backbone: the backbone's description.
        training: the configuration that was stored beside the weights, empty if there was none.
        path: for messages.

    Raises:
        CheckpointError: weights are missing, or the configuration contradicts them or asks for what is not supported.
    """
    said = _Statement(training, path)
    said.check("", _TYPES)
    shapes = _Shapes(head, path)
    cascade = head.kind.startswith("cascade")
    width, hidden = shapes.of("neck.fpn_convs.0.conv.weight", 4)[0], shapes.of("rpn_head.rpn_conv.weight", 4)[0]
    levels = said.whole("neck.num_outs", 5)
    rpn = _rpn(said, shapes, width, hidden, levels)
    stages = shapes.count(r"roi_head\.bbox_head\.(\d+)\.") if cascade else 1
    boxes = tuple(_box_head(said, shapes, stage if cascade else None, width) for stage in range(stages))
    masks: tuple[MaskHeadConfig, ...] = ()
    if "mask" in head.kind:
        masks = tuple(_mask_head(said, shapes, stage if cascade else None, width, boxes[0]) for stage in range(stages))
    extractor = "roi_head.bbox_roi_extractor"
    strides = said.numbers(f"{extractor}.featmap_strides", (4, 8, 16, 32))
    finest = said.number(f"{extractor}.finest_scale", 56)
    samples = said.whole(f"{extractor}.roi_layer.sampling_ratio", 0)
    for name, value in (("featmap_strides", list(strides)), ("finest_scale", finest), ("sampling_ratio", samples)):
        other = f"roi_head.mask_roi_extractor.{'roi_layer.' if name == 'sampling_ratio' else ''}{name}"
        if masks and said(other, value) != value:
            raise CheckpointError(
                f"{path}: {other} is {said(other, value)!r}, and {value!r} for boxes; they must agree"
            )
    if len(strides) > levels or len(strides) > len(backbone.out_indices):
        raise CheckpointError(f"{path}: regions are cut from {len(strides)} maps, the pyramid has {levels}")
    config = DetectorConfig(
        in_widths=tuple(backbone.widths[index] for index in backbone.out_indices),
        levels=levels,
        rpn=rpn,
        boxes=boxes,
        masks=masks,
        strides=tuple(int(stride) for stride in strides),
        finest=finest,
        samples=samples,
        score=said.number("test_cfg.rcnn.score_thr", 0.05),
        most_overlap=said.overlap("test_cfg.rcnn", 0.5),
        detections=said.whole("test_cfg.rcnn.max_per_img", 100),
        mask_threshold=said.number("test_cfg.rcnn.mask_thr_binary", 0.5),
        cascade=cascade,
    )
    said.agree("neck.in_channels", list(config.in_widths))
    said.agree("neck.out_channels", width)
    said.agree("rpn_head.feat_channels", hidden)
    return config


def _rpn(said: _Statement, shapes: _Shapes, width: int, hidden: int, levels: int) -> RPNConfig:
    generator, coder = "rpn_head.anchor_generator", "rpn_head.bbox_coder"
    strides = said.numbers(f"{generator}.strides", tuple(4 * 2**level for level in range(levels)))
    octave, steps = said(f"{generator}.octave_base_scale", None), said(f"{generator}.scales_per_octave", None)
    scales = said.numbers(f"{generator}.scales", (8,))
    if octave is not None and steps is not None:
        scales = tuple(octave * 2 ** (step / steps) for step in range(steps))
    config = RPNConfig(
        width=width,
        hidden=hidden,
        strides=tuple(int(stride) for stride in strides),
        bases=said.numbers(f"{generator}.base_sizes", strides),
        scales=scales,
        ratios=said.numbers(f"{generator}.ratios", (0.5, 1.0, 2.0)),
        centre_offset=said.number(f"{generator}.center_offset", 0.0),
        means=said.numbers(f"{coder}.target_means", (0, 0, 0, 0)),
        stds=said.numbers(f"{coder}.target_stds", (1, 1, 1, 1)),
        candidates=said.whole("test_cfg.rpn.nms_pre", 1000),
        most_overlap=said.overlap("test_cfg.rpn", 0.7),
        smallest=said.number("test_cfg.rpn.min_bbox_size", 0),
        proposals=said.whole("test_cfg.rpn.max_per_img", said("test_cfg.rpn.max_num", 1000)),
    )
    anchors, found = len(config.ratios) * len(config.scales), shapes.of("rpn_head.rpn_cls.weight", 4)[0]
    if anchors != found:
        raise CheckpointError(
            f"{said.path}: {said.source} names {anchors} anchors for a place, the weights of its RPN have {found}"
        )
    if not len(config.strides) == len(config.bases) == levels:
        raise CheckpointError(
            f"{said.path}: {said.source} names strides for {len(config.strides)} maps, its pyramid has {levels}"
        )
    if config.candidates < 1 or config.proposals < 1:
        raise CheckpointError(f"{said.path}: nms_pre and max_per_img must be above 0 for an export of fixed shapes")
    return config


def _box_head(said: _Statement, shapes: _Shapes, stage: int | None, width: int) -> BoxHeadConfig:
    where, number = "roi_head.bbox_head", stage or 0
    said.check(where, _BOX_HEAD_TYPES, number)
    names = f"{where}." if stage is None else f"{where}.{stage}."
    convs = shapes.widths(re.escape(names) + r"shared_convs\.(\d+)\.conv\.weight")
    linears = shapes.widths(re.escape(names) + r"shared_fcs\.(\d+)\.weight")
    classes = shapes.of(f"{names}fc_cls.weight", 2)[0] - 1
    if not linears:
        raise CheckpointError(f"{said.path}: {names}shared_fcs is missing; only heads with shared layers are supported")
    inputs = shapes.of(f"{names}shared_fcs.0.weight", 2)[1]
    size = round((inputs / (convs[-1] if convs else width)) ** 0.5)
    said.agree(f"{where}.num_classes", classes, number)
    said.agree(f"{where}.roi_feat_size", size, number)
    return BoxHeadConfig(
        width=width,
        size=size,
        num_classes=classes,
        conv_widths=convs,
        fc_widths=linears,
        batch_norm=shapes.has(f"{names}shared_convs.0.bn.weight"),
        class_agnostic=classes > 1 and shapes.of(f"{names}fc_reg.weight", 2)[0] == 4,
        means=said.numbers(f"{where}.bbox_coder.target_means", (0, 0, 0, 0), number),
        stds=said.numbers(f"{where}.bbox_coder.target_stds", CASCADE_STDS[min(number, 2)], number),
    )


def _mask_head(
    said: _Statement, shapes: _Shapes, stage: int | None, width: int, boxes: BoxHeadConfig
) -> MaskHeadConfig:
    where, number = "roi_head.mask_head", stage or 0
    said.check(where, _MASK_HEAD_TYPES, number)
    names = f"{where}." if stage is None else f"{where}.{stage}."
    classes, upsampled, _, _ = shapes.of(f"{names}conv_logits.weight", 4)
    said.agree(f"{where}.num_classes", boxes.num_classes, number)
    if classes not in (1, boxes.num_classes):
        raise CheckpointError(f"{said.path}: its masks have {classes} classes, its boxes {boxes.num_classes}")
    return MaskHeadConfig(
        width=width,
        size=said.whole("roi_head.mask_roi_extractor.roi_layer.output_size", 14),
        num_classes=classes,
        conv_widths=shapes.widths(re.escape(names) + r"convs\.(\d+)\.conv\.weight"),
        upsampled=upsampled,
        batch_norm=shapes.has(f"{names}convs.0.bn.weight"),
    )


class _Statement:
    """Entries of a configuration by path; lists of heads are counted by ``number``."""

    def __init__(self, training: MMConfig, path: Path) -> None:
        self.model = dict(training.model)
        if "test_cfg" not in self.model and isinstance(training.assignments.get("test_cfg"), Mapping):
            self.model["test_cfg"] = training.assignments["test_cfg"]
        self.path = path
        self.source = "its training configuration" if self.model else "the default"

    def __call__(self, name: str, default: Any, number: int = 0) -> Any:
        found: Any = self.model
        for part in name.split("."):
            if isinstance(found, list):
                found = found[number] if number < len(found) else None
            if not isinstance(found, Mapping) or part not in found:
                return default
            found = found[part]
        return default if found is None else found

    def numbers(
        self, name: str, default: tuple[float, ...], number: int = 0, *, wrapped: bool = False
    ) -> tuple[float, ...]:
        """Return a list of numbers, or a single one if ``wrapped``."""
        found = self(name, default, number)
        if wrapped and not isinstance(found, tuple):
            found = [found]
        if not isinstance(found, list | tuple) or not all(isinstance(each, int | float) for each in found):
            raise CheckpointError(f"{self.path}: {self.source} gives {name} as {found!r}, expected numbers")
        return tuple(found)

    def number(self, name: str, default: float) -> float:
        return float(self.numbers(name, (default,), wrapped=True)[0])

    def whole(self, name: str, default: int) -> int:
        return int(self.number(name, default))

    def agree(self, name: str, value: Any, number: int = 0) -> None:
        """Refuse a configuration of another number than the weights have."""
        stated = self(name, value, number)
        if stated != value:
            raise CheckpointError(
                f"{self.path}: {self.source} gives {name} as {stated}, its weights have {value}; they are not of one "
                "model"
            )

    def overlap(self, where: str, default: float) -> float:
        """Return a suppression's threshold under its three names in use."""
        plain = self.number(f"{where}.nms_thr", default)
        return self.number(f"{where}.nms.iou_threshold", self.number(f"{where}.nms.iou_thr", plain))

    def check(self, where: str, allowed: Mapping[str, set[Any]], number: int = 0) -> None:
        for entry, values in allowed.items():
            name = f"{where}.{entry}" if where else entry
            (first, *_) = values
            found = self(name, first, number)
            if isinstance(found, list | dict) or found not in values:
                expected = ", ".join(str(value) for value in sorted(values, key=str))
                raise CheckpointError(
                    f"{self.path}: {self.source} gives {name} as {found!r}, which is not supported ({expected} is); "
                    f"whole detectors are {SUPPORTED}; any backbone can be exported with --part backbone"
                )


class _Shapes:
    """Shapes by name, with a sentence for those that are missing."""

    def __init__(self, head: HeadWeights, path: Path) -> None:
        self.shapes = {name: tuple(tensor.shape) for name, tensor in head.tensors.items()}
        self.title, self.path = head.title, path

    def has(self, name: str) -> bool:
        return name in self.shapes

    def of(self, name: str, rank: int) -> tuple[int, ...]:
        if name not in self.shapes:
            raise CheckpointError(
                f"{self.path} lacks {name}, from which the size of its {self.title} is read; the file is incomplete"
            )
        found = self.shapes[name]
        if len(found) != rank:
            raise CheckpointError(f"{self.path}: {name} has shape {list(found)}, expected {rank} dimensions")
        return found

    def count(self, pattern: str) -> int:
        return 1 + max((int(m.group(1)) for name in self.shapes if (m := re.match(pattern, name))), default=-1)

    def widths(self, pattern: str) -> tuple[int, ...]:
        """Return the first size of numbered weights, in order."""
        found = {int(m.group(1)): shape[0] for name, shape in self.shapes.items() if (m := re.fullmatch(pattern, name))}
        return tuple(found[number] for number in sorted(found))
