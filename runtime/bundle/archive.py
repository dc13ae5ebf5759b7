"""Reading and writing bundles: a folder, or the same in one .zip file. Knows no runtime.

No file of a bundle is used before every member has the size and SHA-256 that the manifest states. Files that the
manifest does not name are never touched.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
import weakref
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

from na_deploy.closeable import Closeable
from na_deploy.errors import NaDeployError, UsageError
from na_deploy.runtime.bundle.manifest import MAX_BYTES, NAME, Manifest, Member, parse_manifest
from na_deploy.runtime.bundle.temporary import TemporaryFolder

_CHUNK = 1 << 20
_ATTEMPTS = 20


def is_bundle(path: Path) -> bool:
    """Tell whether ``path`` is meant as a bundle: a folder with a manifest, or a zip archive."""
    if path.is_dir():
        return (path / NAME).is_file()
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


class Bundle(Closeable):
    """An opened, verified bundle. Close it, or use it as a context manager; its files may then be gone.

    Attributes:
        path: the folder or archive it was opened from.
        manifest: its manifest.
        folder: folder of its members: the bundle's own folder, or a private temporary one.
    """

    def __init__(self, path: Path, manifest: Manifest, folder: Path, private: TemporaryFolder | None) -> None:
        self.path = path
        self.manifest = manifest
        self.folder = folder
        self._private = None if private is None else private.path
        # Also when the bundle is forgotten or Python ends.
        self._remove = None if private is None else weakref.finalize(self, private.remove)

    def file(self, role: str) -> Path:
        """Return the path of the first member of a role.

        Raises:
            NaDeployError: there is none.
        """
        member = self.manifest.member(role)
        if member is None:
            raise NaDeployError(f"{self.path} holds no {role}; build the bundle again")
        return self.place(member)

    def place(self, member: Member) -> Path:
        """Return the path of a member: in the private copy where there is one of it, else in the bundle's folder."""
        if self._private is not None and (self._private / member.name).is_file():
            return self._private / member.name
        return self.folder / member.name

    def close(self) -> None:
        """Remove temporary files. Closing twice does nothing."""
        if self._remove is not None:
            self._remove()


def read_manifest(path: Path) -> Manifest:
    """Read a bundle's manifest alone, without verifying the members.

    Raises:
        UsageError: ``path`` is not a bundle.
        NaDeployError: the manifest is missing or damaged.
    """
    with _source(path) as source:
        return source.manifest()


def open_bundle(path: Path) -> Bundle:
    """Open a bundle and verify every member against the manifest.

    Members of an archive are unpacked into a private temporary folder. A folder is used in place, but for its
    libraries and for engines behind links: of these a private copy is used, since what they lead to may change. Models
    and weights are checked again as they are read into memory.

    Raises:
        UsageError: ``path`` is not a bundle.
        NaDeployError: something is missing, damaged or not what the manifest says; the message names it.
    """
    with _source(path) as source:
        manifest = source.manifest()
        if isinstance(source, _Folder):
            copied = [member for member in manifest.members if source.is_copied(member)]
        else:
            copied = list(manifest.members)
        private = TemporaryFolder() if copied else None
        try:
            for member in manifest.members:
                with source.open(member) as file, contextlib.ExitStack() as stack:
                    copy = None
                    if private is not None and member in copied:
                        target = private.path / member.name
                        target.parent.mkdir(parents=True, exist_ok=True)
                        copy = stack.enter_context(target.open("xb"))
                    _copy_verified(path, member, file, copy)
        except BaseException:
            if private is not None:
                private.remove()
            raise
        return Bundle(path, manifest, path if isinstance(source, _Folder) or private is None else private.path, private)


