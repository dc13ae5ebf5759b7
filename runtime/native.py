"""Where our compiled libraries are, if this installation has them. Does not build or load anything."""

from __future__ import annotations

import os
from pathlib import Path

import na_deploy
from na_deploy.errors import UsageError

ONNXRUNTIME_LIBRARY = "libna_deploy_ort.so"
ONNXRUNTIME_LIBRARY_VARIABLE = "NA_DEPLOY_ORT_LIBRARY"


def onnxruntime_library() -> Path | None:
    """Return our custom-operator library for ONNX Runtime, or ``None`` where it is not built.

    The environment variable ``NA_DEPLOY_ORT_LIBRARY`` names another file; empty, it hides the installed one.

    Raises:
        UsageError: the variable names a file that does not exist.
    """
    chosen = os.environ.get(ONNXRUNTIME_LIBRARY_VARIABLE)
    if chosen is not None:
        if not chosen:
            return None
        if not Path(chosen).is_file():
            raise UsageError(f"{ONNXRUNTIME_LIBRARY_VARIABLE} names {chosen}, which does not exist")
        return Path(chosen)
    for folder in na_deploy.__path__:
        candidate = Path(folder) / "lib" / ONNXRUNTIME_LIBRARY
        if candidate.is_file():
            return candidate
    return None
