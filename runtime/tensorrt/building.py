"""Building engines of TensorRT and TensorRT-RTX in a process of its own, and following it.

See :mod:`na_deploy.runtime.tensorrt.build_worker` for that process.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from na_deploy.errors import MissingDependencyError, NaDeployError
from na_deploy.runtime.building.options import BuildOptions
from na_deploy.runtime.tensorrt.api import FLAVORS
from na_deploy.runtime.tensorrt.progress import Phases

_WORKER = "na_deploy.runtime.tensorrt.build_worker"
_ERRORS_SHOWN = 5
_POLL_S = 0.2
Watch = Callable[[Phases], None]
"""Called with a build's phases after every change."""


@dataclass(frozen=True)
class EngineReport:
    """Figures of a finished build.

    Attributes:
        version: the library's.
        capability: the GPU's compute capability, ``None`` where it was built without a GPU.
        layers: layers of the parsed network.
        plugins: na-deploy's operators that became plugins.
        parse_seconds: time of the parser.
        build_seconds: time of the builder.
        driver: newest CUDA that the driver supports, as 13000 for 13.0; 0 without a GPU.
        activation_bytes: device memory of one execution, 0 where it is not known.
        layer_file: the inspector's description of the layers, ``None`` without a GPU.
        log: warnings and errors, each "severity: text".
    """

    version: str
    capability: tuple[int, int] | None
    layers: int
    plugins: tuple[str, ...]
    parse_seconds: float
    build_seconds: float
    driver: int
    activation_bytes: int
    layer_file: Path | None
    log: tuple[str, ...]


def build_engine(model: Path, engine: Path, options: BuildOptions, watch: Watch | None = None) -> EngineReport:
    """Build an engine from an ONNX file.

    Args:
        model: the file.
        engine: the file to write, in a folder of this build's own: other files are written there too.
        options: the build's options; ``profiles`` holds the sizes of the inputs with free ones, ``library`` the plugin
            library where one is used.
        watch: called with the build's phases.

    Raises:
        MissingDependencyError: the library or something it needs is not installed.
        NaDeployError: the model is refused (naming the nodes), or the build fails, crashes or takes too long.
    """
    title = FLAVORS[options.backend].title
    phases = Phases()
    events: list[dict[str, Any]] = []
    with _worker(model, engine, options) as (process, lines):
        for event in _events(process, lines, options, title, model):
            if phases.update(event):
                if watch is not None:
                    watch(phases)
            else:
                events.append(event)
        code = process.wait()
    found = {event["event"]: event for event in events}
    log = tuple(f"{e['severity'].replace('_', ' ')}: {e['text']}" for e in events if e["event"] == "log")
    if code != 0 or "built" not in found:
        raise _failure(model, title, code, events, log, _printed(engine))
    parsed, built, machine = found["parsed"], found["built"], found["machine"]
    inspected = found.get("inspected", {})
    capability = machine["capability"]
    return EngineReport(
        version=machine["version"],
        capability=(capability[0], capability[1]) if capability else None,
        layers=parsed["layers"],
        plugins=tuple(parsed["plugins"]),
        parse_seconds=parsed["seconds"],
        build_seconds=built["seconds"],
        driver=machine["driver"],
        activation_bytes=inspected.get("activation_bytes") or found.get("memory", {}).get("activation_bytes", 0),
        layer_file=Path(inspected["file"]) if inspected else None,
        log=log,
    )


@contextlib.contextmanager
def _worker(model: Path, engine: Path, options: BuildOptions) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start the process; however the block is left, the process has ended after it."""
    request = {
        "model": str(model.resolve()),
        "engine": str(engine.resolve()),
        "layers": str(engine.resolve().with_suffix(".layers.json")),
        "options": options.to_json(),
    }
    file = engine.with_suffix(".request.json")
    file.write_text(json.dumps(request), encoding="utf-8")
    output = engine.with_suffix(".output.txt")
    reading, writing = os.pipe()
    process: subprocess.Popen[bytes] | None = None
    try:
        with output.open("wb") as stream:
            # A session of its own: Ctrl-C in a terminal reaches this process alone, which then ends the worker.
            process = subprocess.Popen(
                [sys.executable, "-m", _WORKER, str(file), str(writing)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                pass_fds=(writing,),
                start_new_session=True,
            )
        os.close(writing)
        writing = -1
        yield process, reading
    finally:
        if writing >= 0:
            os.close(writing)
        os.close(reading)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _events(
    process: subprocess.Popen[bytes], lines: int, options: BuildOptions, title: str, model: Path
) -> Iterator[dict[str, Any]]:
    """Yield events until the process closes its end; a crash may cut off the last line."""
    until = time.monotonic() + options.timeout_s
    rest = b""
    while True:
        if time.monotonic() > until:
            raise NaDeployError(f"{title} did not finish {model} within {options.timeout_s:g} s; raise --timeout")
        ready, _, _ = select.select([lines], [], [], _POLL_S)
        if not ready:
            continue
        chunk = os.read(lines, 1 << 16)
        if not chunk:
            return
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield json.loads(line)


def _printed(engine: Path) -> list[str]:
    """Return the last line that the process printed, the trace of a crash or defect."""
    text = engine.with_suffix(".output.txt").read_text(encoding="utf-8", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()][-1:]


def _failure(
    model: Path,
    title: str,
    code: int,
    events: list[dict[str, Any]],
    log: tuple[str, ...],
    printed: list[str],
) -> NaDeployError:
    found = {event["event"]: event for event in events}
    failed = found.get("failed", {})
    if failed.get("kind") == MissingDependencyError.__name__:
        return MissingDependencyError(failed["reason"])
    if failed.get("kind"):
        return NaDeployError(failed["reason"])
    details = [_describe(event) for event in events if event["event"] == "parser_error"]
    if not details:
        details = [line for line in log if not line.startswith("warning") and failed.get("reason", "") not in line]
    if not details and "reason" not in failed:
        details = printed
    if len(details) > _ERRORS_SHOWN:
        details = [*details[:_ERRORS_SHOWN], f"and {len(details) - _ERRORS_SHOWN} more"]
    step = "building" if "parsed" in found else "parsing" if "machine" in found else "starting"
    how = f"crashed while {step} ({signal.Signals(-code).name})" if code < 0 else f"failed while {step} (exit {code})"
    reason = failed.get("reason") or f"{title} {how}"
    return NaDeployError(f"{model}: {reason}" + (": " + "; ".join(details) if details else ""))


def _describe(error: Mapping[str, Any]) -> str:
    """Return a parser error as a phrase that names the node, its operator and the functions around it."""
    place = f"node {error['node']!r} ({error['operator']})" if error["operator"] else "the model"
    inside = f" in {' > '.join(error['functions'])}" if error["functions"] else ""
    return f"{place}{inside}: {error['text']}"
