"""Speed and accuracy of quantized files.

    python benchmarks/quantization.py speed [--models nat_mini,nat_tiny] [--batch 1,8] [--folder kept]
    python benchmarks/quantization.py split [--models nat_mini] [--folder kept]
    python benchmarks/quantization.py accuracy [--models digits] [--calibrations minmax,entropy]
    python benchmarks/quantization.py traffic [--models nat_mini] [--folder kept]

``speed``: networks with random weights at 224×224, in float32 and int8, in ONNX Runtime and in OpenVINO, with the
operator libraries and without (function bodies; the flat file in OpenVINO); where nncf can be imported (it may lie in a
folder of its own, ``PYTHONPATH=folder``), also OpenVINO's own int8 of the float file (post-training, its preset for
transformers), with attention in the library and in standard operators. Candidates take turns in one process, one
thread each; medians of processor time, which other programs disturb least, and ratios to float32 in ONNX Runtime with
the library. Each network and batch is printed when it is measured, a candidate that fails in words. ``split``: shares
of the int8 file's time by kind of node. ``accuracy``: the trained reader of digits by format, target and calibration,
on the 450 held-out pictures, and mIoU of the trained segmenter of shapes on 200. ``traffic``: what an int8 output of
attention would save.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from machine import describe_machine
from rich.console import Console
from rich.table import Table

import na_deploy
from na_deploy.exporter import export
from na_deploy.model_file.differences import worst_difference
from na_deploy.models import ModelConfig, load_model, random_checkpoint
from na_deploy.models.registry import get_model
from na_deploy.runtime.quantization.calibration import open_float
from na_deploy.runtime.quantization.choices import METHODS
from na_deploy.runtime.quantization.quantize import QuantizationOptions, quantize

EXAMPLES = Path(__file__).parents[1] / "examples"
CONSOLE = Console(width=160)
SIDE = 224
THREADS = 1
FIRST = "ONNX Runtime, operator library, float32"
EXACT = "ONNX Runtime, function bodies, float32"
KEPT: list[Any] = []
"""Sessions and graphs that compiled models run on."""

Run = Callable[[np.ndarray], Any]


def made(name: str, folder: Path, count: int) -> tuple[Path, Path]:
    """Export a network and quantize it on random inputs, where the folder does not have it yet; print the seconds."""
    floats, int8, data = (folder / f"{name}{end}" for end in (".onnx", "_int8.onnx", ".npz"))
    if not floats.exists():
        started = time.perf_counter()
        random_checkpoint(get_model(name).config, seed=0, path=folder / f"{name}.pth")
        export(load_model(folder / f"{name}.pth", arch=name), floats, dynamic="batch")
        CONSOLE.print(f"{name}: exported in {time.perf_counter() - started:.0f} s")
    np.savez(data, image=samples(count))
    if not int8.exists():
        started = time.perf_counter()
        report = quantize(floats, int8, data=data)
        steps = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in report.seconds.items())
        CONSOLE.print(f"{name}: quantized on {count} inputs in {time.perf_counter() - started:.0f} s ({steps})")
    sizes = [path.stat().st_size / 1e6 for path in (floats, int8)]
    CONSOLE.print(f"{name}: {sizes[0]:.1f} MB in float32, {sizes[1]:.1f} MB in int8")
    return floats, int8


def samples(count: int) -> np.ndarray:
    """Return the inputs that all quantize on."""
    return np.random.default_rng(1).standard_normal((count, 3, SIDE, SIDE), dtype=np.float32)


def with_nncf(model: Path, inputs: np.ndarray, own: bool) -> Run:
    """Quantize a float file by OpenVINO's NNCF; attention runs in the operator library or in standard operators."""
    import nncf
    import openvino

    from na_deploy.runtime.openvino.reading import read_graph
    from na_deploy.runtime.session import SessionOptions

    core = openvino.Core()
    graph = read_graph(core, model, onnx.load(model), SessionOptions(custom_operators=own), bfloat16=False)
    assert (graph.library is not None) == own, "the operator library for OpenVINO is not built"
    data = nncf.Dataset(list(inputs), lambda sample: {"image": sample[None]})
    started = time.perf_counter()
    network = nncf.quantize(  # of a copy, which has no nodes but those that are reached
        graph.model.clone(), data, subset_size=len(inputs), model_type=nncf.ModelType.TRANSFORMER
    )
    CONSOLE.print(f"NNCF on {len(inputs)} inputs, library {own}: {time.perf_counter() - started:.1f} s")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": THREADS}
    compiled = core.compile_model(network, "CPU", settings)
    if graph.nodes is not None:
        graph.nodes.is_compiled = True
    KEPT.append(graph)
    return lambda image: compiled({"image": image})["logits"]


