"""The process of one target of :mod:`na_deploy.runtime.bench.compare`: answers requests, a line of JSON each.

Started as ``python -m na_deploy.runtime.bench.worker``; not for importing.
"""

from __future__ import annotations

import json
import resource
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from na_deploy.errors import NaDeployError


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
        self.shape: list[int | str] = []
        self.dtype = "float32"
        self.run: Callable[[Any], object] = lambda _: None
        self.call: Callable[[], object] = lambda: None
        self.imported_mb = 0.0

    def load(self, kind: str, path: str, threads: int | None, options: dict[str, Any]) -> dict[str, Any]:
        """Load the target and have it answer once."""
        started = perf_counter()
        loader = self._torch if kind == "torch" else self._session
        prepare = loader(path, threads, options)
        imported = perf_counter()
        self.imported_mb = resident_mb()
        runs_on = prepare()
        loaded = perf_counter()
        self.prepare(None)
        self.call()
        return {
            "import_s": imported - started,
            "load_s": loaded - imported,
            "first_s": perf_counter() - loaded,
            "runs_on": runs_on,
        }

    def _session(self, path: str, threads: int | None, options: dict[str, Any]) -> Callable[[], str]:
        import onnxruntime  # noqa: F401  # its import counts as import, not as loading

        from na_deploy.runtime.session import load

        def prepare() -> str:
            session = load(path, threads=threads, **options)
            if len(session.inputs) != 1:
                raise NaDeployError(f"it has {len(session.inputs)} inputs; bench measures models with one")
            (spec,) = session.inputs
            self.shape, self.dtype = list(spec.shape), spec.dtype
            self.run = session.run
            attention = "our operators" if session.library else "function bodies"
            return f"{session.backend} {session.device}, {attention}"

        return prepare

    def _torch(self, path: str, threads: int | None, options: dict[str, Any]) -> Callable[[], str]:
        try:
            import torch
        except ImportError:
            raise NaDeployError("PyTorch is not installed; install it with: pip install 'na-deploy[export]'") from None
        from na_deploy.models import load_model

        def prepare() -> str:
            if threads is not None:
                torch.set_num_threads(threads)
            loaded = load_model(path, **options)
            module = loaded.module.eval()
            self.shape = ["batch", 3, *loaded.input_size]

            def run(array: Any) -> object:
                with torch.inference_mode():
                    return module(torch.from_numpy(array))

            self.run = run
            return f"PyTorch {torch.__version__}, tiles"

        return prepare

    def prepare(self, batch: int | None) -> dict[str, Any]:
        """Choose the input and warm up."""
        import numpy as np

        shape = list(self.shape)
        if batch is not None:
            if isinstance(shape[0], int) and shape[0] != batch:
                raise NaDeployError(f"its batch is fixed to {shape[0]}, not {batch}; export with --dynamic batch")
            shape[0] = batch
        defaults = [1, 3, 224, 224]
        sizes = [size if isinstance(size, int) else defaults[axis] for axis, size in enumerate(shape)]
        array = np.random.default_rng(0).standard_normal(sizes, dtype=np.float32)
        if self.dtype != "float32":
            array = array.astype(self.dtype)
        self.call = lambda: self.run(array)
        started = perf_counter()
        while perf_counter() - started < 0.2:
            self.call()
        return {"batch": sizes[0]}

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

    def memory(self) -> dict[str, Any]:
        """Return the peak beyond the imported libraries."""
        return {"peak_mb": peak_mb() - self.imported_mb}


def serve() -> None:
    """Answer requests until the parent goes away."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not get between the answers
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
