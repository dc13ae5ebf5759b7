"""The pool of CUDA streams that an engine's calls run in, each with buffers and contexts of its own.

Two calls in two streams overlap: one copies while the other computes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from na_deploy.closeable import Closeable
from na_deploy.errors import UsageError
from na_deploy.model_file.tensors import Array, format_shape, numpy_type
from na_deploy.runtime.gpu_calls import GPU_CALLS
from na_deploy.runtime.graph_figures import GraphFigures
from na_deploy.runtime.tensorrt.arrays import DeviceArray
from na_deploy.runtime.tensorrt.contexts import ShapeContext, ShapeContexts
from na_deploy.runtime.tensorrt.cuda import Cuda, OutOfDeviceMemoryError
from na_deploy.runtime.tensorrt.engine import Engine
from na_deploy.runtime.tensorrt.memory import DeviceBuffer, PinnedBuffer, bytes_of
from na_deploy.runtime.tensorrt.profiles import EngineProfile, Shapes, choose_profile

Given = Mapping[str, Any]
"""Inputs by name: NumPy arrays and :class:`DeviceArray`."""


class PooledStream(Closeable):
    """A CUDA stream with its contexts, and buffers for inputs and outputs on both sides, for one thread at a time."""

    def __init__(self, engine: Engine, cuda: Cuda, device: int, shapes_kept: int, graphs: bool) -> None:
        self._engine, self._cuda, self._device, self._graphs = engine, cuda, device, graphs
        self.stream = cuda.create_stream()
        self.figures = GraphFigures(refusal=None if graphs else "switched off")
        self._contexts = ShapeContexts(engine, cuda, self.stream, shapes_kept, self.figures)
        specs = (*engine.inputs, *engine.outputs)
        self._buffers = {spec.name: DeviceBuffer(cuda) for spec in specs}
        self._staging = {spec.name: PinnedBuffer(cuda) for spec in specs}

    def run(self, inputs: Given, outputs: Sequence[str]) -> dict[str, Array]:
        """Run and return the outputs as NumPy arrays of their own."""
        try:
            context, places = self._start(inputs, {})
            dtypes = {spec.name: spec.dtype for spec in self._engine.outputs}
            views = {}
            for name in outputs:
                shape = context.output_shapes[name]
                views[name] = self._staging[name].view(shape, dtypes[name])
                self._cuda.to_host(
                    self._staging[name].address, places[name], bytes_of(shape, dtypes[name]), self.stream
                )
            self._cuda.synchronize(self.stream)
        except BaseException:
            self._wait_after_failure()
            raise
        return {name: view.copy() for name, view in views.items()}

    def run_on_device(
        self, inputs: Given, outputs: Sequence[str], into: Mapping[str, DeviceArray]
    ) -> dict[str, DeviceArray]:
        """Run and leave the outputs in GPU memory: that of ``into``, or new memory of the caller's own."""
        made: dict[str, _Memory] = {}
        try:
            profile, shapes = self._choose(inputs)
            context = self._contexts.get(profile, shapes)
            results: dict[str, DeviceArray] = {}
            for spec in self._engine.outputs:
                if spec.name not in outputs:
                    continue
                shape = context.output_shapes[spec.name]
                given = into.get(spec.name)
                if given is None:
                    memory = _Memory(self._cuda, self._device, bytes_of(shape, spec.dtype))
                    made[spec.name] = memory
                    given = DeviceArray(memory.address, shape, numpy_type(spec.dtype), self._device, memory)
                elif (given.shape, given.dtype.name) != (shape, spec.dtype):
                    raise UsageError(
                        f"output {spec.name} is {spec.dtype} of shape {format_shape(shape)}, the array to write into "
                        f"is {given.dtype.name} of shape {format_shape(given.shape)}"
                    )
                results[spec.name] = given
            self._start(inputs, {name: array.address for name, array in results.items()})
            self._cuda.synchronize(self.stream)
        except BaseException:
            self._wait_after_failure()
            raise
        return results

    def run_profiled(self, inputs: Given, profiler: Any, runs: int) -> None:
        """Run several times with a profiler attached, without graphs, which hide layers from it."""
        profile, shapes = self._choose(inputs)
        context = self._contexts.get(profile, shapes)
        graphs, self._graphs = self._graphs, False
        context.attach_profiler(profiler)
        try:
            for _ in range(runs):
                self._start(inputs, {})
                self._cuda.synchronize(self.stream)
        finally:
            self._wait_after_failure()
            self._graphs = graphs
            self._contexts.forget(shapes)  # a profiler cannot be taken off again

    def close(self) -> None:
        """Free everything."""
        self._contexts.close()
        for buffer in (*self._buffers.values(), *self._staging.values()):
            buffer.close()
        self._cuda.destroy_stream(self.stream)

    def _choose(self, inputs: Given) -> tuple[EngineProfile, Shapes]:
        shapes = {spec.name: tuple(inputs[spec.name].shape) for spec in self._engine.inputs}
        return choose_profile(self._engine.profiles, shapes), shapes

    def _start(self, inputs: Given, places: Mapping[str, int]) -> tuple[ShapeContext, dict[str, int]]:
        """Queue copies of host inputs, then the work; return the context and every output's address."""
        profile, shapes = self._choose(inputs)
        context = self._contexts.get(profile, shapes)
        addresses: dict[str, int] = {}
        for spec in self._engine.inputs:
            given = inputs[spec.name]
            if isinstance(given, DeviceArray):
                addresses[spec.name] = given.address or self._buffers[spec.name].ensure(0)
                continue
            view = self._staging[spec.name].view(given.shape, spec.dtype)
            np.copyto(view, given, casting="no")
            size = bytes_of(given.shape, spec.dtype)
            address = self._buffers[spec.name].ensure(size)
            self._cuda.to_device(address, self._staging[spec.name].address, size, self.stream)
            addresses[spec.name] = address
        for spec in self._engine.outputs:
            size = bytes_of(context.output_shapes[spec.name], spec.dtype)
            addresses[spec.name] = places.get(spec.name) or self._buffers[spec.name].ensure(size)
        context.run(addresses, self.stream, self._graphs)
        return context, {spec.name: addresses[spec.name] for spec in self._engine.outputs}

    def _wait_after_failure(self) -> None:
        """After a failure, wait until nothing uses the buffers any more; a broken device fails in the next call."""
        try:
            self._cuda.synchronize(self.stream)
        except Exception:
            return


