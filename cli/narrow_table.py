"""A table that becomes a list of records where the screen is too narrow for the words in its cells."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

GAP = 2


class StackingTable(Table):
    """A table whose rows are stacked, one line for each column, where columns would have to break words."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the table, or its records where even the longest words of all columns do not fit side by side."""
        if self._least_width(console, options) <= options.max_width:
            yield from super().__rich_console__(console, options)
            return
        if self.title:
            yield Text.from_markup(str(self.title), style="bold")
        yield from self._records()

    def _least_width(self, console: Console, options: ConsoleOptions) -> int:
        wide = options.update(max_width=10_000)
        widths = []
        for column in self.columns:
            sizes = [Measurement.get(console, wide, cell) for cell in (column.header, *column.cells)]
            widths.append(max((size.maximum if column.no_wrap else size.minimum) for size in sizes))
        return sum(widths) + self._extra_width + GAP * max(0, len(widths) - 1)

    def _records(self) -> Iterator[RenderableType]:
        """Yield each row: its first cell (a mark together with the next one), below it what the others say."""
        names = [str(column.header) for column in self.columns]
        for cells in zip(*(_cells(column) for column in self.columns), strict=True):
            marked = len(cells) > 1 and len(cells[0].plain) <= 1
            heading = cells[0] + " " + cells[1] if marked and cells[0].plain else cells[int(marked)]
            if heading.plain:
                yield heading
            lines = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
            lines.add_column(no_wrap=True, style="dim")
            lines.add_column(overflow="fold")
            for name, cell in list(zip(names, cells, strict=True))[1 + marked :]:
                if cell.plain.strip():
                    lines.add_row(f"  {name}" if name else "", cell)
            if lines.row_count:
                yield lines


def _cells(column: Column) -> list[Text]:
    return [cell.copy() if isinstance(cell, Text) else Text.from_markup(str(cell)) for cell in column.cells]
