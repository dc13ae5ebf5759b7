"""Full-size segmenters: export time, peak memory, file size, difference, TensorRT-RTX build, seconds per image.

    python benchmarks/segmenters.py [--models upernet,oneformer,mask2former] [--runs 3] [--skip "RTX build"]
        [--limit-s 1800] [--output table.md]

Each model runs in a process of its own, so that peak memory is its own: random weights in the official layout are
saved, exported as ``na-deploy export`` does, built by TensorRT-RTX where it is installed (no GPU is needed), and run on
one image of random numbers by ONNX Runtime with the operator library, on function bodies, and by PyTorch. Steps that
``--skip`` names, or that the time or memory did not reach, are dashes in the table.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from machine import describe_machine
from whole_networks import built_engine, fastest, show_rows

COLUMNS = (
    "model", "input", "parameters", "file", "export", "peak memory", "difference", "RTX build",
    "operator library", "function bodies", "PyTorch, tiles",
)  # fmt: skip
MISSING = "–"
CELLS = "cells: "
"""Start of a child's lines that hold measurements."""


@dataclass(frozen=True)
class Case:
    """A published model: its name in words, backbone, dilations, image side, classes and queries."""

    title: str
    arch: str
    dilations: str
    side: int
    classes: int
    queries: int = 0


CASES = {
    "upernet": Case("UPerNet, DiNAT-Base", "dinat_base", "ade20k-512", 512, 150),
    "oneformer": Case("OneFormer, DiNAT-Large 11×11", "dinat_large_384_11x11", "oneformer-coco", 640, 133, 150),
    "mask2former": Case("Mask2Former, DiNAT-Large 11×11", "dinat_large_384_11x11", "mask2former", 1024, 150, 100),
}


def checkpoint(kind: str, case: Case, path: Path) -> None:
    """Save random weights in the official layout."""
    import torch

    from na_deploy.models import get_model
    from na_deploy.models.build import build_model
    from na_deploy.models.heads.deformable_pixel_decoder import DeformableConfig
    from na_deploy.models.heads.mask2former import Mask2FormerConfig
    from na_deploy.models.heads.oneformer import OneFormerConfig
    from na_deploy.models.heads.structure import HeadConfig, build_segmenter
    from na_deploy.models.heads.upernet import UPerNetConfig

    backbone = replace(get_model(case.arch).config, num_classes=0, out_indices=(0, 1, 2, 3))
    pixels = DeformableConfig(backbone.widths, 256, 256, layers=6, heads=8, feedforward=1024)
    decoder: dict[str, Any] = {"queries": case.queries, "hidden": 256, "layers": 9, "heads": 8, "feedforward": 2048}
    head: HeadConfig = UPerNetConfig(backbone.widths, 512, case.classes)
    if kind == "mask2former":
        head = Mask2FormerConfig(pixels, case.classes, **decoder)
    elif kind == "oneformer":
        head = OneFormerConfig(pixels, case.classes, query_layers=2, **decoder)
    network = build_segmenter(build_model(backbone), head)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in network.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            fan_in = value[0].numel() if value.dim() > 1 and not name.endswith(("rpb", "level_embed")) else 25
            value.copy_(noise * fan_in**-0.5 + (value.dim() == 1 and name.endswith("weight")))
    torch.save({"model": network.state_dict()}, path)


def measure(kind: str, runs: int, skip: Collection[str], folder: Path) -> Iterator[dict[str, str]]:
    """Export, build and run one model in this process; yield the row's cells as each becomes known."""
    import numpy as np

    import na_deploy
    from na_deploy.exporter import export
    from na_deploy.models import load_model

    case = CASES[kind]
    image = np.random.default_rng(0).normal(size=(1, 3, case.side, case.side)).astype(np.float32)
    weights, path = folder / f"{kind}.pth", folder / "model.onnx"
    subprocess.run([sys.executable, __file__, "--save", json.dumps([kind, str(weights)])], check=True)
    started = time.perf_counter()
    size = f"1x3x{case.side}x{case.side}"
    report = export(weights, path, arch=case.arch, dilations=case.dilations, input=size)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    yield {
        "model": case.title,
        "input": f"{case.side}×{case.side}",
        "file": f"{report.size / 1e6:.0f} MB",
        "export": f"{time.perf_counter() - started:.1f} s",
        "peak memory": f"{peak:.1f} GB",
        "difference": f"{report.difference:.1e}",
    }
    for name, custom in (("operator library", True), ("function bodies", False)):
        if name not in skip:
            with na_deploy.load(path, custom_operators=custom) as session:
                yield {name: f"{fastest(lambda: session.run({'image': image}), runs):.2f} s"}
    if "RTX build" not in skip:
        yield {"RTX build": built_engine(path)[1]}
    import torch

    module = load_model(weights, arch=case.arch, dilations=case.dilations).module
    yield {"parameters": f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.1f} M"}
    if "PyTorch, tiles" not in skip:
        with torch.inference_mode():
            yield {"PyTorch, tiles": f"{fastest(lambda: module(torch.from_numpy(image)), runs):.2f} s"}


def row(kind: str, runs: int, skip: str, limit_s: float | None) -> dict[str, str]:
    """Return a model's cells, measured in another process; dashes for the steps that its time did not reach."""
    cells = dict.fromkeys(COLUMNS, MISSING) | {"model": CASES[kind].title}
    command = [sys.executable, __file__, "--child", kind, "--runs", str(runs), "--skip", skip, "--folder"]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen([*command, folder], stdout=subprocess.PIPE, text=True, start_new_session=True) as child,
    ):
        assert child.stdout is not None
        timer = threading.Timer(limit_s or threading.TIMEOUT_MAX, os.killpg, (child.pid, signal.SIGKILL))
        timer.daemon = True
        timer.start()
        try:
            for line in child.stdout:
                if line.startswith(CELLS):
                    cells |= json.loads(line.removeprefix(CELLS))
                    print(cells, file=sys.stderr, flush=True)
            child.wait()
        except KeyboardInterrupt:
            os.killpg(child.pid, signal.SIGKILL)
            raise
    stopped = child.returncode == -signal.SIGKILL and not timer.is_alive()
    timer.cancel()
    if child.returncode and not stopped:
        print(f"{kind} ended with exit code {child.returncode}; its row holds the steps before", file=sys.stderr)
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(CASES))
    parser.add_argument("--runs", type=int, default=3, help="runs after one that is not counted; 0 counts the first")
    parser.add_argument("--skip", default="", help="columns to leave out, split by ';': 'RTX build;function bodies'")
    parser.add_argument("--limit-s", type=float, help="seconds for each model, after which its row stays as it is")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--save", help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.save:
        kind, path = json.loads(arguments.save)
        checkpoint(kind, CASES[kind], Path(path))
        return
    if arguments.child:
        for cells in measure(arguments.child, arguments.runs, arguments.skip.split(";"), arguments.folder):
            print(CELLS + json.dumps(cells), flush=True)
        return
    rows = [row(kind, arguments.runs, arguments.skip, arguments.limit_s) for kind in arguments.models.split(",")]
    import torch

    title = describe_machine(torch.get_num_threads())
    show_rows(title, COLUMNS, rows, words=("model",), output=arguments.output)


if __name__ == "__main__":
    main()