def processor_times(candidates: Mapping[str, Callable[[], Any]], rounds: int, budget: float) -> dict[str, float]:
    """Return each candidate's median milliseconds of processor time; they take turns.

    After a turn that is not counted, as many follow as the budget of seconds holds: at least 3, at most ``rounds``.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    names, started = list(candidates), time.perf_counter()
    turn, most = -1, 3
    while turn < most:
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            before = time.process_time()
            candidates[name]()
            if turn >= 0:
                times[name].append(1e3 * (time.process_time() - before))
        if turn < 0:
            most = min(rounds, max(3, int(budget / (time.perf_counter() - started))))
        turn += 1
    return {name: float(np.median(each)) for name, each in times.items()}


def opened(path: Path, backend: str, own: bool) -> Run:
    """Open a file in a runtime; with ``own`` it must run in the operator library."""
    precision = {"precision": "f32"} if backend == "openvino" else {}
    session = na_deploy.load(path, backend, threads=THREADS, custom_operators=own, **precision)
    assert (session.library is not None) == own, f"the operator library for {backend} is not built"
    KEPT.append(session)
    return lambda image: session.run({"image": image})["logits"]


def candidates(floats: Path, int8: Path, inputs: np.ndarray) -> dict[str, Run]:
    """Return every way of running a network, by name; those that fail are printed and left out."""
    ways: dict[str, Callable[[], Run]] = {}
    for backend, title, plain in (
        ("onnxruntime", "ONNX Runtime", "function bodies"),
        ("openvino", "OpenVINO", "flat file"),
    ):
        for own in (True, False):
            for label, path in (("float32", floats), ("int8", int8)):
                name = f"{title}, {'operator library' if own else plain}, {label}"
                ways[name] = lambda path=path, backend=backend, own=own: opened(path, backend, own)
    for own in (True, False):
        name = f"OpenVINO, {'operator library' if own else 'flat file'}, int8 by NNCF"
        ways[name] = lambda own=own: with_nncf(floats, inputs, own)
    found = {}
    for name, way in ways.items():
        try:
            found[name] = way()
        except Exception as error:
            CONSOLE.print(f"{name}: left out, {type(error).__name__}: {error}", markup=False)
    return found


def speed(models: list[str], options: argparse.Namespace) -> None:
    """Print the times of every network and batch."""
    for name in models:
        with tempfile.TemporaryDirectory() as text:
            folder = options.folder or Path(text)
            floats, int8 = made(name, folder, options.samples)
            runs = candidates(floats, int8, samples(options.samples))
            for batch in map(int, options.batch.split(",")):
                image = np.random.default_rng(2).standard_normal((batch, 3, SIDE, SIDE), dtype=np.float32)
                expected = {"logits": np.asarray(runs[EXACT](image))}
                turns = {label: (lambda run=run, image=image: run(image)) for label, run in runs.items()}
                times = processor_times(turns, options.rounds, options.budget)
                table = Table("candidate", "ms", "of float32", "difference", title=f"{name}, batch {batch}")
                for label, run in runs.items():
                    found = worst_difference({"logits": np.asarray(run(image))}, expected).relative
                    table.add_row(label, f"{times[label]:.1f}", f"{times[label] / times[FIRST]:.2f}", f"{found:.1e}")
                CONSOLE.print(table)
            del runs
            KEPT.clear()


def accuracy(models: list[str], calibrations: list[str]) -> None:
    """Print the accuracy of the committed models by format."""
    sys.path.insert(0, str(EXAMPLES / "digits"))
    sys.path.insert(0, str(EXAMPLES / "shapes"))
    import pictures
    from draw import draw_folder

    from na_deploy.runtime.evaluation.class_folders import ClassFolders
    from na_deploy.runtime.evaluation.compare import Target, evaluate
    from na_deploy.runtime.evaluation.id_maps import IdMaps

    forms = [
        QuantizationOptions(kind, target, calibration)
        for kind, target in (("int8", "any"), ("int8", "tensorrt"), ("int8", "cpu"), ("fp8", "tensorrt"))
        for calibration in calibrations
    ]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for part in ("training", "held-out"):
            pictures.write(folder / part, part)
        if "shapes" in models:
            draw_folder(folder / "seen", 64, first=1)
            draw_folder(folder / "unseen", 200)
        for model, images, make_data in (
            ("digits", folder / "training", lambda: ClassFolders(folder / "held-out")),
            (
                "shapes",
                folder / "seen" / "images",
                lambda: IdMaps(folder / "unseen" / "images", folder / "unseen" / "maps"),
            ),
        ):
            if model not in models:
                continue
            data = make_data()
            checkpoint = EXAMPLES / model / f"{model}.pth"
            files = {dtype: folder / f"{model}_{dtype}.onnx" for dtype in ("fp32", "fp16")}
            for dtype, path in files.items():
                na_deploy.export(checkpoint, path, dtype=dtype)
            targets = [Target("PyTorch", checkpoint), *(Target(dtype, path) for dtype, path in files.items())]
            notes = {}
            for form in forms if model == "digits" else forms[:: len(calibrations)]:
                label = f"{form.kind}, {form.target}, {form.calibration}"
                path = folder / f"{model}_{form.kind}_{form.target}_{form.calibration}.onnx"
                report = quantize(files["fp32"], path, form, images=images)
                notes[label] = report.seconds["calibrate"]
                targets.append(Target(label, path))
            table = Table("form", "quality", "calibration", title=f"{model}: {data.name.split(' in ')[0]}")
            for row in evaluate(targets, data).rows:
                share = next(iter(row.figures.overall[""].values()))
                spent = f"{notes[row.label]:.1f} s" if row.label in notes else ""
                table.add_row(row.label, f"{100 * (share or 0):.2f} %", spent)
            CONSOLE.print(table)


def traffic(names: list[str], kept: Path | None, count: int) -> None:
    """Print what an int8 output of attention would save: bytes of a block on a GPU, and time on this processor.

    Bytes for each token and channel, fp16 between int8 products, pointwise steps fused into what is before them:
    attention reads 6 and writes 2; its output is then rounded (2 read, 1 written). An int8 output is written once, at 1
    byte, so 4 of 11 go. A block is norm 3, qkv 1 + 6, attention 8, rounding 3, proj 1 + 2 + 2, norm 3, fc1 1 + r, fc2
    r + 2 + 2 with the MLP's ratio r.
    """
    title = "An int8 output of attention saves"
    table = Table(
        "network", "MB a picture", "of attention and rounding", "of all blocks", "of the time here", title=title
    )
    for name in names:
        config: ModelConfig = get_model(name).config
        levels = zip(config.level_sizes(SIDE, SIDE), config.widths, config.depths, strict=True)
        values = sum(depth * height * width * channels for (height, width), channels, depth in levels)
        block = 3 + 7 + 8 + 3 + 5 + 3 + (1 + config.mlp_ratio) + (config.mlp_ratio + 4)
        with tempfile.TemporaryDirectory() as text:
            _, int8 = made(name, kept or Path(text), count)
            share = rounding_after_attention(int8)
        table.add_row(name, f"{4 * values / 1e6:.1f}", f"{4 / 11:.0%}", f"{4 / block:.1%}", f"{share:.1%}")
    CONSOLE.print(table)


def rounding_after_attention(int8: Path) -> float:
    """Return the share of an int8 model's time, batch 1, in rounding the outputs of attention."""
    model = onnx.load(int8)
    outputs = {node.output[0] for node in model.graph.node if node.domain == "na_deploy"}
    outputs |= {node.output[0] for node in model.graph.node if node.input and node.input[0] in outputs}
    # ONNX Runtime moves the node in front of a Reshape, under a name of its own.
    rounding = {f"{name}_q" for name in outputs}
    rounding |= {
        node.name for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] in outputs
    }
    times = node_times(model)
    found = rounding & times.keys()
    layers = sum(node.domain == "na_deploy" for node in model.graph.node)
    assert len(found) == layers, f"{len(found)} nodes round the outputs of {layers} layers"
    return sum(times[name][1] for name in found) / sum(each for _, each in times.values())


