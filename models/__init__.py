"""NAT, DiNAT, DiNAT_s and isotropic models: descriptions, networks, checkpoints.

Nothing here imports PyTorch until a network is asked for; ``registry``, ``metadata``, ``preprocessing``,
``config``, ``cost`` and ``dilations`` never do.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from na_deploy.models.config import ModelConfig
from na_deploy.models.metadata import ModelMetadata
from na_deploy.models.preprocessing import Preprocessing
from na_deploy.models.registry import ModelEntry, get_model, list_models
from na_deploy.optional_dependencies import export_libraries

if TYPE_CHECKING:
    from na_deploy.models.build import build_model, random_checkpoint
    from na_deploy.models.loading import LoadedModel, load_model

__all__ = [
    "LoadedModel",
    "ModelConfig",
    "ModelEntry",
    "ModelMetadata",
    "Preprocessing",
    "build_model",
    "get_model",
    "list_models",
    "load_model",
    "random_checkpoint",
]

_LAZY = {
    "LoadedModel": "na_deploy.models.loading",
    "load_model": "na_deploy.models.loading",
    "build_model": "na_deploy.models.build",
    "random_checkpoint": "na_deploy.models.build",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        with export_libraries("loading checkpoints"):
            return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'na_deploy.models' has no attribute {name!r}")
