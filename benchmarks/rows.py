"""A benchmark's results as a table on the screen and, where a file is named, in Markdown."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table


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
