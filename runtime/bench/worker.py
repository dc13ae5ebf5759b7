"""The process of one target of :mod:`na_deploy.runtime.bench.compare`: answers requests, a line of JSON each.

Started as ``python -m na_deploy.runtime.bench.worker``; never imported.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from na_deploy.errors import NaDeployError
from na_deploy.model_file.example_inputs import example_inputs, example_shapes, parse_inputs
from na_deploy.model_file.tensors import Array, TensorSpec
from na_deploy.models.metadata import ModelMetadata
from na_deploy.runtime.bundle.description import describe

WARM_UP_S = 0.2


def peak_mb() -> float:
    """Return the process's largest resident set so far, in MB."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / 1024 if sys.platform != "darwin" else kilobytes / (1 << 20)


def resident_mb() -> float:
    """Return the process's resident set now, in MB; its peak where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_mb()
    return pages * resource.getpagesize() / (1 << 20)


class Worker:
    """A loaded target and the call that is timed."""

    def __init__(self) -> None:
        self.inputs: tuple[TensorSpec, ...] = ()
        self.metadata: ModelMetadata | None = None
        self.usual: Mapping[str, tuple[int, ...]] = {}
        self.run: Callable[[dict[str, Array]], Mapping[str, Array]] = lambda _: {}
        self.call: Callable[[], Mapping[str, Array]] = dict
        self.imported_mb = 0.0
        self.is_reference = False

    def load(
        self, kind: str, path: str, threads: int | None, options: dict[str, Any], shapes: list[str]
    ) -> dict[str, Any]:
        """Load the target and have it answer once."""
        started = perf_counter()
        loader = self._torch if kind == "torch" else self._session
        prepare = loader(path, threads, options)
        imported = perf_counter()
        self.imported_mb = resident_mb()
        runs_on = prepare()
        loaded = perf_counter()
        self.prepare(None, shapes, warm_up=False)
        self.call()
        return {
            "import_s": imported - started,
            "load_s": loaded - imported,
            "first_s": perf_counter() - loaded,
            "runs_on": runs_on,
            "is_reference": self.is_reference,
        }

    def _session(self, path: str, threads: int | None, options: dict[str, Any]) -> Callable[[], str]:
        # Imported now so that loading is timed alone.
        with contextlib.suppress(ImportError):  # which loading says
            import_module("openvino" if options.get("backend") == "openvino" else "onnxruntime")
        from na_deploy.runtime.session import load

        def prepare() -> str:
            session = load(path, threads=threads, **options)
            self.inputs, self.metadata, self.usual = session.inputs, session.metadata, session.usual_shapes
            self.run = session.run
            self.is_reference = (session.backend, session.device, session.library) == ("onnxruntime", "CPU", None)
            graphs = f", up to {session.cuda_graphs} CUDA graphs" if session.cuda_graphs else ""
            return f"{session.backend} {session.device}, {session.attention}{graphs}"

        return prepare

    def _torch(self, path: str, threads: int | None, options: dict[str, Any]) -> Callable[[], str]:
        try:
            import torch
        except ImportError:
            raise NaDeployError("PyTorch is not installed; install it with: pip install 'na-deploy[export]'") from None
        from na_deploy.models import load_model
        from na_deploy.models.recorded import load_recorded

        def prepare() -> str:
            if threads is not None:
                torch.set_num_threads(threads)
            arch, like = options["arch"], options["like"]  # the file that was exported from the checkpoint, if given
            file = None if like is None else describe(Path(like))
            if file is None or file.metadata is None or file.metadata.config is None:
                loaded = load_model(path, arch=arch)
                self.metadata = loaded.metadata
                channels = loaded.metadata.input_size[1]
                self.inputs = (TensorSpec("image", "float32", ("batch", channels, "height", "width")),)
            else:
                rows = file.outputs[0].shape[1:2]
                detections = rows[0] if rows and isinstance(rows[0], int) else None
                loaded = load_recorded(path, file.metadata, arch=arch, rows=detections)
                self.inputs, self.metadata = file.inputs, file.metadata
            module = loaded.module.eval()

            def run(arrays: dict[str, Array]) -> Mapping[str, Array]:
                with torch.inference_mode():
                    outputs = module(torch.from_numpy(arrays["image"]))
                tensors = (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)
                return {str(place): tensor.numpy() for place, tensor in enumerate(tensors)}

            self.run = run
            return f"PyTorch {torch.__version__}, tiles"

        return prepare

    def prepare(self, batch: int | None, shapes: list[str], warm_up: bool = True) -> dict[str, Any]:
        """Choose the inputs and warm up."""
        given = parse_inputs(shapes, [spec.name for spec in self.inputs])
        chosen = example_shapes(self.inputs, self.metadata, given, batch=batch, usual=self.usual)
        arrays = example_inputs(self.inputs, chosen)
        self.call = lambda: self.run(arrays)
        started = perf_counter()
        while warm_up and perf_counter() - started < WARM_UP_S:
            self.call()
        first = next(iter(chosen.values()), ())
        return {"batch": first[0] if first else 1, "shapes": {name: list(shape) for name, shape in chosen.items()}}

    def time(self, seconds: float) -> dict[str, Any]:
        """Call again and again; the first call is not counted, since caches were another target's."""
        self.call()
        times: list[float] = []
        until = perf_counter() + seconds
        while not times or perf_counter() < until:
            started = perf_counter()
            self.call()
            times.append(1e3 * (perf_counter() - started))
        return {"ms": times}

    def answer(self, path: str) -> dict[str, Any]:
        """Write the outputs of the call, in their order and in float32 at least, into an ``.npz`` file."""
        arrays = [array if array.dtype.kind in "fiub" else array.astype(np.float32) for array in self.call().values()]
        np.savez(path, *arrays)
        return {}

    def memory(self) -> dict[str, Any]:
        """Return the peak beyond the imported libraries."""
        return {"peak_mb": peak_mb() - self.imported_mb}


def serve() -> None:
    """Answer requests until the parent goes away."""
    answers, sys.stdout = sys.stdout, sys.stderr  # keep output of libraries apart from answers
    warnings.simplefilter("ignore")
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except NaDeployError as error:
            answer = {"error": str(error)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