def node_times(model: onnx.ModelProto, runs: int = 20) -> dict[str, tuple[str, float]]:
    """Return the operator and the median microseconds of each node of a model at batch 1, by ONNX Runtime's profile."""
    with tempfile.TemporaryDirectory() as text:
        settings = {"enable_profiling": True, "profile_file_prefix": f"{text}/profile", "intra_op_num_threads": THREADS}
        session = open_float(model, **settings)
        image = np.random.default_rng(2).standard_normal((1, 3, SIDE, SIDE), dtype=np.float32)
        for _ in range(runs):
            session.run(None, {"image": image})
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[str, list[float]] = {}
    operators: dict[str, str] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            times.setdefault(name, []).append(event["dur"])
            operators[name] = event["args"]["op_name"]
    return {name: (operators[name], float(np.median(each))) for name, each in times.items()}


SORTS = {
    "integer products": ("MatMulIntegerToFloat", "QGemm", "MatMulInteger", "QLinearMatMul", "DynamicQuantizeMatMul"),
    "attention": ("NeighborhoodAttentionQKV", "NeighborhoodAttention"),
    "additions of biases and residuals": ("Add", "QLinearAdd"),
    "GELU": ("Gelu", "BiasGelu", "QuickGelu", "FastGelu"),
    "normalisation": ("LayerNormalization", "SkipLayerNormalization"),
    "convolutions": ("QLinearConv", "Conv", "ConvInteger"),
    "rounding and widening": ("QuantizeLinear", "DequantizeLinear"),
}


