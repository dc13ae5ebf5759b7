"""A CUDA runtime over host memory, strict about what a real one would not survive.

Work queued in a stream runs only when somebody waits for the stream, so that results read too early are wrong. Copies
check that every byte lies in a live allocation. Allocating while the thread records a graph fails, as with CUDA. Only
functions of ``cuda.bindings.runtime`` are here; test_real_modules.py compares the names.

Environment: FAKE_CUDA_DEVICES (1), FAKE_CUDA_CAPABILITY ("9.0"), FAKE_CUDA_BYTES (of one device, 1 GiB).
"""

from __future__ import annotations

import ctypes
import enum
import os
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToHost = 0
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3
    cudaMemcpyDefault = 4


class cudaMemoryType(enum.IntEnum):
    cudaMemoryTypeUnregistered = 0
    cudaMemoryTypeHost = 1
    cudaMemoryTypeDevice = 2
    cudaMemoryTypeManaged = 3


class cudaDeviceAttr(enum.IntEnum):
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


cudaStreamNonBlocking = 1
cudaEventDisableTiming = 2

OK, FAILED = cudaError_t.cudaSuccess, cudaError_t.cudaErrorInvalidValue
Work = Callable[[], None]


class _Stream:
    def __init__(self) -> None:
        self.pending: list[Work] = []
        self.recording: list[Work] | None = None
        self.thread: int | None = None
        self.invalidated = False


