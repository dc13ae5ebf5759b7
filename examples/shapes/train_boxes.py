"""Trains a small NAT with Mask R-CNN on drawn shapes: boxes, classes and masks.

python examples/shapes/train_boxes.py boxes.pth [--minutes 12] [--backbone shapes.pth] [--start earlier.pth]

The backbone starts from the segmenter's, as published detectors start from a classifier's. One core does: two that wait
for each other on small tensors are slower. The checkpoint has the layout of mmdetection's, under 2 MB, and ``na-deploy
export boxes.pth`` takes it.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from boxes_loss import Objects, detector_loss
from draw import CLASSES, PALETTE, draw_objects
from torch import Tensor, nn
from train import BACKBONE, normalised, pipeline

from na_deploy.models import build_model
from na_deploy.models.detectors.heads import BoxHeadConfig, MaskHeadConfig
from na_deploy.models.detectors.rcnn import RCNN, DetectorConfig
from na_deploy.models.detectors.rpn import RPNConfig

KINDS = len(CLASSES) - 1
WIDTH = 32
DETECTOR = DetectorConfig(
    in_widths=(32, 64, 128),
    levels=3,
    rpn=RPNConfig(
        width=WIDTH,
        hidden=WIDTH,
        strides=(4, 8, 16),
        bases=(4, 8, 16),
        scales=(6,),
        candidates=200,
        proposals=60,
    ),
    boxes=(BoxHeadConfig(width=WIDTH, size=7, num_classes=KINDS, fc_widths=(64, 64)),),
    masks=(MaskHeadConfig(width=WIDTH, size=14, num_classes=KINDS, conv_widths=(32, 32), upsampled=32),),
    strides=(4, 8, 16),
    finest=24,
    detections=20,
    padded=False,
)
RATE = 2e-3
BACKBONE_RATE = 0.3
"""Share of the rate for the backbone, which is trained already."""
WARM = 50
"""Steps over which the rate rises."""
BATCH = 8
PICTURES = 1000

CONFIGURATION = f"""
model = dict(
    type="MaskRCNN",
    backbone=dict(type="NAT", embed_dim=32, mlp_ratio=2.0, depths=[2, 2, 1], num_heads=[1, 2, 4], kernel_size=7),
    neck=dict(type="FPN", in_channels=[32, 64, 128], out_channels={WIDTH}, num_outs=3),
    rpn_head=dict(
        type="RPNHead", in_channels={WIDTH}, feat_channels={WIDTH},
        anchor_generator=dict(type="AnchorGenerator", scales=[6], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16])),
    roi_head=dict(
        type="StandardRoIHead",
        bbox_roi_extractor=dict(
            type="SingleRoIExtractor", roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=0),
            out_channels={WIDTH}, featmap_strides=[4, 8, 16], finest_scale=24),
        bbox_head=dict(
            type="Shared2FCBBoxHead", in_channels={WIDTH}, fc_out_channels=64, roi_feat_size=7, num_classes={KINDS},
            bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_stds=[0.1, 0.1, 0.2, 0.2])),
        mask_roi_extractor=dict(
            type="SingleRoIExtractor", roi_layer=dict(type="RoIAlign", output_size=14, sampling_ratio=0),
            out_channels={WIDTH}, featmap_strides=[4, 8, 16], finest_scale=24),
        mask_head=dict(
            type="FCNMaskHead", num_convs=2, in_channels={WIDTH}, conv_out_channels=32, num_classes={KINDS})),
    test_cfg=dict(
        rpn=dict(nms_pre=200, max_per_img=60, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=20, mask_thr_binary=0.5)),
)
{pipeline(16)}"""


def draw(seeds: range) -> tuple[Tensor, Tensor, Tensor]:
    """Return pictures (N, 3, H, W), the shape of every pixel (N, H, W), and the shapes' classes (N, 6), all uint8."""
    drawn = [draw_objects(seed) for seed in seeds]
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture, _, _ in drawn]))
    numbers = torch.from_numpy(np.stack([numbers for _, numbers, _ in drawn]))
    kinds = torch.tensor([[0, *kinds, *[0] * (5 - len(kinds))] for _, _, kinds in drawn], dtype=torch.uint8)
    return pixels.permute(0, 3, 1, 2).contiguous(), numbers, kinds


