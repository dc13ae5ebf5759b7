"""Sessions on ONNX Runtime: any installed execution provider, and the operator library if it is there."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from na_deploy.errors import MissingDependencyError, NaDeployError, UsageError
from na_deploy.model_file.tensors import Array, TensorSpec
from na_deploy.models.metadata import ModelMetadata
from na_deploy.runtime.backends.model_bytes import in_memory
from na_deploy.runtime.backends.onnxruntime_graphs import CudaGraphs, check_places, check_version, refusal
from na_deploy.runtime.backends.onnxruntime_values import run_session
from na_deploy.runtime.gpu_calls import GPU_CALLS
from na_deploy.runtime.graph_figures import GraphFigures
from na_deploy.runtime.native_libraries import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    gpu_capabilities,
    onnxruntime_library,
    register,
    try_gpu_kernels,
)
from na_deploy.runtime.session import Session, SessionOptions

PREFERRED_PROVIDERS = (CUDA_PROVIDER, CPU_PROVIDER)
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
_FATAL_ONLY = 4  # failures reach the caller as exceptions; without this they are also printed to stderr


def open_session(path: Path, options: SessionOptions) -> OnnxRuntimeSession:
    """Load ``path`` with ONNX Runtime. See :func:`na_deploy.runtime.session.load` for the errors."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            f"running a model needs onnxruntime, which cannot be imported ({error}); "
            "install onnxruntime, or onnxruntime-gpu on a CUDA machine"
        ) from None
    providers = _choose_providers(onnxruntime.get_available_providers(), options.providers)
    if options.device is not None and CUDA_PROVIDER not in providers:
        raise UsageError(
            f"device {options.device} is a GPU, and onnxruntime is to run on {', '.join(providers)} here; "
            "remove device, or install onnxruntime-gpu"
        )
    if options.cuda_graphs:
        if providers[0] != CUDA_PROVIDER:
            raise UsageError(
                f"cuda_graphs is for {CUDA_PROVIDER}, and onnxruntime is to run on {', '.join(providers)} here; "
                "remove cuda_graphs, or install onnxruntime-gpu"
            )
        check_version(onnxruntime.__version__)
    library = (options.library or onnxruntime_library()) if options.custom_operators else None
    settings = _settings(onnxruntime, options)
    if library is not None:
        try:
            if _has_kernels(library, providers[0]):
                if providers[0] == CUDA_PROVIDER:
                    _expect_launches(library, options.device or 0)
                register(settings, library)
            else:
                library = None
        except NaDeployError as error:
            warnings.warn(f"{error}; the model runs on its embedded function bodies", RuntimeWarning, stacklevel=3)
            library, settings = None, _settings(onnxruntime, options)
    try:
        with in_memory(path, options.manifest) as content:
            if content.weights:
                names, buffers = list(content.weights), list(content.weights.values())
                settings.add_external_initializers_from_files_in_memory(names, buffers, [len(data) for data in buffers])
            source = str(path) if content.model is None else content.model
            # The class itself would make a session without graphs where one with graphs is refused.
            further = {"enable_fallback": 0} if options.cuda_graphs else {}
            arguments: dict[str, Any] = {"providers": _on_device(providers, options)} | further
            with _gpu_call(providers):
                try:
                    session = onnxruntime.InferenceSession(source, settings, **arguments)
                except Exception as error:
                    if "float8e4m3fn" not in str(error):
                        raise
                    # Its fusions take fp8 for int8 (1.31); without them fp8 is computed in float.
                    settings.add_session_config_entry("session.disable_quant_qdq", "1")
                    session = onnxruntime.InferenceSession(source, settings, **arguments)
    except NaDeployError:
        raise
    except Exception as error:
        raise NaDeployError(_loading_failure(path, error)) from error
    active = session.get_providers()
    if (options.providers or options.device is not None or options.cuda_graphs) and providers[0] not in active:
        raise NaDeployError(
            f"onnxruntime could not start {providers[0]} on this machine; it offers {', '.join(active)}"
        )
    if options.cuda_graphs:
        check_places(path.name, session)
    return OnnxRuntimeSession(path, session, library, options)


def _has_kernels(library: Path, provider: str) -> bool:
    """Return whether the library computes for a provider; on another it would move every attention layer to the CPU."""
    return provider == CPU_PROVIDER or (provider == CUDA_PROVIDER and gpu_capabilities(library) != "")


def _expect_launches(library: Path, device: int) -> None:
    with GPU_CALLS.shared():
        reason = try_gpu_kernels(library, device)
    if reason:
        raise NaDeployError(
            f"the GPU kernels of {library} do not run on GPU {device}: {reason}; they are compiled for compute "
            f"capability {gpu_capabilities(library)}"
        )


