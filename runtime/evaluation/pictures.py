"""Finding pictures in folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from na_deploy.errors import UsageError

T = TypeVar("T")

ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})
"""Names of files that count as pictures; others in a folder are left out."""


def check_folder(folder: Path, option: str, content: str) -> None:
    """Refuse what is no folder.

    Raises:
        UsageError: says so, with ``content``, the words for what belongs there.
    """
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise UsageError(f"{folder} {state}; give {option} a folder of {content}")


def pictures_in(folder: Path) -> list[Path]:
    """Return the pictures in a folder and below, sorted by their paths; hidden files and folders are left out."""
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in ENDINGS and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    return sorted(path for path in found if path.is_file())


def spread(items: Sequence[T], most: int | None) -> list[T]:
    """Return at most so many items, spread evenly over all of them."""
    if most is None or most >= len(items):
        return list(items)
    return [items[index * len(items) // most] for index in range(most)]
