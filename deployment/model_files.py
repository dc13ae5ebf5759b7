"""The files of one packaged model: the model itself or its engine, the operator library, class names."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from na_deploy.deployment.config import INTERFACE, MODEL_FILES, PLUGIN_LIBRARY
from na_deploy.deployment.options import PackageOptions
from na_deploy.deployment.source import ModelSource
from na_deploy.errors import UsageError
from na_deploy.model_file.answers import answer_of
from na_deploy.runtime.backend_names import SESSION_BACKENDS
from na_deploy.runtime.bundle.manifest import NAME as MANIFEST
from na_deploy.runtime.native_libraries import ONNXRUNTIME_LIBRARY, gpu_capabilities, onnxruntime_library
from na_deploy.runtime.results.classification import read_labels


def write_model(source: ModelSource, folder: Path, options: PackageOptions) -> tuple[str, ...]:
    """Write what the backend opens into a version's folder; returns what a person should know.

    Raises:
        UsageError: there is no engine that the tensorrt backend runs.
    """
    if options.backend == "tensorrt":
        return _write_engine(source, folder)
    manifest = None if source.bundle is None else source.bundle.manifest
    if options.backend == "python":
        (folder / MODEL_FILES["python"]).write_text(python_backend("classifier.py"), encoding="utf-8")
        if source.bundle is not None and manifest is not None and manifest.backend in SESSION_BACKENDS:
            for member in manifest.members:
                _copy(source.bundle.place(member), folder / "model.bundle" / member.name)
            (folder / "model.bundle" / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
            return ()
    _copy(source.model, folder / "model.onnx")
    for name, path in source.weights.items():
        _copy(path, folder / name)
    if source.engine_backend is not None:
        return (f"the engine for {source.engine_backend} was left out; {options.backend} runs the model itself",)
    return ()


def _write_engine(source: ModelSource, folder: Path) -> tuple[str, ...]:
    if source.bundle is None or source.engine_backend is None:
        raise UsageError(
            f"{source.path} holds no TensorRT engine; build a bundle with one, or package for onnxruntime or python"
        )
    if source.engine_backend != "tensorrt":
        raise UsageError(
            f"the engine in {source.path} is for {source.engine_backend}, which Triton's tensorrt backend cannot run; "
            "build one for tensorrt, or package for onnxruntime or python"
        )
    _copy(source.bundle.file("engine"), folder / MODEL_FILES["tensorrt"])
    member = source.bundle.manifest.member("engine")
    interface: dict[str, Any] = {
        part: [{"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)} for spec in specs]
        for part, specs in (("inputs", source.inputs), ("outputs", source.outputs))
    }
    interface |= {
        "bytes": None if member is None else member.bytes,
        "sha256": None if member is None else member.sha256,
        "largest_batch": source.largest_batch,
        "requires": dict(source.bundle.manifest.requires),
    }
    (folder / INTERFACE).write_text(json.dumps(interface, indent=2) + "\n", encoding="utf-8")
    needs = ", ".join(f"{name} {value}" for name, value in source.bundle.manifest.requires.items())
    return (f"the engine needs {needs}",) if needs else ()


def write_library(source: ModelSource, folder: Path, options: PackageOptions) -> tuple[str | None, tuple[str, ...]]:
    """Copy the operator library beside the configuration; returns its name and what to say about it.

    Raises:
        UsageError: the library does not exist, or the backend takes none.
    """
    if options.backend != "onnxruntime":
        if options.operators not in ("auto", "none") and options.backend != "tensorrt":
            raise UsageError(f"the {options.backend} backend takes no operator library; leave --operators out")
        return None, ()
    if options.operators == "none":
        return None, ("attention runs on the model's function bodies",)
    if options.operators == "auto":
        embedded = None if source.bundle is None else source.bundle.manifest.member("library")
        library = source.bundle.file("library") if source.bundle is not None and embedded else onnxruntime_library()
        if library is None:
            return None, ("the operator library is not installed: attention runs on the model's function bodies",)
        if options.device == "gpu" and not gpu_capabilities(library):
            return None, ("the operator library has no GPU kernels: attention runs on the model's function bodies",)
    else:
        library = Path(options.operators)
        if not library.is_file():
            raise UsageError(f"the operator library {library} does not exist; give a file, auto or none")
    _copy(library, folder / ONNXRUNTIME_LIBRARY)
    return ONNXRUNTIME_LIBRARY, ()


def write_plugins(source: ModelSource, staging: Path, options: PackageOptions) -> tuple[str, ...]:
    """Copy our TensorRT plugins into the repository itself: Triton loads them once, for all models.

    Returns:
        What a person should know.

    Raises:
        UsageError: the library does not exist.
    """
    if options.backend != "tensorrt" or options.operators == "none":
        return ()
    if options.operators != "auto":
        library = Path(options.operators)
        if not library.is_file():
            raise UsageError(f"the plugin library {library} does not exist; give a file, auto or none")
    elif source.bundle is not None and source.bundle.manifest.member("library") is not None:
        library = source.bundle.file("library")
    else:
        return (f"if the engine uses na-deploy's plugins, give {PLUGIN_LIBRARY} with --operators",)
    _copy(library, staging / PLUGIN_LIBRARY)
    return ()


def label_names(source: ModelSource, options: PackageOptions) -> list[str] | None:
    """Return the class names in order, if the model gives class scores and they are known.

    Raises:
        UsageError: a file of labels was given that does not fit.
    """
    classes = answer_of(source.outputs, source.metadata, labelled=options.labels is not None).class_count
    if options.labels is not None:
        if classes is None:
            raise UsageError(f"{source.path} does not give class scores, so labels have no place; remove --labels")
        names = read_labels(options.labels, classes)
        return [names[index] for index in range(classes)]
    if source.metadata is None or classes is None:
        return None
    known = dict(source.metadata.labels)
    return [known[index] for index in range(classes)] if known.keys() >= set(range(classes)) else None


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def python_backend(name: str) -> str:
    """Return what Triton's python backend runs as ``model.py``."""
    return package_files("na_deploy.deployment").joinpath("python_backend", name).read_text(encoding="utf-8")
