"""Full-size detectors: export time, peak memory, file size, difference, TensorRT-RTX build, seconds per image.

    python benchmarks/detectors.py [--models mask_rcnn,cascade_mask_rcnn] [--runs 3] [--output table.md]
    python benchmarks/detectors.py --small [--output table.md]
    python benchmarks/detectors.py --regions

Each model runs in a process of its own, so that peak memory is its own: random weights in mmdetection's layout are
saved, exported as ``na-deploy export`` does, built by TensorRT-RTX where it is installed (no GPU is needed), and run on
one image of random numbers by ONNX Runtime with the operator library, on function bodies, and by PyTorch. The share of
attention, and of the loops (suppression, regions), is that of their nodes' time in ONNX Runtime's profile with the
operator library.

``--small`` exports narrow detectors in every form instead (kinds, backbones, free sizes, half precision), verifies and
builds each with TensorRT-RTX. ``--regions`` compares the regions of one picture with ONNX Runtime's own RoiAlign, which
it has up to opset 21, one for each map and a sum.
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
from whole_networks import built_engine, fastest, show_rows

COLUMNS = (
    "model", "input", "parameters", "file", "export", "peak memory", "difference", "RTX build",
    "operator library", "attention", "loops", "function bodies", "PyTorch, tiles",
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
SMALL = [
    (Case(f"{title}, {family}", kind, family), form)
    for title, kind, family in (
        ("Faster R-CNN", "faster_rcnn", "nat"),
        ("Mask R-CNN", "mask_rcnn", "dinat"),
        ("Cascade R-CNN", "cascade_rcnn", "dinat_s"),
        ("Cascade Mask R-CNN", "cascade_mask_rcnn", "dinat"),
    )
    for form in ({}, {"dynamic": "batch,spatial"}, {"dtype": "fp16"})
]


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


def saved(case: Case, folder: str, *, small: bool) -> Path:
    """Save a checkpoint in another process, whose memory does not count."""
    path = Path(folder) / f"{case.kind}_{case.arch}.pth"
    wanted = json.dumps([case.title, case.kind, case.arch, str(path), small])
    subprocess.run([sys.executable, __file__, "--save", wanted], check=True)
    return path


def measure(case: Case, runs: int) -> dict[str, str]:
    """Export, build and run one model in this process."""
    import numpy as np

    import na_deploy
    from na_deploy.exporter import export
    from na_deploy.models import load_model

    image = np.random.default_rng(0).normal(size=(1, 3, *SIZE)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        weights, path = saved(case, folder, small=False), Path(folder) / "model.onnx"
        started = time.perf_counter()
        report = export(weights, path, arch=case.arch, dilations="coco", input=f"1x3x{SIZE[0]}x{SIZE[1]}")
        exported = time.perf_counter() - started
        print(report.seconds, [case.remark for case in report.cases], file=sys.stderr)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
        _, engine = built_engine(path)
        seconds = {}
        for name, custom in (("operator library", True), ("function bodies", False)):
            with na_deploy.load(path, custom_operators=custom) as session:
                seconds[name] = fastest(lambda: session.run({"image": image}), runs)
        shares = shares_of_time(path, image)
        import torch

        module = load_model(weights, arch=case.arch, dilations="coco").module
        with torch.inference_mode():
            seconds["PyTorch, tiles"] = fastest(lambda: module(torch.from_numpy(image)), runs)
        parameters = sum(parameter.numel() for parameter in module.parameters())
        values = (
            case.title,
            f"{SIZE[0]}×{SIZE[1]}",
            f"{parameters / 1e6:.1f} M",
            f"{report.size / 1e6:.0f} MB",
            f"{exported:.0f} s",
            f"{peak:.1f} GB",
            f"{report.difference:.1e}",
            engine,
            f"{seconds['operator library']:.2f} s",
            *(f"{share:.0%}" for share in shares),
            f"{seconds['function bodies']:.2f} s",
            f"{seconds['PyTorch, tiles']:.2f} s",
        )
        return dict(zip(COLUMNS, values, strict=True))


def shares_of_time(path: Path, image: Any) -> tuple[float, float]:
    """Return the shares of attention and of loops in a run's time, with the operator library."""
    import onnxruntime as ort

    from na_deploy.runtime.native_libraries import onnxruntime_library, register

    settings = ort.SessionOptions()
    settings.enable_profiling = True
    settings.profile_file_prefix = str(path.with_suffix(""))
    library = onnxruntime_library()
    if library is not None:
        register(settings, library)
    session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    session.run(None, {"image": image})
    session.run(None, {"image": image})
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
    return attention / last["dur"], loops / last["dur"]


def prove(case: Case, form: dict[str, str]) -> dict[str, str]:
    """Export a narrow model in one form and build it."""
    from na_deploy.exporter import export
    from na_deploy.runtime.bundle.manifest import Profile

    with tempfile.TemporaryDirectory() as folder:
        weights, path = saved(case, folder, small=True), Path(folder) / "model.onnx"
        dilations = None if case.arch == "nat" else "1,2/1/2/1"
        wishes: dict[str, Any] = {"dilations": dilations, "input": "1x3x192x256", **form}
        report = export(weights, path, arch=case.arch, **wishes)
        shapes = ((1, 3, 64, 64), (1, 3, 192, 256), (2, 3, 320, 400))
        profiles = {"image": Profile(*shapes)} if "dynamic" in form else None
        layers, engine = built_engine(path, profiles)
        values = (
            case.title,
            ", ".join(form.values()) or "fp32",
            str(report.nodes),
            f"{report.difference:.1e}",
            ", ".join("×".join(map(str, each.input_shape)) for each in report.cases),
            layers,
            engine,
        )
        return dict(zip(SMALL_COLUMNS, values, strict=True))


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
    parser.add_argument("--models", default=",".join(CASES))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--regions", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--save", help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.save:
        title, kind, arch, path, small = json.loads(arguments.save)
        checkpoint(Case(title, kind, arch), Path(path), small=small)
        return
    if arguments.regions:
        compare_regions(arguments.runs)
        return
    if arguments.child and arguments.small:
        print(json.dumps(prove(*SMALL[int(arguments.child)])))
        return
    if arguments.child:
        print(json.dumps(measure(CASES[arguments.child], arguments.runs)))
        return
    rows = []
    for child in map(str, range(len(SMALL))) if arguments.small else arguments.models.split(","):
        command = [sys.executable, __file__, "--child", child, "--runs", str(arguments.runs)]
        command += ["--small"] if arguments.small else []
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], file=sys.stderr)
    import torch

    columns = SMALL_COLUMNS if arguments.small else COLUMNS
    title, words = describe_machine(torch.get_num_threads()), ("model", "form", "sizes verified")
    show_rows(title, columns, rows, words=words, output=arguments.output, width=220)


if __name__ == "__main__":
    main()
