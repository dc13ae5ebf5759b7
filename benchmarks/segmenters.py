"""Full-size segmenters: export time, peak memory, file size, difference, TensorRT-RTX build, seconds per image.

    python benchmarks/segmenters.py [--models upernet,oneformer,mask2former] [--runs 3] [--output table.md]

Each model runs in a process of its own, so that peak memory is its own: random weights in the official layout are
saved, exported as ``na-deploy export`` does, built by TensorRT-RTX where it is installed (no GPU is needed), and run on
one image of random numbers by ONNX Runtime with the operator library, on function bodies, and by PyTorch.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from machine import describe_machine
from rich.console import Console
from rich.table import Table

COLUMNS = (
    "model", "input", "parameters", "file", "export", "peak memory", "difference", "RTX build",
    "operator library", "function bodies", "PyTorch, tiles",
)  # fmt: skip


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


def measure(kind: str, runs: int) -> dict[str, str]:
    """Export, build and run one model in this process."""
    import numpy as np

    import na_deploy
    from na_deploy.errors import MissingDependencyError
    from na_deploy.exporter import export
    from na_deploy.models import load_model
    from na_deploy.runtime.building.options import BuildOptions
    from na_deploy.runtime.tensorrt.api import RTX
    from na_deploy.runtime.tensorrt.building import build_engine

    case = CASES[kind]
    image = np.random.default_rng(0).normal(size=(1, 3, case.side, case.side)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        weights, path = Path(folder) / f"{kind}.pth", Path(folder) / "model.onnx"
        subprocess.run([sys.executable, __file__, "--save", json.dumps([kind, str(weights)])], check=True)
        started = time.perf_counter()
        size = f"1x3x{case.side}x{case.side}"
        report = export(weights, path, arch=case.arch, dilations=case.dilations, input=size)
        exported = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
        try:
            built = build_engine(path, Path(folder) / "model.engine", BuildOptions(RTX.backend, timeout_s=3600))
            engine = f"{built.parse_seconds + built.build_seconds:.1f} s"
        except MissingDependencyError:
            engine = "–"
        seconds = {}
        for name, custom in (("operator library", True), ("function bodies", False)):
            with na_deploy.load(path, custom_operators=custom) as session:
                seconds[name] = fastest(lambda: session.run({"image": image}), runs)
        import torch

        module = load_model(weights, arch=case.arch, dilations=case.dilations).module
        with torch.inference_mode():
            seconds["PyTorch, tiles"] = fastest(lambda: module(torch.from_numpy(image)), runs)
        parameters = sum(parameter.numel() for parameter in module.parameters())
        values = (
            case.title,
            f"{case.side}×{case.side}",
            f"{parameters / 1e6:.1f} M",
            f"{report.size / 1e6:.0f} MB",
            f"{exported:.1f} s",
            f"{peak:.1f} GB",
            f"{report.difference:.1e}",
            engine,
            *(f"{value:.2f} s" for value in seconds.values()),
        )
        return dict(zip(COLUMNS, values, strict=True))


def fastest(call: Any, runs: int) -> float:
    """Return the shortest of some runs, after one that is not counted."""
    call()
    taken = []
    for _ in range(runs):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(CASES))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--save", help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.save:
        kind, path = json.loads(arguments.save)
        checkpoint(kind, CASES[kind], Path(path))
        return
    if arguments.child:
        print(json.dumps(measure(arguments.child, arguments.runs)))
        return
    rows = []
    for kind in arguments.models.split(","):
        command = [sys.executable, __file__, "--child", kind, "--runs", str(arguments.runs)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], file=sys.stderr)
    import torch

    table = Table(title=describe_machine(torch.get_num_threads()))
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        table.add_row(*(row[column] for column in COLUMNS))
    Console(width=200).print(table)
    if arguments.output:
        lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        lines += ["| " + " | ".join(row[column] for column in COLUMNS) + " |" for row in rows]
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
