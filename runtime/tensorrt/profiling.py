"""Time of every layer of an engine, by TensorRT's own profiler, which slows the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from na_deploy.model_file.tensors import Array
from na_deploy.runtime.tensorrt.layers import EngineLayer, parse_layers

if TYPE_CHECKING:
    from na_deploy.runtime.tensorrt.session import TensorRTSession

RUNS = 20
"""Number of averaged calls, which follow :data:`WARM_UP` others."""
WARM_UP = 3


def profile_layers(session: TensorRTSession, inputs: Mapping[str, Array]) -> list[EngineLayer]:
    """Run a session's engine several times and return its layers with their mean time.

    Args:
        session: the session; other calls wait meanwhile or run in its other streams, and then disturb the times.
        inputs: arrays by name.

    Returns:
        The layers of the inspector in order of execution, each with ``ms`` where the profiler reported it.

    Raises:
        UsageError: the inputs do not fit.
        NaDeployError: the engine does not run.
    """
    times: dict[str, list[float]] = {}
    with session.borrow_stream() as pooled:
        checked = session._check_inputs(inputs)
        pooled.run_profiled(checked, _make_profiler(session.module, times), WARM_UP + RUNS)
    means = {name: sum(found[WARM_UP:]) / max(1, len(found[WARM_UP:])) for name, found in times.items()}
    layers = parse_layers(session.layer_information(), session.path.name)
    return [replace(layer, ms=means.get(layer.name)) for layer in layers]


def _make_profiler(module: Any, times: dict[str, list[float]]) -> Any:
    class Profiler(module.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.setdefault(layer_name, []).append(ms)

    return Profiler()
