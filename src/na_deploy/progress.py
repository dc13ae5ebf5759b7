"""The callback that long work tells its steps to."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str], None]
"""Called with a few words as each step begins."""


def silent(_: str) -> None:
    """Show nothing: the callback for callers that gave none."""
