"""Building TensorRT-RTX engines from ONNX files, on a machine that needs no GPU.

TensorRT-RTX's own parser and builder decide here whether an exported model is acceptable to TensorRT. The
work is done in a process of its own (:mod:`na_deploy.runtime.tensorrt_rtx_worker`), because a native
failure ends the process. Not for running engines: those need a GPU.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from na_deploy.errors import MissingDependencyError, NaDeployError, UsageError
from na_deploy.files import staged_output
from na_deploy.runtime.tensorrt_rtx_library import find_libraries

Shape = Sequence[int]
#: Input name to its smallest, most usual and largest shape.
Profiles = Mapping[str, tuple[Shape, Shape, Shape]]
#: Input name to its shape, ``None`` for a size that is not fixed.
Inputs = Mapping[str, list[int | None]]

_SEVERITIES = ("internal error", "error", "warning")
_ERRORS_SHOWN = 5
_WORKER = "na_deploy.runtime.tensorrt_rtx_worker"


@dataclass(frozen=True)
class BuildReport:
    """What a build produced.

    Attributes:
        layers: Layers of the parsed network. engine_bytes: Size of the engine. activation_bytes: Device
        memory one execution needs besides weights, inputs and outputs, at the largest
            shapes of the profile; 0 if the builder did not say.
        parse_seconds: Time the ONNX parser took.
        build_seconds: Time the builder took.
        log: Warnings and errors of the library, each "severity: message".
    """

    layers: int
    engine_bytes: int
    activation_bytes: int
    parse_seconds: float
    build_seconds: float
    log: tuple[str, ...]


def build_engine(
    model: Path,
    *,
    profiles: Profiles | None = None,
    output: Path | None = None,
    threads: int | None = None,
    timeout_s: float = 900.0,
) -> BuildReport:
    """Parse ``model`` and build an engine from it.

    Args:
        model: An ONNX file; external data files are read from beside it.
        profiles: For each input with a dynamic size, its smallest, most usual and largest shape.
        output: Where the engine goes; ``None`` builds and discards it.
        threads: Threads the builder may use; ``None`` leaves the choice to it.
        timeout_s: Give up after this many seconds.

    Returns:
        Layer count, engine size, times and the library's warnings.

    Raises:
        UsageError: The profiles do not fit the model's inputs, or ``output`` cannot be written.
        MissingDependencyError: The TensorRT-RTX wheel is not installed or is of an unchecked version.
        NaDeployError: The model cannot be read or is refused (naming the nodes), or its build fails or takes
            too long.
    """
    find_libraries()
    model = Path(model).resolve()
    shapes = _checked_profiles(_inputs(model), profiles or {})
    request = {"model": str(model), "profiles": shapes, "threads": threads, "engine": None}
    if output is None:
        return _build(request, timeout_s)
    with staged_output(Path(output)) as staged:
        return _build({**request, "engine": str(staged.resolve())}, timeout_s)


def _build(request: dict[str, Any], timeout_s: float) -> BuildReport:
    """Run the worker on ``request`` and turn its events into a report or an error."""
    with tempfile.TemporaryDirectory(prefix="na-deploy-") as folder:
        request_file, events_file = Path(folder, "request.json"), Path(folder, "events.jsonl")
        request_file.write_text(json.dumps(request))
        events_file.touch()
        command = [sys.executable, "-m", _WORKER, str(request_file), str(events_file)]
        try:
            done = subprocess.run(command, timeout=timeout_s, check=False, capture_output=True)
        except subprocess.TimeoutExpired:
            raise NaDeployError(
                f"TensorRT-RTX did not finish {request['model']} within {timeout_s:g} s; raise timeout_s"
            ) from None
        events = [json.loads(line) for line in events_file.read_text().splitlines() if line.endswith("}")]

    found = {event["event"]: event for event in events}
    log = tuple(f"{_SEVERITIES[e['severity']]}: {e['message']}" for e in events if e["event"] == "log")
    if done.returncode == 0:
        parsed, built = found["parsed"], found["built"]
        return BuildReport(
            layers=parsed["layers"],
            engine_bytes=built["engine_bytes"],
            activation_bytes=found.get("memory", {}).get("activation_bytes", 0),
            parse_seconds=parsed["seconds"],
            build_seconds=built["seconds"],
            log=log,
        )

    failed = found.get("failed", {})
    if failed.get("kind") == MissingDependencyError.__name__:
        raise MissingDependencyError(failed["reason"])
    errors = [_describe(event) for event in events if event["event"] == "parser_error"]
    details = errors or [line for line in log if not line.startswith("warning")]
    if not details:
        details = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
    if len(details) > _ERRORS_SHOWN:
        details = [*details[:_ERRORS_SHOWN], f"and {len(details) - _ERRORS_SHOWN} more"]
    reason = failed.get("reason") or _exit_reason(done.returncode, "parsed" in found)
    raise NaDeployError(f"{request['model']}: {reason}" + (": " + "; ".join(details) if details else ""))


def _describe(error: Mapping[str, Any]) -> str:
    """One parser error as a phrase that names the node, its operator and the functions around it."""
    node = error["name"] or error["node"]
    place = f"node {node!r} ({error['operator']})" if error["operator"] else "the model"
    inside = f" in {' > '.join(error['functions'])}" if error["functions"] else ""
    return f"{place}{inside}: {error['description']}"


def _exit_reason(code: int, parsed: bool) -> str:
    step = "building" if parsed else "parsing"
    if code < 0:
        return f"TensorRT-RTX crashed while {step} ({signal.Signals(-code).name})"
    return f"TensorRT-RTX failed while {step} (exit code {code})"


def _inputs(model: Path) -> Inputs:
    """Read the shapes of the model's inputs."""
    try:
        graph = onnx.load(model, load_external_data=False).graph
    except FileNotFoundError:
        raise NaDeployError(f"{model} does not exist; give an ONNX file") from None
    except Exception as error:
        raise NaDeployError(f"{model} is not an ONNX file: {error}") from None
    initialized = {tensor.name for tensor in graph.initializer}
    inputs = (value for value in graph.input if value.name not in initialized)
    return {
        value.name: [
            size.dim_value if size.HasField("dim_value") else None for size in value.type.tensor_type.shape.dim
        ]
        for value in inputs
    }