def write_bundle(
    target: Path, files: Mapping[str, tuple[str, Path]], describe: Callable[[tuple[Member, ...]], Manifest]
) -> None:
    """Write a bundle: a .zip archive if ``target`` ends so, else a folder. It appears whole or not at all.

    Args:
        target: the bundle to write. An existing bundle there is replaced, anything else is not.
        files: member name to its role and the file to copy.
        describe: makes the manifest, given the members.

    Raises:
        UsageError: ``target`` exists and is no bundle, or its folder does not exist or cannot be written.
    """
    check_target(target)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        content = staging / "content"
        content.mkdir()
        members = []
        for name, (role, source) in files.items():
            place = content / name
            place.parent.mkdir(parents=True, exist_ok=True)
            members.append(_copy_hashed(source, place, name, role))
        (content / NAME).write_text(describe(tuple(members)).to_json(), encoding="utf-8")
        if target.suffix == ".zip":
            packed = staging / target.name
            _pack(content, [NAME, *files], packed)
            packed.replace(target)
        else:
            _replace_folder(content, target, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_target(target: Path) -> None:
    """Refuse a place where a bundle cannot be written. See :func:`write_bundle`."""
    parent = target.parent
    if not parent.is_dir():
        raise UsageError(f"cannot write {target}: the folder {parent} does not exist; create it or choose another")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write {target}: {parent} cannot be written; choose another folder")
    if target.exists() and not is_bundle(target):
        raise UsageError(f"cannot write {target}: something else is there; remove it or choose another name")
    if target.is_dir() and target.suffix == ".zip":
        raise UsageError(f"cannot write {target}: it is a folder; remove it or choose another name")


class _Folder:
    def __init__(self, path: Path) -> None:
        self._path = path

    def manifest(self) -> Manifest:
        file = self._path / NAME
        if file.stat().st_size > MAX_BYTES:
            raise NaDeployError(f"{self._path}: {NAME} is larger than {MAX_BYTES >> 20} MiB; build the bundle again")
        return parse_manifest(file.read_bytes(), str(self._path))

    def is_copied(self, member: Member) -> bool:
        """Tell whether a member must not be used in place: libraries, and engines that are or pass through a link.

        Links are how Hugging Face's cache and Kubernetes' ConfigMaps hold files. What they lead to has the stated hash,
        but may be exchanged at any time.
        """
        steps = [self._path.joinpath(*Path(member.name).parts[:count]) for count in range(1, 16)]
        linked = any(step.is_symlink() for step in steps)
        return member.role == "library" or (member.role == "engine" and linked)

    @contextlib.contextmanager
    def open(self, member: Member) -> Iterator[IO[bytes]]:
        place = self._path / member.name
        try:
            if not stat.S_ISREG(place.stat().st_mode):  # before it is opened: opening a pipe waits
                raise NaDeployError(f"{self._path}: {member.name} is not a plain file")
            with place.open("rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise NaDeployError(f"{self._path}: {member.name} is not a plain file")
                yield file
        except FileNotFoundError:
            raise _missing(self._path, member) from None
        except OSError as error:
            raise NaDeployError(f"{self._path}: {member.name} cannot be read: {error.strerror or error}") from None


class _Archive:
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path = path
        self._archive = archive
        self._entries: dict[str, zipfile.ZipInfo] = {}
        for entry in archive.infolist():
            if entry.filename in self._entries:
                raise NaDeployError(f"{path} holds {entry.filename} twice; build the bundle again")
            self._entries[entry.filename] = entry
        self._entries = _without_top_folder(self._entries)

    def manifest(self) -> Manifest:
        entry = self._entries.get(NAME)
        if entry is None:
            raise UsageError(f"{self._path} is a zip archive without {NAME}, not a bundle; see `na-deploy build`")
        if entry.file_size > MAX_BYTES:
            raise NaDeployError(f"{self._path}: {NAME} is larger than {MAX_BYTES >> 20} MiB; build the bundle again")
        with self._opened(NAME, entry) as file:
            return parse_manifest(file.read(MAX_BYTES + 1), str(self._path))

    @contextlib.contextmanager
    def open(self, member: Member) -> Iterator[IO[bytes]]:
        entry = self._entries.get(member.name)
        if entry is None:
            raise _missing(self._path, member)
        with self._opened(member.name, entry) as file:
            yield file

    @contextlib.contextmanager
    def _opened(self, name: str, entry: zipfile.ZipInfo) -> Iterator[IO[bytes]]:
        if entry.flag_bits & 1:
            raise NaDeployError(f"{self._path}: {name} is encrypted, which bundles never are")
        try:
            with self._archive.open(entry) as file:
                yield file
        except NaDeployError:
            raise
        except OSError as error:  # of the file system, on either side
            raise NaDeployError(
                f"{self._path}: {name} cannot be unpacked into {tempfile.gettempdir()}: {error.strerror or error}; "
                "free space there, or name another folder in TMPDIR"
            ) from None
        except Exception as error:  # zipfile and zlib fail in many ways on damaged archives
            raise NaDeployError(f"{self._path}: {name} cannot be unpacked ({error}); the archive is damaged") from None


@contextlib.contextmanager
def _source(path: Path) -> Iterator[_Folder | _Archive]:
    if path.is_dir():
        if not (path / NAME).is_file():
            raise UsageError(f"{path} is a folder without {NAME}, not a bundle; give an .onnx file or a bundle")
        yield _Folder(path)
        return
    if not path.is_file():
        raise UsageError(f"{path} does not exist; give the path of an .onnx file or a bundle")
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:
        raise NaDeployError(f"{path} is not a bundle, or is damaged ({error}); build it again") from None
    with archive:
        yield _Archive(path, archive)


def _without_top_folder(entries: dict[str, zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """Return an archive's entries as if it had been made inside the one folder that it consists of."""
    names = [name for name in entries if not name.startswith("__MACOSX/")]
    tops = {name.partition("/")[0] for name in names}
    if NAME in entries or len(tops) != 1:
        return entries
    start = f"{tops.pop()}/"
    inside = {name.removeprefix(start): entries[name] for name in names if name.startswith(start) and name != start}
    return inside if NAME in inside else entries


def _missing(path: Path, member: Member) -> NaDeployError:
    return NaDeployError(f"{path}: {member.name}, which {NAME} names, is missing; copy or build the bundle again")


def _copy_verified(path: Path, member: Member, file: IO[bytes], copy: IO[bytes] | None) -> None:
    digest, size = hashlib.sha256(), 0
    while chunk := file.read(min(_CHUNK, member.bytes - size + 1)):
        size += len(chunk)
        if size > member.bytes:
            break
        digest.update(chunk)
        if copy is not None:
            copy.write(chunk)
    if size != member.bytes:
        given = f"more than {member.bytes}" if size > member.bytes else str(size)
        raise NaDeployError(
            f"{path}: {member.name} has {given} bytes, {NAME} says {member.bytes}; copy or build the bundle again"
        )
    if digest.hexdigest() != member.sha256:
        raise NaDeployError(
            f"{path}: {member.name} is not the file that {NAME} describes (its SHA-256 is {digest.hexdigest()[:12]}…, "
            f"not {member.sha256[:12]}…); copy or build the bundle again"
        )


def _copy_hashed(source: Path, target: Path, name: str, role: str) -> Member:
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as file, target.open("xb") as copy:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            copy.write(chunk)
            size += len(chunk)
    return Member(name, role, size, digest.hexdigest())


def _pack(content: Path, names: list[str], target: Path) -> None:
    # Stored, not deflated: weights do not compress, and the same files give the same archive.
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name in names:
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            with (content / name).open("rb") as file, archive.open(entry, "w", force_zip64=True) as member:
                shutil.copyfileobj(file, member, _CHUNK)


def _replace_folder(content: Path, target: Path, staging: Path) -> None:
    """Put ``content`` in the place of ``target``; an old folder is away for the time of two renames."""
    content.chmod(0o755)
    for attempt in range(_ATTEMPTS):
        old = staging / f"old{attempt}"
        with contextlib.suppress(FileNotFoundError):
            target.rename(old)
        try:
            content.rename(target)
        except OSError:
            if not target.exists():  # leave the result of another build that was faster
                if old.exists():
                    old.rename(target)
                raise
        else:
            return
    raise NaDeployError(f"{target} is being written by other builds; wait for them or choose another name")
