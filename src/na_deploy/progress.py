"""The callbacks that long work tells its steps to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

Progress = Callable[[str], None]
"""Called with a few words as each step begins."""

Counted = Callable[[Sequence[int], str], Iterator[int]]
"""Yields the items it is given, and shows how far that is under the name given."""


def silent(_: str) -> None:
    """Show nothing: the callback for callers that gave none."""


def silently(items: Sequence[int], _: str) -> Iterator[int]:
    """Yield the items and show nothing: the callback for callers that gave none."""
    yield from items
