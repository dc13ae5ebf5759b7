"""Optional dependencies: the import error of a missing one becomes a sentence with the command that installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from na_deploy.errors import MissingDependencyError

EXPORT_LIBRARIES = frozenset({"torch", "onnxscript", "onnx_ir", "safetensors"})
"""Libraries that ``pip install 'na-deploy[export]'`` adds."""

SERVE_LIBRARIES = frozenset(
    {"fastapi", "starlette", "uvicorn", "httptools", "grpc", "tritonclient", "prometheus_client"}
)
"""Libraries that ``pip install 'na-deploy[serve]'`` adds."""


@contextmanager
def export_libraries(purpose: str) -> Iterator[None]:
    """Turn failed imports of the extra's libraries inside the block into advice; ``purpose`` begins the sentence.

    Raises:
        MissingDependencyError: a library of the "export" extra is not installed.
    """
    with _libraries("export", EXPORT_LIBRARIES, purpose):
        yield


@contextmanager
def serve_libraries(purpose: str) -> Iterator[None]:
    """Turn failed imports of the extra's libraries inside the block into advice; ``purpose`` begins the sentence.

    Raises:
        MissingDependencyError: a library of the "serve" extra is not installed.
    """
    with _libraries("serve", SERVE_LIBRARIES, purpose):
        yield


@contextmanager
def _libraries(extra: str, libraries: frozenset[str], purpose: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in libraries:
            raise
        raise MissingDependencyError(
            f"{purpose} needs {library}, which is not installed; install it with: pip install 'na-deploy[{extra}]'"
        ) from None
