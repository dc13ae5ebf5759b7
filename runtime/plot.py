"""Draws what neighborhood attention layers attend to: windows, tiles and shares of work, as one picture.

Every mark is computed from ``attention/windows.py`` and ``attention/tiling.py``; nothing is schematic.
Needs matplotlib (the ``plot`` extra).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from na_deploy.attention.tiling import plan_axis
from na_deploy.attention.windows import attended_positions, axis_mask
from na_deploy.errors import MissingDependencyError, UsageError
from na_deploy.runtime.inspection import LayerGroup, ModelSummary, NeighborhoodLayer, group_layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with colour vision deficiencies tell apart.
INTERIOR, CORNER, TILE, KEYS = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SHARES = ("#0072B2", "#56B4E9", "#009E73", "#F0E442", "#E69F00", "#D55E00", "#CC79A7", "#999999")
INK, FAINT, GRID, PAPER = "#222222", "#767676", "#E3E3E3", "#FFFFFF"

MOST_PANELS = 16


def plot_model(summary: ModelSummary, target: Path, title: str) -> int:
    """Draw a model's layers into an image file, one panel per distinct configuration.

    Args:
        summary: the model, from :func:`na_deploy.runtime.inspection.inspect_model`.
        target: where to write; the suffix chooses the format (``.png``, ``.svg``, ``.pdf``).
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
    with mpl.rc_context(
        {"font.family": "DejaVu Sans", "font.size": 9, "text.color": INK, "svg.fonttype": "none"}
    ):
        figure = _figure(groups[:MOST_PANELS], summary, title)
        figure.savefig(target, dpi=160, facecolor=PAPER)
    return max(len(groups) - MOST_PANELS, 0)


def _figure(groups: Sequence[LayerGroup], summary: ModelSummary, title: str) -> Figure:
    from matplotlib.figure import Figure

    columns = min(len(groups), 4)
    rows = -(-len(groups) // columns)
    width, panel, header, footer = max(3.1 * columns, 7.4), 3.75, 0.92, 1.1
    height = header + rows * panel + footer
    figure = Figure(figsize=(width, height))
    margin = 0.35 / width
    figure.text(margin, 1 - 0.30 / height, title, fontsize=15, fontweight="bold", va="center")
    figure.text(margin, 1 - 0.58 / height, _subtitle(summary), fontsize=9, color=FAINT, va="center")
    _legend(figure, margin, 1 - 0.86 / height)

    cell = (1 - 2 * margin) / columns
    for index, group in enumerate(groups):
        row, column = divmod(index, columns)
        left = margin + column * cell
        bottom = (footer + (rows - 1 - row) * panel) / height
        side = min(cell * width - 0.30, panel - 1.1)
        axes = figure.add_axes((left, bottom + 0.18 / height, side / width, side / height))
        colour = SHARES[index % len(SHARES)]
        _panel(axes, group, colour)
    axes = figure.add_axes((margin, 0.42 / height, 1 - 2 * margin, 0.24 / height))
    _share_bar(axes, groups)
    return figure


def _subtitle(summary: ModelSummary) -> str:
    sizes = ", ".join("×".join(map(str, size)) for size in summary.input_sizes.values())
    return (
        f"{len(summary.layers)} neighborhood attention layers at input {sizes}: "
        f"{summary.attention_multiply_adds / 1e9:.3g} G multiply-adds, "
        f"{summary.attention_share:.1%} of the model's"
    )


def _legend(figure: Figure, left: float, at: float) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    def square(colour: str, alpha: float) -> Any:
        return Line2D(
            [], [], marker="s", linestyle="", color=colour, alpha=alpha, markersize=8, markeredgewidth=0
        )

    entries = [
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
    from matplotlib.legend_handler import HandlerTuple

    figure.legend(
        [handle for handle, _ in entries],
        [text for _, text in entries],
        loc="center left",
        bbox_to_anchor=(left, at),
        ncols=4,
        frameon=False,
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0)},
        borderaxespad=0,
        borderpad=0,
        columnspacing=1.6,
        handletextpad=0.5,
        fontsize=8.5,
    )


