"""Full-size detectors: export time, peak memory, file size, difference, TensorRT-RTX build, seconds per image.

    python benchmarks/detectors.py [--models mask_rcnn,cascade_mask_rcnn] [--runs 2] [--skip "RTX build;PyTorch"]
        [--limit-s 1080] [--output table.md]
    python benchmarks/detectors.py --small [--models faster_rcnn.fp32,mask_rcnn.free] [--output table.md]
    python benchmarks/detectors.py --regions

Each step of a model runs in a process of its own, so that peak memory is the export's own, and a step that fails or
runs out of time loses its own cells only; cells are printed as they come. Random weights in mmdetection's layout are
saved, exported as ``na-deploy export`` does, run on one image of random numbers (a picture of 800×1333, padded to
multiples of 32) by ONNX Runtime with the operator library, on function bodies, and by PyTorch, and built by
TensorRT-RTX where it is installed (no GPU is needed). A first run of more than 15 s counts and is the only one. The
share of attention, and of the loops (suppression, regions), is that of their nodes' time in ONNX Runtime's profile with
the operator library; "attention's" is its share of the multiply-adds, with one turn of each loop.

``--small`` exports narrow detectors in every form instead (kinds, backbones, free sizes, half precision), verifies and
builds each with TensorRT-RTX. ``--regions`` compares the regions of one picture with ONNX Runtime's own RoiAlign, which
it has up to opset 21, one for each map and a sum.
"""

from __future__ import annotations

import argparse
import json
import sys
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
    "model", "input", "parameters", "file", "multiply-adds", "attention's", "export", "peak memory", "difference",
    "RTX build", "operator library", "attention", "loops", "function bodies", "PyTorch, tiles",
)  # fmt: skip
SMALL_COLUMNS = ("model", "form", "operators", "difference", "sizes verified", "RTX layers", "RTX build")


@dataclass(frozen=True)
class Case:
    """A published model: its name in words, kind and backbone."""

    title: str
    kind: str
    arch: str


SIZE = (800, 1344)
CASES = {
    "mask_rcnn": Case("Mask R-CNN, DiNAT-Tiny", "mask_rcnn", "dinat_tiny"),
    "cascade_mask_rcnn": Case("Cascade Mask R-CNN, DiNAT-Large", "cascade_mask_rcnn", "dinat_large"),
}
SMALL = {
    f"{kind}.{name}": (Case(f"{title}, {family}", kind, family), form)
    for title, kind, family in (
        ("Faster R-CNN", "faster_rcnn", "nat"),
        ("Mask R-CNN", "mask_rcnn", "dinat"),
        ("Cascade R-CNN", "cascade_rcnn", "dinat_s"),
        ("Cascade Mask R-CNN", "cascade_mask_rcnn", "dinat"),
    )
    for name, form in {"fp32": {}, "free": {"dynamic": "batch,spatial"}, "fp16": {"dtype": "fp16"}}.items()
}


