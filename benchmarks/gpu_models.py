"""Whole models in ONNX Runtime's CUDA provider: with the operator library, on function bodies, and PyTorch beside.

    python benchmarks/gpu_models.py libna_deploy_ort.so [--models nat_mini,dinat_mini] [--dtype fp32,fp16]
                                    [--batch 1,8,64] [--output table.md]

Random weights of seed 0 at the published size, batch left free, exported here. Each file is timed in a process of its
own: images, weights and scores lie on the GPU, a call ends when the GPU has ended, candidates take turns, medians.
Candidates: the provider's defaults with the library, the same captured as a CUDA graph, function bodies, and the graph
with attention replaced by a copy of its value, which is what the network costs beside attention. "load" and "load with
graphs" are what users get: sessions of ``na_deploy.load``, images and scores as NumPy arrays. PyTorch runs our own
modules, attention on tiles, uncompiled; NATTEN is not needed.

The session with graphs is also asked batch after batch in turn, other images every time, so that several graphs live in
it and every answer has to be its own images'; "in turn differs" is the largest difference of all those calls.

Differences are relative to the largest score of the float32 file on the CPU. Float32 products are TF32's in the
provider unless it is told otherwise, hence the column without. ``--provider CPUExecutionProvider`` tries the script.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from attention_free import floor_of
from machine import describe_machine, time_interleaved
from whole_networks import CELLS, MISSING, Cells, show_rows

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
DEVICES = {CPU: "cpu", CUDA: "cuda"}
LIBRARY, GRAPH, BODIES, FLOOR = "library, ms", "CUDA graph, ms", "bodies, ms", "no attention, ms"
LOADED, KEPT = "load, ms", "load with graphs, ms"
PYTORCH, RATE = "PyTorch, ms", "images/s"
DIFFERENCES = {
    LIBRARY: "library differs",
    GRAPH: "graph differs",
    BODIES: "bodies differ",
    LOADED: "load differs",
    KEPT: "load with graphs differs",
    PYTORCH: "PyTorch differs",
}
EXACT, IN_TURN, WHERE = "without TF32", "in turn differs", "attention ran on"
COLUMNS = (
    *("model", "type", "batch", LIBRARY, GRAPH, BODIES, FLOOR, LOADED, KEPT, PYTORCH, RATE),
    *(*DIFFERENCES.values(), EXACT, IN_TURN, WHERE),
)
TURNS = 5
"""Calls of every batch in turn: the first runs as usual, the second is captured, the others launch the graph."""
FAILED = "FAILED"
COMPARED = 8
"""Images of a batch whose scores are compared with the CPU's."""
Array = np.ndarray[Any, Any]


def random_images(shape: Sequence[int], batch: int) -> Array:
    """Return images (B, C, H, W); smaller batches begin like larger ones."""
    return np.random.default_rng(8).normal(size=(batch, *shape)).astype(np.float32)


def relative(found: Array, expected: Array) -> str:
    """Return the largest difference of the images that both have, relative to the largest score."""
    images = min(len(found), len(expected))
    found, expected = found[:images], expected[:images]
    return f"{np.abs(found - expected).max() / np.abs(expected).max():.1e}"


def attempt(what: str, make: Callable[[], Any]) -> Any:
    """Return what ``make`` returns, or ``None`` and print why: one candidate's failure is not the others'."""
    try:
        return make()
    except Exception as error:  # whatever a runtime raises
        print(f"{what}: {' '.join(str(error).split())[:600]}", file=sys.stderr, flush=True)
        return None


def open_session(
    model: Path | bytes,
    provider: str,
    library: Path | None = None,
    profile: Path | None = None,
    own: Mapping[str, str] | None = None,
) -> Any:
    """Open a model; ``own`` are the CUDA provider's options.

    Raises:
        RuntimeError: the provider does not start.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if library is not None:
        options.register_custom_ops_library(str(library))
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    chosen = [(provider, dict(own))] if own and provider == CUDA else [provider]
    behind = [] if provider == CPU else [CPU]
    source = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(source, options, providers=[*chosen, *behind])
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"onnxruntime could not start {provider}")
    return session


class Bound:
    """A session with images and scores bound to memory of the provider's device.

    Args:
        session: the model, opened.
        images: (B, C, H, W).
        device: "cuda" or "cpu".
        graph: number of the CUDA graph that holds this batch, where the session captures graphs.
    """

    def __init__(self, session: Any, images: Array, device: str, graph: int | None = None) -> None:
        import onnxruntime

        (given,), (scores,) = session.get_inputs(), session.get_outputs()
        shape = (len(images), scores.shape[1])
        self._scores = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, device, 0)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(given.name, onnxruntime.OrtValue.ortvalue_from_numpy(images, device, 0))
        self._binding.bind_ortvalue_output(scores.name, self._scores)
        self._options = onnxruntime.RunOptions()
        if graph is not None:
            self._options.add_run_config_entry("gpu_graph_id", str(graph))
        self._session = session
        for _ in range(3):  # algorithms are chosen in the first, graphs captured by the second
            self()

    def __call__(self) -> None:
        """Run, and wait for the device."""
        self._session.run_with_iobinding(self._binding, self._options)

    def scores(self) -> Array:
        """Return the last call's scores."""
        found: Array = self._scores.numpy()
        return found