def _panel(axes: Axes, group: LayerGroup, colour: str) -> None:
    layer = group.layers[0]
    if len(layer.lengths) == 1:
        _draw_sequence(axes, layer)
    else:
        _draw_map(axes, layer)
    for spine in axes.spines.values():
        spine.set_color("#B0B0B0")
        spine.set_linewidth(0.8)
    axes.tick_params(length=0, labelsize=7, labelcolor=FAINT, pad=4)
    axes.annotate(
        "■", (0, 1), (0, 41), xycoords="axes fraction", textcoords="offset points", color=colour, fontsize=9
    )
    axes.annotate(
        _shorten(group.label), (0, 1), (11, 41.5), xycoords="axes fraction", textcoords="offset points",
        fontsize=9.5, fontweight="bold",
    )  # fmt: skip
    count = len(group.layers)
    lines = (
        _window(layer),
        f"map {'×'.join(map(str, layer.lengths))}, {layer.heads} heads × {layer.head_dim}",
        f"{count} {'layer' if count == 1 else 'layers'}, {group.share:.0%} of the attention work",
    )
    for line, offset in zip(lines, (29, 18, 7), strict=True):
        axes.annotate(
            line,
            (0, 1),
            (0, offset),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=7.6,
            color=FAINT,
        )


def _window(layer: NeighborhoodLayer) -> str:
    words = [f"window {_times(layer.kernel_size)}", f"dilation {_times(layer.dilation)}"]
    if set(layer.stride) != {1}:
        words.append(f"stride {_times(layer.stride)}")
    if all(layer.is_causal):
        words.append("causal")
    elif any(layer.is_causal):
        words.append(
            "causal on axis " + ", ".join(str(a) for a, causal in enumerate(layer.is_causal) if causal)
        )
    return ", ".join(words)


