"""Speed and accuracy of quantized files.

    python benchmarks/quantization.py speed [--models nat_mini,nat_tiny] [--batch 1,8]
    python benchmarks/quantization.py accuracy
    python benchmarks/quantization.py traffic

``speed``: networks with random weights at 224×224, in float32 and int8, in ONNX Runtime with the operator library and
on the function bodies, and in OpenVINO; where nncf is installed also OpenVINO's own int8 of the float file
(post-training, its preset for transformers). Candidates take turns in one process, one thread each;
medians of processor time, which other programs disturb least, and ratios to float32 with the library. ``accuracy``:
the trained reader of digits by format, target and calibration, on the 450 held-out pictures, and mIoU of the trained
segmenter of shapes on 200. ``traffic``: what an int8 output of attention would save.
"""

from __future__ import annotations

import argparse
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
from na_deploy.runtime.quantization.quantize import QuantizationOptions, quantize

EXAMPLES = Path(__file__).parents[1] / "examples"
CONSOLE = Console(width=160)
SIDE = 224
THREADS = 1


def made(name: str, folder: Path) -> tuple[Path, Path, float, float]:
    """Export a network, quantize it on 8 random inputs, and return both files and the seconds of either step."""
    started = time.perf_counter()
    if not (folder / f"{name}.onnx").exists():
        random_checkpoint(get_model(name).config, seed=0, path=folder / f"{name}.pth")
        export(load_model(folder / f"{name}.pth", arch=name), folder / f"{name}.onnx", dynamic="batch")
    exported = time.perf_counter()
    samples = np.random.default_rng(1).standard_normal((8, 3, SIDE, SIDE), dtype=np.float32)
    np.savez(folder / "x.npz", image=samples)
    if not (folder / f"{name}_int8.onnx").exists():
        quantize(folder / f"{name}.onnx", folder / f"{name}_int8.onnx", data=folder / "x.npz")
    return folder / f"{name}.onnx", folder / f"{name}_int8.onnx", exported - started, time.perf_counter() - exported


def with_nncf(model: Path, samples: np.ndarray) -> Callable[[np.ndarray], Any] | None:
    """Quantize the flat float file by OpenVINO's NNCF; attention runs in standard operators."""
    try:
        import nncf
        import openvino
    except ImportError:
        return None
    from na_deploy.model_file.flatten import flatten_file

    flat = model.with_name(f"{model.stem}_flat.onnx")
    flatten_file(model, flat)
    core = openvino.Core()
    network = core.read_model(flat)
    data = nncf.Dataset(list(samples), lambda sample: {"image": sample[None]})
    network = nncf.quantize(network, data, subset_size=len(samples), model_type=nncf.ModelType.TRANSFORMER)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": THREADS}
    compiled = core.compile_model(network, "CPU", settings)
    return lambda image: compiled({"image": image})["logits"]