class Loaded:
    """A session of ``na_deploy.load`` with images, which takes and gives NumPy arrays.

    Args:
        session: the session.
        images: (B, C, H, W).
    """

    def __init__(self, session: Any, images: Array) -> None:
        self._session, self._images = session, images
        for _ in range(3):  # algorithms are chosen in the first, graphs captured in the second
            self()

    def __call__(self) -> None:
        """Run, and wait for the scores."""
        (self._scores,) = self._session.run(self._images).values()

    def scores(self) -> Array:
        """Return the last call's scores."""
        found: Array = self._scores
        return found


def load_session(path: Path, library: Path, provider: str, graphs: int) -> Any:
    """Open a model as users do, with the library, on the provider alone."""
    import na_deploy

    providers = [provider] if provider == CPU else [provider, CPU]
    with mock.patch.dict(os.environ, NA_DEPLOY_ORT_LIBRARY=str(library)):
        session = na_deploy.load(path, "onnxruntime", providers=providers, cuda_graphs=graphs)
    if session.library is None:
        raise RuntimeError(f"na_deploy.load did not take {library}")
    return session


def ask_in_turn(session: Any, images: Array, expected: Array, batches: Sequence[int]) -> str:
    """Return the largest difference of calls with other images each, batch after batch in turn.

    Args:
        session: a session of ``na_deploy.load``.
        images: (I, C, H, W) to choose from.
        expected: their scores on the CPU.
        batches: sizes that take turns.

    Raises:
        RuntimeError: a session with graphs has none for a batch, or launched none.
    """
    random, worst = np.random.default_rng(11), 0.0
    for _ in range(TURNS):
        for batch in batches:
            chosen = random.integers(0, len(images), batch)
            (found,) = session.run(images[chosen]).values()
            worst = max(worst, float(relative(found, expected[chosen])))
    for figures in session.graph_figures:
        if figures.captured < len(batches) or figures.launched < (TURNS - 2) * len(batches):
            raise RuntimeError(f"not every batch was launched as a graph: {figures}")
    return f"{worst:.1e}"


def look_closely(path: Path, provider: str, library: Path, expected: Array, images: Array) -> Cells:
    """Return the difference without TF32, and the providers that ran attention."""
    profile = path.with_suffix(".profile")
    session = open_session(path, provider, library, profile, {"use_tf32": "0"})
    found = session.run(None, {session.get_inputs()[0].name: images})[0]
    ran: dict[str, set[str]] = {}
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["args"].get("provider"):
            ran.setdefault(event["args"]["provider"], set()).add(event["args"]["op_name"])
    attending = [name for name, kinds in ran.items() if any(kind.startswith("Neighborhood") for kind in kinds)]
    for name, kinds in ran.items():
        print(f"{path.name}: {name} ran {', '.join(sorted(kinds))}", file=sys.stderr)
    return {EXACT: relative(found, expected), WHERE: ", ".join(attending).replace("ExecutionProvider", "")}