def _times(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else "×".join(map(str, values))


def _shorten(label: str, limit: int = 40) -> str:
    return label if len(label) <= limit else label[: limit - 1] + "…"


def _axis(layer: NeighborhoodLayer, axis: int, position: int) -> tuple[Any, Any, Any]:
    """Return what a position attends to on one axis, its tile's queries and the keys its tile reads."""
    length, kernel, dilation, stride, causal = (
        values[axis]
        for values in (layer.lengths, layer.kernel_size, layer.dilation, layer.stride, layer.is_causal)
    )
    plan = plan_axis(length, kernel, dilation, stride, causal, rank=len(layer.lengths))
    group, tile = position % dilation, position // dilation // plan.tile
    return (
        attended_positions(position, length, kernel, dilation, stride, causal),
        np.unique(plan.query[group, tile]),
        np.unique(plan.key[group, tile]),
    )


def _interior(layer: NeighborhoodLayer, axis: int) -> int:
    """Return a position near the middle of an axis whose window no border shifts, off the middle of its tile.

    Off the middle, so that the picture shows why a tile reads more keys than it has queries.
    """
    length, kernel, dilation, tile = (
        values[axis] for values in (layer.lengths, layer.kernel_size, layer.dilation, layer.tile)
    )
    elements = length // dilation
    last = axis == len(layer.lengths) - 1
    element = elements // 2 // tile * tile + (3 * tile // 4 if last else tile // 4)
    element = max(min(element, elements - 1 - kernel // 2), min(kernel // 2, elements - 1))
    return element * dilation + dilation // 2


def _draw_map(axes: Axes, layer: NeighborhoodLayer) -> None:
    """Draw the last two axes of a layer, at the interior query's place on the first of three."""
    first = len(layer.lengths) - 2
    height, width = layer.lengths[first:]
    query = [_interior(layer, axis) for axis in (first, first + 1)]
    rows, columns = (_axis(layer, first + axis, query[axis]) for axis in (0, 1))
    corner = [_axis(layer, first + axis, 0)[0] for axis in (0, 1)]

    _grid(axes, height, width)
    _cells(axes, (rows[0], columns[0]), (corner[0], corner[1]))
    _box(axes, rows[2], columns[2], KEYS, outset=0.012 * max(height, width))
    _box(axes, rows[1], columns[1], TILE)
    _dots(axes, rows[1], columns[1], TILE, max(height, width))
    _query(axes, query[0], query[1], INTERIOR, max(height, width))
    _query(axes, 0, 0, CORNER, max(height, width))
    if len(layer.lengths) == 3:
        depth = _interior(layer, 0)
        attended = _axis(layer, 0, depth)[0]
        axes.set_xlabel(
            f"slice {depth} of {layer.lengths[0]}; attends to slices {attended[0]}–{attended[-1]}",
            fontsize=7,
            color=FAINT,
        )


def _draw_sequence(axes: Axes, layer: NeighborhoodLayer) -> None:
    """Draw a sequence layer as its mask: queries down, keys across."""
    length = layer.lengths[0]
    spec = (layer.kernel_size[0], layer.dilation[0], layer.stride[0], layer.is_causal[0])
    query = _interior(layer, 0)
    attended, tile, keys = _axis(layer, 0, query)
    mask = axis_mask(length, *spec)
    shown = np.ones((length, length, 4))
    shown[mask] = (0.82, 0.85, 0.88, 1)
    axes.imshow(shown, interpolation="nearest" if length < 400 else "antialiased", aspect="equal")
    for position, colour in ((query, INTERIOR), (0, CORNER)):
        own = attended if position == query else attended_positions(0, length, *spec)
        if spec[1] == 1:
            axes.plot(
                [own[0] - 0.5, own[-1] + 0.5],
                [position] * 2,
                color=colour,
                linewidth=2.2,
                solid_capstyle="butt",
            )
        else:
            axes.scatter(
                own, [position] * len(own), s=max(300 / length, 1.5), marker="s", color=colour, linewidths=0
            )
        _query(axes, position, position, colour, length)
    _box(axes, tile, keys, KEYS, outset=0.006 * length)
    _box(axes, tile, tile, TILE)
    axes.set_xlim(-0.5, length - 0.5)
    axes.set_ylim(length - 0.5, -0.5)
    axes.set_xticks([0, length - 1])
    axes.set_yticks([0, length - 1])
    axes.set_xlabel("key", fontsize=7, color=FAINT, labelpad=-6)
    axes.set_ylabel("query", fontsize=7, color=FAINT, labelpad=-10)


def _grid(axes: Axes, height: int, width: int) -> None:
    from matplotlib.collections import LineCollection

    if max(height, width) <= 128:
        lines = [[(-0.5, y - 0.5), (width - 0.5, y - 0.5)] for y in range(height + 1)]
        lines += [[(x - 0.5, -0.5), (x - 0.5, height - 0.5)] for x in range(width + 1)]
        thickness = 0.7 if max(height, width) <= 32 else 0.4
        axes.add_collection(LineCollection(lines, colors=GRID, linewidths=thickness, zorder=3))
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_anchor("NW")
    axes.set_xticks([0, width - 1])
    axes.set_yticks([0, height - 1])


def _cells(axes: Axes, interior: tuple[Any, Any], corner: tuple[Any, Any]) -> None:
    """Fill the cells that the two queries attend to; a cell of both is split along its diagonal."""
    from matplotlib.collections import PolyCollection

    own, other = ({(int(y), int(x)) for y in rows for x in columns} for rows, columns in (interior, corner))

    def fill(cells: set[tuple[int, int]], outline: list[tuple[float, float]], colour: str) -> None:
        shapes = [[(x + dx, y + dy) for dx, dy in outline] for y, x in sorted(cells)]
        axes.add_collection(
            PolyCollection(shapes, facecolors=colour, alpha=0.38, edgecolors="none", zorder=2)
        )

    upper_left, lower_right = [(-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5)], [(0.5, 0.5), (0.5, -0.5), (-0.5, 0.5)]
    whole = [(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)]
    fill(own - other, whole, INTERIOR)
    fill(other - own, whole, CORNER)
    fill(own & other, lower_right, INTERIOR)
    fill(own & other, upper_left, CORNER)


def _box(axes: Axes, rows: Any, columns: Any, colour: str, outset: float = 0.0) -> None:
    """Outline the rectangle that holds ``rows`` and ``columns``; dashed if drawn ``outset`` cells larger."""
    from matplotlib.patches import Rectangle

    edge = 0.5 + outset
    axes.add_patch(
        Rectangle(
            (columns[0] - edge, rows[0] - edge),
            columns[-1] - columns[0] + 2 * edge,
            rows[-1] - rows[0] + 2 * edge,
            fill=False,
            edgecolor=colour,
            linestyle=(0, (3, 1.5)) if outset else "solid",
            linewidth=1.6,
            zorder=4,
            clip_on=False,
        )
    )


def _dots(axes: Axes, rows: Any, columns: Any, colour: str, longest: int) -> None:
    y, x = np.meshgrid(rows, columns, indexing="ij")
    axes.scatter(x, y, s=max(60 / longest, 1.2), color=colour, linewidths=0, zorder=6)


def _query(axes: Axes, row: int, column: int, colour: str, longest: int) -> None:
    size = min(max(700 / longest, 45), 110)
    axes.scatter(
        [column],
        [row],
        marker="*",
        s=size,
        color=colour,
        edgecolors="white",
        linewidths=0.7,
        zorder=8,
        clip_on=False,
    )


def _share_bar(axes: Axes, groups: Sequence[LayerGroup]) -> None:
    left = 0.0
    for index, group in enumerate(groups):
        colour = SHARES[index % len(SHARES)]
        axes.barh(0, group.share, left=left, color=colour, edgecolor="white", linewidth=1.2, height=1)
        if group.share > 0.045:
            dark = colour in ("#0072B2", "#009E73", "#D55E00")
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
        "Squares take their colour from the bar. Windows, tiles and keys are those the exported model computes.",
        (0, 0), (0, -14), xycoords="axes fraction", textcoords="offset points", fontsize=7.6, color=FAINT,
    )  # fmt: skip
