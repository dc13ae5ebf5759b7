"""Cost of a session over ONNX Runtime: time per call, several callers at once, cold start of files and bundles.

    python benchmarks/sessions.py

Overhead is measured on a model so small that it takes microseconds, in turn with the same ONNX Runtime session called
directly. Throughput of several callers and cold start use NAT-Mini at 224, cold start in fresh processes. Another table
tells what threads that spin between runs do to a second session of the process (``session.force_spinning_stop``).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from machine import describe_machine
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

import na_deploy
from na_deploy.exporter import export
from na_deploy.models import load_model, random_checkpoint
from na_deploy.runtime.building.build import BuildOptions, build
from na_deploy.runtime.native_libraries import onnxruntime_library

RAW = "import onnxruntime as o; s = o.InferenceSession({model!r}); run = lambda x: s.run(None, x)"
COLD = {
    "ONNX Runtime, model.onnx": RAW,
    "na_deploy.load, model.onnx": "import na_deploy; s = na_deploy.load({model!r}); run = s.run",
    "na_deploy.load, bundle": "import na_deploy; s = na_deploy.load({bundle!r}); run = s.run",
    "na_deploy.load, archive": "import na_deploy; s = na_deploy.load({archive!r}); run = s.run",
}


def overhead(folder: Path, rounds: int) -> tuple[float, float]:
    """Return microseconds of a call through ONNX Runtime directly, and through a session."""
    graph = helper.make_graph(
        [helper.make_node("Relu", ["image"], ["output"])],
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 3, 8, 8])],
    )
    path = folder / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    image = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    with na_deploy.load(path, threads=1) as session:
        raw = session._session  # type: ignore[attr-defined]
        times: dict[str, list[float]] = {"raw": [], "session": []}
        for _ in range(rounds):
            for name, call in (
                ("raw", lambda: raw.run(None, {"image": image})),
                ("session", lambda: session.run(image)),
            ):
                started = time.perf_counter()
                for _ in range(50):
                    call()
                times[name].append((time.perf_counter() - started) / 50)
    return 1e6 * statistics.median(times["raw"]), 1e6 * statistics.median(times["session"])


def throughput(model: Path, callers: int, seconds: float) -> float:
    """Return images a second of ``callers`` threads on one session whose operators use one thread each."""
    image = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    with na_deploy.load(model, threads=1) as session:
        session.warm_up()
        until = time.perf_counter() + seconds

        def work(_: int) -> int:
            count = 0
            while time.perf_counter() < until:
                session.run(image)
                count += 1
            return count

        with ThreadPoolExecutor(callers) as pool:
            return sum(pool.map(work, range(callers))) / seconds


def neighbours(model: Path, seconds: float) -> dict[str, dict[str, float]]:
    """Return milliseconds a run with threads that spin after it and that stop, by how two sessions are called.

    Both sessions have two threads. "alone": one is called again and again; "in turn": one after the other; "side by
    side": each by a thread of its own, milliseconds of one run of one of them.
    """
    image = {"image": np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)}
    library = onnxruntime_library()
    assert library is not None, "the operator library is not built"
    found: dict[str, dict[str, float]] = {}
    for label, stops in {"spin": "0", "stop": "1"}.items():
        pair = []
        for _ in range(2):
            settings = onnxruntime.SessionOptions()
            settings.intra_op_num_threads = 2
            settings.add_session_config_entry("session.force_spinning_stop", stops)
            settings.register_custom_ops_library(str(library))
            pair.append(onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"]))
            pair[-1].run(None, image)
        first, second = pair

        def median(*sessions: onnxruntime.InferenceSession) -> float:
            times = []
            until = time.perf_counter() + seconds
            while time.perf_counter() < until:
                for session in sessions:
                    started = time.perf_counter()
                    session.run(None, image)
                    times.append(time.perf_counter() - started)
            return 1e3 * statistics.median(times)

        row = {"alone": median(first), "in turn": median(first, second)}
        with ThreadPoolExecutor(2) as pool:
            row["side by side"] = statistics.mean(pool.map(median, pair))
        found[label] = row
    return found


def cold_start(code: str, runs: int) -> float:
    """Return the median seconds from starting Python to the first answer."""
    program = f"import numpy as n; {code}; run({{'image': n.ones((1, 3, 224, 224), n.float32)}})"
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", program], check=True, stderr=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    console = Console(width=120)
    console.print(describe_machine(2))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw, ours = overhead(folder, arguments.rounds)
        console.print(f"One call: ONNX Runtime {raw:.1f} µs, session {ours:.1f} µs, added {ours - raw:.1f} µs")
        random_checkpoint("nat_mini", seed=0, path=folder / "nat_mini.pth")
        model, bundle, archive = folder / "model.onnx", folder / "model.bundle", folder / "model.zip"
        export(load_model(folder / "nat_mini.pth", arch="nat_mini"), model)
        for target in (bundle, archive):
            started = time.perf_counter()
            build(model, target, BuildOptions(plugins="embed"))
            console.print(f"Building {target.suffix}: {time.perf_counter() - started:.2f} s")
        callers = Table(title="NAT-Mini, one thread per call: images a second")
        for count in range(1, 5):
            callers.add_column(f"{count} callers", justify="right")
        callers.add_row(*(f"{throughput(model, count, arguments.seconds):.1f}" for count in range(1, 5)))
        console.print(callers)
        beside = Table("threads after a run", "alone, ms", "two sessions in turn, ms", "side by side, ms")
        for label, row in neighbours(model, arguments.seconds).items():
            beside.add_row(label, *(f"{each:.1f}" for each in row.values()))
        console.print(beside)
        starts = Table("from starting Python to the first answer", "seconds")
        for label, code in COLD.items():
            paths = {"model": str(model), "bundle": str(bundle), "archive": str(archive)}
            starts.add_row(label, f"{cold_start(code.format(**paths), 7):.2f}")
        console.print(starts)


if __name__ == "__main__":
    main()
