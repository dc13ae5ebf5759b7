"""The process that parses and builds, for :mod:`na_deploy.runtime.tensorrt_rtx` and not for direct use.

``python -m na_deploy.runtime.tensorrt_rtx_worker request.json events.jsonl``. Native code that meets
something unforeseen ends its process, so this is one of its own. It writes what happens as JSON lines, one
at a time, so that what was known before a crash survives it.

The request is one JSON object: ``model`` and ``engine`` (paths; ``engine`` may be null), ``profiles``
(input name to [min, opt, max] shapes), ``threads``. Events carry ``event``: "log" (severity, message),
"parser_error" (code, description, node, name, operator, functions), "parsed" (layers, seconds), "built"
(engine_bytes, seconds), "memory" (activation_bytes, as the builder logs it), "failed" (reason, and kind, the
error's class, where it is one of na-deploy's).
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from na_deploy.errors import NaDeployError
from na_deploy.runtime import tensorrt_rtx_library as rtx

_WARNING, _INFORMATION = 2, 3
_ACTIVATION_MEMORY = re.compile(r"Total Activation Memory: (\d+) bytes")


class Events:
    """Writes events, each flushed at once; log messages come from several threads."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def write(self, event: str, **fields: Any) -> None:
        """Append one event."""
        with self._lock:
            self._stream.write(json.dumps({"event": event, **fields}) + "\n")
            self._stream.flush()


def run(request: dict[str, Any], events: Events) -> bool:
    """Parse the model, add the optimization profile, build the engine and write it; whether all went well."""

    def receive(severity: int, message: str) -> None:
        if severity <= _WARNING:
            events.write("log", severity=severity, message=message)
        elif severity == _INFORMATION and (said := _ACTIVATION_MEMORY.search(message)):
            events.write("memory", activation_bytes=int(said.group(1)))

    library = rtx.load()
    logger = rtx.Logger(receive)
    builder = library.create_builder(logger)
    if request["threads"]:
        rtx.BUILDER_SET_MAX_THREADS(builder, request["threads"])
    network = rtx.BUILDER_CREATE_NETWORK_V2(builder, rtx.STRONGLY_TYPED)
    config = rtx.BUILDER_CREATE_CONFIG(builder)
    if not network or not config:
        events.write("failed", reason="TensorRT-RTX could not create a network")
        return False

    started = time.perf_counter()
    parser = library.create_parser(network, logger)
    accepted = rtx.PARSER_PARSE_FROM_FILE(parser, request["model"].encode(), _WARNING)
    for index in range(rtx.PARSER_GET_NB_ERRORS(parser)):
        events.write("parser_error", **_parser_error(rtx.PARSER_GET_ERROR(parser, index)))
    if not accepted:
        events.write("failed", reason="TensorRT-RTX's ONNX parser refused the model")
        return False
    layers = rtx.NETWORK_GET_NB_LAYERS(rtx.implementation(network))
    events.write("parsed", layers=layers, seconds=time.perf_counter() - started)

    if request["profiles"] and not _add_profile(builder, config, request["profiles"]):
        events.write("failed", reason=f"TensorRT-RTX refused the optimization profile {request['profiles']}")
        return False
    started = time.perf_counter()
    plan = rtx.BUILDER_BUILD_SERIALIZED_NETWORK(builder, network, config)
    if not plan:
        events.write("failed", reason="TensorRT-RTX's builder produced no engine")
        return False
    memory = rtx.implementation(plan)
    size = rtx.MEMORY_SIZE(memory)
    if request["engine"]:
        data = (ctypes.c_char * size).from_address(rtx.MEMORY_DATA(memory))
        Path(request["engine"]).write_bytes(memoryview(data))
    events.write("built", engine_bytes=size, seconds=time.perf_counter() - started)
    return True


def _add_profile(builder: int, config: int, shapes: dict[str, list[list[int]]]) -> bool:
    """Add one optimization profile holding the shapes of every dynamic input."""
    profile = rtx.BUILDER_CREATE_OPTIMIZATION_PROFILE(builder)
    methods = rtx.implementation(profile)
    selectors = (rtx.PROFILE_MIN, rtx.PROFILE_OPT, rtx.PROFILE_MAX)
    accepted = all(
        rtx.PROFILE_SET_DIMENSIONS(methods, name.encode(), selector, ctypes.byref(rtx.Dims.of(shape)))
        for name, three in shapes.items()
        for selector, shape in zip(selectors, three, strict=True)
    )
    valid = accepted and rtx.PROFILE_IS_VALID(methods)
    return bool(valid) and rtx.CONFIG_ADD_OPTIMIZATION_PROFILE(rtx.implementation(config), profile) >= 0


def _parser_error(error: int) -> dict[str, Any]:
    def text(method: rtx.Method) -> str:
        return (method(error) or b"").decode(errors="replace")

    depth = rtx.ERROR_LOCAL_FUNCTION_STACK_SIZE(error)
    stack = rtx.ERROR_LOCAL_FUNCTION_STACK(error) if depth > 0 else ()
    return {
        "code": rtx.ERROR_CODE(error),
        "description": text(rtx.ERROR_DESC),
        "node": rtx.ERROR_NODE(error),
        "name": text(rtx.ERROR_NODE_NAME),
        "operator": text(rtx.ERROR_NODE_OPERATOR),
        "functions": [(stack[level] or b"").decode(errors="replace") for level in range(depth)],
    }


def main(arguments: list[str]) -> int:
    """Run one request; exit code 0 when an engine was built."""
    request_file, events_file = map(Path, arguments)
    request = json.loads(request_file.read_text())
    with events_file.open("w") as stream:
        events = Events(stream)
        try:
            return 0 if run(request, events) else 1
        except NaDeployError as error:
            events.write("failed", reason=str(error), kind=type(error).__name__)
            return 1


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # The native objects live until the process ends; its exit handlers have nothing to add and could crash.
    os._exit(code)
