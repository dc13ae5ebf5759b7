"""Sessions over engines of TensorRT and TensorRT-RTX."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from na_deploy.errors import NaDeployError, UsageError
from na_deploy.model_file.tensors import Array, check_inputs
from na_deploy.models.metadata import ModelMetadata
from na_deploy.runtime.gpu_calls import GPU_CALLS
from na_deploy.runtime.graph_figures import GraphFigures
from na_deploy.runtime.native_libraries import tensorrt_library
from na_deploy.runtime.session import Session, SessionOptions
from na_deploy.runtime.tensorrt.api import FLAVORS, RTX, TENSORRT, Flavor, load_module
from na_deploy.runtime.tensorrt.arrays import DeviceArray, as_device_array, is_device_array
from na_deploy.runtime.tensorrt.compatibility import check_manifest
from na_deploy.runtime.tensorrt.cuda import Cuda, load_cuda
from na_deploy.runtime.tensorrt.engine import Engine, load_engine, named_like
from na_deploy.runtime.tensorrt.probe import probe_engine
from na_deploy.runtime.tensorrt.stream_pool import PooledStream, StreamPool

if TYPE_CHECKING:
    from na_deploy.runtime.bundle import Bundle

STREAMS = 2
"""Default number of streams: while one computes, the other copies."""

SHAPES_KEPT = 4
"""Default number of combinations of shapes whose contexts and graphs are kept, per stream."""


def open_session(path: Path, options: SessionOptions) -> TensorRTSession:
    """Load an engine of TensorRT. See :func:`na_deploy.runtime.session.load` for the errors."""
    return _open_engine(path, options, TENSORRT)


def open_rtx_session(path: Path, options: SessionOptions) -> TensorRTSession:
    """Load an engine of TensorRT-RTX. See :func:`na_deploy.runtime.session.load` for the errors."""
    return _open_engine(path, options, RTX)


def _open_engine(path: Path, options: SessionOptions, flavor: Flavor) -> TensorRTSession:
    if path.suffix == ".onnx":
        raise UsageError(
            f"{path.name} is a model, and {flavor.backend} runs engines; "
            f"build one with: na-deploy build {path.name} -o {path.stem}.bundle --backend {flavor.backend}"
        )
    module, cuda = load_module(flavor), load_cuda()
    count, device = cuda.device_count(), options.device or 0
    if not 0 <= device < count:
        raise UsageError(f"there is no device {device}; this machine has {count}, numbered from 0")
    with cuda.on_device(device):
        manifest = options.manifest
        library = None
        if flavor.takes_plugins and options.custom_operators:
            library = options.library or tensorrt_library()
        if manifest is not None:
            check_manifest(path, manifest, flavor, module.__version__, cuda.compute_capability(device))
            host_code = manifest.requires.get("version_compatible") == "yes"
        else:
            # No hash is known for this file, and the library may end the process over a damaged one.
            probe_engine(path, flavor, device, library)
            host_code = False
        with GPU_CALLS.shared():
            engine = load_engine(path, module, flavor, library=library, host_code_allowed=host_code)
            return TensorRTSession(engine, cuda, options, library)


def open_bundle_engine(bundle: Bundle, device: int | None = None) -> TensorRTSession:
    """Open the engine of a verified bundle, to inspect it; :func:`na_deploy.load` is for running it."""
    options = SessionOptions(device=device, manifest=bundle.manifest)
    if bundle.manifest.member("library") is not None:
        options = replace(options, library=bundle.file("library"))
    return _open_engine(bundle.file("engine"), options, FLAVORS[bundle.manifest.backend])


class TensorRTSession(Session):
    """An engine on a GPU.

    Inputs may be NumPy arrays, which are copied through page-locked memory, or arrays that lie on the session's GPU
    (torch, CuPy, PyCUDA, JAX and others), which are read where they are.
    """

    def __init__(self, engine: Engine, cuda: Cuda, options: SessionOptions, library: Path | None) -> None:
        self.path = engine.path
        self.library = library
        self.backend = engine.flavor.backend
        manifest = options.manifest
        known = () if manifest is None else (*manifest.inputs, *manifest.outputs)
        self.inputs = named_like(engine.inputs, known)
        self.outputs = named_like(engine.outputs, known)
        self.metadata = None if manifest is None else ModelMetadata.from_props(dict(manifest.metadata))
        if self.inputs and self.inputs[0].shape:
            sizes = [profile.sizes[self.inputs[0].name] for profile in engine.profiles]
            self.batches = (min(size.minimum[0] for size in sizes), max(size.maximum[0] for size in sizes))
        self._number = options.device or 0
        self.device = f"{cuda.device_name(self._number)} (device {self._number})"
        self._cuda = cuda
        self._engine = engine
        self.cuda_graphs = SHAPES_KEPT if options.cuda_graphs is None else options.cuda_graphs
        self._pool = StreamPool(
            engine,
            cuda,
            self._number,
            STREAMS if options.contexts is None else options.contexts,
            max(1, self.cuda_graphs),
            self.cuda_graphs != 0,
        )
        self._closing = threading.Lock()

    @property
    def profiles(self) -> tuple[str, ...]:
        """The engine's optimization profiles, in words."""
        return tuple(str(profile) for profile in self._engine.profiles)

    @property
    def graph_figures(self) -> list[GraphFigures]:
        """Counts of CUDA graphs, per stream."""
        return self._pool.figures

    @property
    def module(self) -> Any:
        """The library's Python module."""
        return self._engine.module

    def borrow_stream(self) -> AbstractContextManager[PooledStream]:
        """Lend one of the session's streams, for measuring."""
        return self._pool.borrow()

    def layer_information(self) -> str:
        """Return the engine inspector's description of all layers, as JSON."""
        return self._engine.layer_information()

    def run_on_device(
        self,
        inputs: Mapping[str, Any] | Any,
        outputs: Sequence[str] | None = None,
        into: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Run once and leave the outputs on the GPU. See :meth:`Session.run_on_device`."""
        names = self._output_names(outputs)
        unknown = [name for name in into or {} if name not in names]
        if unknown:
            raise UsageError(f"{self.path.name} gives no output named {', '.join(unknown)} in this call")
        given = self._check_inputs(inputs)
        places = {name: self._convert(array) for name, array in (into or {}).items()}
        for name, array in places.items():
            if not isinstance(array, DeviceArray):
                raise UsageError(f"the array to write {name} into does not lie on a GPU; remove it, or use run")
        with self._pool.borrow() as pooled:
            self._wait_for((*given.values(), *places.values()), pooled.stream)
            return dict(pooled.run_on_device(given, names, places))

    def close(self) -> None:
        """Release the engine once calls in progress have finished. Arrays left on the GPU stay valid."""
        with GPU_CALLS.shared(), self._closing:
            self._pool.close()
            self._engine.close()

    def _check_inputs(self, inputs: Mapping[str, Any] | Any) -> dict[str, Any]:
        return check_inputs(self.inputs, inputs, convert=self._convert)

    def _convert(self, value: Any) -> Any:
        """Describe arrays on the session's GPU; make NumPy arrays of everything else."""
        if not is_device_array(value):
            return np.asarray(value)
        with self._cuda.on_device(self._number):
            found = as_device_array(value, "an input", self._cuda)
        if found.device != self._number:
            raise UsageError(
                f"an array lies on device {found.device} and the session runs on device {self._number}; "
                f"move it, or load(…, device={found.device})"
            )
        return found

    def _wait_for(self, arrays: Iterable[Any], stream: int) -> None:
        """Have ``stream`` wait for pending writes to input arrays and pending reads of output arrays."""
        for other in {array.stream for array in arrays if isinstance(array, DeviceArray) and array.stream}:
            self._cuda.wait_for(stream, other)

    def _run(self, inputs: dict[str, Array], outputs: list[str]) -> dict[str, Array]:
        try:
            with self._pool.borrow() as pooled:
                self._wait_for(inputs.values(), pooled.stream)
                return pooled.run(inputs, outputs)
        except NaDeployError:
            raise
        except Exception as error:
            raise NaDeployError(f"{self.backend} could not run {self.path.name}: {error}") from error
