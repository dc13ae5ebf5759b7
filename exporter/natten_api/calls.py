"""Where in the user's code a natten function was called, and the error for a call that cannot be exported."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

from na_deploy.errors import UsageError

_INTERNAL = (Path(__file__).resolve().parent, Path(torch.__file__).resolve().parent)


def call_site() -> str:
    """Return "file:line" of the innermost frame that is neither ours, PyTorch's nor natten's."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename).resolve()
        inside = any(path.is_relative_to(folder) for folder in _INTERNAL) or "natten" in path.parts
        if not inside and not frame.filename.startswith("<"):
            return f"{frame.filename}:{frame.lineno}"
    return "unknown place"


def unsupported(call: str, given: str, nearest: str) -> UsageError:
    """Return the error for a call that has no exported form.

    Args:
        call: natten's function.
        given: what about the call is unsupported.
        nearest: the nearest supported form.
    """
    return UsageError(f"{call} at {call_site()}: {given}; {nearest}")
