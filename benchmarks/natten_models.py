"""Attention layers of networks that people run on NATTEN, on a CPU: time and memory, each candidate in its own process.

    python benchmarks/natten_models.py [--only word] [--threads 2] [--seconds 5]
    python benchmarks/natten_models.py --export full     # export, verify and build in TensorRT-RTX whole networks

Ours and the function body run in ONNX Runtime; flex attention is compiled by PyTorch; NATTEN's CPU path is flex
attention as well, not compiled, and holds all scores. Layers are those of examples/natten_models at the published
sizes. Memory is the peak of the resident set over that with libraries loaded and inputs made; it contains the output.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

CANDIDATES = ("ours", "function body", "compiled flex", "NATTEN")
NATTEN_LIMIT = 8e9  # bytes of scores that this benchmark lets NATTEN's CPU path hold
EXAMPLES = Path(__file__).parents[1] / "examples"


@dataclass(frozen=True)
class Layer:
    """One attention layer: spatial sizes, heads, head_dim and attributes."""

    name: str
    lengths: tuple[int, ...]
    heads: int
    head_dim: int
    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    is_causal: tuple[int, ...] = ()
    bias: bool = False
    additional: int = 0
    batch: int = 1

    def attributes(self) -> dict[str, list[int]]:
        """Return all four attributes, one number per axis."""
        rank = len(self.lengths)
        return {
            "kernel_size": list(self.kernel_size),
            "dilation": list(self.dilation or (1,) * rank),
            "stride": list(self.stride or (1,) * rank),
            "is_causal": list(self.is_causal or (0,) * rank),
        }

    def inputs(self) -> dict[str, np.ndarray]:
        """Return seeded random inputs."""
        random = np.random.default_rng(0)

        def normal(*shape: int) -> np.ndarray:
            return random.standard_normal(shape, np.float32)

        shape = (self.batch, *self.lengths, self.heads, self.head_dim)
        found = {name: normal(*shape) for name in ("query", "key", "value")}
        if self.bias:
            found["rel_pos_bias"] = normal(self.heads, *(2 * size - 1 for size in self.kernel_size))
        if self.additional:
            extra = (self.batch, self.additional, self.heads, self.head_dim)
            found |= {name: normal(*extra) for name in ("additional_key", "additional_value")}
        return found


LAYERS = [
    Layer("DiNAT-Mini", (56, 56), 2, 32, (7, 7), (8, 8), bias=True),
    Layer("HDiT 256", (64, 64), 2, 64, (7, 7)),
    Layer("HDiT 256, level 2", (32, 32), 4, 64, (7, 7)),
    Layer("all-in-one, time", (11000,), 2, 12, (5,), (1024,), bias=True, batch=4),
    Layer("all-in-one, instruments", (5, 11000), 2, 12, (5, 5), bias=True),
    Layer("weather 1°", (90, 180), 12, 64, (11, 11)),
    Layer("weather 1°, circular", (90, 190), 12, 64, (11, 11)),
    Layer("StyleNAT 64", (64, 64), 2, 32, (7, 7), (8, 8), bias=True),
    Layer("StyleNAT 256", (256, 256), 1, 16, (7, 7), (32, 32), bias=True),
    Layer("video 5×7×7", (16, 32, 64), 12, 32, (5, 7, 7)),
    Layer("video 5×7×7, causal", (16, 32, 64), 12, 32, (5, 7, 7), is_causal=(1, 0, 0)),
    Layer("map, window 16", (64, 64), 4, 64, (16, 16)),
    Layer("video, window 8×16×16", (16, 64, 64), 4, 64, (8, 16, 16)),
    Layer("Cosmos 720p, 1 head", (16, 44, 80), 1, 128, (16, 12, 24), (), (1, 4, 8), additional=512),
]


def node_model(layer: Layer) -> bytes:
    """Return a file of one node with its body, as the exporter writes it."""
    import onnx_ir as ir
    from onnx import TensorProto, helper

    from na_deploy.attention.schema import DOMAIN, PLUGIN_ATTRIBUTES, SEPARATE_OPERATOR
    from na_deploy.exporter.passes import embed_function_bodies

    arrays = layer.inputs()
    names = ["query", "key", "value", "rel_pos_bias", "additional_key", "additional_value"]
    inputs = [name if name in arrays else "" for name in names]
    while not inputs[-1]:
        inputs.pop()
    node = helper.make_node(
        SEPARATE_OPERATOR, inputs, ["output"], name="layer", domain=DOMAIN, **layer.attributes(), **PLUGIN_ATTRIBUTES
    )
    shape = (layer.batch, *layer.lengths, layer.heads, layer.head_dim)
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in arrays.items()],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
    )
    opsets = [helper.make_opsetid("", 22), helper.make_opsetid(DOMAIN, 1)]
    model = ir.serde.deserialize_model(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    embed_function_bodies(model, 22)
    return bytes(ir.serde.serialize_model(model).SerializeToString())


def runtime_candidate(layer: Layer, library: bool, threads: int) -> tuple[Callable[[], Any], Callable[[], None]]:
    import onnxruntime as ort

    from na_deploy.runtime.native_libraries import onnxruntime_library

    model, arrays = node_model(layer), layer.inputs()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if library:
        options.register_custom_ops_library(str(onnxruntime_library()))
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, arrays), lambda: None


def flex_candidate(layer: Layer) -> tuple[Callable[[], Any], Callable[[], None]]:
    """Compiled flex attention, the window as block mask; additional keys stand behind the map."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    from na_deploy.attention.windows import window_bounds

    tokens, extra = prod(layer.lengths), layer.additional
    arrays = {name: torch.from_numpy(array) for name, array in layer.inputs().items()}
    query, key, value = (arrays[name].flatten(1, -3) for name in ("query", "key", "value"))
    if extra:
        key = torch.cat([key, arrays["additional_key"]], 1)
        value = torch.cat([value, arrays["additional_value"]], 1)
    query, key, value = (tensor.transpose(1, 2).contiguous() for tensor in (query, key, value))
    at = layer.attributes()
    places = torch.from_numpy(np.indices(layer.lengths).reshape(len(layer.lengths), -1))
    places = torch.cat([places, torch.zeros(len(places), extra, dtype=torch.long)], 1)
    windows = zip(layer.lengths, at["kernel_size"], at["dilation"], at["stride"], at["is_causal"], strict=True)
    bounds = [tuple(torch.from_numpy(b) for b in window_bounds(*sizes[:4], bool(sizes[4]))) for sizes in windows]

    def mask(batch: object, head: object, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        sees = torch.ones((), dtype=torch.bool)
        for place, step, (start, end) in zip(places, at["dilation"], bounds, strict=True):
            element = place[k] // step
            same = place[q] % step == place[k] % step
            sees = sees & same & (element >= start[place[q]]) & (element < end[place[q]])
        return sees | (k >= tokens)

    table = arrays.get("rel_pos_bias")

    def add_bias(score: torch.Tensor, batch: object, head: object, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        index = tuple(
            (place[k] // step - place[q] // step + size - 1).clamp(0, 2 * size - 2)
            for place, step, size in zip(places, at["dilation"], layer.kernel_size, strict=True)
        )
        assert table is not None
        return score + table[(head, *index)]

    blocks = create_block_mask(mask, None, None, tokens, tokens + extra, device="cpu", _compile=True)
    compiled = torch.compile(flex_attention, dynamic=False)

    def run() -> object:
        with torch.inference_mode():
            return compiled(query, key, value, block_mask=blocks, score_mod=None if table is None else add_bias)

    return run, run


def natten_candidate(layer: Layer) -> tuple[Callable[[], Any], Callable[[], None]]:
    import natten
    import torch

    arrays = {name: torch.from_numpy(array) for name, array in layer.inputs().items()}
    function = (natten.na1d, natten.na2d, natten.na3d)[len(layer.lengths) - 1]
    at: dict[str, Any] = {name: tuple(value) for name, value in layer.attributes().items()}
    at["is_causal"] = tuple(bool(flag) for flag in at["is_causal"])
    if layer.additional:
        at |= {f"additional_{name}s": arrays[f"additional_{name}"] for name in ("key", "value")}

    def run() -> object:
        with torch.inference_mode():
            return function(arrays["query"], arrays["key"], arrays["value"], **at)

    return run, lambda: None


def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def child(layer: Layer, candidate: str, threads: int, seconds: float) -> dict[str, float]:
    """Measure one candidate in this process: median milliseconds and MB over what it started with."""
    if candidate in ("ours", "function body"):
        run, prepare = runtime_candidate(layer, candidate == "ours", threads)
    else:
        import torch

        torch.set_num_threads(threads)
        run, prepare = flex_candidate(layer) if candidate == "compiled flex" else natten_candidate(layer)
    prepare()
    before, peak, over = resident(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.002):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    times: list[float] = []
    while not times or (sum(times) < 1e3 * seconds and len(times) < 200):
        started = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - started))
    over.set()
    watcher.join()
    kept = times[1:] if len(times) > 2 else times  # the first run allocates
    return {"ms": statistics.median(kept), "mb": max(peak - before, 0.0)}


def why_not(layer: Layer, candidate: str) -> str | None:
    """Return the reason why a candidate cannot run a layer."""
    if candidate != "NATTEN":
        return None
    if layer.bias:
        return "no bias"
    if layer.head_dim & (layer.head_dim - 1):
        return "head dim"
    scores = 4.0 * layer.batch * layer.heads * prod(layer.lengths) ** 2
    return f"{scores / 2**30:.0f} GB" if scores > NATTEN_LIMIT else None


def compare(arguments: argparse.Namespace, console: Console) -> None:
    table = Table(title="Milliseconds (times ours), and MB in use beside the inputs")
    for heading in ("layer", "map", "window", "heads", "inputs MB", *CANDIDATES):
        table.add_column(heading, justify="left" if heading == "layer" else "right")
    for layer in LAYERS:
        if arguments.only not in layer.name:
            continue
        sizes = ("×".join(map(str, axes)) for axes in (layer.lengths, layer.kernel_size))
        megabytes = sum(array.nbytes for array in layer.inputs().values()) / 2**20
        row, ours = [layer.name, *sizes, f"{layer.heads}×{layer.head_dim}", f"{megabytes:.0f}"], 0.0
        for candidate in CANDIDATES:
            reason = why_not(layer, candidate)
            if reason is not None:
                row.append(f"– ({reason})")
                continue
            job = {"layer": asdict(layer), "candidate": candidate}
            job |= {"threads": arguments.threads, "seconds": arguments.seconds}
            command = [sys.executable, __file__, "--child", json.dumps(job)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            except subprocess.TimeoutExpired:
                row.append("over 300 s")
                continue
            if done.returncode:
                row.append(f"failed ({done.returncode})")
                console.print(candidate, layer.name, done.stderr[-400:], markup=False)
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            ours = ours or found["ms"]
            row.append(f"{found['ms']:.2f} ({found['ms'] / ours:.1f}×) {found['mb']:.0f} MB")
            console.print(f"[dim]{layer.name}, {candidate}: {row[-1]}[/dim]")
        table.add_row(*row)
    console.print(table)


NETWORKS = (
    *("hourglass:{}", "all_in_one:{}", "diffusion_block:{}", "weather:{}", "style:{}", "video:{}"),
    *("hugging_face:{}", "hugging_face:{}_backbone", "hugging_face:{}_pixels"),
)


def export_network(name: str, size: str) -> dict[str, Any]:
    """Export one network in this process and build it in TensorRT-RTX."""
    import torch

    from na_deploy.exporter import export
    from na_deploy.exporter.natten_api import importable_natten
    from na_deploy.runtime.building.options import BuildOptions
    from na_deploy.runtime.tensorrt.building import build_engine

    sys.path.insert(0, str(EXAMPLES))
    file, _, factory = name.partition(":")
    with importable_natten():
        module = importlib.import_module(f"natten_models.{file}")
    torch.manual_seed(0)
    model = getattr(module, factory)().eval()
    inputs = {key: torch.rand(sizes) + 0.1 for key, sizes in module.INPUTS[size].items()}
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        report = export(model, inputs, Path(folder) / "model.onnx")
        seconds = time.perf_counter() - started
        built = build_engine(report.path, Path(folder) / "model.engine", BuildOptions("tensorrt-rtx"))
        return {
            "parameters": sum(p.numel() for p in model.parameters()) / 1e6,
            "nodes": report.nodes,
            "attention": report.attention_layers,
            "seconds": seconds,
            "difference": report.difference,
            "megabytes": sum(path.stat().st_size for path in report.files) / 2**20,
            "layers": built.layers,
            "build": built.parse_seconds + built.build_seconds,
            "activation": built.activation_bytes / 2**20,
        }


def export_networks(arguments: argparse.Namespace, console: Console) -> None:
    table = Table(title=f"Whole networks, {arguments.export}: exported, verified, built in TensorRT-RTX")
    columns = (
        "parameters",
        "operators",
        "attention",
        "export",
        "difference",
        "file",
        "RTX layers",
        "RTX build",
        "RTX memory",
    )
    table.add_column("network")
    for heading in columns:
        table.add_column(heading, justify="right")
    for pattern in NETWORKS:
        name = pattern.format(arguments.export)
        if arguments.only not in name:
            continue
        command = [sys.executable, __file__, "--child", json.dumps({"network": name, "size": arguments.export})]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            table.add_row(name, f"failed: {done.stderr.strip().splitlines()[-1][:200]}")
            continue
        r = json.loads(done.stdout.splitlines()[-1])
        table.add_row(
            name,
            *(f"{r['parameters']:.1f} M", str(r["nodes"]), str(r["attention"]), f"{r['seconds']:.0f} s"),
            *(f"{r['difference']:.1e}", f"{r['megabytes']:.0f} MB", str(r["layers"]), f"{r['build']:.1f} s"),
            f"{r['activation']:.0f} MB",
        )
        console.print(f"[dim]{name} {r}[/dim]")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="layers or networks whose name contains this")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each candidate")
    parser.add_argument("--export", choices=["small", "full"], help="export whole networks instead")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        job = json.loads(arguments.child)
        if "network" in job:
            print(json.dumps(export_network(job["network"], job["size"])))
            return
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in job.pop("layer").items()}
        print(json.dumps(child(Layer(**fields), **job)))
        return
    from machine import describe_machine

    console = Console(width=170)
    console.print(describe_machine(arguments.threads))
    (export_networks if arguments.export else compare)(arguments, console)


if __name__ == "__main__":
    main()
