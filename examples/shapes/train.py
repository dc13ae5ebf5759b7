"""Trains a small NAT with an UPerNet head on drawn shapes, and reports its mIoU on pictures it has not seen.

python examples/shapes/train.py shapes.pth [--steps 1600,800,800] [--minutes 20] [--start earlier.pth]

Each number of steps is a course in which the learning rate rises, and falls to zero; the next course begins anew where
it ended. Without options that is about 19 minutes on one core, 0.35 s a step. Random numbers are seeded, so a machine
gives the same checkpoint each time, as long as --minutes does not cut it short. The checkpoint has
the layout of mmsegmentation's, under 2 MB, and ``na-deploy export shapes.pth`` takes it.
"""

from __future__ import annotations

import argparse
import json
import math
import time

import numpy as np
import torch
from draw import CLASSES, PALETTE, UNSEEN, draw_picture
from torch import Tensor, nn
from torch.nn import functional

from na_deploy.models import ModelConfig, build_model
from na_deploy.models.heads.upernet import UPerNet, UPerNetConfig
from na_deploy.models.preprocessing import IMAGENET_MEAN_255, IMAGENET_STD_255
from na_deploy.runtime.evaluation.id_maps import confusion, intersection_over_union

BACKBONE = ModelConfig(
    family="nat",
    embed_dim=32,
    depths=(2, 2, 1),
    heads=(1, 2, 4),
    kernel_size=7,
    dilations=((1, 1), (1, 1), (1,)),
    mlp_ratio=2.0,
    num_classes=0,
    out_indices=(0, 1, 2),
)
HEAD = UPerNetConfig(in_widths=(32, 64, 128), width=32, num_classes=len(CLASSES))
RATE = 2e-3
BATCH = 8
PICTURES = 1000
WEIGHTS = (0.4, 1.0, 1.0, 1.0, 1.0)
"""Of the classes in the loss: most pixels are ground."""


def pipeline(divisor: int) -> str:
    """Return a checkpoint's text on the preparation of pictures, whose sides become multiples of ``divisor``."""
    return f"""img_norm_cfg = dict(mean={list(IMAGENET_MEAN_255)}, std={list(IMAGENET_STD_255)}, to_rgb=True)
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="MultiScaleFlipAug", img_scale=(512, 128), flip=False, transforms=[
        dict(type="Resize", keep_ratio=True),
        dict(type="Normalize", **img_norm_cfg),
        dict(type="Pad", size_divisor={divisor}),
    ]),
]
"""


CONFIGURATION = f"""
model = dict(
    type="EncoderDecoder",
    backbone=dict(type="NAT", embed_dim=32, mlp_ratio=2.0, depths=[2, 2, 1], num_heads=[1, 2, 4], kernel_size=7),
    decode_head=dict(type="UPerHead", in_channels=[32, 64, 128], channels=32, num_classes={len(CLASSES)},
                     pool_scales=(1, 2, 3, 6), align_corners=False),
)
{pipeline(8)}"""


def draw(seeds: range) -> tuple[Tensor, Tensor]:
    """Return pictures (N, 3, H, W) and their classes (N, H, W), both uint8."""
    drawn = [draw_picture(seed) for seed in seeds]
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture, _ in drawn]))
    return pixels.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(np.stack([classes for _, classes in drawn]))


def normalised(pixels: Tensor) -> Tensor:
    """Return pictures as the network's input."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN_255, IMAGENET_STD_255))
    return (pixels - mean) / std


def mean_iou(network: nn.Module, count: int = 200) -> list[float]:
    """Return the intersection over union of each class on unseen pictures."""
    network.eval()
    counts = np.zeros((len(CLASSES), len(CLASSES) + 1), np.int64)
    with torch.inference_mode():
        for start in range(UNSEEN, UNSEEN + count, 20):
            pixels, classes = draw(range(start, min(start + 20, UNSEEN + count)))
            found = network(normalised(pixels)).argmax(1).numpy()
            counts += confusion(classes.numpy().astype(np.int32), found, len(CLASSES))
    network.train()
    return intersection_over_union(counts).tolist()


def train(
    network: nn.Module, pixels: Tensor, classes: Tensor, steps: int, minutes: float = math.inf, rate: float = RATE
) -> None:
    """Train on pictures, turned and mirrored at random, for so many steps or minutes, whichever is over first."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.02)
    warm = 50
    started, losses = time.perf_counter(), []
    for step in range(steps):
        spent = time.perf_counter() - started
        done = max(step / steps, spent / (60 * minutes))
        if done >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = rate * min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * done))
        chosen = torch.randint(len(pixels), (BATCH,))
        turns, mirrored = int(torch.randint(4, ())), bool(torch.randint(2, ()))
        images, wanted = pixels[chosen].rot90(turns, (2, 3)), classes[chosen].rot90(turns, (1, 2))
        if mirrored:
            images, wanted = images.flip(3), wanted.flip(2)
        loss = functional.cross_entropy(network(normalised(images)), wanted.long(), torch.tensor(WEIGHTS))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 100 == 0 or step + 1 == steps:
            mean = sum(losses[-100:]) / len(losses[-100:])
            print(f"step {step + 1} of {steps}: loss {mean:.3f}, {spent:.0f} s, {done:.0%} done", flush=True)


def main() -> None:
    """Train, report and save."""
    parser = argparse.ArgumentParser(description="Train a small NAT with UPerNet on drawn shapes.")
    parser.add_argument("target", help="the checkpoint to write")
    parser.add_argument(
        "--steps",
        default="1600,800,800",
        help="steps of each course, one after the other; about 0.35 s each on one core, 19 minutes by default",
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after, with the courses cut in proportion")
    parser.add_argument("--rate", type=float, default=RATE, help="largest learning rate")
    parser.add_argument("--start", help="a checkpoint to go on from")
    options = parser.parse_args()
    torch.manual_seed(0)
    network = UPerNet(build_model(BACKBONE), HEAD).train()
    if options.start is not None:
        network.load_state_dict(torch.load(options.start, weights_only=True)["state_dict"])
    parameters = sum(weight.numel() for weight in network.parameters())
    print(f"{parameters} weights; pictures of 128×128, {BATCH} a step")
    started = time.perf_counter()
    pixels, classes = draw(range(PICTURES))
    print(f"{PICTURES} pictures drawn in {time.perf_counter() - started:.0f} s", flush=True)
    courses = [int(steps) for steps in options.steps.split(",")]
    for steps in courses:
        train(network, pixels, classes, steps, options.minutes * steps / sum(courses), options.rate)
    found = mean_iou(network)
    print(json.dumps(dict(zip(CLASSES, (round(value, 3) for value in found), strict=True))))
    print(f"mIoU on 200 unseen pictures: {sum(found) / len(found):.3f}")
    meta = {"CLASSES": CLASSES, "PALETTE": [list(colour) for colour in PALETTE], "config": CONFIGURATION}
    torch.save({"meta": meta, "state_dict": network.eval().state_dict()}, options.target)


if __name__ == "__main__":
    main()
