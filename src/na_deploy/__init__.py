"""Neighborhood-attention models from a PyTorch checkpoint to production inference.

The public entry points are :func:`export` (PyTorch to ONNX) and :func:`load` (a session over an exported model).
Both are imported on first use, so that running a model never imports PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from na_deploy.exporter import export
    from na_deploy.runtime import load

__version__ = "0.1.0"
__all__ = ["__version__", "export", "load"]

_LAZY = {"export": "na_deploy.exporter", "load": "na_deploy.runtime"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'na_deploy' has no attribute {name!r}")
