"""CUDA graphs of ONNX Runtime's CUDA provider, one for each combination of input shapes.

The provider (1.31) keeps a captured graph for as long as the session lives, for each thread that captured it, reads and
writes the addresses that were bound then, and gives the memory between inputs and outputs back for other runs. So the
session's runs, captured or not, all happen in one thread; inputs are copied into tensors that stay; and once as many
graphs are kept as asked for, other shapes run without. Captures forbid other threads' calls that wait or allocate on
the GPU, so none is made while another session runs or loads.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from na_deploy.closeable import Closeable
from na_deploy.errors import MissingDependencyError, NaDeployError, UsageError
from na_deploy.model_file.tensors import Array, TensorSpec, format_shape
from na_deploy.runtime.backends.onnxruntime_values import empty, run_session, unwrap, wrap
from na_deploy.runtime.gpu_calls import GPU_CALLS
from na_deploy.runtime.graph_figures import GraphFigures

Shapes = tuple[tuple[int, ...], ...]
Layouts = Mapping[str, tuple[tuple[int, ...], Any]]
"""Shapes and types of arrays, by name."""

OLDEST = (1, 31)
"""The first version of ONNX Runtime whose graphs were tried; earlier ones let a graph read memory given back before."""

_REMEMBERED = 256
"""Combinations of shapes that were run once and may come again."""

_PATIENCE_S = 0.05
"""Seconds that a capture waits for other calls, which wait for it; then it is left to a later call."""

_WITHOUT = -1
"""The graph's number in runs without one."""


def check_version(version: str) -> None:
    """Refuse versions of ONNX Runtime whose graphs are not known to be right.

    Raises:
        MissingDependencyError: it is too old.
    """
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        needed = ".".join(map(str, OLDEST))
        raise MissingDependencyError(
            f"cuda_graphs needs onnxruntime-gpu {needed} or later, {version} is installed; "
            "pip install -U onnxruntime-gpu, or remove cuda_graphs"
        )


def check_places(name: str, session: Any) -> None:
    """Refuse a model whose inputs or outputs a graph would not see again.

    Raises:
        NaDeployError: one of them lies in the CPU's memory.
    """
    for kind, arguments, places in (
        ("input", session.get_inputs(), session.get_input_memory_infos()),
        ("output", session.get_outputs(), session.get_output_memory_infos()),
    ):
        for argument, place in zip(arguments, places, strict=True):
            if place.name.lower() != "cuda":
                raise NaDeployError(
                    f"{name} cannot run as CUDA graphs: {kind} {argument.name} lies in the CPU's memory, and a graph "
                    "holds only what the GPU does; load it without cuda_graphs"
                )


def refusal(name: str, reason: str) -> str | None:
    """Return a sentence on why ONNX Runtime does not make a session with graphs; ``None`` for other reasons."""
    if "graph capture feature" not in reason:
        return None
    nodes = "control flow (If, Loop or Scan)" if "control flow" in reason else "nodes that run on the CPU"
    return f"{name} cannot run as CUDA graphs, because it has {nodes}; load it without cuda_graphs"


class _Graph:
    """Tensors that stay at their addresses, bound to a graph's number."""

    def __init__(self, session: Any, number: int, device: int, inputs: Layouts, outputs: Layouts) -> None:
        self._session = session
        self._inputs = {name: empty(*layout, "cuda", device) for name, layout in inputs.items()}
        self._outputs = {name: empty(*layout, "cuda", device) for name, layout in outputs.items()}
        self._binding = session.io_binding()
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)
        self._options = run_options(number)

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Copy the inputs in, run, return copies of outputs. The first run captures."""
        for name, array in inputs.items():
            self._inputs[name].update_inplace(wrap(array))
        self._session.run_with_iobinding(self._binding, self._options)
        return {name: unwrap(self._outputs[name]) for name in outputs}


def layouts(arrays: Mapping[str, Array]) -> Layouts:
    """Return the shapes and types of arrays."""
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}


def run_options(number: int) -> Any:
    """Return the options of a run in the graph of that number."""
    from onnxruntime import RunOptions

    options = RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))
    return options


class CudaGraphs(Closeable):
    """The runs of a session that was made with ``enable_cuda_graph``.

    A combination of shapes runs as usual at first and is captured when it comes again.

    Args:
        session: the ``InferenceSession``.
        name: the model's name, for messages.
        outputs: specs of all outputs.
        device: number of the GPU.
        limit: largest number of graphs.
    """

    def __init__(self, session: Any, name: str, outputs: Sequence[TensorSpec], device: int, limit: int) -> None:
        self.figures = GraphFigures()
        self._session, self._name, self._device, self._limit = session, name, device, limit
        self._outputs = tuple(spec.name for spec in outputs)
        self._graphs: dict[Shapes, _Graph] = {}
        self._seen: OrderedDict[Shapes, Layouts] = OrderedDict()
        self._numbers = 0
        self._without = run_options(_WITHOUT)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="na-deploy-graphs")

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Run once, from any thread.

        Raises:
            UsageError: the session is closed.
            NaDeployError: the run cannot be captured.
        """
        try:
            future = self._thread.submit(self._run, inputs, outputs)
        except RuntimeError:
            raise UsageError(f"the session of {self._name} is closed; load the model again") from None
        return future.result()

    def close(self) -> None:
        """Release the graphs' tensors once calls in progress have finished."""
        self._thread.shutdown(wait=True)
        self._graphs.clear()
        self._session = None

    def _run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        shapes = tuple(array.shape for array in inputs.values())
        graph = self._graphs.get(shapes)
        if graph is not None:
            with GPU_CALLS.shared():
                answers = graph.run(inputs, outputs)
            self.figures.launched += 1
            return answers
        known = self._seen.get(shapes)
        if known is not None and len(self._graphs) < self._limit:
            with GPU_CALLS.alone(_PATIENCE_S) as is_alone:
                if is_alone:
                    return self._capture(shapes, inputs, known, outputs)
        with GPU_CALLS.shared():
            found = run_session(self._session, inputs, self._outputs, self._without)
        answers = dict(zip(self._outputs, found, strict=True))
        # Where an input or output is empty, there may be nothing to capture.
        if all(array.size for array in (*inputs.values(), *found)) and len(self._graphs) < self._limit:
            self._seen[shapes] = layouts(answers)
            if len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
        return {name: answers[name] for name in outputs}

    def _capture(
        self, shapes: Shapes, inputs: Mapping[str, Array], known: Layouts, outputs: Sequence[str]
    ) -> dict[str, Array]:
        self._numbers += 1  # a number is never used twice, since a capture that failed may leave something
        try:
            graph = _Graph(self._session, self._numbers, self._device, layouts(inputs), known)
            answers = graph.run(inputs, outputs)
        except Exception as error:
            given = ", ".join(f"{name} {format_shape(array.shape)}" for name, array in inputs.items())
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].removeprefix("Error in execution: ")
            raise NaDeployError(
                f"{self._name} could not be captured as a CUDA graph for {given}: {reason}; load it without cuda_graphs"
            ) from error
        self._graphs[shapes] = graph
        del self._seen[shapes]
        self.figures.captured += 1
        return answers