def checkpoint(case: Case, path: Path, *, small: bool = False) -> None:
    """Save random weights in mmdetection's layout, spread as its initialisation spreads them."""
    import torch

    from na_deploy.models import ModelConfig, get_model
    from na_deploy.models.build import build_model
    from na_deploy.models.detectors.heads import BoxHeadConfig, MaskHeadConfig
    from na_deploy.models.detectors.rcnn import RCNN, DetectorConfig
    from na_deploy.models.detectors.rpn import RPNConfig
    from na_deploy.models.detectors.stated import CASCADE_STDS

    if small:
        dilations = ((1, 2), (1,), (2,), (1,))
        backbone = ModelConfig(
            "dinat_s" if case.arch == "dinat_s" else "nat", 32, (2, 1, 1, 1), (1, 2, 4, 8), 3, dilations, 2.0,
            out_indices=(0, 1, 2, 3),
        )  # fmt: skip
        if case.arch == "nat":
            backbone = replace(backbone, dilations=((1, 1), (1,), (1,), (1,)))
    else:
        backbone = replace(get_model(case.arch).config, num_classes=0, out_indices=(0, 1, 2, 3))
    cascade, width, linear = case.kind.startswith("cascade"), 32 if small else 256, 64 if small else 1024
    heads = {"conv_widths": (width,) * 4, "fc_widths": (linear,), "batch_norm": True} if cascade else {}
    if small and not cascade:
        heads["fc_widths"] = (linear, linear)
    stds = CASCADE_STDS if cascade else CASCADE_STDS[:1]
    masks = MaskHeadConfig(width, 14, 80, (width,) * 4, width)
    config = DetectorConfig(
        in_widths=backbone.widths,
        levels=5,
        rpn=RPNConfig(width, width),
        boxes=tuple(BoxHeadConfig(width, 7, 80, stds=each, **heads) for each in stds),  # type: ignore[arg-type]
        masks=(masks,) * len(stds) if "mask" in case.kind else (),
        cascade=cascade,
    )
    network = RCNN(build_model(backbone), config)
    generator = torch.Generator().manual_seed(0)
    narrow = {"rpn_reg": 0.02, "rpn_cls": 0.2, "fc_reg": 0.05}
    with torch.no_grad():
        for name, value in network.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            fan_in = value[0].numel() if value.dim() > 1 and not name.endswith("rpb") else 25
            gain = next((gain for part, gain in narrow.items() if part in name), 1.0)
            value.copy_(noise * gain * fan_in**-0.5 + (value.dim() == 1 and name.endswith("weight")))
    torch.save({"state_dict": network.state_dict()}, path)


def saved(work: Work) -> Cells:
    """Save a checkpoint, in a process whose memory does not count."""
    small = work.kind in SMALL
    checkpoint(SMALL[work.kind][0] if small else CASES[work.kind], work.weights, small=small)
    return {}


def random_image() -> dict[str, Any]:
    """Return the image that all run on."""
    import numpy as np

    return {"image": np.random.default_rng(0).normal(size=(1, 3, *SIZE)).astype(np.float32)}


def exported(work: Work) -> Cells:
    """Export a detector as users do."""
    from na_deploy.exporter import export
    from na_deploy.model_file.inspection import inspect_model

    started = time.perf_counter()
    size = f"1x3x{SIZE[0]}x{SIZE[1]}"
    report = export(work.weights, work.model, arch=CASES[work.kind].arch, dilations="coco", input=size)
    seconds = time.perf_counter() - started
    peak = peak_memory()
    print({name: round(each, 1) for name, each in report.seconds.items()}, file=sys.stderr)
    print([case.remark for case in report.cases], file=sys.stderr, flush=True)
    found = inspect_model(work.model)
    total = found.attention_multiply_adds + found.other_multiply_adds
    return {
        "parameters": f"{found.parameters / 1e6:.1f} M",
        "file": f"{report.size / 1e6:.0f} MB",
        "multiply-adds": f"{total / 1e9:.0f} G",
        "attention's": f"{found.attention_share:.1%}",
        "export": f"{seconds:.0f} s",
        "peak memory": peak,
        "difference": f"{report.difference:.1e}",
    }


def session_time(work: Work, column: str) -> Cells:
    """Time the file with the operator library, or on its function bodies."""
    import na_deploy

    feeds, own = random_image(), column == "operator library"
    with na_deploy.load(work.model, custom_operators=own) as session:
        assert (session.library is not None) == own, "the operator library is not built"
        return {column: f"{fastest(lambda: session.run(feeds), work.runs):.2f} s"}


def torch_time(work: Work) -> Cells:
    """Time the checkpoint in PyTorch."""
    import torch

    from na_deploy.models import load_model

    module = load_model(work.weights, arch=CASES[work.kind].arch, dilations="coco").module
    image = torch.from_numpy(random_image()["image"])
    with torch.inference_mode():
        return {"PyTorch, tiles": f"{fastest(lambda: module(image), work.runs):.2f} s"}


