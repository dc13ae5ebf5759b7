"""Reading NumPy's files for a model's inputs. Nothing pickled in them is loaded."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from na_deploy.errors import NaDeployError, UsageError, one_line
from na_deploy.model_file.tensors import Array
from na_deploy.runtime.session import Session

ARRAYS = (".npy", ".npz")
"""Endings of files that hold arrays."""


def gives_arrays(session: Session, paths: Sequence[Path]) -> bool:
    """Tell whether inputs are arrays by name: ``name=array.npy``, an ``.npz`` archive, or those of several inputs."""
    return len(session.inputs) > 1 or any(path.suffix == ".npz" or _named(session, path)[0] for path in paths)


def read_named_arrays(session: Session, paths: Sequence[Path]) -> dict[str, Array]:
    """Read arrays for a model's inputs: an ``.npz`` archive, ``name=array.npy`` for each, or files in their order.

    Raises:
        UsageError: inputs are missing, given twice or unknown, or a file cannot be read.
        NaDeployError: a file is damaged.
    """
    names = [spec.name for spec in session.inputs]
    if len(paths) == 1 and paths[0].suffix == ".npz" and not _named(session, paths[0])[0]:
        return read_arrays(paths[0])
    expected = ", ".join(str(spec) for spec in session.inputs)
    given = [_named(session, path) for path in paths]
    wrong = next((path for _, path in given if path.suffix != ".npy"), None)
    if wrong is not None:
        raise UsageError(f"{session.path.name} takes arrays ({expected}); {wrong} is no .npy file")
    if not any(name for name, _ in given) and len(given) == len(names):
        given = [(name, path) for name, (_, path) in zip(names, given, strict=True)]
    found = [name for name, _ in given]
    if sorted(found) != sorted(names):
        example = " ".join(f"{name}={name}.npy" for name in names)
        raise UsageError(f"{session.path.name} takes {expected}; give {example}, or one .npz archive with these names")
    return {name: read_array(path) for name, path in given}


def _named(session: Session, path: Path) -> tuple[str, Path]:
    """Split ``name=array.npy`` at the name of an input; a file of the whole name wins."""
    name, sign, file = str(path).partition("=")
    if sign and not path.exists() and name in {spec.name for spec in session.inputs}:
        return name, Path(file)
    return "", path


def read_arrays(path: Path) -> dict[str, Array]:
    """Read the arrays of an ``.npz`` archive by name; pickled objects in it are refused.

    Raises:
        UsageError: the file cannot be read.
        NaDeployError: it is not an archive of arrays of numbers, or is damaged.
    """
    found = read_either(path)
    if isinstance(found, dict):
        return found
    raise NaDeployError(f"{path} is one array, not an archive; end its name in .npy")


def read_either(path: Path) -> Array | dict[str, Array]:
    """Read a ``.npy`` file's array, or the arrays of an ``.npz`` archive by name; pickled objects are refused.

    Raises:
        UsageError: the file cannot be read.
        NaDeployError: it holds other things than arrays of numbers, or is damaged.
    """
    loaded = _loaded(path)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        try:
            return {name: loaded[name] for name in loaded.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise NaDeployError(f"{path} is damaged, or holds other things than numbers ({one_line(error)})") from None


def read_array(path: Path) -> Array:
    """Read a ``.npy`` file; pickled objects in it are refused.

    Raises:
        UsageError: the file cannot be read.
        NaDeployError: it is not a ``.npy`` array of numbers, or is damaged.
    """
    array = _loaded(path)
    if not isinstance(array, np.ndarray):
        array.close()
        raise NaDeployError(f"{path} is an archive of several arrays; give one .npy array")
    return array


def _loaded(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; give a .npy file or an .npz archive") from None
    except (IsADirectoryError, PermissionError) as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else "unexpected end"
        what = "a .npy array or .npz archive of numbers"
        raise NaDeployError(f"{path} is not {what}, or is damaged ({reason})") from None
