"""Checks a Triton model repository without Triton: configurations, files, versions, ensembles, the models themselves.

A configuration that parses can still be one that Triton refuses at start, or takes and then serves wrongly. One
finding is one sentence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from na_deploy.deployment import protobuf
from na_deploy.deployment.check_config import check_config, is_ensemble
from na_deploy.deployment.check_ensemble import check_ensemble
from na_deploy.deployment.check_interface import check_interface, read_interface
from na_deploy.deployment.config import MODEL_FILES
from na_deploy.deployment.protobuf import CONFIG, Config
from na_deploy.errors import NaDeployError, UsageError


@dataclass(frozen=True)
class Finding:
    """Something wrong with a model.

    Attributes:
        model: the model's folder.
        text: the finding, in one sentence.
    """

    model: str
    text: str

    def __str__(self) -> str:
        return f"{self.model}: {self.text}"


def check_repository(path: str | Path) -> list[Finding]:
    """Check every model of a repository.

    Raises:
        UsageError: ``path`` is not a folder with models in it.
        MissingDependencyError: tritonclient is not installed.
    """
    repository = Path(path)
    protobuf.messages()
    if not repository.is_dir():
        raise UsageError(f"{repository} is not a folder; give a Triton model repository")
    folders = model_folders(repository)
    if not folders:
        raise UsageError(f"{repository} holds no model; expected a folder for each, with config.pbtxt in it")
    if (repository / CONFIG).is_file():
        raise UsageError(f"{repository} is a model, not a repository; give the folder it lies in")
    return [finding for folder in folders for finding in check_model(folder, repository)]


def model_folders(repository: Path) -> list[Path]:
    """Return the folders that Triton takes for models."""
    return sorted(entry for entry in repository.iterdir() if entry.is_dir())


def check_model(folder: Path, repository: Path, also: Path | None = None) -> list[Finding]:
    """Check one model.

    Args:
        folder: the model's.
        repository: the folder with an ensemble's models.
        also: a second place for them, and for versions and files that are already there.
    """
    return [Finding(folder.name, text) for text in _problems(folder, repository, also)]


def _problems(folder: Path, repository: Path, also: Path | None) -> Iterator[str]:
    if not (folder / CONFIG).is_file():
        yield f"there is no {CONFIG}; write the repository with `na-deploy package`"
        return
    try:
        config = protobuf.read(folder / CONFIG)
    except NaDeployError as error:
        yield f"{CONFIG}: {error}" if CONFIG not in str(error) else str(error)
        return
    yield from check_config(config, folder.name)
    older = None if also is None else also / folder.name
    versions = _versions(folder) | ({} if older is None or not older.is_dir() else _versions(older))
    yield from _check_versions(config, versions)
    yield from _check_labels(config, folder)
    for library in config.model_operations.op_library_filename:
        if config.backend != "onnxruntime":
            yield f"the operator library {library} is for the onnxruntime backend, this is {config.backend}"
        if not Path(library).is_absolute():
            yield f"the operator library {library!r} must be a full path: Triton opens it as it stands"
        elif not (folder / Path(library).name).is_file() and not Path(library).is_file():
            yield f"the operator library {library} is neither there nor in the model's folder"
    if is_ensemble(config):
        yield from check_ensemble(config, _configs(repository, also))
        return
    for number, place in sorted(versions.items()):
        for text in _check_version(config, place):
            yield f"version {number}: {text}"


def _versions(folder: Path) -> dict[int, Path]:
    # Triton ignores folders that are not numbers, and numbers that begin with 0.
    names = [entry for entry in folder.iterdir() if entry.is_dir() and entry.name.isascii() and entry.name.isdecimal()]
    return {int(entry.name): entry for entry in names if not entry.name.startswith("0")}


def _check_versions(config: Config, versions: dict[int, Path]) -> Iterator[str]:
    if not versions:
        yield "there is no version; expected a folder named 1, or another number, with the model in it"
    for version in config.version_policy.specific.versions:
        if version > 0 and version not in versions:
            yield f"version_policy serves version {version}, which is not there"


def _check_labels(config: Config, folder: Path) -> Iterator[str]:
    for output in config.output:
        if not output.label_filename:
            continue
        path = folder / output.label_filename
        if not path.is_file():
            yield f"output {output.name!r} has labels in {output.label_filename}, which is not there"
            continue
        try:
            count = len(path.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError):
            yield f"the labels {output.label_filename} cannot be read as UTF-8 text"
            continue
        if len(output.dims) and output.dims[-1] > 0 and count != output.dims[-1]:
            yield f"{output.label_filename} names {count} classes, output {output.name!r} has {output.dims[-1]}"


def _check_version(config: Config, folder: Path) -> Iterator[str]:
    backend = config.backend or {"tensorrt_plan": "tensorrt", "onnxruntime_onnx": "onnxruntime"}.get(
        config.platform, ""
    )
    name = config.default_model_filename or MODEL_FILES.get(backend)
    if name is None:
        return
    file = folder / name
    if not file.exists():
        yield f"{name}, which the {backend} backend opens, is not there"
        return
    if file.is_file() and file.stat().st_size == 0:
        yield f"{name} is empty"
        return
    try:
        interface = read_interface(folder, name)
    except NaDeployError as error:
        yield str(error)
        return
    if interface is not None:
        yield from check_interface(config, interface)


def _configs(repository: Path, also: Path | None) -> dict[str, Config]:
    found: dict[str, Config] = {}
    for place in (also, repository):
        for folder in model_folders(place) if place is not None and place.is_dir() else []:
            if (folder / CONFIG).is_file():
                try:
                    found[folder.name] = protobuf.read(folder / CONFIG)
                except NaDeployError:  # reported where that model is checked
                    continue
    return found
