"""Calls of sessions with CUDA graphs in a process that has a pretended GPU, and a report of what the runtime was told.

    python cuda_graph_calls.py FOLDER

FOLDER holds ``float32.onnx`` and ``bfloat16.onnx``, one node each over ``qkv`` of free batch, and models that cannot be
captured in ``refused``. Written are ``report.json``, and ``answers.npz`` once all calls are done.
"""

from __future__ import annotations

import ctypes
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import na_deploy
from na_deploy.errors import NaDeployError
from na_deploy.runtime.gpu_calls import GPU_CALLS
from na_deploy.runtime.native_libraries import onnxruntime_library

TYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
CALLS = {"float32": (1, 2, 3, 1, 2, 3, 1, 2, 3, 0, 0, 0), "bfloat16": (2, 2, 2, 2)}
"""Batches of the calls, in order, with two graphs at most."""
NOT_CAPTURED = 900
"""CUDA's error where a stream that is captured does not take what it is given."""
SHARED = (1, 2, 1, 2, 2, 1, 3, 3)
"""Batches of calls from threads of their own, after those."""


def given(batch: int, seed: int, dtype: str = "float32") -> Any:
    """Return ``qkv`` (B, 5, 4, 3, 2, 8), other numbers for every seed."""
    return np.random.default_rng(seed).normal(size=(batch, 5, 4, 3, 2, 8)).astype(TYPES[dtype])


def graphs() -> list[int]:
    """Return the numbers of graphs that were made, launched and destroyed."""
    counts = (ctypes.c_int32 * 3)()
    ctypes.CDLL(None).na_test_graphs(counts)
    return list(counts)


def main(folder: Path) -> None:
    """Make all calls."""
    kernels = ctypes.CDLL(str(onnxruntime_library()))
    report: dict[str, Any] = {"graphs": {}, "launches": {}}
    answers: dict[str, Any] = {}
    for dtype, batches in CALLS.items():
        session = na_deploy.load(folder / f"{dtype}.onnx", cuda_graphs=2)
        told, launches = [], []
        for call, batch in enumerate(batches):
            before, launched = graphs(), kernels.na_test_launches()
            # Not copied: a later call that wrote into it would be seen.
            answers[f"{dtype} {call}"] = session.run({"qkv": given(batch, call, dtype)}, ["output"])["output"]
            told.append([after - count for after, count in zip(graphs(), before, strict=True)])
            launches.append(kernels.na_test_launches() - launched)
        report["graphs"][dtype], report["launches"][dtype] = told, launches
        if dtype == "float32":
            made = graphs()[0]
            with ThreadPoolExecutor(len(SHARED)) as pool:
                inputs = [given(batch, 100 + place) for place, batch in enumerate(SHARED)]
                for place, found in enumerate(pool.map(session.run, inputs)):
                    answers[f"shared {place}"] = found["output"]
            report["made by threads"] = graphs()[0] - made
            report["outputs"] = sorted(session.run({"qkv": inputs[0]}))
            report["figures"] = vars(session.graph_figures[0])
        session.close()
        try:
            session.run({"qkv": given(1, 0, dtype)})
        except NaDeployError as error:
            report["closed"] = str(error)
    with na_deploy.load(folder / "float32.onnx", device=0) as usual:
        done = threading.Event()
        thread = threading.Thread(target=lambda: (usual.run({"qkv": given(1, 0)}), done.set()))
        with GPU_CALLS.alone(1.0):
            thread.start()
            report["ran during a capture"] = done.wait(0.1)
        thread.join()
        report["ran after it"] = done.is_set()
    with na_deploy.load(folder / "float32.onnx", cuda_graphs=1) as session:
        inputs = {"qkv": given(2, 50)}
        session.run(inputs)
        with GPU_CALLS.shared():  # as another session's call that takes long
            session.run(inputs)
        report["captured beside another call"] = session.graph_figures[0].captured
        kernels.na_test_error(NOT_CAPTURED)
        try:
            session.run(inputs)
        except NaDeployError as error:
            report["not captured"] = str(error)
        kernels.na_test_error(0)
        answers["after a failure"] = session.run(inputs)["output"]
        report["captured after a failure"] = session.graph_figures[0].captured
    report["refused"] = {path.stem: refused(path) for path in (folder / "refused").iterdir()}
    np.savez(folder / "answers.npz", **answers)
    (folder / "report.json").write_text(json.dumps(report))


def refused(path: Path) -> str:
    """Return the message with which a model is refused."""
    try:
        na_deploy.load(path, cuda_graphs=1).close()
    except NaDeployError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
