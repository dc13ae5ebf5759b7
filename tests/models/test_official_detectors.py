"""Checkpoints of detectors as training leaves them: configurations of mmcv and mmengine, names, refusals."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mmcv_operators
import numpy as np
import pytest
import torch
from mmdet_detectors import BACKBONE, CLASSES, theirs
from torch import Tensor

from na_deploy.errors import CheckpointError, UsageError
from na_deploy.models import get_model, load_model
from na_deploy.models.build import expected_shapes
from na_deploy.models.detectors.stated import CASCADE_STDS
from na_deploy.runtime.results.detections import paste

MMCV_PIPELINE = """
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(1000, 600), flip=False, transforms=[
        dict(type='Resize', keep_ratio=True),
        dict(type='Normalize', mean=[103.5, 116.5, 123.5], std=[1.0, 2.0, 3.0], to_rgb=False),
        dict(type='Pad', size_divisor=32)])]
"""
NAMES = ("cat", "dog", "fox")

MMDETECTION_2 = """
model = dict(
    type='MaskRCNN',
    backbone=dict(
        type='DiNAT', embed_dim=8, mlp_ratio=2.0, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], kernel_size=3,
        drop_path_rate=0.2, dilations=[[3], [2], [1], [1]], out_indices=(0, 1, 2, 3), pretrained=None),
    neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=5),
    rpn_head=dict(
        type='RPNHead', in_channels=16, feat_channels=12,
        anchor_generator=dict(type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[1.0, 1.0, 1.0, 1.0]),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0)),
    roi_head=dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
            out_channels=16, featmap_strides=[4, 8, 16, 32]),
        bbox_head=dict(
            type='Shared2FCBBoxHead', in_channels=16, fc_out_channels=24, roi_feat_size=7, num_classes=3,
            bbox_coder=dict(
                type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[0.1, 0.1, 0.2, 0.2]),
            reg_class_agnostic=False,
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type='L1Loss', loss_weight=1.0)),
        mask_roi_extractor=dict(
            type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0),
            out_channels=16, featmap_strides=[4, 8, 16, 32]),
        mask_head=dict(
            type='FCNMaskHead', num_convs=4, in_channels=16, conv_out_channels=8, num_classes=3,
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0))),
    train_cfg=dict(
        rpn=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.7), allowed_border=-1),
        rcnn=dict(mask_size=28, pos_weight=-1, debug=False)),
    test_cfg=dict(
        rpn=dict(nms_pre=40, max_per_img=30, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=12, mask_thr_binary=0.5)),
    pretrained=None)
