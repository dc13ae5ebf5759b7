"""A model's files as bytes in memory, so that a loaded model stays what it was when it was verified.

ONNX Runtime maps weights that lie beside a model: a file overwritten in place would change the answers of a running
session, and one cut short would end the process.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import onnx

from na_deploy.errors import NaDeployError
from na_deploy.model_file.graph import embed_weights, read_model, weight_files
from na_deploy.runtime.bundle.manifest import NAME, Manifest

_LOCATION = b"\x0a\x08location"
"""Key of a tensor's external file as protobuf writes it."""


@dataclass
class ModelBytes:
    """Content of a model's files.

    Attributes:
        model: the ONNX file's, where it was verified; ``None`` leaves reading it to the runtime, which copies it.
        weights: that of the files beside it, by the names it calls them.
    """

    model: bytes | None = None
    weights: dict[str, bytes] = field(default_factory=dict)


@contextmanager
def in_memory(path: Path, manifest: Manifest | None) -> Iterator[ModelBytes]:
    """Read a model's weights, and the model itself if it is a bundle's; released at the end of the block.

    Args:
        path: the ONNX file.
        manifest: of its bundle; what is read must have the SHA-256 that stands there.

    Raises:
        NaDeployError: a file is not what the manifest says, so it changed after it was verified.
    """
    content = ModelBytes()
    if manifest is not None:
        content.model = checked_bytes(path, path.name, manifest)
    if _has_weights_beside(path):
        for name in weight_files(read_model(path)):
            place = PurePosixPath(name)
            # Anything else, and what is missing, ONNX Runtime refuses in its own words.
            if not place.is_absolute() and ".." not in place.parts and (path.parent / place).is_file():
                content.weights[name] = checked_bytes(path.parent / place, name, manifest)
    try:
        yield content
    finally:
        content.model = None
        content.weights.clear()


def verified_model(path: Path, manifest: Manifest) -> onnx.ModelProto:
    """Read a bundle's model with all its weights, which must have the hashes of the manifest.

    Raises:
        NaDeployError: a file is not what the manifest says.
    """
    with in_memory(path, manifest) as content:
        assert content.model is not None
        model = onnx.load_model_from_string(content.model)
        embed_weights(model, content.weights)
    return model


def _has_weights_beside(path: Path) -> bool:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(_LOCATION) >= 0
    except (OSError, ValueError):  # empty or unreadable, which loading says
        return False


def checked_bytes(file: Path, name: str, manifest: Manifest | None) -> bytes:
    """Read a file that lies beside a model.

    Args:
        file: the file.
        name: its name as the model, or the bundle, calls it.
        manifest: of the bundle, whose hash the content must have.

    Raises:
        NaDeployError: it cannot be read, or is not what the manifest says.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise NaDeployError(f"cannot read {file}: {error.strerror or error}") from None
    if manifest is not None:
        model = manifest.member("model")
        folder = PurePosixPath("" if model is None else model.name).parent
        stated = next((member.sha256 for member in manifest.members if member.name == str(folder / name)), None)
        if hashlib.sha256(data).hexdigest() != stated:
            raise NaDeployError(
                f"{file} is not the file that {NAME} describes, or changed while it was loaded; copy the bundle again"
            )
    return data
