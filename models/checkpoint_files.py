"""Reading weights from disk without ever running what a file contains: torch.save files and safetensors.

Knows file formats and nothing of networks. PyTorch's weights-only reader comes first; a file it refuses is read by
:mod:`inert_pickle`, which builds tensors and plain data and leaves every other object unbuilt.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import warnings as warnings_module
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from na_deploy.errors import CheckpointError, MissingDependencyError, UsageError
from na_deploy.models.inert_pickle import InertPickle, Unread

_KNOWN_STARTS = {
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"\x1f\x8b": "a gzip archive",
    b"\x89HDF": "an HDF5 file",
    b"<": "a web page or XML",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
}


def read_file(path: Path, warnings: list[str] | None = None) -> Any:
    """Return the content of a checkpoint file, tensors on the CPU.

    Args:
        path: a file of ``torch.save``, a pickle of arrays, or safetensors.
        warnings: gets a sentence about objects in the file that were not built.

    Raises:
        UsageError: the file does not exist.
        CheckpointError: empty, truncated, or no checkpoint; the message says which.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist; give the path of a checkpoint")
    try:
        with path.open("rb") as stream:
            start = stream.read(64)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}; check the path and its rights") from None
    if not start:
        raise CheckpointError(f"{path} is empty; copy or download it again")
    if path.suffix == ".onnx":
        raise CheckpointError(f"{path} is already an ONNX model; give the PyTorch checkpoint it was made from")
    if path.suffix == ".safetensors" or start[8:10] == b'{"':
        return _read_safetensors(path)
    for known, kind in _KNOWN_STARTS.items():
        if start.startswith(known):
            raise CheckpointError(f"{path} is {kind}, not a checkpoint; give a .pth, .pt, .bin or .safetensors file")
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is truncated: its archive has no end; copy or download it again")
    return _read_torch(path, [] if warnings is None else warnings)


def _read_torch(path: Path, warnings: list[str]) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise CheckpointError(
                f"{path} is a TorchScript program, not a checkpoint; save the weights of the original model "
                "with torch.save(model.state_dict(), path)"
            )
        if not any(name.endswith("/data.pkl") for name in names):
            raise CheckpointError(f"{path} is an archive but not one of torch.save's; give the checkpoint itself")
    try:
        with stray_warnings():
            return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        reason = str(error)
    return _read_inertly(path, reason, warnings)


_DAMAGED = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError,
    UnicodeDecodeError, AssertionError, OSError, OverflowError, MemoryError, RecursionError,
)  # fmt: skip
"""Errors that damaged files raise in PyTorch's and Python's readers."""


def _read_inertly(path: Path, reason: str, warnings: list[str]) -> Any:
    """Read a file that PyTorch's weights-only reader refuses; unknown objects in it are not built.

    Raises:
        CheckpointError: the file is damaged, or no checkpoint.
    """
    with path.open("rb") as stream:
        start = stream.read(2)
    if start != b"PK" and start[:1] != b"\x80":
        raise CheckpointError(
            f"{path} is not a checkpoint; expected a file written by torch.save or a .safetensors file"
        )
    reader = InertPickle()
    try:
        content = _plain_pickle(path, reader) if start != b"PK" else None
        if start == b"PK" or content == _TORCH_MAGIC:  # torch.save's, as an archive or as it was before 1.6
            with stray_warnings():
                content = torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader)
    except _DAMAGED as error:
        said = reason if "Unsupported" not in reason and "GLOBAL" not in reason else str(error)
        raise CheckpointError(
            f"{path} is damaged or truncated ({_first_sentence(said)}); copy or download it again"
        ) from None
    if reader.unread:
        names = sorted(reader.unread)
        shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        if not isinstance(content, Mapping) or (isinstance(content, Unread) and not content):
            raise CheckpointError(
                f"{path} holds a Python object ({shown}) and no weights; loading that would run code from the file: "
                "save the weights in their own project with torch.save(model.state_dict(), 'weights.pth')"
            )
        warnings.append(f"{path.name} also holds Python objects ({shown}); they were not built, and ran no code")
    return content


_TORCH_MAGIC = 0x1950A86A20F9469CFC6C


def _plain_pickle(path: Path, reader: InertPickle) -> Any:
    with path.open("rb") as stream:
        return reader.load(stream, encoding="latin1")  # as Detectron2 reads Python 2's


@contextmanager
def stray_warnings() -> Iterator[None]:
    """Keep warnings about pickle protocols and deprecated storages off the terminal."""
    with warnings_module.catch_warnings():
        warnings_module.simplefilter("ignore")
        yield


def _first_sentence(text: str) -> str:
    return re.split(r"[\n.;]", text.strip(), maxsplit=1)[0][:120] or "unreadable"


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise MissingDependencyError(
            f"reading {path} needs safetensors; install it with: pip install safetensors"
        ) from None
    try:
        return dict(load_file(path))
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged, truncated or no safetensors file ({_first_sentence(str(error))}); copy or "
            "download it again"
        ) from None


WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a Hugging Face folder, in order: one, or the shards its index lists.

    Raises:
        CheckpointError: none there, or the index names files that are missing.
    """
    for name in WEIGHT_NAMES:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            listed = sorted(set(read_json(index).get("weight_map", {}).values()))
            missing = [shard for shard in listed if not (folder / Path(shard).name).is_file()]
            if not listed or missing:
                what = f"lists {missing[0]}, which is missing" if missing else "lists no files"
                raise CheckpointError(f"{index} {what}; download the folder again")
            return [folder / Path(shard).name for shard in listed]
    raise CheckpointError(
        f"{folder} holds no weights; expected {' or '.join(WEIGHT_NAMES)} beside config.json, or give a file instead"
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: unreadable, or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}); download it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object; download it again")
    return content


def sha256_of(files: list[Path]) -> str:
    """Return the SHA-256 of one file, or of the SHA-256 digests of several, one after the other."""
    digests = [_sha256(path) for path in files]
    return digests[0].hex() if len(digests) == 1 else hashlib.sha256(b"".join(digests)).hexdigest()


def _sha256(path: Path) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def finite(tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, str]]:
    """Yield the name and the trouble ("NaN" or "infinite") of every tensor that is not finite throughout."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            yield name, "NaN" if bool(torch.isnan(tensor).any()) else "infinite"
