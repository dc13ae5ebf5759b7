"""Writing models into a Triton model repository: staged, checked, then renamed into place.

A repository that Triton watches never shows half a model: everything is written beside the repository and appears by
renames. What an older version needs is not touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from na_deploy.deployment import protobuf
from na_deploy.deployment.checks import check_model
from na_deploy.deployment.config import LABELS, MODEL_FILES, SETTING, model_config
from na_deploy.deployment.ensemble import ensemble_config, ensemble_name, preprocessing_config
from na_deploy.deployment.model_files import label_names, python_backend, write_library, write_model, write_plugins
from na_deploy.deployment.options import PackageOptions, check_name
from na_deploy.deployment.protobuf import CONFIG, Config
from na_deploy.deployment.segmenter import segmenter_config
from na_deploy.deployment.source import ModelSource, open_source
from na_deploy.errors import NaDeployError, UsageError
from na_deploy.model_file.answers import answer_of
from na_deploy.progress import Progress, silent
from na_deploy.runtime.precision_difference import precision_note
from na_deploy.runtime.session import load


@dataclass(frozen=True)
class PackagedModel:
    """One model of a repository that was written.

    Attributes:
        name: its name.
        version: the version that was written.
        backend: Triton's backend, or "ensemble".
        max_batch: largest batch, 0 where batches are fixed.
        folder: its folder.
        notes: remarks for people.
    """

    name: str
    version: int
    backend: str
    max_batch: int
    folder: Path
    notes: tuple[str, ...] = field(default=())


def package(
    models: Sequence[str | Path],
    output: str | Path,
    options: PackageOptions | None = None,
    progress: Progress | None = None,
) -> list[PackagedModel]:
    """Write models into a repository.

    Args:
        models: ONNX files and bundles.
        output: the repository's folder, made if it does not exist. Models that are in it get a new version.
        options: settings of Triton, the same for all.
        progress: called with a few words as each step begins.

    Returns:
        The models written, ensembles and their preprocessing included.

    Raises:
        UsageError: files or options do not fit, or a version exists.
        NaDeployError: a model is damaged, or what was written does not pass the checks.
        MissingDependencyError: tritonclient is not installed.
    """
    options, progress = options or PackageOptions(), progress or silent
    paths, repository = [Path(model) for model in models], Path(output)
    protobuf.messages()
    if not paths:
        raise UsageError("give at least one .onnx file or bundle to package")
    if options.name is not None and len(paths) > 1:
        raise UsageError(f"--name names one model, {len(paths)} were given; package them one by one")
    _check_place(repository)
    with _staging(repository) as staging:
        written: list[PackagedModel] = []
        for path in paths:
            progress(f"packaging {path.name}")
            with open_source(path) as source:
                written += _stage(source, repository, staging, options)
        names = [model.name for model in written]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise UsageError(f"two models would be named {', '.join(doubled)}; package them one by one with --name")
        progress("checking and moving into place")
        findings = [finding for name in names for finding in check_model(staging / name, staging, also=repository)]
        if findings:
            raise NaDeployError("what was written does not pass the checks: " + "; ".join(map(str, findings)))
        _move(staging, repository, written)
    return written


def _stage(source: ModelSource, repository: Path, staging: Path, options: PackageOptions) -> list[PackagedModel]:
    """Write everything of one model under ``staging``."""
    name = options.name or source.path.name.removesuffix(".onnx").removesuffix(".zip").removesuffix(".bundle")
    check_name(name)
    engine = source.engine_backend
    own = "openvino" if source.runs_on_openvino else "tensorrt" if engine == "tensorrt" else "onnxruntime"
    backend, runtime = options.backend or own, None
    if backend == "openvino":
        backend, runtime = "python", "openvino"
    device = options.device or ("gpu" if options.gpus or backend == "tensorrt" else "cpu")
    precision, options = options.precision, replace(options, backend=backend, precision=None, device=device)
    version = _next_version(repository / name, options.version)
    folder = staging / name
    if folder.exists():
        raise UsageError(f"two models would be named {name}; package them one by one with --name")
    (folder / str(version)).mkdir(parents=True)
    notes = write_model(source, folder / str(version), options) + write_plugins(source, staging, options)
    library, note = write_library(source, folder, options)
    names = label_names(source, options)
    if names is not None:
        (folder / LABELS).write_text("".join(f"{label}\n" for label in names), encoding="utf-8")
    full_path = None if library is None else str(PurePosixPath(options.mount) / name / library)
    config = model_config(source, name, options, names is not None, full_path)
    for setting, value in (("backend", runtime), ("precision", precision)):
        if value is not None:
            config.parameters[SETTING + setting].string_value = value
    if runtime == "openvino":
        note += _precision_note(source, precision)
    older = repository / name / CONFIG
    if older.is_file():
        _continue_from(protobuf.read(older), config, options)
    (folder / CONFIG).write_text(protobuf.to_text(config), encoding="utf-8")
    result = [
        PackagedModel(name, version, str(options.backend), config.max_batch_size, repository / name, notes + note)
    ]
    if options.preprocess and answer_of(source.outputs, source.metadata).has_segments:
        made = segmenter_config(config, source, options.instances)
        result.append(_stage_helper(made, "segmenter.py", repository, staging))
    elif options.preprocess:
        prepare = preprocessing_config(config, source, options.instances)
        result.append(_stage_helper(prepare, "preprocessing.py", repository, staging))
        result.append(_stage_helper(ensemble_config(config), None, repository, staging))
    return result


def _precision_note(source: ModelSource, precision: str | None) -> tuple[str, ...]:
    """Return what bfloat16 does to a model's outputs; nothing where it computes in float32."""
    with load(source.path, "openvino", precision=precision) as session:
        note = precision_note(session)
        return () if note is None else (note,)