def _on_device(providers: list[str], options: SessionOptions) -> list[Any]:
    """Return the providers, with the GPU's number and graphs for the one that runs on it."""
    own: dict[str, Any] = {"device_id": options.device} if options.device else {}  # naming 0 makes 1.31 warn
    if options.cuda_graphs:
        own["enable_cuda_graph"] = "1"
    return [(name, own) if own and name == CUDA_PROVIDER else name for name in providers]


def _gpu_call(providers: Sequence[str]) -> AbstractContextManager[None]:
    """Keep captures of graphs away from a call on the CUDA provider."""
    return GPU_CALLS.shared() if CUDA_PROVIDER in providers else nullcontext()


def _settings(onnxruntime: Any, options: SessionOptions) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _FATAL_ONLY
    # Threads that spin after a run take the processors from other sessions: two in turn run twice as fast without.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    if options.threads is not None:
        settings.intra_op_num_threads = options.threads
    return settings


class OnnxRuntimeSession(Session):
    """A model in ONNX Runtime."""

    backend = "onnxruntime"

    def __init__(self, path: Path, session: Any, library: Path | None, options: SessionOptions) -> None:
        self.path = path
        self.library = library
        self.inputs = tuple(_spec(path, argument) for argument in session.get_inputs())
        self.outputs = tuple(_spec(path, argument) for argument in session.get_outputs())
        self.metadata = ModelMetadata.from_props(dict(session.get_modelmeta().custom_metadata_map))
        self.providers: tuple[str, ...] = tuple(session.get_providers())
        self.device = self.providers[0].removesuffix("ExecutionProvider")
        self._lock = threading.Lock()
        self._session: Any | None = session
        self.cuda_graphs = options.cuda_graphs or 0
        self._graphs: CudaGraphs | None = None
        if self.cuda_graphs:
            self._graphs = CudaGraphs(session, path.name, self.outputs, options.device or 0, self.cuda_graphs)

    @property
    def graph_figures(self) -> list[GraphFigures]:
        """Counts of CUDA graphs, in one entry; empty where none are kept."""
        return [] if self._graphs is None else [self._graphs.figures]

    def _run(self, inputs: dict[str, Array], outputs: list[str]) -> dict[str, Array]:
        with self._lock:
            session = self._session
        if session is None:
            raise UsageError(f"the session of {self.path.name} is closed; load the model again")
        try:
            if self._graphs is not None:
                return self._graphs.run(inputs, outputs)
            with _gpu_call(self.providers):
                return dict(zip(outputs, run_session(session, inputs, outputs), strict=True))
        except NaDeployError:
            raise
        except Exception as error:
            raise NaDeployError(f"onnxruntime could not run {self.path.name}: {first_line(error)}") from error

    def close(self) -> None:
        """Release the model once calls in progress have finished."""
        if self._graphs is not None:
            self._graphs.close()
        with _gpu_call(self.providers), self._lock:
            self._session = None


def first_line(error: BaseException) -> str:
    """Return the first line of a runtime's exception, without its status prefix."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    text = re.sub(r"^Load model from .*? failed:", "", text)
    return text.strip().rstrip(".")


def _choose_providers(available: list[str], wanted: tuple[str, ...] | None) -> list[str]:
    if wanted is None:
        return [name for name in PREFERRED_PROVIDERS if name in available] or available
    unknown = [name for name in wanted if name not in available]
    if unknown or not wanted:
        remedy = ", or install onnxruntime-gpu" if CUDA_PROVIDER in unknown else ""
        raise UsageError(
            f"onnxruntime has no provider {', '.join(unknown) or '(an empty list was given)'} here; "
            f"choose from {', '.join(available)}{remedy}"
        )
    return list(wanted)


def _loading_failure(path: Path, error: Exception) -> str:
    kind = type(error).__name__
    if (sentence := refusal(path.name, str(error))) is not None:
        return sentence
    if path.stat().st_size == 0:
        return f"{path} is empty; export the model again"
    if kind in ("InvalidProtobuf", "NoModel") or "Protobuf parsing failed" in str(error):
        return f"{path} is not an ONNX model, or is damaged; give a file written by `na-deploy export`"
    if kind == "NotImplemented":
        return f"onnxruntime has no kernel for a node of {path} on this machine: {first_line(error)}"
    return f"onnxruntime refuses {path}: {first_line(error)}"


def _spec(path: Path, argument: Any) -> TensorSpec:
    if argument.type not in _DTYPES:
        raise NaDeployError(f"{path}: {argument.name} is of type {argument.type}, which sessions do not handle")
    shape = (f"{argument.name}.{axis}" if size is None else size for axis, size in enumerate(argument.shape))
    return TensorSpec(argument.name, _DTYPES[argument.type], tuple(shape))
