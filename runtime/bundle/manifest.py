"""A bundle's manifest: members and their hashes, the model's inputs and outputs, needs at run time.

Reading is strict: a manifest that is not exactly of the known form is refused, since everything else in a bundle is
trusted only through it. Not for touching the members themselves; that is :mod:`na_deploy.runtime.bundle.archive`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

from na_deploy import __version__
from na_deploy.errors import NaDeployError
from na_deploy.model_file.tensors import Dimension, TensorSpec

FORMAT = 1
NAME = "manifest.json"
MAX_BYTES = 4 << 20
"""Size from which on a manifest is not read; that of any model has a few kilobytes."""

ROLES = ("model", "weights", "engine", "compiled", "library", "report")
"""The exported ONNX file, its external data, an engine, OpenVINO's compiled model, a library, texts for people."""

_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Member:
    """One file of a bundle.

    Attributes:
        name: relative path with forward slashes.
        role: one of :data:`ROLES`.
        bytes: its size.
        sha256: in hexadecimal.
    """

    name: str
    role: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Profile:
    """Sizes of one input that an engine is built for: smallest, most usual, largest."""

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Tell whether ``shape`` lies between smallest and largest on every axis."""
        return len(shape) == len(self.minimum) and all(
            low <= size <= high for low, size, high in zip(self.minimum, shape, self.maximum, strict=True)
        )


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``.

    Attributes:
        backend: the backend that runs the bundle.
        members: every file beside the manifest.
        inputs: the model's inputs.
        outputs: the model's outputs.
        requires: needs at run time, by name: versions, ``platform``, ``compute_capability``.
        profiles: for an engine with free sizes, each input's sizes.
        metadata: the exporter's properties of the model (preprocessing, labels, source).
        settings: the session's, where the user gives none: ``precision``; ``attention``, the part that computes it in a
            compiled model; ``measured_on``, the machine on which the backend was found to be the fastest.
        build: figures of the build, for people.
        tool_version: version of na-deploy that wrote it.
        format: version of this form.
    """

    backend: str
    members: tuple[Member, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    requires: Mapping[str, str] = field(default_factory=dict)
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    build: Mapping[str, Any] = field(default_factory=dict)
    tool_version: str = __version__
    format: int = FORMAT

    def member(self, role: str) -> Member | None:
        """Return the first member of a role."""
        return next((member for member in self.members if member.role == role), None)

    def to_json(self) -> str:
        """Return the manifest as text, ending in a line break."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


def parse_manifest(text: bytes, source: str) -> Manifest:
    """Read a manifest.

    Args:
        text: the content of ``manifest.json``.
        source: the bundle's name in errors.

    Raises:
        NaDeployError: it is not a manifest, is of another format, or names something impossible.
    """
    try:
        content = json.loads(text.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise NaDeployError(f"{source}: {NAME} is damaged ({error}); build the bundle again") from None
    if not isinstance(content, dict):
        raise NaDeployError(f"{source}: {NAME} is not an object; build the bundle again")
    if content.get("format") != FORMAT:
        raise NaDeployError(
            f"{source} is a bundle of format {content.get('format')!r}, this na-deploy {__version__} reads {FORMAT}; "
            "build it again, or install the version that wrote it"
        )
    try:
        manifest = Manifest(
            backend=_text(content["backend"]),
            members=tuple(_member(entry) for entry in _list(content["members"])),
            inputs=tuple(_tensor(entry) for entry in _list(content["inputs"])),
            outputs=tuple(_tensor(entry) for entry in _list(content["outputs"])),
            requires=_texts(content["requires"]),
            profiles={_text(name): _profile(entry) for name, entry in _dict(content["profiles"]).items()},
            metadata=_texts(content["metadata"]),
            settings=_texts(content.get("settings", {})),
            build=_dict(content["build"]),
            tool_version=_text(content["tool_version"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise NaDeployError(f"{source}: {NAME} is damaged ({what}); build the bundle again") from None
    names = [member.name for member in manifest.members]
    if len({name.casefold() for name in names}) != len(names):
        raise NaDeployError(f"{source}: {NAME} names a member twice; build the bundle again")
    return manifest


def _member(entry: Any) -> Member:
    entry = _dict(entry)
    member = Member(_text(entry["name"]), _text(entry["role"]), _size(entry["bytes"]), _text(entry["sha256"]))
    path = PurePosixPath(member.name)
    if (
        path.is_absolute()
        or str(path) != member.name
        or ".." in path.parts
        or any(character in member.name for character in "\\:\0")
        or member.name.casefold() == NAME
        or not path.parts
    ):
        raise ValueError(f"the member name {member.name!r} is not a plain path inside the bundle")
    if member.role not in ROLES:
        raise ValueError(f"member {member.name} has the unknown role {member.role!r}")
    if not _HASH.fullmatch(member.sha256):
        raise ValueError(f"member {member.name} has no SHA-256")
    return member


def _tensor(entry: Any) -> TensorSpec:
    entry = _dict(entry)
    shape: list[Dimension] = []
    for dimension in _list(entry["shape"]):
        if isinstance(dimension, bool) or not isinstance(dimension, int | str):
            raise TypeError(f"a dimension is {dimension!r}")
        shape.append(dimension)
    return TensorSpec(_text(entry["name"]), _text(entry["dtype"]), tuple(shape))


def _profile(entry: Any) -> Profile:
    entry = _dict(entry)
    sizes = [tuple(_size(size) for size in _list(entry[name])) for name in ("minimum", "optimum", "maximum")]
    if len({len(shape) for shape in sizes}) != 1:
        raise ValueError("a profile's shapes have different ranks")
    return Profile(*sizes)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a text, got {value!r}")
    return value


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError(f"expected a size, got {value!r}")
    return value


def _dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, got {value!r}")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, got {value!r}")
    return value


def _texts(value: Any) -> dict[str, str]:
    return {_text(name): _text(text) for name, text in _dict(value).items()}