class _Memory:
    """Device memory that is freed when nobody refers to it any more."""

    def __init__(self, cuda: Cuda, device: int, size: int) -> None:
        self._cuda, self._device = cuda, device
        self.address = cuda.allocate(max(size, 1))

    def __del__(self) -> None:
        address, self.address = getattr(self, "address", 0), 0
        if address:
            try:
                with self._cuda.on_device(self._device):
                    self._cuda.free(address)
            except Exception:  # a lost device has lost its memory too
                return


class StreamPool(Closeable):
    """Streams, made when they are needed, up to a bound; callers beyond it wait.

    A stream that finds no memory is not an error while there is another to wait for.
    """

    def __init__(self, engine: Engine, cuda: Cuda, device: int, streams: int, shapes_kept: int, graphs: bool) -> None:
        self._arguments = (engine, cuda, device, shapes_kept, graphs)
        self._name = engine.path.name
        self._cuda, self._device = cuda, device
        self._limit = streams
        self._changed = threading.Condition()
        self._idle: list[PooledStream] = []
        self._streams: list[PooledStream] = []
        self._making = 0
        self._closed = False

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def figures(self) -> list[GraphFigures]:
        """Counts of CUDA graphs captured, replayed and refused in each stream."""
        with self._changed:
            return [stream.figures for stream in self._streams]

    @contextmanager
    def borrow(self) -> Iterator[PooledStream]:
        """Lend a stream for one call, with the device being this thread's current one.

        Raises:
            UsageError: the pool is closed.
        """
        with GPU_CALLS.shared(), self._cuda.on_device(self._device):
            stream = self._take()
            try:
                yield stream
            finally:
                with self._changed:
                    self._idle.append(stream)
                    self._changed.notify_all()

    def close(self) -> None:
        """Refuse new calls, wait for those in progress, and free everything."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._idle) == len(self._streams) and not self._making)
            streams, self._streams, self._idle = self._streams, [], []
        if streams:
            with self._cuda.on_device(self._device):
                for stream in streams:
                    stream.close()

    def _take(self) -> PooledStream:
        with self._changed:
            while True:
                if self._closed:
                    raise UsageError(f"the session of {self._name} is closed; load the model again")
                if self._idle:
                    return self._idle.pop()  # the last used one has warm memory
                if len(self._streams) + self._making < self._limit:
                    self._making += 1
                    break
                self._changed.wait()
        made: PooledStream | None = None
        try:
            made = PooledStream(*self._arguments)
        except OutOfDeviceMemoryError:
            with self._changed:
                if not self._streams:
                    raise
                self._limit = len(self._streams)
        finally:
            with self._changed:
                self._making -= 1
                if made is not None:
                    self._streams.append(made)
                self._changed.notify_all()
        return self._take() if made is None else made
