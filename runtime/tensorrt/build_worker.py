"""The process that builds an engine, for :mod:`na_deploy.runtime.tensorrt.building` and not for direct use.

Native code that meets something unforeseen ends its process, so the build has one of its own; it also ends when its
parent does. ``python -m na_deploy.runtime.tensorrt.build_worker request.json number``: events go to the file
descriptor of that number, one JSON object per line:

    log (severity, text), parser_error (node, operator, functions, text), parsed (layers, seconds, plugins),
    phase (name, parent, steps), step (name, step), phase_end (name), built (bytes, seconds),
    machine (version, capability, driver), memory (activation_bytes, as the builder logs it),
    inspected (file, activation_bytes), failed (reason, and kind, the class of the error)
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

from na_deploy.errors import MissingDependencyError, NaDeployError
from na_deploy.runtime.building.options import BuildOptions
from na_deploy.runtime.tensorrt.api import FLAVORS, RTX, Flavor, Messages, load_module, make_logger
from na_deploy.runtime.tensorrt.cuda import load_cuda
from na_deploy.runtime.tensorrt.engine import load_engine
from na_deploy.runtime.tensorrt.plugins import parse, plugins_of, register_plugins

_ACTIVATION_MEMORY = re.compile(r"Total Activation Memory: (\d+) bytes")
_STEPS_EVERY_S = 0.05
_PARENT_CHECKED_EVERY_S = 0.5


class Events:
    """Writes events, each at once, from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._stream = os.fdopen(descriptor, "w", encoding="utf-8")
        self._lock = threading.Lock()

    def write(self, event: str, **fields: Any) -> None:
        """Write one event; without a reader, end the process."""
        with self._lock:
            try:
                self._stream.write(json.dumps({"event": event, **fields}) + "\n")
                self._stream.flush()
            except BrokenPipeError:
                os._exit(1)


class ReportingMessages(Messages):
    """Messages that are also written as events."""

    def __init__(self, events: Events) -> None:
        super().__init__()
        self._events = events

    def add(self, severity: str, text: str) -> None:
        """Keep and report one message."""
        super().add(severity, text)
        self._events.write("log", severity=severity, text=" ".join(text.split()))


def run(request: dict[str, Any], events: Events) -> bool:
    """Build the engine of a request; return whether there is one."""
    options = BuildOptions.from_json(request["options"])
    flavor = FLAVORS[options.backend]
    module = load_module(flavor)
    trt = _polygraphy(flavor, module)
    capability, driver = _use_device(options.device, required=flavor is not RTX)
    events.write("machine", version=module.__version__, capability=capability, driver=driver)
    messages = ReportingMessages(events)
    logger = make_logger(module, messages, lambda text: _report_memory(text, events))
    if options.library:
        register_plugins(module, options.library, messages)

    builder = module.Builder(logger)
    if options.threads:
        builder.max_threads = options.threads
    network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    started = time.perf_counter()
    parser = module.OnnxParser(network, logger)
    accepted = parse(module, parser, Path(request["model"]))
    for index in range(parser.num_errors):
        events.write("parser_error", **_parser_error(parser.get_error(index)))
    if not accepted:
        events.write("failed", reason=f"{flavor.title}'s ONNX parser refused the model")
        return False
    plugins = plugins_of(module, network, Path(request["model"])) if options.library else []
    events.write("parsed", layers=network.num_layers, seconds=time.perf_counter() - started, plugins=plugins)

    config = _configure(trt, module, builder, network, options, events)
    build = trt.EngineBytesFromNetwork((builder, network), lambda *_: config, _text(options.timing_cache))
    started = time.perf_counter()
    try:
        plan = build()
    except Exception as error:  # Polygraphy's own class; TensorRT's log holds the reason
        events.write("failed", reason=messages.take_reason(str(error).strip() or "the builder produced no engine"))
        return False
    Path(request["engine"]).write_bytes(plan)
    events.write("built", bytes=Path(request["engine"]).stat().st_size, seconds=time.perf_counter() - started)
    if capability:
        _inspect(request, options, module, flavor, events)
    return True


def _report_memory(text: str, events: Events) -> None:
    said = _ACTIVATION_MEMORY.search(text)
    if said is not None:
        events.write("memory", activation_bytes=int(said[1]))