def network_from(backbone: Path | None, start: Path | None) -> RCNN:
    """Return the detector, its backbone or all of it trained before."""
    network = RCNN(build_model(BACKBONE), DETECTOR)
    for module in network.rpn_head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
    for layer in (network.roi_head.box_heads[0].fc_cls, network.roi_head.box_heads[0].fc_reg):
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
    if start is not None:
        network.load_state_dict(torch.load(start, weights_only=True)["state_dict"])
    elif backbone is not None:
        weights = torch.load(backbone, weights_only=True)["state_dict"]
        own = {name.removeprefix("backbone."): x for name, x in weights.items() if name.startswith("backbone.")}
        network.backbone.load_state_dict(own)
    return network.train()


def train(network: RCNN, steps: int, minutes: float = math.inf, rate: float = RATE) -> Tensor:
    """Train on drawn pictures, turned and mirrored at random, for so many steps or minutes, whichever is over first.

    Returns:
        The five losses of every step, (steps, 5).
    """
    started = time.perf_counter()
    pixels, numbers, kinds = draw(range(PICTURES))
    print(f"{PICTURES} pictures drawn in {time.perf_counter() - started:.0f} s", flush=True)
    own = list(network.backbone.parameters())
    others = [weight for name, weight in network.named_parameters() if not name.startswith("backbone.")]
    groups = [{"params": own, "share": BACKBONE_RATE}, {"params": others, "share": 1.0}]
    optimiser = torch.optim.AdamW(groups, lr=rate, weight_decay=0.02)
    started, parts = time.perf_counter(), []
    for step in range(steps):
        spent = time.perf_counter() - started
        done = max(step / steps, spent / (60 * minutes))
        if done >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = rate * group["share"] * min((step + 1) / WARM, 0.5 + 0.5 * math.cos(math.pi * done))
        chosen = torch.randint(len(pixels), (BATCH,))
        turns, mirrored = int(torch.randint(4, ())), bool(torch.randint(2, ()))
        images, shapes = pixels[chosen].rot90(turns, (2, 3)), numbers[chosen].rot90(turns, (1, 2))
        if mirrored:
            images, shapes = images.flip(3), shapes.flip(2)
        losses = detector_loss(network, normalised(images), Objects.of(shapes, kinds[chosen]))
        optimiser.zero_grad(set_to_none=True)
        losses.sum().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        parts.append(losses.detach())
        if (step + 1) % 50 == 0 or step + 1 == steps:
            mean = " ".join(f"{value:.3f}" for value in torch.stack(parts[-50:]).mean(0).tolist())
            print(f"step {step + 1} of {steps}: losses {mean}, {spent:.0f} s, {done:.0%} done", flush=True)
    return torch.stack(parts)


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description="Train a small NAT with Mask R-CNN on drawn shapes.")
    parser.add_argument("target", help="the checkpoint to write")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after, at the latest")
    parser.add_argument("--rate", type=float, default=RATE, help="largest learning rate")
    parser.add_argument("--backbone", type=Path, default=Path(__file__).with_name("shapes.pth"))
    parser.add_argument("--start", type=Path, help="a checkpoint to go on from")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = network_from(options.backbone, options.start)
    parameters = sum(weight.numel() for weight in network.parameters())
    print(f"{parameters} weights; pictures of 128×128, {BATCH} a step")
    print("losses: proposals' scores and boxes, classes, boxes, masks")
    train(network, options.steps, options.minutes, options.rate)
    meta = {"CLASSES": CLASSES[1:], "PALETTE": [list(colour) for colour in PALETTE[1:]], "config": CONFIGURATION}
    torch.save({"meta": meta, "state_dict": network.eval().state_dict()}, options.target)


if __name__ == "__main__":
    main()
