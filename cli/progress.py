"""Showing that long work goes on: one line on stderr, only where a person is looking."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from na_deploy.progress import Counted, silent, silently
from na_deploy.progress import Progress as ProgressCallback

if TYPE_CHECKING:
    from na_deploy.runtime.tensorrt.progress import Phases

T = TypeVar("T")

_BARS = 3
"""Nested phases shown at most; TensorRT nests deeper."""


@contextmanager
def progress_line(first: str) -> Iterator[ProgressCallback]:
    """Show a spinner with what is being done; yields the function that changes the words."""
    from rich.console import Console

    terminal = Console(stderr=True)
    if not terminal.is_terminal:
        yield silent
        return
    with terminal.status(f"{first} …") as status:
        yield lambda words: status.update(f"{words} …")


@contextmanager
def build_progress(first: str) -> Iterator[tuple[ProgressCallback, Callable[[Phases], None]]]:
    """Show what a build does, and bars for how far an engine is, where a person is looking.

    Yields:
        The function that changes the words, and the one that takes the phases of an engine's build.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TaskProgressColumn, TextColumn

    terminal = Console(stderr=True)
    if not terminal.is_terminal:
        yield silent, (lambda _: None)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TextColumn("{task.fields[left]}"), console=terminal, transient=True) as bars:
        overall = bars.add_task(f"{first} …", total=None, left="")
        inner: dict[str, TaskID] = {}

        def progress(words: str) -> None:
            bars.update(overall, description=f"{words} …", total=None, completed=0, left="")
            for task in inner.values():
                bars.remove_task(task)
            inner.clear()

        def watch(phases: Phases) -> None:
            bars.update(overall, total=1.0, completed=phases.fraction, left=time_left(phases.seconds_left()))
            deepest = {phase.name: phase for phase in phases.open[-_BARS:]}
            for name in [name for name in inner if name not in deepest]:
                bars.remove_task(inner.pop(name))
            for name, phase in deepest.items():
                if name not in inner:
                    inner[name] = bars.add_task(f"  {name}", total=phase.steps, left="")
                bars.update(inner[name], completed=phase.done, total=phase.steps)

        yield progress, watch


@contextmanager
def step_progress(first: str) -> Iterator[tuple[ProgressCallback, Counted]]:
    """Show steps, and a bar for those that count, on one line where a person is looking.

    Yields:
        The function that changes the words, and the one that goes through items and shows how many are done.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    terminal = Console(stderr=True)
    if not terminal.is_terminal:
        yield silent, silently
        return
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=terminal,
        transient=True,
    ) as bars:

        def progress(words: str, total: int | None = None) -> None:
            for task in bars.task_ids:
                bars.remove_task(task)
            bars.add_task(f"{words} …", total=total)

        def counting(items: Sequence[int], name: str) -> Iterator[int]:
            progress(name, len(items))
            for item in items:
                yield item
                bars.advance(bars.task_ids[-1])

        progress(first)
        yield progress, counting


def counted(items: Sequence[T], name: str) -> Iterator[T]:
    """Yield the items, with a bar of how many are done where there are several and a person is looking."""
    from rich.console import Console
    from rich.progress import track

    terminal = Console(stderr=True)
    if len(items) < 2 or not terminal.is_terminal:
        yield from items
        return
    yield from track(items, name, console=terminal, transient=True)


def time_left(seconds: float | None) -> str:
    """Return an estimate in words, empty where there is none."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s left"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min left"
    return f"about {seconds / 3600:.1f} h left"