def processor_times(candidates: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return each candidate's median milliseconds of processor time; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for turn in range(-1, rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            started = time.process_time()
            candidates[name]()
            if turn >= 0:
                times[name].append(1e3 * (time.process_time() - started))
    return {name: float(np.median(each)) for name, each in times.items()}


def opened(path: Path, **options: Any) -> Callable[[np.ndarray], Any]:
    session = na_deploy.load(path, threads=THREADS, **options)
    return lambda image: session.run({"image": image})["logits"]


def speed(models: list[str], batches: list[int], rounds: int, kept: Path | None) -> None:
    table = Table("network", "batch", "candidate", "ms", "of float32", "difference", title="Medians of processor time")
    for name in models:
        with tempfile.TemporaryDirectory() as text:
            folder = kept or Path(text)
            floats, int8, exported, quantized = made(name, folder)
            sizes = [path.stat().st_size / 1e6 for path in (floats, int8)]
            CONSOLE.print(
                f"{name}: {sizes[0]:.1f} MB in float32, {sizes[1]:.1f} MB in int8; export {exported:.0f} s, "
                f"quantization on 8 inputs {quantized:.0f} s"
            )
            runs: dict[str, Callable[[np.ndarray], Any]] = {}
            for words, own in (("library", True), ("function bodies", False)):
                for label, path in (("float32", floats), ("int8", int8)):
                    runs[f"{label}, {words}"] = opened(path, custom_operators=own)
            for label, path in (("float32", floats), ("int8", int8)):
                for words, own in (("", True), (", flat", False)):
                    other = opened(path, backend="openvino", precision="f32", custom_operators=own)
                    runs[f"{label}, OpenVINO{words}"] = other
            started = time.perf_counter()
            nncf = with_nncf(floats, np.load(folder / "x.npz")["image"])
            if nncf is not None:
                runs["int8 by NNCF, OpenVINO, flat"] = nncf
                CONSOLE.print(f"NNCF on 8 inputs: {time.perf_counter() - started:.0f} s")
            for batch in batches:
                image = np.random.default_rng(2).standard_normal((batch, 3, SIDE, SIDE), dtype=np.float32)
                expected = {"logits": runs["float32, function bodies"](image)}
                turns = {label: (lambda run=run, image=image: run(image)) for label, run in runs.items()}
                times = processor_times(turns, rounds)
                for label, run in runs.items():
                    found = worst_difference({"logits": np.asarray(run(image))}, expected).relative
                    ratio = times[label] / times["float32, library"]
                    table.add_row(name, str(batch), label, f"{times[label]:.1f}", f"{ratio:.2f}", f"{found:.1e}")
    CONSOLE.print(table)


def accuracy() -> None:
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
        for calibration in ("minmax", "percentile", "entropy")
    ]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for part in ("training", "held-out"):
            pictures.write(folder / part, part)
        draw_folder(folder / "seen", 64, first=1)
        draw_folder(folder / "unseen", 200)
        for model, images, data in (
            ("digits", folder / "training", ClassFolders(folder / "held-out")),
            ("shapes", folder / "seen" / "images", IdMaps(folder / "unseen" / "images", folder / "unseen" / "maps")),
        ):
            checkpoint = EXAMPLES / model / f"{model}.pth"
            files = {dtype: folder / f"{model}_{dtype}.onnx" for dtype in ("fp32", "fp16")}
            for dtype, path in files.items():
                na_deploy.export(checkpoint, path, dtype=dtype)
            targets = [Target("PyTorch", checkpoint), *(Target(dtype, path) for dtype, path in files.items())]
            notes = {}
            for form in forms if model == "digits" else forms[::3]:
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


def traffic(names: list[str], kept: Path | None) -> None:
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
            _, int8, _, _ = made(name, kept or Path(text))
            share = rounding_after_attention(int8)
        table.add_row(name, f"{4 * values / 1e6:.1f}", f"{4 / 11:.0%}", f"{4 / block:.1%}", f"{share:.1%}")
    CONSOLE.print(table)


def rounding_after_attention(int8: Path, runs: int = 20) -> float:
    """Return the share of an int8 model's time, batch 1, in rounding the outputs of attention."""
    import json

    model = onnx.load(int8)
    outputs = {node.output[0] for node in model.graph.node if node.domain == "na_deploy"}
    outputs |= {node.output[0] for node in model.graph.node if node.input and node.input[0] in outputs}
    # ONNX Runtime moves the node in front of a Reshape, under a name of its own.
    rounding = {f"{name}_q_kernel_time" for name in outputs}
    rounding |= {
        f"{node.name}_kernel_time"
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] in outputs
    }
    with tempfile.TemporaryDirectory() as text:
        settings = {"enable_profiling": True, "profile_file_prefix": f"{text}/profile", "intra_op_num_threads": THREADS}
        session = open_float(model, **settings)
        image = np.random.default_rng(2).standard_normal((1, 3, SIDE, SIDE), dtype=np.float32)
        for _ in range(runs):
            session.run(None, {"image": image})
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault(event["name"], []).append(event["dur"])
    medians = {name: float(np.median(each)) for name, each in times.items()}
    found = rounding & medians.keys()
    layers = sum(node.domain == "na_deploy" for node in model.graph.node)
    assert len(found) == layers, f"{len(found)} nodes round the outputs of {layers} layers"
    return sum(medians[name] for name in found) / sum(medians.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("speed", "accuracy", "traffic"))
    parser.add_argument("--models", default="nat_mini,nat_tiny")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--folder", type=Path, help="where exported files are kept and found again")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    models = options.models.split(",")
    CONSOLE.print(describe_machine(THREADS))
    if options.part == "speed":
        speed(models, [int(batch) for batch in options.batch.split(",")], options.rounds, options.folder)
    elif options.part == "accuracy":
        accuracy()
    else:
        traffic(models, options.folder)


if __name__ == "__main__":
    main()
