"""Parts of the benchmarks of whole networks: steps in processes of their own, times of calls, engines, the table."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Cells = dict[str, str]
MISSING = "–"
CELLS = "cells: "
"""Start of the line of a step's process that holds what it measured."""
PATIENCE = 15.0
"""Seconds from which a first run counts: one more changes little and takes as long again."""


@dataclass(frozen=True)
class Work:
    """What a step gets.

    Attributes:
        kind: the network's short name.
        folder: one for all steps of a network.
        runs: how often a call is timed.
    """

    kind: str
    folder: Path
    runs: int

    @property
    def weights(self) -> Path:
        """The checkpoint."""
        return self.folder / f"{self.kind}.pth"

    @property
    def model(self) -> Path:
        """The exported file."""
        return self.folder / "model.onnx"


Step = Callable[[Work], Cells]


def run_step(steps: Mapping[str, Step], name: str, work: Work) -> None:
    """Run a step in this process and print its cells for the process that waits for them."""
    print(CELLS + json.dumps(steps[name](work)), flush=True)


def measured(script: str, kind: str, steps: Collection[str], runs: int, limit_s: float | None) -> Iterator[Cells]:
    """Run the steps of a network one after the other, each in a process of its own; yield cells as they come.

    A step that fails or runs out of time loses its own cells only.

    Args:
        script: the benchmark's file; it takes --child, --step, --folder and --runs, and calls :func:`run_step`.
        kind: the network's short name.
        steps: their names, in order.
        runs: how often a call is timed.
        limit_s: seconds for all steps together, ``None`` for no limit.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for step in steps:
            left = None if limit_s is None else limit_s - (time.perf_counter() - started)
            if left is not None and left <= 0:
                print(f"{kind}: no time is left for {step}", file=sys.stderr, flush=True)
                continue
            command = [sys.executable, script, "--child", kind, "--step", step, "--folder", folder, "--runs", str(runs)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as child:
                try:
                    output, _ = child.communicate(timeout=left)
                except subprocess.TimeoutExpired:
                    os.killpg(child.pid, signal.SIGKILL)
                    print(f"{kind}: {step} was ended after {left:.0f} s", file=sys.stderr, flush=True)
                    continue
                except BaseException:
                    os.killpg(child.pid, signal.SIGKILL)
                    raise
            if child.returncode:
                print(f"{kind}: {step} failed with exit code {child.returncode}", file=sys.stderr, flush=True)
            lines = [line.removeprefix(CELLS) for line in output.splitlines() if line.startswith(CELLS)]
            yield from map(json.loads, lines)


def rows_of(
    script: str,
    titles: Mapping[str, Cells],
    steps: Collection[str],
    columns: Sequence[str],
    *,
    runs: int = 1,
    limit_s: float | None = None,
    output: Path | None = None,
) -> list[Cells]:
    """Measure networks and return their rows; print every cell as it comes, and keep the file up to date.

    Args:
        script: see :func:`measured`, as ``steps``, ``runs`` and ``limit_s``, the seconds of each network.
        titles: first cells of each row, by the network's short name.
        steps: names of the steps.
        columns: of the table.
        runs: how often a call is timed.
        limit_s: seconds for each network.
        output: the Markdown file.
    """
    rows = []
    for kind, title in titles.items():
        row = dict.fromkeys(columns, MISSING) | title
        rows.append(row)
        for cells in measured(script, kind, steps, runs, limit_s):
            row |= cells
            if cells:
                print(f"{kind}: {', '.join(f'{name} {value}' for name, value in cells.items())}", flush=True)
                write_rows(columns, rows, output)
    return rows


def peak_memory() -> str:
    """Return the most memory that this process had."""
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2:.1f} GB"


def fastest(call: Callable[[], Any], runs: int) -> float:
    """Return the shortest of some runs after one that is not counted, in seconds.

    The first counts where ``runs`` is 0 or where it took longer than :data:`PATIENCE`, and then is the only one.
    """
    taken: list[float] = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
        if taken[0] > PATIENCE:
            break
    return min(taken[1:] or taken)


def built_engine(path: Path, profiles: Any = None) -> tuple[str, str]:
    """Return layers and seconds of an engine, built beside the file; dashes where TensorRT-RTX is not installed."""
    from na_deploy.errors import MissingDependencyError
    from na_deploy.runtime.building.options import BuildOptions
    from na_deploy.runtime.tensorrt.api import RTX
    from na_deploy.runtime.tensorrt.building import build_engine

    options = BuildOptions(RTX.backend, timeout_s=3600, **({"profiles": profiles} if profiles else {}))
    try:
        built = build_engine(path, path.with_suffix(".engine"), options)
    except MissingDependencyError:
        return "–", "–"
    return str(built.layers), f"{built.parse_seconds + built.build_seconds:.1f} s"


def show_rows(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Mapping[str, str]],
    *,
    words: Collection[str],
    output: Path | None,
    width: int = 200,
) -> None:
    """Print the rows, and write them to a file.

    Args:
        title: the table's.
        columns: their names, in order.
        rows: a cell for every column.
        words: columns that are aligned left; numbers stand on the right.
        output: the Markdown file to write, ``None`` for none.
        width: of the screen, in characters.
    """
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column in words else "right")
    for row in rows:
        table.add_row(*(row[column] for column in columns))
    Console(width=width).print(table)
    write_rows(columns, rows, output)


def write_rows(columns: Sequence[str], rows: Sequence[Mapping[str, str]], output: Path | None) -> None:
    """Write the rows as a table in Markdown, where a file is named."""
    if output is not None:
        lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        lines += ["| " + " | ".join(row[column] for column in columns) + " |" for row in rows]
        output.write_text("\n".join(lines) + "\n", encoding="utf-8")