def time_file(
    path: Path, reference: Path, library: Path, provider: str, batches: Sequence[int], rounds: int, seconds: float
) -> Iterator[Cells]:
    """Time an exported file at every batch and compare its scores with the reference's on the CPU."""
    exact = open_session(reference, CPU)
    shape = exact.get_inputs()[0].shape[1:]
    images = random_images(shape, COMPARED)
    expected = exact.run(None, {"image": images})[0]
    others = np.ascontiguousarray(images[:, :, ::-1])
    more = exact.run(None, {"image": others})[0]
    del exact
    close = attempt("without TF32", lambda: look_closely(path, provider, library, expected, images)) or {}
    openers: dict[str, Callable[[], Any]] = {
        LIBRARY: lambda: open_session(path, provider, library),
        BODIES: lambda: open_session(path, provider),
        FLOOR: lambda: open_session(floor_of(path).SerializeToString(), provider),
    }
    if provider == CUDA:
        openers[GRAPH] = lambda: open_session(path, provider, library, own={"enable_cuda_graph": "1"})
    openers[LOADED] = lambda: load_session(path, library, provider, 0)
    if provider == CUDA:
        openers[KEPT] = lambda: load_session(path, library, provider, len(batches))
    sessions = {name: attempt(f"{path.name}, {name}", opener) for name, opener in openers.items()}
    asked = sessions.get(KEPT) or sessions[LOADED]
    if asked is not None:
        pool, scores = np.concatenate([images, others]), np.concatenate([expected, more])
        worst = attempt(f"{path.name}, in turn", lambda: ask_in_turn(asked, pool, scores, batches))
        close |= {IN_TURN: FAILED if worst is None else worst}
    for number, batch in enumerate(batches, start=1):
        images = random_images(shape, batch)
        calls: dict[str, Bound | Loaded] = {}
        for name, session in sessions.items():
            graph = number if name == GRAPH else None
            what = f"{path.name}, batch {batch}, {name}"

            def prepare() -> Bound | Loaded:
                if name in (LOADED, KEPT):  # noqa: B023
                    return Loaded(session, images)  # noqa: B023
                return Bound(session, images, DEVICES[provider], graph)  # noqa: B023

            call = attempt(what, prepare) if session else None
            if call is not None:
                calls[name] = call
        found = attempt(f"{path.name}, batch {batch}", lambda: timed(calls, expected, rounds, seconds))  # noqa: B023
        ours = [float(found[name]) for name in (LIBRARY, GRAPH) if found and name in found]
        rate = {RATE: f"{1e3 * batch / min(ours):.0f}"} if ours else {}
        yield {"batch": str(batch), **close, **(found or {}), **rate}


def timed(calls: Mapping[str, Bound | Loaded], expected: Array, rounds: int, seconds: float) -> Cells:
    """Return medians, and the differences of the scores that the last calls left."""
    times = time_interleaved(calls, rounds, 1, seconds) if calls else {}
    differences = {DIFFERENCES[name]: relative(calls[name].scores(), expected) for name in times if name in DIFFERENCES}
    return {name: f"{ms:.3f}" for name, ms in times.items()} | differences


def time_pytorch(
    checkpoint: Path, name: str, dtype: str, reference: Path, device: str, batches: Sequence[int], seconds: float
) -> Iterator[Cells]:
    """Time our own modules in PyTorch at every batch, and compare their scores with the reference's on the CPU."""
    import torch

    from na_deploy.models import load_model

    loaded = load_model(checkpoint, arch=name)
    kind = {"fp32": torch.float32, "fp16": torch.float16}[dtype]
    module = loaded.module.to(device, kind).eval()
    shape = (loaded.config.in_channels, *loaded.input_size)
    expected = open_session(reference, CPU).run(None, {"image": random_images(shape, COMPARED)})[0]
    for batch in batches:
        images = torch.from_numpy(random_images(shape, batch)).to(device, kind)

        def run() -> Any:
            with torch.inference_mode():
                scores = module(images)  # noqa: B023
            if device == "cuda":
                torch.cuda.synchronize()
            return scores

        found = run().float().cpu().numpy()
        ms = time_interleaved({PYTORCH: run}, 21, 1, seconds)[PYTORCH]
        yield {"batch": str(batch), PYTORCH: f"{ms:.3f}", DIFFERENCES[PYTORCH]: relative(found, expected)}


def export_model(name: str, dtypes: Sequence[str], dtype: str, folder: Path) -> None:
    """Export one type of a model with random weights of seed 0; the exporter verifies the file on the CPU."""
    import torch

    from na_deploy.exporter import export
    from na_deploy.models import load_model, random_checkpoint

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // len(dtypes)))
    checkpoint = folder / f"{name}_{dtype}.pth"
    random_checkpoint(name, seed=0, path=checkpoint)
    report = export(load_model(checkpoint, arch=name), folder / f"{name}_{dtype}.onnx", dtype=dtype, dynamic="batch")
    took = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in report.seconds.items())
    print(f"{name}, {dtype}: {report.difference:.1e} from PyTorch on the CPU; {took}", file=sys.stderr)


