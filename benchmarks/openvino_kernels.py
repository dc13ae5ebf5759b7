"""Whole models in OpenVINO with the operator library's kernels, flattened, and without attention, beside ONNX Runtime.

    python benchmarks/openvino_kernels.py [--models nat_mini,dinat_tiny] [--batch 1,8] [--threads 1,2] [--rounds 15]
        [--seconds 15] [--peers nat_mini] [--compiled nat_mini] [--loads] [--cpu-time]

Candidates take turns in one process, each after a pause in which the others' threads go to sleep; medians. A floor is
the same exported graph with every attention replaced by a copy of its value. Ratios are those to ONNX Runtime with the
library, in float32; those of OpenVINO are also given to its own floor of the same precision. ``--seconds`` of a table
are shared among its candidates, each of which runs at least three times. ``upernet`` is UPerNet on DiNAT-Base at 512,
with batch 1 only.

``--peers`` are PyTorch as it is, with this package's tiles, and on NATTEN, which knows no bias on a CPU; ``--compiled``
adds ``torch.compile`` over the tiles, which takes a minute to compile. Both run after the others, with the first batch
size. ``--loads`` loads each file of the first batch size in a process of its own and tells seconds and megabytes beyond
the imported libraries. On a machine that others use, one thread's processor time says more than the clock.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import torch
from attention_free import floor_of
from end_to_end import eager, natten_cpu
from machine import describe_machine, time_interleaved
from rich.console import Console
from rich.table import Table
from segmenters import CASES, checkpoint

import na_deploy
from na_deploy.attention import torch_ops, torch_tiles
from na_deploy.exporter import export
from na_deploy.models import LoadedModel, load_model, random_checkpoint
from na_deploy.runtime.native_libraries import OPENVINO_LIBRARY, onnxruntime_library, openvino_library, why_missing
from na_deploy.runtime.session import Session

Arrays = dict[str, np.ndarray]


def open_onnxruntime(path: Path, threads: int, library: Path | None) -> Callable[[Arrays], Arrays]:
    """Open a model in ONNX Runtime so that its threads sleep between runs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if library is not None:
        options.register_custom_ops_library(str(library))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (output, *_) = [value.name for value in session.get_outputs()]
    return lambda feed: {output: session.run([output], feed)[0]}


def candidates(path: Path, floor: Path, threads: int, precisions: list[str]) -> dict[str, Callable[[Arrays], Arrays]]:
    """Return every way of running a model, by name."""

    def load(file: Path, precision: str, library: bool) -> Callable[[Arrays], Arrays]:
        session: Session = na_deploy.load(
            file, backend="openvino", threads=threads, precision=precision, custom_operators=library
        )
        assert (session.library is not None) == library
        return session.run

    found = {
        "ONNX Runtime + ours, f32": open_onnxruntime(path, threads, onnxruntime_library()),
        "ONNX Runtime floor, f32": open_onnxruntime(floor, threads, None),
    }
    for precision in precisions:
        found[f"OpenVINO flat, {precision}"] = load(path, precision, library=False)
        found[f"OpenVINO + ours, {precision}"] = load(path, precision, library=True)
        found[f"OpenVINO floor, {precision}"] = load(floor, precision, library=False)
    return found


@dataclass(frozen=True)
class Network:
    """A network with random weights: its name, its module, and its exported file and floor by batch size."""

    name: str
    loaded: LoadedModel
    side: int
    files: dict[int, tuple[Path, Path]]

    def images(self, batch: int) -> np.ndarray:
        """Return a batch of random numbers."""
        return np.random.default_rng(0).standard_normal((batch, 3, self.side, self.side), dtype=np.float32)


def prepare(name: str, batches: Sequence[int], folder: Path) -> Network:
    """Export a network with random weights, once for each batch size."""
    weights = folder / f"{name}.pth"
    if name in CASES:
        case = CASES[name]
        checkpoint(name, case, weights)
        loaded, side = load_model(weights, arch=case.arch, dilations=case.dilations), case.side
        batches = [1]
    else:
        random_checkpoint(name, seed=0, path=weights)
        loaded = load_model(weights, arch=name)
        side = loaded.input_size[0]
    files = {batch: (folder / f"{name}_{batch}.onnx", folder / f"{name}_{batch}_floor.onnx") for batch in batches}
    for batch, (path, floor) in files.items():
        export(loaded, path, input=(batch, 3, side, side))
        onnx.save(floor_of(path), floor)
    return Network(name, loaded, side, files)


