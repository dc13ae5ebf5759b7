"""OpenVINO's compiled models in bundles: written where a bundle is built, used where they fit, else left aside.

What OpenVINO compiles belongs to its version and to the processor. Where either differs, the bundle's model is compiled
again, which gives the same numbers and takes longer.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from na_deploy.runtime.backends.model_bytes import checked_bytes
from na_deploy.runtime.bundle.manifest import Manifest

NAME = "model.blob"
OLDEST = "2025.4"
"""The oldest OpenVINO that reads our models."""

VERSION, PROCESSOR = "openvino_compiled", "processor_compiled"
"""Entries of a manifest's ``requires`` that say where the compiled model fits."""


def requirements(openvino: Any, core: Any) -> dict[str, str]:
    """Return the version and the processor that a model compiled now belongs to."""
    capabilities = ", ".join(sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")))
    return {
        VERSION: str(openvino.__version__),
        PROCESSOR: f"{core.get_property('CPU', 'FULL_DEVICE_NAME')} ({capabilities})",
    }


def import_compiled(
    openvino: Any, core: Any, blob: Path, manifest: Manifest, precision: str, settings: dict[str, Any]
) -> Any | None:
    """Return a bundle's compiled model, or ``None`` with a warning where the model has to be compiled again.

    Args:
        openvino: the Python module.
        core: its core.
        blob: the compiled model; it is read into memory and must have the hash that the manifest states.
        manifest: the bundle's.
        precision: the one asked for; the compiled model has that of the bundle's settings.
        settings: properties of the compiled model that can still be chosen.

    Raises:
        NaDeployError: the file is not what the manifest states.
    """
    if precision != manifest.settings.get("precision", "f32"):
        return None  # asked for by the user, so there is nothing to warn of
    here = requirements(openvino, core)
    apart = [
        f"{manifest.requires.get(name)}, here is {value}"
        for name, value in here.items()
        if manifest.requires.get(name) != value
    ]
    if not apart:
        try:
            return core.import_model(checked_bytes(blob, blob.name, manifest), "CPU", settings)
        except RuntimeError as error:
            apart = [" ".join(str(error).split())[:200]]
    warnings.warn(
        f"{blob.parent} holds a compiled model for {'; '.join(apart)}; the model is compiled again",
        RuntimeWarning,
        stacklevel=5,
    )
    return None
