"""Execution contexts with their CUDA graphs, each kept for one combination of shapes.

TensorRT's rule for graphs is that nothing of a context may change between recording and launching: not its shapes, its
profile or its addresses. So every combination of shapes has a context of its own, the least recently used is given up
for a new one, and all of them share one block of activation memory, since a stream runs one at a time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from na_deploy.closeable import Closeable
from na_deploy.errors import NaDeployError
from na_deploy.model_file.tensors import format_shape
from na_deploy.runtime.graph_figures import GraphFigures
from na_deploy.runtime.tensorrt.cuda import Cuda, OutOfDeviceMemoryError
from na_deploy.runtime.tensorrt.engine import Engine
from na_deploy.runtime.tensorrt.memory import DeviceBuffer
from na_deploy.runtime.tensorrt.profiles import EngineProfile, Shapes

_RUNS_BEFORE_RECORDING = 2
"""Calls with the same addresses before a graph is recorded: addresses that come only once need none."""


class ShapeContext(Closeable):
    """A context whose shapes are set once and for all.

    Attributes:
        output_shapes: sizes of every output.
    """

    def __init__(
        self,
        engine: Engine,
        cuda: Cuda,
        profile: EngineProfile,
        shapes: Shapes,
        activations: DeviceBuffer,
        stream: int,
        figures: GraphFigures,
    ) -> None:
        self._engine, self._cuda, self._figures = engine, cuda, figures
        self._addresses: Mapping[str, int] = {}
        self._runs = 0
        self._graph: Any | None = None
        self._context = engine.create_context()
        address = activations.ensure(engine.activation_bytes)
        self._context.set_device_memory(address, activations.size)
        if not self._context.set_optimization_profile_async(profile.index, stream):
            raise engine.failure(f"could not switch to optimization profile {profile.index}")
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, tuple(shape)):
                raise engine.failure(f"does not take {name} of shape {format_shape(shape)}")
        unknown = self._context.infer_shapes()
        if unknown:
            raise engine.failure(f"cannot tell the shape of {', '.join(unknown)}")
        self.output_shapes: dict[str, tuple[int, ...]] = {}
        for spec in engine.outputs:
            shape = tuple(int(size) for size in self._context.get_tensor_shape(spec.name))
            if any(size < 0 for size in shape):
                raise NaDeployError(
                    f"{engine.path.name}: the size of output {spec.name} depends on the numbers, not only on the "
                    "inputs' sizes; sessions do not run such engines"
                )
            self.output_shapes[spec.name] = shape

    def run(self, addresses: Mapping[str, int], stream: int, graphs: bool) -> None:
        """Queue the work, as a graph from the third call with the same addresses on."""
        if addresses != self._addresses:
            self._drop_graph()
            for name, address in addresses.items():
                if not self._context.set_tensor_address(name, address):
                    raise self._engine.failure(f"does not take memory for {name}")
            self._addresses, self._runs = dict(addresses), 0
        if self._graph is not None:
            self._cuda.launch(self._graph, stream)
            self._figures.launched += 1
            return
        self._enqueue(stream)
        self._runs += 1
        if graphs and self._figures.refusal is None and self._runs >= _RUNS_BEFORE_RECORDING:
            self._record(stream)

    def attach_profiler(self, profiler: Any) -> None:
        """Have TensorRT report the time of every layer after each run, from now on for as long as the context lives."""
        self._drop_graph()
        self._context.profiler = profiler

    def close(self) -> None:
        """Release the graph and the context."""
        self._drop_graph()
        self._context = None

    def _enqueue(self, stream: int) -> None:
        if not self._context.execute_async_v3(stream):
            raise self._engine.failure("could not run")

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            self._figures.dropped += 1
            self._cuda.destroy_graph(graph)

    def _record(self, stream: int) -> None:
        """Record the work that was just queued, for the next call; a failure goes to the figures."""
        failure: NaDeployError | None = None
        try:
            self._cuda.begin_capture(stream)
            try:
                self._enqueue(stream)
            except NaDeployError as error:
                failure = error
            recorded = self._cuda.end_capture(stream)  # also after a failure, or the stream stays unusable
            if failure is None:
                self._graph = self._cuda.instantiate(recorded)
            elif int(recorded):
                self._cuda.discard_graph(recorded)
        except NaDeployError as error:
            failure = failure or error
        if failure is None:
            self._figures.captured += 1
        elif not isinstance(failure, OutOfDeviceMemoryError):
            self._figures.refusal = str(failure)


class ShapeContexts(Closeable):
    """The contexts of one stream, up to a bound. One thread uses them at a time."""

    def __init__(self, engine: Engine, cuda: Cuda, stream: int, limit: int, figures: GraphFigures) -> None:
        self._engine, self._cuda, self._stream, self._figures = engine, cuda, stream, figures
        self._limit = max(1, limit)
        self._activations = DeviceBuffer(cuda)
        self._contexts: OrderedDict[tuple[tuple[str, tuple[int, ...]], ...], ShapeContext] = OrderedDict()

    def __len__(self) -> int:
        return len(self._contexts)

    def get(self, profile: EngineProfile, shapes: Shapes) -> ShapeContext:
        """Return the context of these shapes, a new one if there is none.

        Nothing of an older context may still be running.
        """
        key = tuple(shapes.items())
        found = self._contexts.get(key)
        if found is not None:
            self._contexts.move_to_end(key)
            return found
        while len(self._contexts) >= self._limit:
            self._contexts.popitem(last=False)[1].close()
        arguments = (self._engine, self._cuda, profile, shapes, self._activations, self._stream, self._figures)
        try:
            made = ShapeContext(*arguments)
        except OutOfDeviceMemoryError:
            if not self._contexts:
                raise
            self._forget()
            made = ShapeContext(*arguments)
        self._contexts[key] = made
        return made

    def forget(self, shapes: Shapes) -> None:
        """Release the context of these shapes."""
        found = self._contexts.pop(tuple(shapes.items()), None)
        if found is not None:
            found.close()

    def close(self) -> None:
        """Release all contexts and their memory."""
        self._forget()
        self._activations.close()

    def _forget(self) -> None:
        while self._contexts:
            self._contexts.popitem()[1].close()