def split(names: list[str], kept: Path | None, count: int) -> None:
    """Print the shares of the int8 files' time by kind of node."""
    table = Table("network", *SORTS, "others", title="Shares of the int8 file's time, batch 1, ONNX Runtime")
    for name in names:
        with tempfile.TemporaryDirectory() as text:
            times = node_times(onnx.load(made(name, kept or Path(text), count)[1]))
        total = sum(each for _, each in times.values())
        shares = [sum(each for kind, each in times.values() if kind in kinds) / total for kinds in SORTS.values()]
        table.add_row(name, *(f"{share:.1%}" for share in (*shares, 1 - sum(shares))))
        others: dict[str, float] = {}
        for kind, each in times.values():
            if not any(kind in kinds for kinds in SORTS.values()):
                others[kind] = others.get(kind, 0.0) + each / total
        most = sorted(others.items(), key=lambda item: -item[1])[:5]
        CONSOLE.print(f"{name}: others are {', '.join(f'{kind} {share:.1%}' for kind, share in most)}")
    CONSOLE.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("speed", "split", "accuracy", "traffic"))
    parser.add_argument("--models", help="nat_mini,nat_tiny by default; for accuracy digits,shapes")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--folder", type=Path, help="where exported files are kept and found again")
    parser.add_argument("--samples", type=int, default=8, help="random inputs that int8 is calibrated on")
    parser.add_argument("--rounds", type=int, default=20, help="most turns of a network and batch")
    parser.add_argument("--budget", type=float, default=60, help="seconds for these turns; 3 are taken at least")
    parser.add_argument("--calibrations", default=",".join(METHODS))
    options = parser.parse_args()
    models = (options.models or ("digits,shapes" if options.part == "accuracy" else "nat_mini,nat_tiny")).split(",")
    CONSOLE.print(describe_machine(THREADS))
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    if options.part == "speed":
        speed(models, options)
    elif options.part == "accuracy":
        accuracy(models, options.calibrations.split(","))
    else:
        {"split": split, "traffic": traffic}[options.part](models, options.folder, options.samples)


if __name__ == "__main__":
    main()
