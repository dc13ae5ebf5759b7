"""The few calls of the CUDA runtime that a session makes, each checked, over ``cuda.bindings.runtime``.

Knows nothing of TensorRT. CUDA remembers the current device per thread: :meth:`Cuda.on_device` comes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

from na_deploy.errors import MissingDependencyError, NaDeployError

INSTALL = "pip install 'na-deploy[tensorrt]' (cuda-python; one of CUDA 12 where the driver is)"


class CudaError(NaDeployError):
    """A call of CUDA failed. ``status`` is CUDA's name of the error."""

    def __init__(self, message: str, status: str) -> None:
        super().__init__(message)
        self.status = status


class OutOfDeviceMemoryError(CudaError):
    """The GPU does not have enough free memory."""


@cache
def load_cuda() -> Cuda:
    """Import the CUDA runtime.

    Raises:
        MissingDependencyError: cuda-python is not installed.
    """
    try:
        module = import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise MissingDependencyError(
            f"running an engine needs cuda-python, which cannot be imported ({error}); install it with: {INSTALL}"
        ) from None
    return Cuda(module)


class Cuda:
    """Checked calls. ``module`` is ``cuda.bindings.runtime`` or a module with its functions."""

    def __init__(self, module: Any) -> None:
        self._module = module
        kinds = module.cudaMemcpyKind
        self._to_device, self._to_host = kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost

    def _call(self, name: str, *arguments: Any, doing: str) -> Any:
        """Call a function; return its results beyond the status: none, one, or a tuple."""
        try:
            status, *results = getattr(self._module, name)(*arguments)
        except RuntimeError as error:  # the bindings raise where the driver's library is missing
            raise CudaError(f"CUDA cannot {doing}: {error}; is the NVIDIA driver installed?", "noDriver") from None
        if int(status) == 0:
            return results[0] if len(results) == 1 else tuple(results) or None
        label = status.name
        if label == "cudaErrorMemoryAllocation":
            raise OutOfDeviceMemoryError(f"the GPU does not have enough free memory to {doing}", label)
        raise CudaError(f"CUDA cannot {doing}: {self._describe(status)} ({label})", label)

    def _describe(self, status: Any) -> str:
        _, text = self._module.cudaGetErrorString(status)
        return text.decode(errors="replace") if isinstance(text, bytes) else str(text)

    def device_count(self) -> int:
        """Return the number of GPUs, at least one.

        Raises:
            NaDeployError: none, or no driver.
        """
        otherwise = "load(…, backend='onnxruntime') runs the model of a bundle on the CPU"
        try:
            count = int(self._call("cudaGetDeviceCount", doing="look for a GPU"))
        except CudaError as error:
            raise NaDeployError(f"engines run on an NVIDIA GPU with its driver: {error}; {otherwise}") from None
        if count == 0:
            raise NaDeployError(f"engines run on an NVIDIA GPU, and the driver reports none; {otherwise}")
        return count

    def use_device(self, device: int) -> None:
        """Make a device the current one of this thread."""
        self._call("cudaSetDevice", device, doing=f"use device {device}")

    @contextmanager
    def on_device(self, device: int) -> Iterator[None]:
        """Make a device this thread's current one inside the block, and the former one again after it."""
        former = int(self._call("cudaGetDevice", doing="read the current device"))
        self.use_device(device)
        try:
            yield
        finally:
            if former != device:
                self.use_device(former)

    def device_name(self, device: int) -> str:
        """Return the driver's name of a device."""
        name = self._call("cudaGetDeviceProperties", device, doing="read the device's name").name
        return name.decode(errors="replace").rstrip("\0") if isinstance(name, bytes) else str(name)

    def compute_capability(self, device: int) -> tuple[int, int]:
        """Return a device's compute capability, as (9, 0)."""
        attributes = self._module.cudaDeviceAttr
        names = (attributes.cudaDevAttrComputeCapabilityMajor, attributes.cudaDevAttrComputeCapabilityMinor)
        doing = "read the compute capability"
        major, minor = (int(self._call("cudaDeviceGetAttribute", name, device, doing=doing)) for name in names)
        return major, minor

    def driver_version(self) -> int:
        """Return the newest CUDA that the driver supports, as 13000 for 13.0."""
        return int(self._call("cudaDriverGetVersion", doing="read the driver's version"))

    def memory(self) -> tuple[int, int]:
        """Return free and total bytes of the current device."""
        free, total = self._call("cudaMemGetInfo", doing="read the free memory")
        return int(free), int(total)

    def allocate(self, size: int) -> int:
        """Allocate device memory and return its address."""
        return int(self._call("cudaMalloc", size, doing=f"allocate {_amount(size)}"))

    def free(self, address: int) -> None:
        """Free device memory."""
        self._call("cudaFree", address, doing="free memory")

    def allocate_pinned(self, size: int) -> int:
        """Allocate page-locked host memory and return its address."""
        return int(self._call("cudaMallocHost", size, doing=f"lock {_amount(size)} of host memory"))

    def free_pinned(self, address: int) -> None:
        """Free page-locked host memory."""
        self._call("cudaFreeHost", address, doing="free host memory")

    def to_device(self, target: int, source: int, size: int, stream: int) -> None:
        """Queue a copy from page-locked host memory."""
        self._copy(target, source, size, self._to_device, stream)

    def to_host(self, target: int, source: int, size: int, stream: int) -> None:
        """Queue a copy into page-locked host memory."""
        self._copy(target, source, size, self._to_host, stream)

    def _copy(self, target: int, source: int, size: int, kind: Any, stream: int) -> None:
        self._call("cudaMemcpyAsync", target, source, size, kind, stream, doing=f"copy {size} bytes")

    def pointer_device(self, address: int) -> int | None:
        """Return the device that memory belongs to, ``None`` for host memory."""
        attributes = self._call("cudaPointerGetAttributes", address, doing="look at an array's memory")
        types = self._module.cudaMemoryType
        if attributes.type in (types.cudaMemoryTypeDevice, types.cudaMemoryTypeManaged):
            return int(attributes.device)
        return None

    def create_stream(self) -> int:
        """Return a stream that does not wait for the default one."""
        flag = self._module.cudaStreamNonBlocking
        return int(self._call("cudaStreamCreateWithFlags", flag, doing="create a stream"))

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream."""
        self._call("cudaStreamDestroy", stream, doing="destroy a stream")

    def synchronize(self, stream: int) -> None:
        """Wait for everything queued."""
        self._call("cudaStreamSynchronize", stream, doing="finish the work")

    def wait_for(self, stream: int, other: int) -> None:
        """Have ``stream`` wait for the work queued in ``other`` so far."""
        flag = self._module.cudaEventDisableTiming
        event = self._call("cudaEventCreateWithFlags", flag, doing="create an event")
        try:
            self._call("cudaEventRecord", event, other, doing="record an event")
            self._call("cudaStreamWaitEvent", stream, event, 0, doing="wait for an event")
        finally:
            self._call("cudaEventDestroy", event, doing="destroy an event")

    def begin_capture(self, stream: int) -> None:
        """Record work queued from now on instead of running it; other threads are not affected."""
        mode = self._module.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode, doing="begin a graph")

    def end_capture(self, stream: int) -> Any:
        """Return the graph that was recorded."""
        return self._call("cudaStreamEndCapture", stream, doing="record a graph")

    def instantiate(self, graph: Any) -> Any:
        """Turn a recorded graph into one that can be launched, and free the former."""
        try:
            return self._call("cudaGraphInstantiate", graph, 0, doing="prepare a graph")
        finally:
            self.discard_graph(graph)

    def discard_graph(self, graph: Any) -> None:
        """Free a recorded graph."""
        self._call("cudaGraphDestroy", graph, doing="free a graph")

    def launch(self, graph: Any, stream: int) -> None:
        """Queue a graph."""
        self._call("cudaGraphLaunch", graph, stream, doing="launch a graph")

    def destroy_graph(self, graph: Any) -> None:
        """Free a graph that can be launched."""
        self._call("cudaGraphExecDestroy", graph, doing="free a graph")


def _amount(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