def run_child(arguments: argparse.Namespace) -> None:
    """Do one step of the benchmark in this process, and print its cells for the process that waits for them."""
    step, *rest = arguments.child
    folder, device = arguments.folder, DEVICES[arguments.provider]
    if step == "export":
        export_model(rest[0], arguments.exported, rest[1], folder)
        return
    limits = (arguments.batch, arguments.seconds)
    for name, dtype in [rest] if rest else [(name, dtype) for name in arguments.models for dtype in arguments.dtype]:
        path, reference = folder / f"{name}_{dtype}.onnx", folder / f"{name}_fp32.onnx"
        if step == "file":
            batches, seconds = limits
            found = time_file(path, reference, arguments.library, arguments.provider, batches, 41, seconds)
        else:
            found = time_pytorch(path.with_suffix(".pth"), name, dtype, reference, device, *limits)
        for cells in found:
            print(CELLS + json.dumps({"model": name, "type": dtype} | cells), flush=True)


def start(folder: Path, *child: str) -> subprocess.Popen[str]:
    """Start a step in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--folder", str(folder), "--child", *child]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def cells_of(child: subprocess.Popen[str], limit_s: float) -> list[Cells]:
    """Wait for a step and return its cells; those that it measured before it failed or ran out of time count."""
    try:
        output, _ = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        output, _ = child.communicate()
        print(f"a step was ended after {limit_s:.0f} s: {child.args}", file=sys.stderr, flush=True)
    if child.returncode > 0:
        print(f"a step failed with exit code {child.returncode}: {child.args}", file=sys.stderr, flush=True)
    return [json.loads(line.removeprefix(CELLS)) for line in output.splitlines() if line.startswith(CELLS)]


def measure(arguments: argparse.Namespace, folder: Path) -> list[Cells]:
    """Run all steps and return the table's rows."""
    kinds = [(name, dtype) for name in arguments.models for dtype in arguments.dtype]
    keys = [(name, dtype, str(batch)) for name, dtype in kinds for batch in arguments.batch]
    rows = {key: dict.fromkeys(COLUMNS, MISSING) | dict(zip(COLUMNS, key, strict=False)) for key in keys}

    def fill(cells: list[Cells]) -> None:
        for each in cells:
            rows[each["model"], each["type"], each["batch"]] |= each
            print(", ".join(f"{name} {value}" for name, value in each.items()), flush=True)

    exports = [start(folder, "export", name, dtype) for name in arguments.models for dtype in arguments.exported]
    for child in exports:
        cells_of(child, arguments.limit)
    for name, dtype in kinds:
        fill(cells_of(start(folder, "file", name, dtype), arguments.limit))
    if not arguments.no_pytorch:
        fill(cells_of(start(folder, "pytorch"), arguments.limit))
    return list(rows.values())


def main() -> int:
    """Measure, and print the table; return 1 where a file was not measured with the library, or wrong in turn."""

    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=lambda text: Path(text).resolve())
    parser.add_argument("--models", type=names, default=["nat_mini", "dinat_mini"], help="such as nat_mini,dinat_base")
    parser.add_argument("--dtype", type=names, default=["fp32", "fp16"], help="fp32,fp16")
    parser.add_argument("--batch", type=lambda text: [int(part) for part in text.split(",")], default=[1, 8, 64])
    parser.add_argument("--provider", choices=DEVICES, default=CUDA)
    parser.add_argument("--seconds", type=float, default=1.0, help="for one candidate at one batch, at least 3 runs")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for each step")
    parser.add_argument("--no-pytorch", action="store_true")
    parser.add_argument("--output", type=Path, help="the table in Markdown")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.exported = list(dict.fromkeys(["fp32", *arguments.dtype]))  # fp32 is the reference
    if arguments.child:
        run_child(arguments)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(arguments, Path(folder))
    title = f"ONNX Runtime, {arguments.provider.removesuffix('ExecutionProvider')}: medians, a batch each"
    words = ("model", "type", WHERE)
    show_rows(title, COLUMNS, rows, words=words, output=arguments.output, width=220)
    print(describe_machine(os.cpu_count() or 1))
    if arguments.provider == CUDA and shutil.which("nvidia-smi"):
        subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"], check=False)
    return int(any(row[LIBRARY] == MISSING or row[IN_TURN] in (MISSING, FAILED) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
