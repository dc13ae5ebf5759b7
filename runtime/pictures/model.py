"""The picture of a model: windows, tiles and shares of work of its neighborhood attention layers.

Every mark is computed from ``attention/windows.py`` and ``attention/tiling.py``; nothing is schematic.
Needs matplotlib (the ``plot`` extra).
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from na_deploy.errors import MissingDependencyError, UsageError
from na_deploy.model_file.example_inputs import shapes_text
from na_deploy.model_file.inspection import LayerGroup, ModelSummary, group_layers
from na_deploy.runtime.pictures.numbers import count_text
from na_deploy.runtime.pictures.panels import CORNER, FAINT, INK, INTERIOR, KEYS, TILE, draw_panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHARES = ("#4C566A", "#B48EAD", "#88C0D0", "#A3785A", "#C9C27D", "#7B6BA8", "#D8A7B1", "#9AA5B1")
"""Colours of layers, none of which is a colour of the legend."""

_LEGEND_WIDTH = 9.2
"""Inches of the legend in one line."""

MOST_PANELS = 16


def plot_model(summary: ModelSummary, target: Path, title: str) -> int:
    """Draw a model's layers into an image file, one panel per distinct configuration.

    Args:
        summary: the model, from :func:`na_deploy.model_file.inspection.inspect_model`.
        target: the file to write; the suffix chooses the format (``.png``, ``.svg``, ``.pdf``).
        title: the headline.

    Returns:
        The number of configurations left out because the picture holds ``MOST_PANELS``.

    Raises:
        UsageError: the model has no neighborhood attention layer, or the suffix is not an image format.
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError(
            "drawing needs matplotlib; install it with `pip install 'na-deploy[plot]'`"
        ) from None
    groups = group_layers(summary.layers)
    if not groups:
        raise UsageError(f"{summary.path} has no neighborhood attention layer, so there is nothing to draw")
    formats = Figure().canvas.get_supported_filetypes()
    if target.suffix.removeprefix(".").lower() not in formats:
        raise UsageError(f"cannot draw into {target.name}; end the name in .png, .svg or .pdf")
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 9, "text.color": INK, "svg.fonttype": "none"}):
        figure = _figure(groups[:MOST_PANELS], summary, title)
        figure.savefig(target, dpi=160, facecolor="white")
    return max(len(groups) - MOST_PANELS, 0)


def _figure(groups: Sequence[LayerGroup], summary: ModelSummary, title: str) -> Figure:
    from matplotlib.figure import Figure

    columns = min(len(groups), 4)
    rows = -(-len(groups) // columns)
    width, panel, footer = max(3.1 * columns, 7.4), 3.75, 1.1
    margin_inches = 0.35
    subtitle = textwrap.wrap(_subtitle(summary), int((width - 2 * margin_inches) * 14.5))
    legend_rows = 1 if width >= _LEGEND_WIDTH else 2
    header = 0.5 + 0.17 * len(subtitle) + 0.2 * legend_rows + 0.1
    height = header + rows * panel + footer
    figure = Figure(figsize=(width, height))
    margin = margin_inches / width
    figure.text(margin, 1 - 0.30 / height, title, fontsize=15, fontweight="bold", va="center")
    figure.text(margin, 1 - 0.48 / height, "\n".join(subtitle), fontsize=9, color=FAINT, va="top", linespacing=1.3)
    _legend(figure, margin, 1 - (header - 0.1 * legend_rows - 0.08) / height, 4 // legend_rows)

    cell = (1 - 2 * margin) / columns
    for index, group in enumerate(groups):
        row, column = divmod(index, columns)
        left = margin + column * cell
        bottom = (footer + (rows - 1 - row) * panel) / height
        side = min(cell * width - 0.30, panel - 1.1)
        axes = figure.add_axes((left, bottom + 0.18 / height, side / width, side / height))
        colour = SHARES[index % len(SHARES)]
        draw_panel(axes, group, colour)
    axes = figure.add_axes((margin, 0.42 / height, 1 - 2 * margin, 0.24 / height))
    _share_bar(axes, groups)
    return figure


def _subtitle(summary: ModelSummary) -> str:
    sizes = shapes_text(summary.input_sizes)
    total = summary.attention_multiply_adds + summary.other_multiply_adds
    return (
        f"{len(summary.layers)} neighborhood attention layers at input {sizes}: "
        f"{count_text(summary.attention_multiply_adds)} multiply-adds, "
        f"{summary.attention_share:.1%} of the model's {count_text(total)}"
        f"{', one turn of its loops' if summary.counted_once else ''}"
    )


def _legend(figure: Figure, left: float, at: float, columns: int) -> None:
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    def square(colour: str, alpha: float) -> Any:
        return Line2D([], [], marker="s", linestyle="", color=colour, alpha=alpha, markersize=8, markeredgewidth=0)

    entries: list[tuple[Any, str]] = [
        (
            (square(INTERIOR, 0.35), Line2D([], [], marker="*", linestyle="", color=INTERIOR, markersize=8)),
            "a query and what it attends to",
        ),
        (
            (square(CORNER, 0.35), Line2D([], [], marker="*", linestyle="", color=CORNER, markersize=8)),
            "the corner query: its window stays inside the map",
        ),
        (Patch(facecolor="none", edgecolor=TILE, linewidth=1.8), "the query's tile"),
        (
            Patch(facecolor="none", edgecolor=KEYS, linewidth=1.8, linestyle=(0, (3, 1.5))),
            "keys the tile reads",
        ),
    ]
    figure.legend(
        [handle for handle, _ in entries],
        [text for _, text in entries],
        loc="center left",
        bbox_to_anchor=(left, at),
        ncols=columns,
        frameon=False,
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0)},
        borderaxespad=0,
        borderpad=0,
        columnspacing=1.6,
        handletextpad=0.5,
        fontsize=8.5,
    )


def _share_bar(axes: Axes, groups: Sequence[LayerGroup]) -> None:
    left = 0.0
    for index, group in enumerate(groups):
        colour = SHARES[index % len(SHARES)]
        axes.barh(0, group.share, left=left, color=colour, edgecolor="white", linewidth=1.2, height=1)
        if group.share > 0.045:
            dark = colour in ("#4C566A", "#A3785A", "#7B6BA8")
            axes.text(
                left + group.share / 2, 0, f"{group.share:.0%}", ha="center", va="center", fontsize=8.5,
                fontweight="bold", color="white" if dark else INK,
            )  # fmt: skip
        left += group.share
    axes.set_xlim(0, max(left, 1e-9))
    axes.set_ylim(-0.5, 0.5)
    axes.axis("off")
    axes.annotate(
        "Share of the attention work", (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points",
        fontsize=9, fontweight="bold",
    )  # fmt: skip
    axes.annotate(
        "Squares take their colour from the bar. Windows, tiles and keys are those the model computes.",
        (0, 0), (0, -14), xycoords="axes fraction", textcoords="offset points", fontsize=7.6, color=FAINT,
    )  # fmt: skip
