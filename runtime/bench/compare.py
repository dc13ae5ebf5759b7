"""Comparing any number of models, bundles and PyTorch in one run: latency, throughput, memory, cold start.

Each target lives in a process of its own, so that libraries, thread pools and memory of one do not touch another; the
parent has them run in turn, a slice each, in changing order. Not for comparing answers: that is ``na-deploy verify``.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np

from na_deploy.closeable import Closeable
from na_deploy.errors import NaDeployError
from na_deploy.model_file.differences import worst_difference
from na_deploy.model_file.tensors import Array
from na_deploy.progress import Progress, silent
from na_deploy.runtime.native_libraries import CPU_PROVIDER

_GOODBYE_S = 5
WORKER = "na_deploy.runtime.bench.worker"
BODIES = {"backend": "onnxruntime", "custom_operators": False}
"""Options of a target on a file's function bodies."""

SLICE_S = 0.25
"""Seconds that a target runs before the next one's turn: long enough to be warm, short against changes of load."""
SETTLE_S = 0.02
"""Seconds between turns: the threads of the one before spin for a while before they sleep."""


@dataclass(frozen=True)
class Target:
    """A model, bundle or checkpoint to measure.

    Attributes:
        label: its name in tables.
        kind: "session" for a model or bundle, "torch" for a checkpoint in PyTorch.
        path: the file.
        options: arguments of the worker for loading it.
        reference: a file whose answers, by ONNX Runtime on its function bodies, the target's are compared with.
    """

    label: str
    kind: str
    path: Path
    options: dict[str, Any]
    reference: Path | None = None


@dataclass(frozen=True)
class Measurement:
    """One target at one batch size.

    Attributes:
        label: the target.
        batch: items per call.
        shapes: those of the inputs, by name.
        calls: timed calls.
        p50_ms: median latency of a call; half were faster.
        p90_ms: nine of ten were faster.
        p99_ms: 99 of 100 were faster; the slowest where there were fewer calls.
        items_per_s: throughput of one caller: items over the time of its calls.
        runs_on: device, and the part that computes attention, in words.
        difference: largest relative difference of an output to the reference; ``None`` without one.
    """

    label: str
    batch: int
    shapes: Mapping[str, tuple[int, ...]]
    calls: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    items_per_s: float
    runs_on: str
    difference: float | None = None


@dataclass(frozen=True)
class Startup:
    """The costs of a target before its first answer, in a fresh process.

    Attributes:
        label: the target.
        import_s: importing the libraries.
        load_s: loading the model.
        first_s: the first answer.
        peak_mb: memory at the peak beyond the imported libraries, over the whole measurement.
    """

    label: str
    import_s: float
    load_s: float
    first_s: float
    peak_mb: float


@dataclass(frozen=True)
class Report:
    """All figures of one run.

    Attributes:
        measurements: every target at every batch size.
        startups: every target.
        threads: threads that each target was given; ``None`` for its own default.
        machine: processor and its cores, in words.
        remarks: sentences on what could not be measured or compared.
    """

    measurements: tuple[Measurement, ...]
    startups: tuple[Startup, ...]
    threads: int | None
    machine: str
    remarks: tuple[str, ...] = ()


