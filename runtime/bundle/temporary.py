"""Temporary folders for unpacked bundles, which go when their process does, however it ends.

Each holds a file that its process has locked. A folder whose lock is free belonged to a process that was killed, here
or in another container, and is removed by the next one that unpacks something.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "na-deploy-bundle-"
_LOCK = ".lock"


class TemporaryFolder:
    """A locked folder; :meth:`remove` it.

    Attributes:
        path: the folder; the lock lies beside it.
    """

    def __init__(self) -> None:
        _remove_abandoned()
        self._root = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self.path = self._root / "content"
        self.path.mkdir()
        self._lock = os.open(self._root / f"{_LOCK}.new", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):  # a file system without locks: nobody can take it for abandoned then
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (self._root / f"{_LOCK}.new").rename(self._root / _LOCK)  # only a file that is locked has this name

    def remove(self) -> None:
        """Remove the folder; twice does nothing."""
        shutil.rmtree(self._root, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _remove_abandoned() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
