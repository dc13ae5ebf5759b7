"""Printing for commands: tables for people, JSON for programs, numbers with units."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from na_deploy.files import check_output

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PIPE_WIDTH = 200


def print_json(value: Any) -> None:
    """Print ``value`` as indented JSON on stdout; NaN and infinity, for which JSON has no word, become ``null``."""
    click.echo(json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def console() -> Console:
    """Return a console on stdout; in a pipe or a file lines are as long as they need to be."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def table(*columns: str, right: tuple[str, ...] = (), title: str | None = None) -> Table:
    """Return an empty table; columns in ``right`` are aligned right. The first column is never cut.

    On a screen too narrow for its words the rows become blocks of "column  value" lines.
    """
    from rich import box

    from na_deploy.cli.narrow_table import StackingTable

    result = StackingTable(
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        title=title,
        title_justify="left",
        title_style="bold",
        pad_edge=False,
    )
    for index, name in enumerate(columns):
        result.add_column(name, justify="right" if name in right else "left", overflow="fold", no_wrap=index == 0)
    return result


def check_plot(target: Path | None, *inputs: Path | None) -> None:
    """Refuse a picture whose name ends in something else than matplotlib draws, or that would overwrite an input.

    Raises:
        UsageError: says which.
    """
    if target is not None:
        check_output(target, inputs, (".png", ".svg", ".pdf"))


def size_text(count: float, unit: str = "B") -> str:
    """Return a count with a decimal prefix: ``27.9 MB``, ``4.31 G``."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(count) < 999.5 or prefix == "T":
            break
        count /= 1000
    return f"{count:.3g} {prefix}{unit}".rstrip()
