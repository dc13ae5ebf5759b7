"""Reading weights from disk without ever running what a file contains: torch.save files and safetensors.

Knows file formats and nothing of networks. Pickled code is refused by PyTorch's weights-only reader.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from na_deploy.errors import CheckpointError, MissingDependencyError

_KNOWN_STARTS = {
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"\x1f\x8b": "a gzip archive",
    b"\x89HDF": "an HDF5 file",
    b"<": "a web page or XML",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
}

_REBUILD_SCALAR = np.float64(0).__reduce__()[0]
_REBUILD_ARRAY = np.zeros(1).__reduce__()[0]
_NUMPY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")  # before NumPy 2, and since
_DATA_TYPES: list[Any] = [
    argparse.Namespace,
    pathlib.PosixPath,
    np.dtype,
    np.ndarray,
    *((_REBUILD_SCALAR, f"{module}.scalar") for module in _NUMPY_MODULES),
    *((_REBUILD_ARRAY, f"{module}._reconstruct") for module in _NUMPY_MODULES),
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool", "uint8")),
]
"""Plain data that training scripts store beside the weights; rebuilding it runs no code from the file."""


def read_file(path: Path) -> Any:
    """Return what a checkpoint file holds, tensors on the CPU.

    Raises:
        CheckpointError: not there, empty, truncated, no checkpoint, or holding code; the message says which.
    """
    if not path.exists():
        raise CheckpointError(f"cannot read {path}: there is no such file; check the path")
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
    return _read_torch(path)


def _read_torch(path: Path) -> Any:
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
        with torch.serialization.safe_globals(_DATA_TYPES), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what matters is said below
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError,
            TypeError, UnicodeDecodeError, AssertionError, OSError) as error:  # fmt: skip
        raise _unreadable(path, str(error)) from None


def _unreadable(path: Path, reason: str) -> CheckpointError:
    found = re.search(r"(?:GLOBAL|class|function) ([\w<>]+\.[\w.<>]+)", reason)
    with path.open("rb") as stream:
        start = stream.read(2)
    pickled = start == b"PK" or start[:1] == b"\x80"
    if found or (pickled and re.search("[Uu]nsupported|not allowed", reason)):
        what = f" ({found.group(1)})" if found else ""
        return CheckpointError(
            f"{path} holds Python objects{what} besides weights, and loading those would run code from the "
            "file, which na-deploy never does; where you trust it, load it in its own project and save the "
            "weights alone with torch.save(model.state_dict(), 'weights.pth')"
        )
    if pickled:
        return CheckpointError(f"{path} is damaged or truncated ({_first_sentence(reason)}); copy or download it again")
    return CheckpointError(f"{path} is not a checkpoint; expected a file written by torch.save or a .safetensors file")


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
