"""Running exported models: sessions, image preprocessing, classification, inspection.

Nothing here needs PyTorch. :func:`load` and :class:`Session` are imported on first use, so that importing
the package stays cheap for the command line.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from na_deploy.model_file.tensors import TensorSpec
    from na_deploy.runtime.session import Session, load

__all__ = ["Session", "TensorSpec", "load"]

_LAZY = {
    "Session": "na_deploy.runtime.session",
    "TensorSpec": "na_deploy.model_file.tensors",
    "load": "na_deploy.runtime.session",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'na_deploy.runtime' has no attribute {name!r}")
