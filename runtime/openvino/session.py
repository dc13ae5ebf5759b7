"""Sessions on OpenVINO, on the processor.

With the operator library a file is read as it is and attention runs in the library's kernels; without it the file is
flattened first, because OpenVINO knows no model-local functions. Precision is explicit: float32 unless bfloat16 is
asked for, whatever OpenVINO would choose by itself on a processor with bfloat16 products.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from queue import Empty, LifoQueue
from typing import Any

import numpy as np

from na_deploy.errors import MissingDependencyError, NaDeployError, UsageError
from na_deploy.model_file.description import Description, description_of
from na_deploy.model_file.graph import read_model
from na_deploy.model_file.tensors import Array, TensorSpec
from na_deploy.runtime.backend_names import PRECISIONS
from na_deploy.runtime.backends.model_bytes import verified_model
from na_deploy.runtime.bundle.description import description_in
from na_deploy.runtime.openvino.compiled import import_compiled
from na_deploy.runtime.openvino.reading import Graph, read_graph
from na_deploy.runtime.session import Session, SessionOptions


def open_session(path: Path, options: SessionOptions) -> OpenVinoSession:
    """Load ``path`` with OpenVINO. See :func:`na_deploy.runtime.session.load` for the errors."""
    openvino = import_openvino()
    core = openvino.Core()
    precision = check_precision(options.precision or "f32", core)
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    if options.threads is not None:
        settings["INFERENCE_NUM_THREADS"] = options.threads
    if options.streams is not None:
        settings["NUM_STREAMS"] = options.streams
    if options.manifest is not None:
        found = import_compiled(openvino, core, options, precision, settings)
        if found is not None:
            return OpenVinoSession(path, description_in(options.manifest), _Compiled(*found), found[1].library)
        core = openvino.Core()  # without the nodes of a compiled model that did not fit
    if options.cache is not None:
        settings["CACHE_DIR"] = str(options.cache)
    core.set_property({"ENABLE_MMAP": False})  # a loaded model stays what it was, whatever becomes of its files
    model = read_model(path) if options.manifest is None else verified_model(path, options.manifest)
    try:
        graph = read_graph(core, path, model, options, precision == "bf16")
        failure = graph.failure()
        if failure:
            raise NaDeployError(f"OpenVINO {version(openvino)} refuses {path}: {failure}")
        compiled = core.compile_model(graph.model, "CPU", settings)
    except NaDeployError:
        raise
    except Exception as error:
        raise NaDeployError(f"OpenVINO {version(openvino)} refuses {path}: {reason(error)}") from error
    return OpenVinoSession(path, description_of(model), _Compiled(compiled, graph), graph.library)


def import_openvino() -> Any:
    """Import OpenVINO.

    Raises:
        MissingDependencyError: it is not installed, or cannot be imported.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingDependencyError(
            f"this backend needs openvino, which cannot be imported ({error}); install it with: "
            "pip install 'na-deploy[openvino]'"
        ) from None
    return openvino


def check_precision(precision: str, core: Any) -> str:
    """Return the precision if this processor computes in it.

    Raises:
        UsageError: another name, or a processor without such products, where OpenVINO would compute in float32 in
            silence.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision must be {' or '.join(PRECISIONS)}, got {precision!r}")
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UsageError("this processor has no bfloat16 products (avx512_bf16 or AMX); use precision f32")
    return precision


def version(openvino: Any) -> str:
    """Return OpenVINO's version in short, such as ``2026.4.1``."""
    return re.split(r"[-+]", str(openvino.__version__), maxsplit=1)[0]


def reason(error: BaseException) -> str:
    """Return the line of OpenVINO's exception that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check 'false'", "FrontEnd API"))]
    return (telling or lines or [type(error).__name__])[0].rstrip(".")


def _tensor(spec: TensorSpec, array: Array) -> Any:
    """Return an input as OpenVINO takes it: NumPy's bfloat16 is a type that it does not know."""
    if spec.dtype != "bfloat16":
        return array
    from openvino import Shape, Tensor, Type

    return Tensor(np.ascontiguousarray(array).view(np.uint16), Shape(array.shape), Type.bf16)


def _array(spec: TensorSpec, result: Any) -> Array:
    if spec.dtype != "bfloat16":
        array: Array = result
        return array
    import ml_dtypes

    return np.asarray(result).view(ml_dtypes.bfloat16)


class _Compiled:
    """A compiled model, its requests and its attention nodes, which end with the last call in progress."""

    def __init__(self, model: Any, graph: Graph) -> None:
        self.model = model
        self.graph = graph
        self._idle: LifoQueue[Any] = LifoQueue()
        graph.model = None  # what is compiled needs it no more
        if graph.nodes is not None:
            graph.nodes.is_compiled = True

    def take_request(self) -> Any:
        try:
            return self._idle.get_nowait()
        except Empty:
            return self.model.create_infer_request()

    def give_back(self, request: Any) -> None:
        self._idle.put(request)

    def __del__(self) -> None:
        del self._idle, self.model  # before the nodes that they run on
        if self.graph.nodes is not None:
            self.graph.nodes.release()


class OpenVinoSession(Session):
    """A model compiled by OpenVINO. Calls from several threads run in requests of their own.

    Attributes:
        precision: "f32" or "bf16", as OpenVINO reports it.
        streams: calls that OpenVINO works on at the same time.
    """

    backend = "openvino"

    def __init__(self, path: Path, described: Description, compiled: _Compiled, library: Path | None) -> None:
        self.path = path
        self.library = library
        self.inputs, self.outputs, self.metadata = described.inputs, described.outputs, described.metadata
        chosen = compiled.model.get_property("INFERENCE_PRECISION_HINT")
        self.precision = "bf16" if "bfloat16" in str(chosen) or "bf16" in str(chosen) else "f32"
        self.streams = int(compiled.model.get_property("NUM_STREAMS"))
        self.device = f"CPU ({self.precision})"
        self._places = {spec.name: index for index, spec in enumerate(self.outputs)}
        self._lock = threading.Lock()
        self._compiled: _Compiled | None = compiled

    def _run(self, inputs: dict[str, Array], outputs: list[str]) -> dict[str, Array]:
        with self._lock:
            compiled = self._compiled
        if compiled is None:
            raise UsageError(f"the session of {self.path.name} is closed; load the model again")
        request = compiled.take_request()
        try:
            results = request.infer([_tensor(spec, inputs[spec.name]) for spec in self.inputs], share_inputs=True)
            found = {name: _array(self.outputs[place], results[place]) for name, place in self._places.items()}
        except Exception as error:
            sentence = compiled.graph.failure() or reason(error)
            raise NaDeployError(f"OpenVINO could not run {self.path.name}: {sentence}") from error
        finally:
            compiled.give_back(request)
        return {name: found[name] for name in outputs}

    def compiled_bytes(self) -> bytes:
        """Return the compiled model, which OpenVINO of the same version loads on a like processor.

        Raises:
            UsageError: the session is closed.
        """
        compiled = self._compiled
        if compiled is None:
            raise UsageError(f"the session of {self.path.name} is closed; load the model again")
        exported = compiled.model.export_model()
        return exported.getvalue() if hasattr(exported, "getvalue") else bytes(exported)

    def close(self) -> None:
        """Release the model once calls in progress have finished."""
        with self._lock:
            self._compiled = None
