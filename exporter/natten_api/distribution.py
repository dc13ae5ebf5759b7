"""The version of a natten that is not installed, for packages that ask ``importlib.metadata`` for it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import Distribution, DistributionFinder
from pathlib import Path
from typing import Any


class _Natten(Distribution):
    def __init__(self, version: str) -> None:
        self._version = version

    def read_text(self, filename: str) -> str | None:
        if filename != "METADATA":
            return None
        return f"Metadata-Version: 2.1\nName: natten\nVersion: {self._version}\n"

    def locate_file(self, path: Any) -> Path:
        return Path(path)


_ANY = DistributionFinder.Context()


class _Finder(DistributionFinder):
    def __init__(self, version: str) -> None:
        self._version = version

    def find_spec(self, *_: Any) -> None:
        """Find no modules."""

    def find_distributions(self, context: DistributionFinder.Context = _ANY) -> Iterable[_Natten]:
        """Find natten."""
        if context.name is None or context.name.lower() == "natten":
            yield _Natten(self._version)


@contextmanager
def known_distribution(version: str) -> Iterator[None]:
    """Let ``importlib.metadata.version("natten")`` return ``version`` inside the block."""
    finder = _Finder(version)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