dataset_type = 'CocoDataset'
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiScaleFlipAug', img_scale=(1333, 800), flip=False,
        transforms=[
            dict(type='Resize', keep_ratio=True),
            dict(type='RandomFlip'),
            dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
            dict(type='Pad', size_divisor=32),
            dict(type='ImageToTensor', keys=['img']),
            dict(type='Collect', keys=['img'])])
]
data = dict(samples_per_gpu=2, workers_per_gpu=2, test=dict(type='CocoDataset', ann_file='val.json'))
optimizer = dict(type='AdamW', lr=0.0001, paramwise_cfg=dict(custom_keys=dict(norm=dict(decay_mult=0.0))))
lr_config = dict(policy='step', warmup='linear', warmup_iters=500, warmup_ratio=0.001, step=[27, 33])
runner = dict(type='EpochBasedRunner', max_epochs=36)
fp16 = None
log_level = 'INFO'
"""
"""A Mask R-CNN 3x as mmcv 1 writes its configuration, with the sizes of the small detector."""
RATIOS = "ratios=[\n                0.5,\n                1.0,\n                2.0,\n            ]"
SCALES = "scales=[\n                8,\n            ]"


def saved(path: Path, kind: str = "mask_rcnn", *changes: tuple[str, str], **meta: Any) -> Path:
    """Save a detector with its configuration changed: pairs of text and its replacement."""
    text = theirs(kind).text
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    torch.save(theirs(kind).checkpoint({"cfg": text, **meta}), path)
    return path


def test_both_libraries_configurations_names_and_pipelines_are_read(tmp_path: Path) -> None:
    mmengine = load_model(saved(tmp_path / "a.pth", dataset_meta={"classes": NAMES, "palette": [[1, 2, 3]] * 3}))
    prepared = mmengine.metadata.preprocessing
    assert (prepared.mode, prepared.resize, prepared.longest, prepared.divisor) == ("shortest-side", 800, 1333, 32)
    assert (prepared.mean[0], prepared.channel_order) == (123.675, "RGB")
    assert mmengine.input_size == (800, 1344)
    text = theirs("mask_rcnn").text.partition("test_pipeline")[0] + MMCV_PIPELINE
    content = theirs("mask_rcnn").checkpoint({"config": text, "CLASSES": NAMES})
    torch.save(content, tmp_path / "b.pth")
    mmcv = load_model(tmp_path / "b.pth")
    prepared = mmcv.metadata.preprocessing
    assert (prepared.resize, prepared.longest, prepared.divisor, mmcv.input_size) == (600, 1000, 32, (608, 1024))
    assert (prepared.mean, prepared.channel_order) == ((123.675, 116.28, 103.53), "RGB")  # the model's own entry
    for loaded in (mmengine, mmcv):
        metadata = loaded.metadata
        assert (metadata.task, metadata.head, metadata.labels[2]) == ("detection", "mask_rcnn", "fox")
        assert metadata.thresholds == {"score": 0.3, "mask": 0.5}
        assert loaded.output_names == ("boxes", "scores", "classes", "masks", "count")
        assert loaded.title == "Mask R-CNN on dinat"
        assert loaded.warnings == []
    assert mmengine.head == mmcv.head


def test_numbers_of_the_configuration_are_followed(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "detector.pth", "mask_rcnn",
        ("score_thr=0.05", "score_thr=0.125"), ("nms_pre=40", "nms_pre=50"), ("max_per_img=12", "max_per_img=7"),
        (RATIOS, "ratios=[0.25, 1, 4]"),
        ("mask_thr_binary=0.5", "mask_thr_binary=0.25"), ("iou_threshold=0.7", "iou_threshold=0.65"),
    )  # fmt: skip
    head: Any = load_model(path).head
    assert (head.score, head.detections, head.mask_threshold, head.most_overlap) == (0.125, 7, 0.25, 0.5)
    assert (head.rpn.candidates, head.rpn.most_overlap, head.rpn.ratios) == (50, 0.65, (0.25, 1, 4))
    assert load_model(path, detections=3).head.detections == 3  # type: ignore[union-attr]


def test_a_file_of_mmdetection_2_is_the_same_detector_as_one_of_mmdetection_3(tmp_path: Path) -> None:
    """Text in ``meta["config"]``, names beside it, the optimiser's state, and the weights' names of that time."""
    weights = theirs("mask_rcnn").state_dict
    meta = {
        "mmdet_version": "2.19.0+", "mmcv_version": "1.4.8", "epoch": 36, "iter": 263880, "seed": None,
        "time": "Tue Apr 12 21:40:05 2022", "exp_name": "mask_rcnn_dinat_tiny_3x_coco.py", "hook_msgs": {},
        "config": MMDETECTION_2, "CLASSES": NAMES,
    }  # fmt: skip
    torch.save(
        {"meta": meta, "state_dict": weights, "optimizer": {"state": {}, "param_groups": []}}, tmp_path / "2.pth"
    )
    torch.save(theirs("mask_rcnn").checkpoint(), tmp_path / "3.pth")
    old, new = load_model(tmp_path / "2.pth"), load_model(tmp_path / "3.pth")
    heads = {name for name in weights if not name.startswith("backbone")}
    assert heads == {
        f"{layer}.{part}"
        for layer in (
            *(f"neck.{kind}_convs.{level}.conv" for kind in ("lateral", "fpn") for level in range(4)),
            *(f"rpn_head.{layer}" for layer in ("rpn_conv", "rpn_cls", "rpn_reg")),
            *(f"roi_head.bbox_head.{layer}" for layer in ("shared_fcs.0", "shared_fcs.1", "fc_cls", "fc_reg")),
            *(f"roi_head.mask_head.convs.{layer}.conv" for layer in range(4)),
            *(f"roi_head.mask_head.{layer}" for layer in ("upsample", "conv_logits")),
        )
        for part in ("weight", "bias")
    }
    assert old.warnings == []
    assert tuple(old.metadata.labels.values()) == NAMES
    assert old.metadata.dilations == BACKBONE.dilations
    assert (old.metadata.preprocessing.resize, old.metadata.preprocessing.longest) == (800, 1333)
    assert old.input_size == (800, 1344)
    assert old.module.config == new.module.config
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found, expected = old.module(image), new.module(image)
    assert int(found[-1]) > 0
    for mine, theirs_ in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs_)


@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade_mask_rcnn"])
def test_without_a_configuration_the_official_values_are_taken_and_told(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "detector.pth"
    torch.save(theirs(kind).checkpoint({}), path)
    dilations = "/".join(",".join(map(str, level)) for level in BACKBONE.dilations)
    loaded = load_model(path, arch="dinat", dilations=dilations)
    stated: Any = load_model(saved(tmp_path / "stated.pth", kind)).head
    head: Any = loaded.head
    assert (head.rpn.candidates, head.rpn.proposals, head.detections, head.score) == (1000, 1000, 100, 0.05)
    assert [each.stds for each in head.boxes] == list(CASCADE_STDS[: len(head.boxes)])
    assert head.boxes == stated.boxes
    assert (head.masks, head.strides, head.rpn.strides) == (stated.masks, stated.strides, stated.rpn.strides)
    assert any("comes without its training configuration; strides, anchors" in said for said in loaded.warnings)
    assert any("comes without preprocessing" in said for said in loaded.warnings)


def test_an_official_file_s_name_tells_the_backbone(tmp_path: Path) -> None:
    config = replace(get_model("dinat_mini").config, num_classes=0, out_indices=(0, 1, 2, 3))
    # One stored zero for each weight: the file is small.
    state = {f"backbone.{name}": torch.zeros(()).expand(shape) for name, shape in expected_shapes(config).items()}
    state |= {name: x for name, x in theirs("mask_rcnn").state_dict.items() if not name.startswith("backbone.")}
    for level, width in enumerate(config.widths):
        state[f"neck.lateral_convs.{level}.conv.weight"] = torch.zeros(16, width, 1, 1)
    torch.save({"state_dict": state}, tmp_path / "maskrcnn_dinat_mini.pth")
    loaded = load_model(tmp_path / "maskrcnn_dinat_mini.pth")
    assert loaded.title == "Mask R-CNN on dinat_mini"
    assert loaded.metadata.dilations[0] == (1, 28, 1)


def test_the_backbone_alone_is_loaded_when_it_is_asked_for(tmp_path: Path) -> None:
    loaded = load_model(saved(tmp_path / "detector.pth"), backbone=True)
    assert (loaded.metadata.task, loaded.head) == ("backbone", None)
    assert "only the backbone of detector.pth is loaded; its Mask R-CNN head is not" in loaded.warnings


# --------------------------------------------------------------------------- refusals


def lose(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda weights: weights.__delitem__(name)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lose("rpn_head.rpn_conv.weight"), r"lacks rpn_head\.rpn_conv\.weight, from which .* Mask R-CNN is read"),
        (lose("roi_head.mask_head.upsample.bias"), r"lacks roi_head\.mask_head\.upsample\.bias"),
        (lambda w: w.update({"roi_head.bbox_head.cls_convs.0.conv.weight": torch.ones(1)}), "holds roi_head.bbox_head"),
        (lambda w: w.update({"neck.fpn_convs.4.conv.weight": torch.ones(1)}), r"holds neck\.fpn_convs\.4"),
        (lambda w: w.update({"neck.fpn_convs.0.conv.bias": torch.ones(3)}), r"bias has shape \[3\], expected \[16\]"),
    ],
)  # fmt: skip
def test_missing_and_unknown_weights_are_refused(
    edit: Callable[[dict[str, Tensor]], None], message: str, tmp_path: Path
) -> None:
    content = theirs("mask_rcnn").checkpoint()
    weights: dict[str, Tensor] = dict(content["state_dict"])
    edit(weights)
    torch.save({**content, "state_dict": weights}, tmp_path / "detector.pth")
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "detector.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("type='RPNHead'", "type='GARPNHead'"), "gives rpn_head.type as 'GARPNHead', which is not supported"),
        (("type='StandardRoIHead'", "type='PointRendRoIHead'"), "roi_head.type as 'PointRendRoIHead'.*--part"),
        (("type='Shared2FCBBoxHead'", "type='SABLHead'"), "gives roi_head.bbox_head.type as 'SABLHead'"),
        (("iou_threshold=0.5, type='nms'", "iou_threshold=0.5, type='soft_nms'"), "rcnn.nms.type as 'soft_nms'"),
        (("num_outs=5", "num_outs=4"), "names strides for 5 maps, its pyramid has 4"),
        (("num_outs=5", "num_outs='many'"), "gives neck.num_outs as .*many.*, expected numbers"),
        ((f"num_classes={CLASSES}", "num_classes=80"), "num_classes as 80, its weights have 3; they are not"),
        (("out_channels=16", "out_channels=256"), "neck.out_channels as 256, its weights have 16"),
        ((SCALES, "scales=[4, 8]"), "names 6 anchors for a place, .* RPN have 3"),
    ],
)  # fmt: skip
def test_other_heads_and_contradictions_are_refused_by_name(
    change: tuple[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_model(saved(tmp_path / "detector.pth", "mask_rcnn", change))


@pytest.mark.parametrize("kind", ["RetinaNet", "ATSS", ""])
def test_one_stage_detectors_are_refused_by_name_with_what_is_supported(kind: str, tmp_path: Path) -> None:
    weights = {key: x for key, x in theirs("mask_rcnn").state_dict.items() if key.startswith(("backbone.", "neck."))}
    weights["bbox_head.retina_cls.weight"] = torch.ones(1, 1, 1, 1)
    meta = {"cfg": f"model = dict(type='{kind}', backbone=dict(type='DiNAT', dilations=[[3], [2], [1], [1]]))"}
    torch.save({"meta": meta if kind else {}, "state_dict": weights}, tmp_path / "detector.pth")
    dilations = "3/2/1/1"
    named = rf"detector\.pth \(a {kind}\) can" if kind else r"detector\.pth can"
    with pytest.raises(CheckpointError, match=named + r".*bbox_head, neck.*--part backbone.*Cascade Mask R-CNN"):
        load_model(tmp_path / "detector.pth", arch="dinat", dilations=dilations)


def test_wishes_that_no_detector_can_meet_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "detector.pth")
    with pytest.raises(UsageError, match=r"a task was given \(panoptic\), and what is loaded of .* is no segmenter"):
        load_model(path, task="panoptic")
    with pytest.raises(UsageError, match="--detections must be at least 1, got 0"):
        load_model(path, detections=0)
    with pytest.raises(UsageError, match=r"a number of detections was given \(5\), .* is no detector"):
        load_model(path, backbone=True, detections=5)
    with pytest.raises(UsageError, match="has a head of 3 classes, not 80"):
        load_model(path, num_classes=80)


def test_masks_are_pasted_as_mmdetection_pastes_them() -> None:
    mmcv_operators.install()
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

    random = np.random.default_rng(0)
    for height, width in ((40, 50), (9, 7)):
        corners = np.sort(random.uniform(0, 1, (30, 2, 2)) * (width, height), axis=1)
        boxes = np.round(corners.reshape(30, 4) * 2) / 2  # some edges on pixels' borders, some in their middle
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]
        masks = random.random((len(boxes), 28, 28)).astype(np.float32)
        for mask, box in zip(masks, boxes, strict=True):
            given = torch.tensor(mask)[None, None], torch.tensor(box[None], dtype=torch.float32)
            pasted, place = _do_paste_mask(*given, height, width, skip_empty=True)
            theirs = np.zeros((height, width), np.float32)
            theirs[place] = pasted[0].numpy()
            crop = paste(mask, box, (height, width))
            ours = np.zeros((height, width), np.bool_)
            ours[crop.place] = crop.pixels
            assert not ((ours != (theirs >= 0.5)) & (np.abs(theirs - 0.5) > 1e-5)).any()
            assert ours.any() == (theirs >= 0.5).any()
