"""Parts of the benchmarks of whole networks: the time of a call, an engine's build, and the table of results."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def fastest(call: Callable[[], Any], runs: int) -> float:
    """Return the shortest of some runs after one that is not counted; with 0 runs, that one's time."""
    taken = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
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
    if output is not None:
        lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        lines += ["| " + " | ".join(row[column] for column in columns) + " |" for row in rows]
        output.write_text("\n".join(lines) + "\n", encoding="utf-8")
