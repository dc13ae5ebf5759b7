"""Errors of the user's own Python: named as theirs, with the line."""

from __future__ import annotations

import traceback
from types import TracebackType

_LIBRARIES = (
    "na_deploy",
    "torch",
    "natten",
    "importlib",
    "inspect",
    "contextlib",
    "functools",
    "onnxscript",
    "onnx_ir",
)


def described(error: BaseException) -> str:
    """Return an error's type, first line and place in the user's code: "ValueError: no such size at model.py:12"."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} at {error.filename}:{error.lineno}"
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
    place = user_place(error.__traceback__)
    return f"{reason} at {place}" if place else reason


def user_place(trace: TracebackType | None) -> str | None:
    """Return "file:line" of the innermost frame that is in none of the libraries around the user's code."""
    place = None
    for frame, line in traceback.walk_tb(trace):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in _LIBRARIES and not frame.f_code.co_filename.startswith("<"):
            place = f"{frame.f_code.co_filename}:{line}"
    return place
