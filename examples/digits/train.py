"""Trains a small NAT, dilated in part, on handwritten digits, and reports its accuracy on those it has not seen.

python examples/digits/train.py digits.pth [--epochs 40]

Takes two minutes. The checkpoint has the layout of mmpretrain's (``meta`` with class names and
configuration, ``state_dict``), under 1 MB, and ``na-deploy export digits.pth`` takes it. Gradients are those of the
operators, na_deploy.attention.torch_gradients.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from pictures import CLASSES, read
from torch import Tensor, nn
from torch.nn import functional

from na_deploy.models import ModelConfig, build_model
from na_deploy.models.preprocessing import Preprocessing
from na_deploy.runtime.images.prepare import prepare

SIDE = 32
MEAN, STD = 78.0, 95.0
NETWORK = ModelConfig(
    family="nat",
    embed_dim=32,
    depths=(2, 2),
    heads=(2, 4),
    kernel_size=3,
    dilations=((1, 2), (1, 1)),
    mlp_ratio=2.0,
    num_classes=len(CLASSES),
)
PREPARED = Preprocessing((SIDE, SIDE), "square", None, (MEAN,) * 3, (STD,) * 3, scale=1.0, interpolation="bicubic")
RATE = 4e-3
BATCH = 64

CONFIGURATION = f"""
model = dict(
    type="ImageClassifier",
    backbone=dict(type="DiNAT", embed_dim=32, mlp_ratio=2.0, depths=[2, 2], num_heads=[2, 4], kernel_size=3,
                  dilations=[[1, 2], [1, 1]]),
    data_preprocessor=dict(mean={[MEAN] * 3}, std={[STD] * 3}, to_rgb=True),
)
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=({SIDE}, {SIDE}), interpolation="bicubic"),
    dict(type="PackInputs"),
]
"""


def images(part: str) -> tuple[Tensor, Tensor]:
    """Return pictures as the network's input (N, 3, H, W) and their digits (N,)."""
    drawn, digits = read(part)  # type: ignore[arg-type]
    return torch.cat([torch.from_numpy(prepare(each, PREPARED)) for each in drawn]), torch.from_numpy(digits)


def moved(batch: Tensor) -> Tensor:
    """Turn, scale and shift each picture a little, at random."""
    count = len(batch)
    turn = (torch.rand(count) - 0.5) * math.radians(24)
    size = 1 + (torch.rand(count) - 0.5) * 0.2
    cosine, sine = torch.cos(turn) / size, torch.sin(turn) / size
    shift = (torch.rand(count, 2) - 0.5) * 0.2
    rows = [torch.stack([cosine, -sine, shift[:, 0]], 1), torch.stack([sine, cosine, shift[:, 1]], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(batch.shape), align_corners=False)
    return functional.grid_sample(batch, grid, padding_mode="border", align_corners=False)


def accuracy(network: nn.Module, inputs: Tensor, digits: Tensor) -> float:
    """Return the share of digits that the network's largest score names."""
    network.eval()
    with torch.inference_mode():
        found = torch.cat([network(part).argmax(1) for part in inputs.split(150)])
    network.train()
    return float((found == digits).float().mean())


def train(network: nn.Module, inputs: Tensor, digits: Tensor, epochs: int) -> None:
    """Train on moved pictures, and show a line for every tenth of the epochs."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.05)
    steps = math.ceil(len(inputs) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps * epochs, pct_start=0.15)
    started = time.perf_counter()
    for epoch in range(epochs):
        losses = []
        for chosen in torch.randperm(len(inputs)).split(BATCH):
            scores = network(moved(inputs[chosen]))
            loss = functional.cross_entropy(scores, digits[chosen], label_smoothing=0.02)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
        if (epoch + 1) % max(epochs // 10, 1) == 0:
            spent = time.perf_counter() - started
            print(f"epoch {epoch + 1} of {epochs}: loss {sum(losses) / len(losses):.3f}, {spent:.0f} s", flush=True)


def main() -> None:
    """Train, report and save."""
    parser = argparse.ArgumentParser(description="Train a small NAT on handwritten digits.")
    parser.add_argument("target", help="the checkpoint to write")
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # as fast as two at this size, and the same weights everywhere
    network = build_model(NETWORK).train()
    inputs, digits = images("training")
    print(f"{sum(weight.numel() for weight in network.parameters())} weights, {len(inputs)} pictures of {SIDE}×{SIDE}")
    train(network, inputs, digits, options.epochs)
    unseen, wanted = images("held-out")
    print(f"accuracy on {len(unseen)} pictures that training did not see: {accuracy(network, unseen, wanted):.2%}")
    meta = {"CLASSES": CLASSES, "config": CONFIGURATION}
    torch.save({"meta": meta, "state_dict": network.eval().state_dict()}, options.target)


if __name__ == "__main__":
    main()
