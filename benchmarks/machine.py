"""The heading of every benchmark, and the way every benchmark times: interleaved, medians."""

from __future__ import annotations

import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import onnxruntime as ort


def describe_machine(threads: int) -> str:
    """Return processor, cores used and library versions in one line."""
    import numpy

    versions = [
        f"Python {platform.python_version()}",
        f"NumPy {numpy.__version__}",
        f"ONNX Runtime {ort.__version__}",
    ]
    if importlib.util.find_spec("torch"):
        import torch

        versions.append(f"PyTorch {torch.__version__}")
    return f"{_processor()}, {threads} of {os.cpu_count()} threads; {', '.join(versions)}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    flags = next((line for line in lines if line.startswith("flags")), "")
    return model + (" with AVX-512" if "avx512f" in flags else "")


def open_session(model: bytes | str, threads: int, library: Path | None = None) -> ort.InferenceSession:
    """Open a model in ONNX Runtime on the CPU; all sessions of the process share one pool of threads.

    With ``library``, the custom operators in it are registered; without, a model runs on its function bodies.

    Each session's own pool would go on spinning after its turn and take the processor from the next candidate.
    """
    global _pool
    if _pool is None:
        ort.set_global_thread_pool_sizes(threads, 1)
        _pool = threads
    elif _pool != threads:
        raise ValueError(f"this process already runs with {_pool} threads, got {threads}")
    options = ort.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 3
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


_pool: int | None = None


def time_interleaved(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int = 15,
    warmup: int = 2,
    budget: float = 60.0,
    pause: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return each candidate's median milliseconds, all of them timed in turn so that noise hits them alike.

    Each round starts with another candidate, so that none always follows the same one.
    A candidate that alone would overrun ``budget`` seconds is run fewer times, at least three. ``pause`` seconds before
    each run let other candidates' threads go to sleep. ``clock`` may be ``time.process_time``, which other processes
    disturb less.
    """
    allowed: dict[str, int] = {}
    for name, run in candidates.items():
        started = time.perf_counter()
        run()
        once = time.perf_counter() - started
        for _ in range(warmup - 1 if once < 1 else 0):
            run()
        allowed[name] = max(3, min(rounds, int(budget / max(once, 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            if turn < allowed[name]:
                run = candidates[name]
                time.sleep(pause)
                started = clock()
                run()
                times[name].append(1e3 * (clock() - started))
    return {name: statistics.median(values) for name, values in times.items()}
