"""The TensorRT and TensorRT-RTX part of a build: an engine, its needs, and the inspector's description of it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from na_deploy.errors import NaDeployError
from na_deploy.files import staged_output
from na_deploy.runtime.building.options import BuildOptions, BuildTask, Built
from na_deploy.runtime.native_libraries import TENSORRT_LIBRARY_VARIABLE, tensorrt_library
from na_deploy.runtime.tensorrt.api import FLAVORS, RTX, Flavor
from na_deploy.runtime.tensorrt.building import EngineReport, build_engine
from na_deploy.runtime.tensorrt.layers import read_layers, summarize_layers

LAYERS = "layers.json"
"""The bundle's member with the engine inspector's description."""


def build_files(task: BuildTask) -> Built:
    """Build an engine.

    Raises:
        MissingDependencyError: the library is not installed.
        NaDeployError: the model is refused or the build fails.
    """
    flavor = FLAVORS[task.options.backend]
    library = _library(flavor, task.options)
    engine = task.scratch / "model.engine"
    cache = _scratch_cache(task)
    task.progress(f"building with {flavor.title}")
    chosen = replace(task.options, profiles=task.profiles, library=library, timing_cache=cache)
    report = build_engine(task.model, engine, chosen, task.watch)
    if cache is not None and task.options.timing_cache is not None and cache.is_file():
        with staged_output(task.options.timing_cache) as staged:
            shutil.copyfile(cache, staged)
    files: dict[str, tuple[str, Path]] = {"model.engine": ("engine", engine)}
    if library is not None and task.options.plugins == "embed":
        files["lib/" + library.name] = ("library", library)
    figures = _figures(report, engine)
    if report.layer_file is not None:
        files[LAYERS] = ("report", report.layer_file)
        figures |= summarize_layers(read_layers(report.layer_file))
    runs = f"the plugin library ({library.name})" if library is not None and report.plugins else "function bodies"
    if not flavor.takes_plugins:
        runs = f"function bodies ({flavor.title} takes no plugins)"
    return Built("engine", files, _requirements(flavor, task.options, report), figures, runs, report.log)


def _library(flavor: Flavor, options: BuildOptions) -> Path | None:
    library = (options.library or tensorrt_library()) if flavor.takes_plugins else None
    if library is None and options.plugins == "embed":
        raise NaDeployError(
            "there is no TensorRT plugin library to embed; install na-deploy where it can be compiled (docs/build.md), "
            f"or name the file in {TENSORRT_LIBRARY_VARIABLE}"
        )
    return library


def _scratch_cache(task: BuildTask) -> Path | None:
    """Return this build's own copy of the timing cache, so that builds that share one do not disturb each other."""
    given = task.options.timing_cache
    if given is None:
        return None
    copy = task.scratch / "timing.cache"
    if given.is_file():
        shutil.copyfile(given, copy)
    return copy


def _requirements(flavor: Flavor, options: BuildOptions, report: EngineReport) -> dict[str, str]:
    needs = {flavor.backend.replace("-", "_"): report.version}
    if flavor is RTX or options.hardware_compatible:
        needs["compute_capability"] = ">=8.0"
    elif report.capability is not None:
        needs["compute_capability"] = ".".join(map(str, report.capability))
    if options.version_compatible:
        needs["version_compatible"] = "yes"
    if report.plugins:
        needs["plugins"] = ", ".join(report.plugins)
    return needs


def _figures(report: EngineReport, engine: Path) -> dict[str, Any]:
    cuda = {"driver_cuda": f"{report.driver // 1000}.{report.driver % 1000 // 10}"} if report.driver else {}
    return cuda | {
        "layers": report.layers,
        "engine_bytes": engine.stat().st_size,
        "activation_bytes": report.activation_bytes,
        "parse_seconds": round(report.parse_seconds, 3),
        "build_seconds": round(report.build_seconds, 3),
    }
