"""Neighborhood-attention models from a PyTorch checkpoint to production inference.

Public: :func:`export` (PyTorch to ONNX), :func:`load` (a :class:`Session` over an exported model), :class:`SetWindow`
(windows set at export), :func:`importable_natten` (building modules without natten), and the errors, all of them kinds
of :class:`NaDeployError`. Everything else may change with any version. Names that need libraries are imported on first
use, so that running a model never imports PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from na_deploy.errors import (
    AmbiguousArchitectureError,
    CheckpointError,
    MissingDependencyError,
    NaDeployError,
    UsageError,
    VerificationError,
)

if TYPE_CHECKING:
    from na_deploy.exporter import SetWindow, export, importable_natten
    from na_deploy.runtime import Session, load

__version__ = "0.1.0"
__all__ = [
    "AmbiguousArchitectureError",
    "CheckpointError",
    "MissingDependencyError",
    "NaDeployError",
    "Session",
    "SetWindow",
    "UsageError",
    "VerificationError",
    "__version__",
    "export",
    "importable_natten",
    "load",
]

_LAZY = {
    "Session": "na_deploy.runtime",
    "SetWindow": "na_deploy.exporter",
    "export": "na_deploy.exporter",
    "importable_natten": "na_deploy.exporter",
    "load": "na_deploy.runtime",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'na_deploy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