def shares_of_time(work: Work) -> Cells:
    """Take the shares of attention and of loops in a run's time, with the operator library."""
    import onnxruntime as ort

    from na_deploy.runtime.native_libraries import onnxruntime_library, register

    settings = ort.SessionOptions()
    settings.enable_profiling = True
    settings.profile_file_prefix = str(work.folder / "profile")
    library = onnxruntime_library()
    assert library is not None, "the operator library is not built"
    register(settings, library)
    session = ort.InferenceSession(work.model, settings, providers=["CPUExecutionProvider"])
    fastest(lambda: session.run(None, random_image()), 1)
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    runs = [event for event in events if event["name"] == "model_run"]
    last = max(runs, key=lambda event: event["ts"])
    nodes = [event for event in events if event.get("cat") == "Node" and event["ts"] >= last["ts"]]
    kinds = ("NeighborhoodAttention", "Loop")
    own = {kind: [e for e in nodes if str(e.get("args", {}).get("op_name", "")).startswith(kind)] for kind in kinds}
    outermost: list[dict[str, Any]] = []
    for event in sorted(own["Loop"], key=lambda event: event["ts"]):
        if not outermost or event["ts"] >= outermost[-1]["ts"] + outermost[-1]["dur"]:
            outermost.append(event)
    attention, loops = (sum(event["dur"] for event in each) for each in (own["NeighborhoodAttention"], outermost))
    return {"attention": f"{attention / last['dur']:.0%}", "loops": f"{loops / last['dur']:.0%}"}


def proved(work: Work) -> Cells:
    """Export a narrow model in one form and build it."""
    from na_deploy.exporter import export
    from na_deploy.runtime.bundle.manifest import Profile

    case, form = SMALL[work.kind]
    dilations = None if case.arch == "nat" else "1,2/1/2/1"
    wishes: dict[str, Any] = {"dilations": dilations, "input": "1x3x192x256", **form}
    report = export(work.weights, work.model, arch=case.arch, **wishes)
    shapes = ((1, 3, 64, 64), (1, 3, 192, 256), (2, 3, 320, 400))
    profiles = {"image": Profile(*shapes)} if "dynamic" in form else None
    layers, engine = built_engine(work.model, profiles)
    return {
        "operators": str(report.nodes),
        "difference": f"{report.difference:.1e}",
        "sizes verified": ", ".join("×".join(map(str, each.input_shape)) for each in report.cases),
        "RTX layers": layers,
        "RTX build": engine,
    }


STEPS: dict[str, Step] = {
    "checkpoint": saved,
    "export": exported,
    "operator library": lambda work: session_time(work, "operator library"),
    "shares": shares_of_time,
    "function bodies": lambda work: session_time(work, "function bodies"),
    "RTX build": lambda work: {"RTX build": built_engine(work.model)[1]},
    "PyTorch": torch_time,
}
SMALL_STEPS: dict[str, Step] = {"checkpoint": saved, "proof": proved}


