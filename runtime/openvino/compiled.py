"""OpenVINO's compiled models in bundles: written where a bundle is built, used where they fit, else left aside.

What OpenVINO compiles belongs to its version and to the processor. Where either differs, the bundle's model is compiled
again, which gives the same numbers and takes longer.
"""

from __future__ import annotations

import warnings
from typing import Any

from na_deploy import __version__
from na_deploy.runtime.backends.model_bytes import checked_bytes
from na_deploy.runtime.openvino.reading import Graph, operator_library
from na_deploy.runtime.session import SessionOptions

NAME = "model.blob"
OLDEST = "2025.4"
"""The oldest OpenVINO that reads our models."""

VERSION, PROCESSOR, OPERATORS = "openvino_compiled", "processor_compiled", "operators_compiled"
"""Entries of a manifest's ``requires`` that say where the compiled model fits."""

ATTENTION, IN_LIBRARY = "attention", "operator library"
"""The setting that says what computes attention in the compiled model, and its value for the library."""


def requirements(openvino: Any, core: Any, in_library: bool) -> dict[str, str]:
    """Return the version and the processor that a model compiled now belongs to, and that of the operators in it."""
    capabilities = ", ".join(sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")))
    return {
        VERSION: str(openvino.__version__),
        PROCESSOR: f"{core.get_property('CPU', 'FULL_DEVICE_NAME')} ({capabilities})",
        **({OPERATORS: f"na-deploy {__version__}"} if in_library else {}),
    }


def import_compiled(
    openvino: Any, core: Any, options: SessionOptions, precision: str, settings: dict[str, Any]
) -> tuple[Any, Graph] | None:
    """Return a bundle's compiled model and its nodes, or ``None`` with a warning where it has to be compiled again.

    Args:
        openvino: the Python module.
        core: an ``openvino.Core`` for this model alone.
        options: with the bundle's manifest and the compiled model, which is read into memory and must have the hash
            that the manifest states.
        precision: the one asked for; the compiled model has that of the bundle's settings.
        settings: properties of the compiled model that can still be chosen.

    Raises:
        NaDeployError: the file is not what the manifest states.
    """
    manifest, blob = options.manifest, options.compiled
    if manifest is None or blob is None or precision != manifest.settings.get("precision", "f32"):
        return None  # asked for by the user, so there is nothing to warn of
    in_library = manifest.settings.get(ATTENTION) == IN_LIBRARY
    if in_library and not options.custom_operators:
        return None
    needed = requirements(openvino, core, in_library)
    apart = [
        f"{manifest.requires.get(name)}, here is {value}"
        for name, value in needed.items()
        if manifest.requires.get(name) != value
    ]
    library = operator_library(options) if in_library and not apart else None
    if in_library and not apart and library is None:
        apart = ["the operator library for OpenVINO, which is not installed"]
    if not apart:
        graph = Graph(None)
        if library is not None:
            from na_deploy.runtime.openvino.operators import OperatorNodes

            graph = Graph(None, OperatorNodes(core, library))
        try:
            return core.import_model(checked_bytes(blob, blob.name, manifest), "CPU", settings), graph
        except RuntimeError as error:
            apart = [" ".join(str(error).split())[:200]]
    warnings.warn(
        f"{blob.parent} holds a compiled model for {'; '.join(apart)}; the model is compiled again",
        RuntimeWarning,
        stacklevel=5,
    )
    return None
