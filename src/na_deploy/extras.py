"""Optional dependencies: turns the import error of a missing one into a sentence that says what to install."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from na_deploy.errors import MissingDependencyError

EXPORT_LIBRARIES = frozenset({"torch", "onnxscript", "onnx_ir", "safetensors"})
"""What ``pip install 'na-deploy[export]'`` adds."""


@contextmanager
def export_libraries(purpose: str) -> Iterator[None]:
    """Import what ``purpose`` needs inside the block.

    Raises:
        MissingDependencyError: a library of the "export" extra is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in EXPORT_LIBRARIES:
            raise
        raise MissingDependencyError(
            f"{purpose} needs {library}, which is not installed; install it with: pip install 'na-deploy[export]'"
        ) from None