def _stage_helper(config: Config, code: str | None, repository: Path, staging: Path) -> PackagedModel:
    """Write the preprocessing model or the ensemble, each of which has one version that is replaced."""
    folder = staging / config.name
    (folder / "1").mkdir(parents=True)
    if code is not None:
        (folder / "1" / MODEL_FILES["python"]).write_text(python_backend(code), encoding="utf-8")
    else:
        # Triton needs a version's folder of an ensemble too; a file in it survives copying to object storage.
        (folder / "1" / "README").write_text("An ensemble has no files of its own.\n", encoding="utf-8")
    if config.output[0].label_filename:
        shutil.copy(staging / config.name.removesuffix(ensemble_name("")) / LABELS, folder / LABELS)
    (folder / CONFIG).write_text(protobuf.to_text(config), encoding="utf-8")
    backend = config.backend or config.platform
    return PackagedModel(config.name, 1, backend, config.max_batch_size, repository / config.name)


def _next_version(folder: Path, wanted: int | None) -> int:
    present = [int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal()] if folder.is_dir() else []
    if wanted is not None and wanted in present:
        raise UsageError(f"{folder} has a version {wanted} already; choose another --version, or remove it")
    return wanted or max(present, default=0) + 1


def _continue_from(old: Config, new: Config, options: PackageOptions) -> None:
    """Refuse a version that clients of the older ones could not call; keep which versions are served.

    Raises:
        UsageError: inputs, outputs or backend differ.
    """
    for what, before, after in (
        ("backend", old.backend, new.backend),
        ("inputs", _interface(old.input), _interface(new.input)),
        ("outputs", _interface(old.output), _interface(new.output)),
        ("batching", old.max_batch_size > 0, new.max_batch_size > 0),
    ):
        if before != after:
            raise UsageError(
                f"{new.name} is in the repository with other {what} ({before}, now {after}); "
                "all versions share one configuration, so give the new model another --name"
            )
    if options.versions is None and old.HasField("version_policy"):
        new.version_policy.CopyFrom(old.version_policy)


def _interface(entries: Any) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(entry.name, protobuf.type_name(entry.data_type), tuple(entry.dims)) for entry in entries]


def _check_place(repository: Path) -> None:
    if repository.exists() and not repository.is_dir():
        raise UsageError(f"cannot write {repository}: it is a file; give a folder")
    parent = repository.absolute().parent
    if not parent.is_dir():
        raise UsageError(f"cannot write {repository}: the folder {parent} does not exist; create it or choose another")
    for folder in (repository, parent):
        if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
            raise UsageError(f"cannot write {repository}: {folder} cannot be written; choose another folder")


@contextlib.contextmanager
def _staging(repository: Path) -> Iterator[Path]:
    """Yield a folder on the repository's file system, outside it: Triton takes every folder inside for a model."""
    parent = repository.absolute().parent
    if repository.is_dir() and repository.stat().st_dev != parent.stat().st_dev:
        raise UsageError(
            f"{repository} is a file system of its own, where models cannot appear by renaming from beside it; "
            "give a folder inside it"
        )
    folder = Path(tempfile.mkdtemp(prefix=f".{repository.name}.", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move(staging: Path, repository: Path, written: Sequence[PackagedModel]) -> None:
    """Rename what was staged into the repository; what had been moved is taken out again if something fails."""
    created: list[Path] = []
    try:
        if not repository.exists():
            repository.mkdir()
            created.append(repository)
        for file in [entry for entry in staging.iterdir() if entry.is_file()]:
            file.replace(repository / file.name)
        for model in written:
            source, target = staging / model.name, repository / model.name
            if not target.exists():
                source.rename(target)
                created.append(target)
                continue
            version = target / str(model.version)
            # Files first that the new configuration names, the configuration last.
            beside = sorted((entry for entry in source.iterdir() if entry.is_file()), key=lambda e: e.name == CONFIG)
            if version.exists():  # a helper model's only version
                for entry in (source / str(model.version)).iterdir():
                    entry.replace(version / entry.name)
            else:
                (source / str(model.version)).rename(version)
                created.append(version)
            for entry in beside:
                entry.replace(target / entry.name)
    except BaseException:
        for path in reversed(created):
            shutil.rmtree(path, ignore_errors=True)
        raise
