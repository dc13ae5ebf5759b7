"""Writing files so that a failure never leaves half a file or destroys an old one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from na_deploy.errors import UsageError


@contextmanager
def staged_output(target: Path) -> Iterator[Path]:
    """Yield a path in a fresh folder beside ``target``; on success move what was written into place.

    The folder lies on the target's own file system, so the final move is a rename. Files written beside the yielded
    path (ONNX external data, for instance) are moved too, before the main file, which is what readers open. If the
    body raises, everything written is removed and an old ``target`` is left untouched.

    Args:
        target: The file to produce.

    Raises:
        UsageError: ``target`` is a folder, or its folder does not exist or cannot be written.
    """
    folder = target.parent
    if target.is_dir():
        raise UsageError(f"cannot write {target}: it is a folder; give a file name")
    if not folder.is_dir():
        raise UsageError(f"cannot write {target}: the folder {folder} does not exist; create it or choose another")
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=folder))
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror or error}; choose a folder you can write") from None
    try:
        yield staging / target.name
        produced = sorted(staging.iterdir(), key=lambda path: path.name == target.name)
        for path in produced:
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_output(target: Path, inputs: Iterable[Path | None] = (), endings: Sequence[str] = ()) -> None:
    """Refuse an output that would overwrite an input, or whose name does not fit its content.

    Call it before any work is done.

    Args:
        target: the file or folder to write.
        inputs: files and folders that are read; ``None`` stands for one that was not given.
        endings: allowed endings of the name, such as ``.onnx``; any by default.

    Raises:
        UsageError: names the input, or the endings.
    """
    for given in inputs:
        if given is not None and _same(target, given):
            raise UsageError(f"cannot write {target}: it is the input {given}; choose another name")
    if endings and "" not in endings and target.is_dir():
        raise UsageError(f"cannot write {target}: it is a folder; give a file name")
    if endings and target.suffix.lower() not in endings:
        raise UsageError(f"cannot write {target}: end the name in {' or '.join(endings)}")


def _same(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:  # one of them does not exist
        return first.absolute() == second.absolute()