class _Worker(Closeable):
    """A target's process; answers one request a line."""

    def __init__(self, target: Target, threads: int | None, shapes: Sequence[str]) -> None:
        self.target = target
        self._process = subprocess.Popen(
            [sys.executable, "-m", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
        )
        load: dict[str, Any] = {"kind": target.kind, "path": str(target.path), "options": target.options}
        load |= {"threads": threads, "shapes": list(shapes)}
        try:
            self.loaded = self.ask(do="load", **load)
        except BaseException:
            self.close()
            raise

    def ask(self, **request: Any) -> dict[str, Any]:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = process.wait()
            raise NaDeployError(f"{self.target.label}: its process ended with code {code}; run it alone to see why")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise NaDeployError(f"{self.target.label}: {answer['error']}")
        return answer

    def close(self) -> None:
        try:
            self._process.communicate(timeout=_GOODBYE_S)  # the end of its input ends the worker
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


def measure(
    targets: Sequence[Target],
    batches: Sequence[int | None],
    *,
    shapes: Sequence[str] = (),
    threads: int | None = None,
    duration_s: float = 5.0,
    progress: Progress | None = None,
    leave_out: bool = False,
) -> Report:
    """Measure targets side by side.

    Args:
        targets: models to compare; their labels differ.
        batches: batch sizes; ``None`` takes the model's own.
        shapes: input sizes as users write them, ``1x3x512x512`` or ``name=1x3x512x512``; those of the files by default.
        threads: threads of each target; ``None`` leaves its default.
        duration_s: seconds each target is timed for each batch size.
        progress: called with a few words as each step begins.
        leave_out: leave targets out that do not load, with a remark.

    Raises:
        NaDeployError: a target does not load or run, or its process dies; it is named.
    """
    progress = progress or silent
    order = random.Random(0)
    workers: list[_Worker] = []
    remarks: list[str] = []
    with contextlib.ExitStack() as stack:
        for target in targets:
            progress(f"loading {target.label}")
            try:
                workers.append(stack.enter_context(_Worker(target, threads, shapes)))
            except NaDeployError as error:
                if not leave_out:
                    raise
                remarks.append(f"{target.label} is left out: {str(error).removeprefix(f'{target.label}: ')}")
        answers = stack.enter_context(_Answers(shapes, workers))
        measurements = []
        startups: tuple[Startup, ...] = ()
        for batch in batches:
            shown = "" if batch is None else f"batch {batch}: "
            times: dict[str, list[float]] = {worker.target.label: [] for worker in workers}
            actual: dict[str, dict[str, Any]] = {}
            for worker in workers:
                progress(f"{shown}warming {worker.target.label} up")
                actual[worker.target.label] = worker.ask(do="prepare", batch=batch, shapes=list(shapes))
            started = perf_counter()
            total = duration_s * len(workers)
            while (spent := perf_counter() - started) < total or not all(times.values()):
                progress(f"{shown}timing, {max(total - spent, 0):.0f} s left")
                for worker in order.sample(workers, len(workers)):
                    sleep(SETTLE_S)
                    times[worker.target.label] += worker.ask(do="time", seconds=SLICE_S)["ms"]
            startups = tuple(_startup(worker) for worker in workers)
            progress(f"{shown}comparing answers")
            for worker in workers:
                label = worker.target.label
                row = _measurement(label, actual[label], times[label], worker.loaded["runs_on"])
                measurements.append(replace(row, difference=answers.difference(worker, batch)))
        return Report(tuple(measurements), startups, threads, machine(), (*remarks, *answers.remarks))


class _Answers(Closeable):
    """The answers of targets beside those of their reference files, each of which gets a process of its own.

    Attributes:
        remarks: sentences on references that do not run.
    """

    def __init__(self, shapes: Sequence[str], workers: Sequence[_Worker]) -> None:
        self.remarks: list[str] = []
        self._shapes = list(shapes)
        self._own: list[_Worker] = []
        # A target on the function bodies is a reference itself.
        self._references: dict[Path, _Worker | None] = {
            each.target.path: each for each in workers if each.loaded["is_reference"]
        }
        self._folder = tempfile.TemporaryDirectory(prefix="na-deploy-bench-")

    def difference(self, worker: _Worker, batch: int | None) -> float | None:
        """Return the largest relative difference of a target's outputs at the sizes it was timed with."""
        path = worker.target.reference
        reference = None if path is None else self._reference(path)
        if reference is None:
            return None
        reference.ask(do="prepare", batch=batch, shapes=self._shapes, warm_up=False)
        return worst_difference(self._answer(worker), self._answer(reference)).relative

    def _answer(self, worker: _Worker) -> dict[str, Array]:
        file = Path(self._folder.name) / "answer.npz"
        worker.ask(do="answer", path=str(file))
        with np.load(file) as arrays:
            return dict(arrays)

    def _reference(self, path: Path) -> _Worker | None:
        if path not in self._references:
            options = BODIES | {"providers": [CPU_PROVIDER]}
            try:
                self._own.append(_Worker(Target(path.name, "session", path, options), None, self._shapes))
                self._references[path] = self._own[-1]
            except NaDeployError as error:
                self._references[path] = None
                self.remarks.append(f"differences are not known: ONNX Runtime does not run the reference, {error}")
        return self._references[path]

    def close(self) -> None:
        """End the references' processes."""
        for worker in self._own:
            worker.close()
        self._folder.cleanup()


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest of the ascending numbers that is at least as large as a ``share`` of them."""
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def machine() -> str:
    """Return this machine's processor and the number of its threads that this process may use, in words."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} threads"


def _measurement(label: str, prepared: dict[str, Any], milliseconds: list[float], runs_on: str) -> Measurement:
    ordered, batch = sorted(milliseconds), int(prepared["batch"])
    return Measurement(
        label=label,
        batch=batch,
        shapes={name: tuple(shape) for name, shape in prepared["shapes"].items()},
        calls=len(ordered),
        p50_ms=statistics.median(ordered),
        p90_ms=percentile(ordered, 0.9),
        p99_ms=percentile(ordered, 0.99),
        items_per_s=1e3 * batch * len(ordered) / sum(ordered),
        runs_on=runs_on,
    )


def _startup(worker: _Worker) -> Startup:
    loaded = worker.loaded
    return Startup(
        label=worker.target.label,
        import_s=loaded["import_s"],
        load_s=loaded["load_s"],
        first_s=loaded["first_s"],
        peak_mb=worker.ask(do="memory")["peak_mb"],
    )
