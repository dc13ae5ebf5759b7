"""The check of an engine's needs, stated in its bundle's manifest, before the engine is loaded."""

from __future__ import annotations

import re
from pathlib import Path

from na_deploy.errors import NaDeployError
from na_deploy.runtime.bundle.manifest import Manifest
from na_deploy.runtime.tensorrt.api import Flavor


def check_manifest(path: Path, manifest: Manifest, flavor: Flavor, installed: str, capability: tuple[int, int]) -> None:
    """Refuse an engine that does not fit, listing every difference.

    Engines run with the very version that built them, on GPUs of the compute capability they were built on. Exceptions:
    version-compatible engines (the same or a later version of the library), hardware-compatible ones (``>=``), and
    TensorRT-RTX, whose engines are compiled for the GPU when they are loaded.

    Args:
        path: the engine's name in errors.
        manifest: its bundle's manifest.
        flavor: the library.
        installed: its installed version.
        capability: the GPU's compute capability.

    Raises:
        NaDeployError: something does not fit.
    """
    key = flavor.backend.replace("-", "_")
    built = manifest.requires.get(key)
    compatible = manifest.requires.get("version_compatible") == "yes"
    problems = []
    if built is not None:
        here, there = _numbers(installed), _numbers(built)
        fits = here >= there if compatible else here == there
        if not fits:
            wanted = f"{built} or later" if compatible else f"exactly {built}"
            problems.append(f"needs {flavor.title} {wanted}, {installed} is installed")
    wanted = manifest.requires.get("compute_capability", "")
    found = re.fullmatch(r"(>=)?(\d+)\.(\d+)", wanted)
    if found:
        needed = (int(found[2]), int(found[3]))
        if capability < needed if found[1] else capability != needed:
            problems.append(f"is for compute capability {wanted}, this GPU has {capability[0]}.{capability[1]}")
    if problems:
        raise NaDeployError(f"{path.name} {' and '.join(problems)}; build it again on this machine")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