class State:
    """Everything the fake knows; tests look into it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.device_memory: dict[int, Any] = {}
        self.device_of: dict[int, int] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, _Stream] = {1: _Stream()}
        self.events: dict[int, tuple[int, int]] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.executables: dict[int, list[Work]] = {}
        self.next_handle = 1000
        self.broken: cudaError_t | None = None
        self.current = threading.local()
        self.used = 0
        self.copied = {"to_device": 0, "to_host": 0}
        self.syncs = 0

    def handle(self) -> int:
        self.next_handle += 1
        return self.next_handle

    def device(self) -> int:
        return int(getattr(self.current, "device", 0))

    def recording_here(self) -> list[_Stream]:
        here = threading.get_ident()
        return [stream for stream in self.streams.values() if stream.recording is not None and stream.thread == here]

    def queue(self, stream: int, work: Work) -> cudaError_t:
        """Queue work in a stream, or record it."""
        with self.lock:
            found = self.streams.get(int(stream))
            if found is None:
                return FAILED
            (found.pending if found.recording is None else found.recording).append(work)
            return OK

    def drain(self, stream: int) -> None:
        """Run what is queued in a stream."""
        with self.lock:
            found = self.streams[int(stream)]
            while found.pending:
                found.pending.pop(0)()

    def live(self, address: int, size: int, where: dict[int, Any]) -> bool:
        return any(begin <= address and address + size <= begin + len(block) for begin, block in where.items())

    def leaks(self) -> dict[str, int]:
        """Return the memory that was never freed."""
        return {
            "device": len(self.device_memory),
            "pinned": len(self.pinned),
            "streams": len(self.streams) - 1,
            "events": len(self.events),
            "graphs": len(self.graphs) + len(self.executables),
        }


STATE = State()


def reset() -> None:
    """Forget everything, between tests."""
    global STATE
    STATE = State()


def _devices() -> int:
    return int(os.environ.get("FAKE_CUDA_DEVICES", "1"))


def cudaGetErrorString(error: cudaError_t) -> tuple[cudaError_t, bytes]:
    return OK, error.name.removeprefix("cudaError").encode()


def cudaGetDeviceCount() -> tuple[cudaError_t, int]:
    count = _devices()
    return (OK, count) if count >= 0 else (cudaError_t.cudaErrorInsufficientDriver, 0)


def cudaSetDevice(device: int) -> tuple[cudaError_t]:
    if not 0 <= device < _devices():
        return (cudaError_t.cudaErrorInvalidDevice,)
    STATE.current.device = device
    return (OK,)


def cudaGetDevice() -> tuple[cudaError_t, int]:
    return OK, STATE.device()


def cudaGetDeviceProperties(device: int) -> tuple[cudaError_t, Any]:
    return OK, SimpleNamespace(name=b"Fake GPU")


def cudaDeviceGetAttribute(attribute: cudaDeviceAttr, device: int) -> tuple[cudaError_t, int]:
    major, minor = map(int, os.environ.get("FAKE_CUDA_CAPABILITY", "9.0").split("."))
    return OK, major if attribute is cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor else minor


def cudaDriverGetVersion() -> tuple[cudaError_t, int]:
    return OK, 13000


def cudaMemGetInfo() -> tuple[cudaError_t, int, int]:
    total = int(os.environ.get("FAKE_CUDA_BYTES", str(1 << 30)))
    return OK, total - STATE.used, total


def _allocate(size: int, where: dict[int, Any]) -> tuple[cudaError_t, int]:
    with STATE.lock:
        if STATE.broken:
            return STATE.broken, 0
        for stream in STATE.recording_here():
            stream.invalidated = True
            return cudaError_t.cudaErrorStreamCaptureUnsupported, 0
        block = ctypes.create_string_buffer(b"\xcd" * size, size)  # never zeros: what is not written must show
        address = ctypes.addressof(block)
        where[address] = block
        return OK, address


def cudaMalloc(size: int) -> tuple[cudaError_t, int]:
    _, free, _ = cudaMemGetInfo()
    if size > free:
        return cudaError_t.cudaErrorMemoryAllocation, 0
    status, address = _allocate(size, STATE.device_memory)
    if status == OK:
        STATE.used += size
        STATE.device_of[address] = STATE.device()
    return status, address


def cudaFree(address: int) -> tuple[cudaError_t]:
    with STATE.lock:
        if address not in STATE.device_memory:
            return (FAILED,)
        for stream in STATE.streams:
            STATE.drain(stream)  # as cudaFree does
        STATE.used -= len(STATE.device_memory.pop(address))
        return (OK,)


def cudaMallocHost(size: int) -> tuple[cudaError_t, int]:
    return _allocate(size, STATE.pinned)


def cudaFreeHost(address: int) -> tuple[cudaError_t]:
    return (OK if STATE.pinned.pop(address, None) is not None else FAILED,)


def cudaMemcpyAsync(target: int, source: int, size: int, kind: cudaMemcpyKind, stream: int) -> tuple[cudaError_t]:
    to_device = kind is cudaMemcpyKind.cudaMemcpyHostToDevice
    host, device = (source, target) if to_device else (target, source)
    if not STATE.live(host, size, STATE.pinned):
        return (FAILED,)  # CUDA would take it, and not copy asynchronously

    def copy() -> None:
        if not STATE.live(device, size, STATE.device_memory) or not STATE.live(host, size, STATE.pinned):
            STATE.broken = cudaError_t.cudaErrorIllegalAddress
            return
        ctypes.memmove(target, source, size)
        STATE.copied["to_device" if to_device else "to_host"] += size

    return (STATE.queue(stream, copy),)


def cudaPointerGetAttributes(address: int) -> tuple[cudaError_t, Any]:
    for begin, block in STATE.device_memory.items():
        if begin <= address < begin + len(block):
            return OK, SimpleNamespace(type=cudaMemoryType.cudaMemoryTypeDevice, device=STATE.device_of[begin])
    return OK, SimpleNamespace(type=cudaMemoryType.cudaMemoryTypeUnregistered, device=0)


def cudaStreamCreateWithFlags(flags: int) -> tuple[cudaError_t, int]:
    with STATE.lock:
        handle = STATE.handle()
        STATE.streams[handle] = _Stream()
        return OK, handle


def cudaStreamDestroy(stream: int) -> tuple[cudaError_t]:
    return (OK if STATE.streams.pop(int(stream), None) is not None else FAILED,)


def cudaStreamSynchronize(stream: int) -> tuple[cudaError_t]:
    STATE.syncs += 1
    if STATE.broken is None:
        STATE.drain(stream)
    return (STATE.broken or OK,)


def cudaEventCreateWithFlags(flags: int) -> tuple[cudaError_t, int]:
    handle = STATE.handle()
    STATE.events[handle] = (0, 0)
    return OK, handle


def cudaEventRecord(event: int, stream: int) -> tuple[cudaError_t]:
    STATE.events[event] = (int(stream), 0)
    return (OK if int(stream) in STATE.streams else FAILED,)


def cudaStreamWaitEvent(stream: int, event: int, flags: int) -> tuple[cudaError_t]:
    other, _ = STATE.events[event]
    return (STATE.queue(stream, lambda: STATE.drain(other)),)


def cudaEventDestroy(event: int) -> tuple[cudaError_t]:
    return (OK if STATE.events.pop(event, None) is not None else FAILED,)


def cudaStreamBeginCapture(stream: int, mode: cudaStreamCaptureMode) -> tuple[cudaError_t]:
    found = STATE.streams[int(stream)]
    found.recording, found.thread, found.invalidated = [], threading.get_ident(), False
    return (OK,)


def cudaStreamEndCapture(stream: int) -> tuple[cudaError_t, int]:
    found = STATE.streams[int(stream)]
    recorded, found.recording = found.recording, None
    if found.invalidated or recorded is None:
        return cudaError_t.cudaErrorStreamCaptureInvalidated, 0
    handle = STATE.handle()
    STATE.graphs[handle] = recorded
    return OK, handle


def cudaGraphInstantiate(graph: int, flags: int) -> tuple[cudaError_t, int]:
    handle = STATE.handle()
    STATE.executables[handle] = list(STATE.graphs[graph])
    return OK, handle


def cudaGraphDestroy(graph: int) -> tuple[cudaError_t]:
    return (OK if STATE.graphs.pop(graph, None) is not None else FAILED,)


def cudaGraphLaunch(graph: int, stream: int) -> tuple[cudaError_t]:
    for work in STATE.executables[graph]:
        STATE.queue(stream, work)
    return (OK,)


def cudaGraphExecDestroy(graph: int) -> tuple[cudaError_t]:
    return (OK if STATE.executables.pop(graph, None) is not None else FAILED,)