def compare_regions(runs: int) -> None:
    """Print seconds and difference of 1,000 regions cut by our graph and by ONNX Runtime's operator."""
    import numpy as np
    import onnxruntime as ort
    import torch
    from onnx import TensorProto, helper

    from na_deploy.models.detectors.regions import levels_of, region_features

    count, strides, generator = 1000, (4, 8, 16, 32), torch.Generator().manual_seed(0)
    maps = [torch.randn(1, 256, SIZE[0] // stride, SIZE[1] // stride, generator=generator) for stride in strides]
    side = torch.exp(torch.rand(count, generator=generator) * 3.5 + 2.5)  # 12 to 400 pixels
    ratio = torch.exp(torch.randn(count, generator=generator) * 0.5)
    sides = torch.stack(((side * ratio).clamp(max=SIZE[1] - 1), (side / ratio).clamp(max=SIZE[0] - 1)), 1)
    corner = torch.rand(count, 2, generator=generator) * (torch.tensor(SIZE[::-1]) - sides)
    boxes = torch.cat((corner, corner + sides), 1)

    class Regions(torch.nn.Module):
        def forward(self, *values: Any) -> Any:
            return region_features(values[:4], values[4], 7, strides, 56)

    given = (*maps, boxes[None])
    program = torch.onnx.export(Regions(), given, dynamo=True, opset_version=22, verbose=False)
    assert program is not None
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node(
            "RoiAlign", [f"map{level}", f"boxes{level}", "image"], [f"part{level}"], output_height=7, output_width=7,
            sampling_ratio=0, spatial_scale=1 / stride, coordinate_transformation_mode="half_pixel",
        )
        for level, stride in enumerate(strides)
    ]  # fmt: skip
    nodes.append(helper.make_node("Sum", [f"part{level}" for level in range(4)], ["regions"]))
    inputs = [info(f"map{level}", TensorProto.FLOAT, list(x.shape)) for level, x in enumerate(maps)]
    inputs += [info(f"boxes{level}", TensorProto.FLOAT, [count, 4]) for level in range(4)]
    inputs.append(info("image", TensorProto.INT64, [count]))
    outputs = [info("regions", TensorProto.FLOAT, [count, 256, 7, 7])]
    theirs = helper.make_model(
        helper.make_graph(nodes, "regions", inputs, outputs),
        opset_imports=[helper.make_opsetid("", 16)],
        ir_version=10,
    )
    level = levels_of(boxes, 4, 56)
    feeds: list[dict[str, Any]] = [{}, {f"map{number}": x.numpy() for number, x in enumerate(maps)}]
    feeds[1] |= {f"boxes{number}": (boxes * (level == number)[:, None]).numpy() for number in range(4)}
    feeds[1]["image"] = np.zeros(count, np.int64)
    results = []
    for name, model, feed in zip(("ours", "RoiAlign"), (program.model_proto, theirs), feeds, strict=True):
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        fed = feed or {i.name: x.numpy() for i, x in zip(session.get_inputs(), given, strict=True)}
        seconds = fastest(lambda session=session, fed=fed: session.run(None, fed), runs)
        results.append(session.run(None, fed)[0].reshape(count, 256, 7, 7))
        print(f"{name}: {seconds:.2f} s")
    difference = np.abs(results[0] - results[1]).max() / np.abs(results[1]).max()
    print(f"difference {difference:.1e} (relative), {describe_machine(torch.get_num_threads())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help=f"{', '.join(CASES)}; with --small {', '.join(SMALL)}")
    parser.add_argument("--runs", type=int, default=2, help="runs after one that is not counted; 0 counts the first")
    parser.add_argument("--skip", default="", help=f"steps to leave out, split by ';': {'; '.join(STEPS)}")
    parser.add_argument("--limit-s", type=float, help="seconds for each model, after which its row stays as it is")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--regions", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_step(STEPS | SMALL_STEPS, arguments.step, Work(arguments.child, arguments.folder, arguments.runs))
        return
    if arguments.regions:
        compare_regions(arguments.runs)
        return
    import torch

    machine = describe_machine(torch.get_num_threads())
    print(machine, flush=True)
    known = {name: {"model": case.title, "input": f"{SIZE[0]}×{SIZE[1]}"} for name, case in CASES.items()}
    columns, steps = COLUMNS, STEPS
    if arguments.small:
        known = {
            name: {"model": case.title, "form": ", ".join(form.values()) or "fp32"}
            for name, (case, form) in SMALL.items()
        }
        columns, steps = SMALL_COLUMNS, SMALL_STEPS
    wanted = arguments.models.split(",") if arguments.models else list(known)
    if unknown := set(wanted) - set(known):
        parser.error(f"there is no model {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    rows = rows_of(
        __file__,
        {name: known[name] for name in wanted},
        [step for step in steps if step not in arguments.skip.split(";")],
        columns,
        runs=arguments.runs,
        limit_s=arguments.limit_s,
        output=arguments.output,
    )
    words = ("model", "form", "sizes verified")
    show_rows(machine, columns, rows, words=words, output=arguments.output, width=240)


if __name__ == "__main__":
    main()