def _configure(trt: Any, module: Any, builder: Any, network: Any, options: BuildOptions, events: Events) -> Any:
    profile = trt.Profile()
    for name, sizes in (options.profiles or {}).items():
        profile.add(name, min=sizes.minimum, opt=sizes.optimum, max=sizes.maximum)
    limits = {module.MemoryPoolType.WORKSPACE: options.workspace} if options.workspace else None
    levels = module.HardwareCompatibilityLevel
    create = trt.CreateConfig(
        profiles=[profile] if options.profiles else None,
        tf32=True,  # as in trtexec and PyTorch's convolutions; only products of float32 models are concerned
        refittable=options.refit,
        version_compatible=options.version_compatible,
        hardware_compatibility_level=levels.AMPERE_PLUS if options.hardware_compatible else None,
        memory_pool_limits=limits,
        load_timing_cache=_text(options.timing_cache) if _exists(options.timing_cache) else None,
        profiling_verbosity=module.ProfilingVerbosity.DETAILED,
        progress_monitor=_make_monitor(module, events),
    )
    return create(builder, network)


def _make_monitor(module: Any, events: Events) -> Any:
    """Return an ``IProgressMonitor`` that writes events, of steps no more often than a screen can show."""
    lock = threading.RLock()
    waiting: dict[str, int] = {}
    written = 0.0

    def write_steps() -> None:
        nonlocal written
        written = time.monotonic()
        for name, step in waiting.items():
            events.write("step", name=name, step=step)
        waiting.clear()

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with lock:
                write_steps()
                events.write("phase", name=phase_name, parent=parent_phase, steps=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with lock:
                waiting[phase_name] = step
                if time.monotonic() - written >= _STEPS_EVERY_S:
                    write_steps()
            return True

        def phase_finish(self, phase_name: str) -> None:
            with lock:
                write_steps()
                events.write("phase_end", name=phase_name)

    return Monitor()


def _inspect(request: dict[str, Any], options: BuildOptions, module: Any, flavor: Flavor, events: Events) -> None:
    """Load the engine, which proves that it loads, and keep the inspector's description of its layers."""
    engine = load_engine(
        Path(request["engine"]),
        module,
        flavor,
        library=options.library,
        host_code_allowed=options.version_compatible,
    )
    Path(request["layers"]).write_text(engine.layer_information(), encoding="utf-8")
    events.write("inspected", file=request["layers"], activation_bytes=engine.activation_bytes)


def _use_device(device: int, required: bool) -> tuple[list[int], int]:
    """Choose the GPU to build on.

    Returns:
        Its compute capability, and the newest CUDA its driver supports (13000 for 13.0); nothing and 0 where there is
        no GPU and none is needed.
    """
    try:
        cuda = load_cuda()
        cuda.device_count()
        cuda.use_device(device)
        return list(cuda.compute_capability(device)), cuda.driver_version()
    except NaDeployError:
        if required:
            raise
        return [], 0


def _polygraphy(flavor: Flavor, module: Any) -> Any:
    """Import Polygraphy's TensorRT backend, over the module that is in use."""
    if flavor is RTX:
        os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"
        sys.modules.setdefault("tensorrt_rtx", module)
    os.environ.setdefault("POLYGRAPHY_AUTOINSTALL_DEPS", "0")
    try:
        from polygraphy.backend import trt
        from polygraphy.logger import G_LOGGER
    except ImportError as error:
        raise MissingDependencyError(
            f"building engines needs Polygraphy, which cannot be imported ({error}); "
            f"install it with: pip install 'na-deploy[{flavor.backend}]'"
        ) from None
    G_LOGGER.module_severity = G_LOGGER.CRITICAL
    return trt


def _parser_error(error: Any) -> dict[str, Any]:
    stack = error.local_function_stack() or []
    return {
        "node": error.node_name() or str(error.node()),
        "operator": error.node_operator() or "",
        "functions": [str(function) for function in stack],
        "text": error.desc() or "",
    }


def _exists(file: Path | None) -> bool:
    return file is not None and file.is_file()


def _text(file: Path | None) -> str | None:
    return None if file is None else str(file)


def _follow_parent() -> None:
    """End this process when its parent has ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECKED_EVERY_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: list[str]) -> int:
    """Run one request; exit code 0 when an engine was built."""
    _follow_parent()
    request = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    events = Events(int(arguments[1]))
    try:
        return 0 if run(request, events) else 1
    except NaDeployError as error:
        events.write("failed", reason=str(error), kind=type(error).__name__)
    except MemoryError:
        events.write("failed", reason="there is not enough memory to build; close other programs")
    return 1


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # the library's exit handlers could crash
