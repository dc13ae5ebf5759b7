"""NVIDIA Triton's real core against the session it runs: throughput, latency, overhead, boot and memory.

    bash scripts/triton_server.sh
    python benchmarks/serving_on_triton.py [--model model.onnx] [--also 127.0.0.1:8000]

The python backend of a packaged repository runs na_deploy's session, so what differs from Session.run in this process
is Triton: protocol, batching, shared memory. All candidates take turns in one run; clients are threads of this
process, on loopback. ``--also`` adds any other server of the Open Inference Protocol over HTTP that serves the same
model under the same name; it should run the same number of threads. Compare numbers of one run, not of two.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine
from rich.console import Console
from rich.table import Table

import na_deploy
from na_deploy.deployment import PackageOptions, package
from na_deploy.exporter import export
from na_deploy.models import load_model, random_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from serving_client import connect
from triton_server import triton_server

Call = Callable[[], object]


def measure(make_call: Callable[[ExitStack], Call], callers: int, seconds: float) -> list[float]:
    """Return the seconds of every call that ``callers`` threads made, each with a client of its own."""
    times: list[list[float]] = [[] for _ in range(callers)]
    ready, failures = threading.Barrier(callers), []

    def work(own: list[float]) -> None:
        try:
            with ExitStack() as stack:
                call = make_call(stack)
                call()
                ready.wait(60)
                end = time.perf_counter() + seconds
                while (started := time.perf_counter()) < end:
                    call()
                    own.append(time.perf_counter() - started)
        except BaseException as error:
            failures.append(error)
            ready.abort()

    threads = [threading.Thread(target=work, args=(own,)) for own in times]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [duration for own in times for duration in own]


def memory_of(process: int) -> float:
    """Return proportional megabytes of a process and its descendants."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(status.parent.name))
    total, waiting = 0, [process]
    while waiting:
        current = waiting.pop()
        waiting += children.get(current, [])
        for line in Path(f"/proc/{current}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="an exported model with a free batch; NAT-Mini by default")
    parser.add_argument("--also", metavar="HOST:PORT", help="another server, over HTTP, with the same model")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=2, help="inside one operator, everywhere")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one turn")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        path = options.model
        if path is None:
            random_checkpoint("nat_mini", seed=0, path=folder / "nat_mini.pth")
            path = folder / "nat_mini.onnx"
            export(load_model(folder / "nat_mini.pth", arch="nat_mini"), path, dynamic="batch")
        package([path], folder / "repository", PackageOptions(backend="python", threads=options.threads))
        session = stack.enter_context(na_deploy.load(path, threads=options.threads))
        spec = session.inputs[0]
        item = np.random.default_rng(0).normal(size=(1, *spec.shape[1:])).astype(np.float32)
        name = path.stem

        def remote(kind: str, url: str) -> Callable[[ExitStack], Call]:
            def make(own: ExitStack) -> Call:
                client = own.enter_context(connect(kind, url))
                return lambda: client.infer(name, {spec.name: item}).as_numpy(session.outputs[0].name)

            return make

        started = time.perf_counter()
        server = stack.enter_context(triton_server([folder / "repository"], folder))
        boot = time.perf_counter() - started
        candidates: dict[str, Callable[[ExitStack], Call]] = {
            "Session.run": lambda _: lambda: session.run(item),
            "Triton, gRPC": remote("grpc", server.grpc),
            "Triton, HTTP": remote("http", server.http),
        }
        if options.also:
            candidates[f"{options.also}, HTTP"] = remote("http", options.also)
        expected = session.run(item)[session.outputs[0].name]
        for label, make in candidates.items():
            with ExitStack() as own:
                answer: Any = make(own)()
                answer = answer[session.outputs[0].name] if isinstance(answer, dict) else answer
                np.testing.assert_allclose(answer, expected, rtol=1e-3, atol=1e-4, err_msg=label)
        times: dict[tuple[str, int], list[float]] = {}
        for turn in range(options.rounds):
            labels = list(candidates)
            for callers in options.callers:
                for label in labels[turn % len(labels) :] + labels[: turn % len(labels)]:
                    found = measure(candidates[label], callers, options.seconds)
                    times.setdefault((label, callers), []).extend(found)
        _print(times, options, name, describe_machine(options.threads))
        print(f"Triton from start to ready {boot:.2f} s; server and model {memory_of(server.process.pid):.0f} MB")


def _print(times: dict[tuple[str, int], list[float]], options: argparse.Namespace, name: str, machine: str) -> None:
    table = Table(
        "", "callers", "requests/s", "of Session.run", "p50 ms", "p99 ms", title=f"{name}, batch 1; {machine}"
    )
    span = options.seconds * options.rounds
    for callers in options.callers:
        alone = len(times["Session.run", callers]) / span
        for (label, count), found in times.items():
            if count == callers:
                rate = len(found) / span
                p50, p99 = statistics.median(found), statistics.quantiles(found, n=100)[98]
                table.add_row(
                    label, str(callers), f"{rate:.1f}", f"{rate / alone:.2f}", f"{1e3 * p50:.2f}", f"{1e3 * p99:.2f}"
                )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
