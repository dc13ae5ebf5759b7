"""Handing models to NVIDIA Triton: model repositories, their checks, and what runs them in a cluster.

Nothing here serves: that is Triton's work, or ``na-deploy serve``'s. :func:`package` and :func:`check_repository` are
imported on first use; they need the "triton" extra (tritonclient's protobuf).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from na_deploy.deployment.checks import Finding, check_repository
    from na_deploy.deployment.options import PackageOptions
    from na_deploy.deployment.repository import package

__all__ = ["Finding", "PackageOptions", "check_repository", "package"]

_LAZY = {
    "Finding": "na_deploy.deployment.checks",
    "PackageOptions": "na_deploy.deployment.options",
    "check_repository": "na_deploy.deployment.checks",
    "package": "na_deploy.deployment.repository",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'na_deploy.deployment' has no attribute {name!r}")
