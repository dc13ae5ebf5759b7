"""Showing that long work goes on: one line on stderr, only where a person is looking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_line(first: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner with what is being done; yields the function that changes the words."""
    from rich.console import Console

    terminal = Console(stderr=True)
    if not terminal.is_terminal:
        yield lambda _: None
        return
    with terminal.status(f"{first} …") as status:
        yield lambda words: status.update(f"{words} …")
