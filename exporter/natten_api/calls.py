"""The line of user code that called a natten function, and the error for a call that cannot be exported."""

from __future__ import annotations

import sys

from na_deploy.errors import UsageError

_LIBRARIES = ("na_deploy", "torch", "natten")
_TRACING = "na_deploy.exporter.module_export"


def call_site() -> str:
    """Return "file:line" of the innermost frame of user code below the tracer.

    Where natten's own modules are exported directly there is none, and the line in natten is returned.
    """
    library = "unknown place"
    frame = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") != _TRACING:
        name = str(frame.f_globals.get("__name__", ""))
        place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        package = name.partition(".")[0]
        if package not in _LIBRARIES and not frame.f_code.co_filename.startswith("<"):
            return place
        if package == "natten" and library == "unknown place":
            library = place
        if frame.f_back is None:
            break
        frame = frame.f_back
    return library


def unsupported(call: str, given: str, nearest: str) -> UsageError:
    """Return the error for a call that has no exported form.

    Args:
        call: natten's function.
        given: the unsupported part of the call.
        nearest: the nearest supported form.
    """
    return UsageError(f"{call} at {call_site()}: {given}; {nearest}")
