"""Writing files so that a failure never leaves half a file or destroys an old one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
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
