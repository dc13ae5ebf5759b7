"""Full-size segmenters: export time, peak memory, file size, difference, TensorRT-RTX build, seconds per image.

    python benchmarks/segmenters.py [--models upernet,oneformer,mask2former] [--runs 3] [--skip "RTX build"]
        [--limit-s 1800] [--output table.md]

Each step of a model runs in a process of its own, so that peak memory is the export's own, and a step that fails or
runs out of time loses its own cells only; cells are printed as they come. Random weights in the official layout are
saved, exported as ``na-deploy export`` does, run on one image of random numbers by ONNX Runtime with the operator
library, on function bodies, and by PyTorch, and built by TensorRT-RTX where it is installed (no GPU is needed). A first
run of more than 15 s counts and is the only one. Steps that ``--skip`` names, or that the time or memory did not reach,
are dashes in the table.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from machine import describe_machine
from whole_networks import (
    Cells,
    Step,
    Work,
    built_engine,
    fastest,
    peak_memory,
    rows_of,
    run_step,
    show_rows,
)

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


def saved(work: Work) -> Cells:
    """Save a checkpoint, in a process whose memory does not count."""
    checkpoint(work.kind, CASES[work.kind], work.weights)
    return {}


def random_image(work: Work) -> dict[str, Any]:
    """Return the image that all run on."""
    import numpy as np

    side = CASES[work.kind].side
    return {"image": np.random.default_rng(0).normal(size=(1, 3, side, side)).astype(np.float32)}


def exported(work: Work) -> Cells:
    """Export a segmenter as users do."""
    from na_deploy.exporter import export
    from na_deploy.model_file.inspection import inspect_model

    case = CASES[work.kind]
    started = time.perf_counter()
    size = f"1x3x{case.side}x{case.side}"
    report = export(work.weights, work.model, arch=case.arch, dilations=case.dilations, input=size)
    return {
        "export": f"{time.perf_counter() - started:.1f} s",
        "peak memory": peak_memory(),
        "parameters": f"{inspect_model(work.model).parameters / 1e6:.1f} M",
        "file": f"{report.size / 1e6:.0f} MB",
        "difference": f"{report.difference:.1e}",
    }


def session_time(work: Work, column: str) -> Cells:
    """Time the file with the operator library, or on its function bodies."""
    import na_deploy

    feeds, own = random_image(work), column == "operator library"
    with na_deploy.load(work.model, custom_operators=own) as session:
        assert (session.library is not None) == own, "the operator library is not built"
        return {column: f"{fastest(lambda: session.run(feeds), work.runs):.2f} s"}


def torch_time(work: Work) -> Cells:
    """Time the checkpoint in PyTorch."""
    import torch

    from na_deploy.models import load_model

    case = CASES[work.kind]
    module = load_model(work.weights, arch=case.arch, dilations=case.dilations).module
    image = torch.from_numpy(random_image(work)["image"])
    with torch.inference_mode():
        return {"PyTorch, tiles": f"{fastest(lambda: module(image), work.runs):.2f} s"}


STEPS: dict[str, Step] = {
    "checkpoint": saved,
    "export": exported,
    "operator library": lambda work: session_time(work, "operator library"),
    "function bodies": lambda work: session_time(work, "function bodies"),
    "RTX build": lambda work: {"RTX build": built_engine(work.model)[1]},
    "PyTorch, tiles": torch_time,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(CASES))
    parser.add_argument("--runs", type=int, default=3, help="runs after one that is not counted; 0 counts the first")
    parser.add_argument("--skip", default="", help="steps to leave out, split by ';': 'RTX build;function bodies'")
    parser.add_argument("--limit-s", type=float, help="seconds for each model, after which its row stays as it is")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_step(STEPS, arguments.step, Work(arguments.child, arguments.folder, arguments.runs))
        return
    import torch

    machine = describe_machine(torch.get_num_threads())
    print(machine, flush=True)
    titles = {kind: CASES[kind] for kind in arguments.models.split(",")}
    rows = rows_of(
        __file__,
        {kind: {"model": case.title, "input": f"{case.side}×{case.side}"} for kind, case in titles.items()},
        [step for step in STEPS if step not in arguments.skip.split(";")],
        COLUMNS,
        runs=arguments.runs,
        limit_s=arguments.limit_s,
        output=arguments.output,
    )
    show_rows(machine, COLUMNS, rows, words=("model",), output=arguments.output)


if __name__ == "__main__":
    main()