def measure(
    network: Network, batch: int, threads: int, precisions: list[str], arguments: argparse.Namespace, peers: bool
) -> Table:
    """Time every candidate and return the table."""
    feed = {"image": network.images(batch)}
    runs = candidates(*network.files[batch], threads, precisions)
    answers = {title: next(iter(run(feed).values())) for title, run in runs.items()}
    clock = time.process_time if arguments.cpu_time else time.perf_counter

    def timed(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
        share = arguments.seconds / len(runs)
        return time_interleaved(calls, arguments.rounds, warmup=1, budget=share, pause=0.01, clock=clock)

    times = timed({title: lambda run=run: run(feed) for title, run in runs.items()})
    (ours, *_) = times
    if peers:
        torch.set_num_threads(threads)
        times |= timed(torch_candidates(network, torch.from_numpy(feed["image"]), arguments))
    kind = ", processor time" if arguments.cpu_time else ""
    table = Table(title=f"{network.name}, batch {batch}, {threads} {'thread' if threads == 1 else 'threads'}{kind}")
    for column in ("", "ms", "of ONNX Runtime + ours", "of its own floor", "largest relative difference"):
        table.add_column(column, justify="left" if not column else "right")
    for title, ms in times.items():
        own_floor = times[f"{title.split()[0]} floor, {title[-4:].strip(' ,')}"] if "OpenVINO" in title else None
        gap = ""
        if title in answers and "floor" not in title:
            gap = f"{np.abs(answers[title] - answers[ours]).max() / np.abs(answers[ours]).max():.1e}"
        share = f"{ms / own_floor:.2f}" if own_floor else ""
        table.add_row(title, f"{ms:.1f}", f"{ms / times[ours]:.2f}", share, gap)
    return table


def torch_candidates(
    network: Network, image: torch.Tensor, arguments: argparse.Namespace
) -> dict[str, Callable[[], object]]:
    """Return PyTorch's ways of running a network that were asked for."""
    module = network.loaded.module.eval()
    found: dict[str, Callable[[], object]] = {}
    if network.name in arguments.peers.split(","):
        implementations = {"tiles": torch_tiles.tiled, "dense masks": torch_tiles.dense, "NATTEN": natten_cpu}
        found |= {f"PyTorch, {name}": eager(module, image, run) for name, run in implementations.items()}
    if network.name in arguments.compiled.split(","):
        compiled = torch.compile(module)
        found["PyTorch, compiled"] = lambda: eager_call(compiled, image)
    return found


def eager_call(module: Callable[..., object], image: torch.Tensor) -> object:
    with torch_ops.use_implementation(torch_tiles.tiled), torch.inference_mode():
        return module(image)


LOADS = {
    "ONNX Runtime + ours, f32": {"backend": "onnxruntime"},
    "OpenVINO flat, {}": {"backend": "openvino", "custom_operators": False},
    "OpenVINO + ours, {}": {"backend": "openvino"},
}


def megabytes(name: str) -> float:
    """Return a line of this process's memory, of Linux: VmRSS is what it has now, VmHWM the most it had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) / 1024


def load_once(path: str, image_shape: list[int], options: dict[str, object]) -> dict[str, float]:
    """Load a file and run it three times, in a process where nothing was loaded before."""
    image = np.zeros(image_shape, np.float32)
    before = megabytes("VmRSS")
    started = time.perf_counter()
    with na_deploy.load(path, **options) as session:  # type: ignore[arg-type]
        loaded = time.perf_counter()
        session.run({"image": image})
        first = time.perf_counter()
        for _ in range(2):
            session.run({"image": image})
    return {"load": loaded - started, "first": first - loaded, "peak": megabytes("VmHWM") - before}


def measure_loads(network: Network, threads: int, precisions: list[str]) -> Table:
    """Load a network's first file in processes of their own, and return the table."""
    (batch, (path, _)), *_ = network.files.items()
    table = Table(
        title=f"{network.name}, batch {batch}, {threads} threads: loading ({path.stat().st_size / 1e6:.0f} MB)"
    )
    for column in ("", "load, s", "first answer, s", "peak, MB"):
        table.add_column(column, justify="left" if not column else "right")
    for title, options in LOADS.items():
        for precision in precisions if "{}" in title else ["f32"]:
            choice = {"precision": precision} if "{}" in title else {}
            child = {"path": str(path), "image_shape": list(network.images(batch).shape)}
            child["options"] = {**options, **choice, "threads": threads}
            command = [sys.executable, __file__, "--child", json.dumps(child)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            cells = (f"{found['load']:.2f}", f"{found['first']:.2f}", f"{found['peak']:.0f}")
            table.add_row(title.format(precision), *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="nat_mini,nat_tiny,dinat_tiny,dinat_base,upernet")
    parser.add_argument("--batch", default="1,8", help="batch sizes")
    parser.add_argument("--threads", default="2", help="numbers of threads")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=15.0, help="for the rounds of one table")
    parser.add_argument("--peers", default="", help="networks that PyTorch and NATTEN run too")
    parser.add_argument("--compiled", default="", help="networks that torch.compile runs too")
    parser.add_argument("--loads", action="store_true", help="load times and memory")
    parser.add_argument("--cpu-time", action="store_true", help="processor time; with --threads 1")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(load_once(**json.loads(arguments.child))))
        return
    if openvino_library() is None or onnxruntime_library() is None:
        raise SystemExit(f"error: the operator library is {why_missing(OPENVINO_LIBRARY)}")
    warnings.filterwarnings("ignore", module="torch.nn.attention")  # flex attention, not compiled: natten's CPU path
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    precisions = ["f32", *(["bf16"] if "BF16" in capabilities else [])]
    threads = [int(number) for number in arguments.threads.split(",")]
    batches = [int(number) for number in arguments.batch.split(",")]
    console = Console(width=150)
    console.print(describe_machine(max(threads)), f"OpenVINO {openvino.__version__.split('-')[0]}", sep=", ")
    started = time.perf_counter()
    for name in arguments.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            network = prepare(name, batches, Path(folder))
            for batch in network.files:
                for number in threads:
                    peers = batch == batches[0] and name in f"{arguments.peers},{arguments.compiled}".split(",")
                    console.print(measure(network, batch, number, precisions, arguments, peers))
            if arguments.loads:
                console.print(measure_loads(network, max(threads), precisions))
        console.print(f"{time.perf_counter() - started:.0f} s so far")


if __name__ == "__main__":
    main()
