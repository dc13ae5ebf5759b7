"""Sessions on OpenVINO, on the processor.

A file is flattened first, because OpenVINO knows no model-local functions. Precision is explicit: float32 unless
bfloat16 is asked for, whatever OpenVINO would choose by itself on a processor with bfloat16 products.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from queue import Empty, LifoQueue
from typing import Any

import onnx

from na_deploy.errors import MissingDependencyError, NaDeployError, UsageError
from na_deploy.model_file.flatten import flatten, is_flat
from na_deploy.model_file.graph import read_model, tensor_specs
from na_deploy.model_file.tensors import Array
from na_deploy.models.metadata import ModelMetadata
from na_deploy.runtime.backend_names import PRECISIONS
from na_deploy.runtime.session import Session, SessionOptions


def open_session(path: Path, options: SessionOptions) -> OpenVinoSession:
    """Load ``path`` with OpenVINO. See :func:`na_deploy.runtime.session.load` for the errors."""
    openvino = import_openvino()
    core = openvino.Core()
    precision = check_precision(options.precision or "f32", core)
    model = read_model(path)
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    if options.threads is not None:
        settings["INFERENCE_NUM_THREADS"] = options.threads
    if options.streams is not None:
        settings["NUM_STREAMS"] = options.streams
    if options.cache is not None:
        settings["CACHE_DIR"] = str(options.cache)
    flat = _flat_bytes(path, model)
    try:
        compiled = core.compile_model(core.read_model(flat), "CPU", settings)
    except Exception as error:
        raise NaDeployError(f"OpenVINO {version(openvino)} refuses {path}: {reason(error)}") from error
    return OpenVinoSession(path, model, compiled)


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


def _flat_bytes(path: Path, model: onnx.ModelProto) -> bytes:
    onnx.load_external_data_for_model(model, str(path.resolve().parent))
    try:
        content: bytes = (model if is_flat(model) else flatten(model)).SerializeToString()
        return content
    except ValueError:  # protobuf's limit of 2 GiB
        raise NaDeployError(
            f"{path} is too large to be flattened in memory; write a flat file with: na-deploy flatten {path}"
        ) from None


class OpenVinoSession(Session):
    """A model compiled by OpenVINO. Calls from several threads run in requests of their own.

    Attributes:
        precision: "f32" or "bf16", as OpenVINO reports it.
        streams: calls that OpenVINO works on at the same time.
    """

    backend = "openvino"

    def __init__(self, path: Path, model: onnx.ModelProto, compiled: Any) -> None:
        self.path = path
        weights = frozenset(tensor.name for tensor in model.graph.initializer)
        self.inputs = tensor_specs(list(model.graph.input), skip=weights)
        self.outputs = tensor_specs(list(model.graph.output))
        self.metadata = ModelMetadata.from_props({entry.key: entry.value for entry in model.metadata_props})
        chosen = compiled.get_property("INFERENCE_PRECISION_HINT")
        self.precision = "bf16" if "bfloat16" in str(chosen) or "bf16" in str(chosen) else "f32"
        self.streams = int(compiled.get_property("NUM_STREAMS"))
        self.device = f"CPU ({self.precision})"
        self._places = {spec.name: index for index, spec in enumerate(self.outputs)}
        self._lock = threading.Lock()
        self._compiled: Any | None = compiled
        self._idle: LifoQueue[Any] = LifoQueue()

    def _run(self, inputs: dict[str, Array], outputs: list[str]) -> dict[str, Array]:
        with self._lock:
            compiled = self._compiled
        if compiled is None:
            raise UsageError(f"the session of {self.path.name} is closed; load the model again")
        try:
            request = self._idle.get_nowait()
        except Empty:
            request = compiled.create_infer_request()
        try:
            results = request.infer([inputs[spec.name] for spec in self.inputs], share_inputs=True)
            found = {name: results[self._places[name]] for name in outputs}
        except Exception as error:
            raise NaDeployError(f"OpenVINO could not run {self.path.name}: {reason(error)}") from error
        finally:
            self._idle.put(request)
        return found

    def close(self) -> None:
        """Release the model once calls in progress have finished."""
        with self._lock:
            self._compiled = None
        self._idle = LifoQueue()
