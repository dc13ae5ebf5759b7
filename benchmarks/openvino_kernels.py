"""Whole models in OpenVINO with the operator library's kernels, flattened, and without attention, beside ONNX Runtime.

    python benchmarks/openvino_kernels.py [--models nat_mini,dinat_tiny] [--batch 1,8] [--threads 1 --cpu-time]

Candidates take turns in one process, each after a pause in which the others' threads go to sleep; medians. A floor is
the same exported graph with every attention replaced by a copy of its value. Ratios are those to ONNX Runtime with the
library, in float32; those of OpenVINO are also given to its own floor of the same precision. On a machine that others
use, one thread's processor time says more than the clock.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
from end_to_end import floor_of
from machine import describe_machine, time_interleaved
from rich.console import Console
from rich.table import Table

import na_deploy
from na_deploy.exporter import export
from na_deploy.models import load_model, random_checkpoint
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


def measure(name: str, batch: int, folder: Path, precisions: list[str], arguments: argparse.Namespace) -> Table:
    """Export one model with random weights, time every candidate and return the table."""
    threads, rounds = arguments.threads, arguments.rounds
    checkpoint = folder / f"{name}.pth"
    random_checkpoint(name, seed=0, path=checkpoint)
    loaded = load_model(checkpoint, arch=name)
    path, floor = folder / f"{name}_{batch}.onnx", folder / f"{name}_{batch}_floor.onnx"
    export(loaded, path, input=(batch, 3, *loaded.input_size))
    onnx.save(floor_of(path), floor)
    feed = {"image": np.random.default_rng(0).standard_normal((batch, 3, *loaded.input_size), dtype=np.float32)}
    runs = candidates(path, floor, threads, precisions)
    answers = {title: next(iter(run(feed).values())) for title, run in runs.items()}
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    times = time_interleaved(
        {title: lambda run=run: run(feed) for title, run in runs.items()}, rounds, pause=0.01, clock=clock
    )
    (ours, *_) = times
    kind = ", processor time" if arguments.cpu_time else ""
    table = Table(title=f"{name}, batch {batch}{kind}")
    for column in ("", "ms", "of ONNX Runtime + ours", "of its own floor", "largest relative difference"):
        table.add_column(column, justify="left" if not column else "right")
    for title, ms in times.items():
        gap = np.abs(answers[title] - answers[ours]).max() / np.abs(answers[ours]).max()
        own_floor = times[f"{title.split()[0]} floor, {title[-4:].strip(' ,')}"] if "OpenVINO" in title else None
        table.add_row(
            title,
            f"{ms:.1f}",
            f"{ms / times[ours]:.2f}",
            f"{ms / own_floor:.2f}" if own_floor else "",
            "" if "floor" in title else f"{gap:.1e}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="nat_mini,dinat_tiny")
    parser.add_argument("--batch", default="1", help="batch sizes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--cpu-time", action="store_true", help="processor time; with --threads 1")
    arguments = parser.parse_args()
    if openvino_library() is None or onnxruntime_library() is None:
        raise SystemExit(f"error: the operator library is {why_missing(OPENVINO_LIBRARY)}")
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    precisions = ["f32", *(["bf16"] if "BF16" in capabilities else [])]
    console = Console(width=150)
    console.print(describe_machine(arguments.threads), f"OpenVINO {openvino.__version__.split('-')[0]}", sep=", ")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models.split(","):
            for batch in map(int, arguments.batch.split(",")):
                console.print(measure(name, batch, Path(folder), precisions, arguments))


if __name__ == "__main__":
    main()
