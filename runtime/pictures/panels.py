"""One panel of the picture of a model: a map, two queries with their keys, a tile and its keys.

Every mark is computed from ``attention/windows.py`` and ``attention/tiling.py``; nothing is schematic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from na_deploy.attention.tiling import plan_axis
from na_deploy.attention.windows import attended_positions, axis_mask
from na_deploy.model_file.inspection import LayerGroup, NeighborhoodLayer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which people with colour vision deficiencies tell apart.
INTERIOR, CORNER, TILE, KEYS = "#0072B2", "#D55E00", "#009E73", "#E69F00"
INK, FAINT, GRID = "#222222", "#767676", "#E3E3E3"


def draw_panel(axes: Axes, group: LayerGroup, colour: str) -> None:
    """Draw a group of layers that attend alike.

    Args:
        axes: matplotlib axes, square.
        group: the layers.
        colour: the group's colour in the bar of shares, shown beside its name.
    """
    layer = group.layers[0]
    if len(layer.lengths) == 1:
        _draw_sequence(axes, layer)
    else:
        _draw_map(axes, layer)
    for spine in axes.spines.values():
        spine.set_color("#B0B0B0")
        spine.set_linewidth(0.8)
    axes.tick_params(length=0, labelsize=7, labelcolor=FAINT, pad=4)
    axes.annotate("■", (0, 1), (0, 41), xycoords="axes fraction", textcoords="offset points", color=colour, fontsize=9)
    axes.annotate(
        _shorten(group.label), (0, 1), (11, 41.5), xycoords="axes fraction", textcoords="offset points",
        fontsize=9.5, fontweight="bold",
    )  # fmt: skip
    count = len(group.layers)
    lines = (
        _window(layer),
        f"map {_map_text(layer)}, {layer.heads} heads × {layer.head_dim}",
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
        words.append("causal on axis " + ", ".join(str(a) for a, causal in enumerate(layer.is_causal) if causal))
    return ", ".join(words)


def _map_text(layer: NeighborhoodLayer) -> str:
    lengths, reach = ("×".join(map(str, sizes)) for sizes in (layer.lengths, layer.reach))
    return lengths if lengths == reach else f"{lengths} padded to {reach}"


def _times(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else "×".join(map(str, values))


def _shorten(label: str, limit: int = 40) -> str:
    return label if len(label) <= limit else label[: limit - 1] + "…"


def _axis(layer: NeighborhoodLayer, axis: int, position: int) -> tuple[Any, Any, Any]:
    """Return what a position attends to on one axis, its tile's queries and the keys its tile reads."""
    length, kernel, dilation, stride = (
        values[axis] for values in (layer.reach, layer.kernel_size, layer.dilation, layer.stride)
    )
    causal = layer.is_causal[axis]
    plan = plan_axis(length, kernel, dilation, stride, causal, tile=layer.tile[axis])
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
    elements = max(length // dilation, 1)
    last = axis == len(layer.lengths) - 1
    element = elements // 2 // tile * tile + (3 * tile // 4 if last else tile // 4)
    element = max(min(element, elements - 1 - kernel // 2), min(kernel // 2, elements - 1))
    return int(min(element * dilation + dilation // 2, length - 1))


def _draw_map(axes: Axes, layer: NeighborhoodLayer) -> None:
    """Draw the last two axes of a layer, at the interior query's place on the first of three."""
    first = len(layer.lengths) - 2
    height, width = layer.reach[first:]
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
            f"slice {depth + 1} of {layer.reach[0]}; attends to slices {_ranges(attended)}",
            fontsize=7,
            color=FAINT,
        )


def _ranges(positions: Any) -> str:
    """Return positions counted from 1 as people write them: ``2–5``, or ``1, 4, 7`` where they are apart."""
    numbers = [int(position) + 1 for position in positions]
    if len(numbers) > 1 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]}–{numbers[-1]}"
    return ", ".join(map(str, numbers))


def _draw_sequence(axes: Axes, layer: NeighborhoodLayer) -> None:
    """Draw a sequence layer as its mask: queries down, keys across."""
    length = layer.reach[0]
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
            axes.scatter(own, [position] * len(own), s=max(300 / length, 1.5), marker="s", color=colour, linewidths=0)
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
        axes.add_collection(PolyCollection(shapes, facecolors=colour, alpha=alpha, edgecolors="none", zorder=2))

    spacing = min(int(np.diff(positions).min(initial=10**6)) for positions in (*interior, *corner))
    side = _side(axes, spacing)
    half, alpha = 0.5 * side, 0.38 if side == 1 else 0.8
    upper_left, lower_right = (
        [(-half, -half), (half, -half), (-half, half)],
        [(half, half), (half, -half), (-half, half)],
    )
    whole = [(-half, -half), (half, -half), (half, half), (-half, half)]
    fill(own - other, whole, INTERIOR)
    fill(other - own, whole, CORNER)
    fill(own & other, lower_right, INTERIOR)
    fill(own & other, upper_left, CORNER)


def _side(axes: Axes, spacing: int, least: float = 0.02) -> float:
    """Return the side of a drawn cell, in cells: more than one on large maps where cells stand apart, to be seen."""
    low, high = axes.get_xlim()
    return max(1.0, min(least * abs(high - low), spacing / 2.5))


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