def _checked_profiles(inputs: Inputs, profiles: Profiles) -> dict[str, list[list[int]]]:
    """Check the profiles against the inputs and return them as lists.

    Raises:
        UsageError: An unknown input, a missing dynamic one, or shapes that disagree with the model or each
            other.
    """
    unknown = sorted(profiles.keys() - inputs.keys())
    if unknown:
        raise UsageError(f"profile for {unknown[0]!r}; the model's inputs are {', '.join(sorted(inputs))}")
    for name, sizes in inputs.items():
        if None in sizes and name not in profiles:
            raise UsageError(
                f"input {name!r} has dynamic shape {_shown(sizes)}; "
                f"give profiles={{{name!r}: (smallest, usual, largest)}}"
            )
        for shape in profiles.get(name, ()):
            agrees = len(shape) == len(sizes) and all(
                given >= 1 and fixed in (None, given) for given, fixed in zip(shape, sizes, strict=True)
            )
            if not agrees:
                raise UsageError(f"profile shape {_shown(shape)} for {name!r} does not fit the model's {_shown(sizes)}")
        if name in profiles:
            low, usual, high = profiles[name]
            if not all(a <= b <= c for a, b, c in zip(low, usual, high, strict=True)):
                raise UsageError(
                    f"profile for {name!r} must grow from smallest to largest: "
                    f"{_shown(low)}, {_shown(usual)}, {_shown(high)}"
                )
    return {name: [list(shape) for shape in three] for name, three in profiles.items()}


def _shown(sizes: Sequence[int | None]) -> str:
    return "x".join("?" if size is None else str(size) for size in sizes) or "scalar"
