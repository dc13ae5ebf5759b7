"""Models and versions in the files and folders that a server was given. Reads names only, loads nothing.

A file or bundle is one model, version 1. In a folder, every ``.onnx`` file and every bundle is a model of its name, and
every folder with numbered folders in it is a model with those versions: ``nat_mini/3/model.onnx``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from na_deploy.errors import NaDeployError, UsageError
from na_deploy.runtime.bundle.archive import is_bundle

LABELS = ("labels.txt", "labels.json")
"""Class names beside a model's versions."""

Fingerprint = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class Source:
    """One version of a model on disk.

    Attributes:
        name: the model's.
        version: its number.
        path: the ONNX file or bundle.
        labels: a file of class names beside it.
        fingerprint: changes when the files do.
    """

    name: str
    version: int
    path: Path
    labels: Path | None
    fingerprint: Fingerprint


Sources = dict[str, dict[int, Source]]


def find_sources(paths: Sequence[Path], labels: Path | None = None) -> Sources:
    """Return every version of every model, by name and number.

    Args:
        paths: files, bundles and folders.
        labels: class names that models without their own are given; changing them changes the fingerprints.

    Raises:
        UsageError: a path does not exist or holds no model, or two models have one name.
    """
    found: Sources = {}
    for path in paths:
        for name, versions in _models_in(path).items():
            if name in found:
                raise UsageError(f"two of the models given are named {name}; rename one of them")
            found[name] = versions
    if labels is not None:
        shared = _stated([labels])
        found = {
            name: {number: replace(each, fingerprint=each.fingerprint + shared) for number, each in versions.items()}
            for name, versions in found.items()
        }
    return found


def _models_in(path: Path) -> Sources:
    if not path.exists():
        raise UsageError(f"{path} does not exist; give an exported .onnx file, a bundle or a folder of them")
    if path.is_file() or is_bundle(path):
        return {path.stem: {1: _source(path.stem, 1, path, None)}}
    own = _versions(path.absolute().name, path)
    if own:
        return {path.absolute().name: own}
    found: Sources = {}
    for entry in sorted(path.iterdir()):
        if entry.name.startswith("."):
            continue
        if _is_model(entry):
            versions = {1: _source(entry.stem, 1, entry, None)}
        elif entry.is_dir():
            versions = _versions(entry.name, entry)
        else:
            continue
        if not versions:
            continue
        name = versions[min(versions)].name
        if name in found:
            raise UsageError(f"{path} holds two models named {name}; rename one of them")
        found[name] = versions
    if not found:
        raise UsageError(
            f"{path} holds no model; expected .onnx files, bundles, or a folder per model with numbered folders in it"
        )
    return found


def _versions(name: str, folder: Path) -> dict[int, Source]:
    versions = {}
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name.isascii() and entry.name.isdecimal() and int(entry.name) > 0:
            model = entry if is_bundle(entry) else _single_model(entry)
            if model is not None:
                versions[int(entry.name)] = _source(name, int(entry.name), model, folder)
    return versions


def _single_model(folder: Path) -> Path | None:
    """Return the model in a version's folder: ``model.onnx``, or the only one there is."""
    models = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".") and _is_model(entry)]
    preferred = [entry for entry in models if entry.stem == "model"]
    chosen = preferred or models
    return chosen[0] if len(chosen) == 1 else None


def _is_model(path: Path) -> bool:
    return (path.is_file() and path.suffix in (".onnx", ".zip")) or is_bundle(path)


def _source(name: str, version: int, path: Path, labelled: Path | None) -> Source:
    labels = None if labelled is None else next((labelled / n for n in LABELS if (labelled / n).is_file()), None)
    return Source(name, version, path, labels, fingerprint(path) + (() if labels is None else _stated([labels])))


def fingerprint(path: Path) -> Fingerprint:
    """Return names, sizes and times of a model's files: those in its folder that can belong to it.

    Raises:
        NaDeployError: the files vanished meanwhile.
    """
    files = sorted(path.rglob("*")) if path.is_dir() else [path, *sorted(path.parent.glob(f"{path.name}*"))]
    return _stated(list(dict.fromkeys(files)))


def _stated(files: Sequence[Path]) -> Fingerprint:
    try:
        stats = [(file, file.stat()) for file in files]
    except OSError as error:
        raise NaDeployError(f"{error.filename} changed while it was looked at, or is not there") from None
    return tuple((file.name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for file, stat in stats)
