"""The picture of ``na-deploy simulate``: the bound of each combination of strides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from na_deploy.attention.simulator import Simulation, Sweep
from na_deploy.errors import MissingDependencyError

_MOST_POINTS = 20_000
_CLOUD, _FRONT, _LIMIT, _BEST = "#b9c4d0", "#0072B2", "#555555", "#D55E00"


def plot_sweep(sweep: Sweep, asked: Simulation | None, target: Path) -> None:
    """Draw the tile-wise bound of every combination over the product of its strides.

    Args:
        sweep: all combinations.
        asked: a combination to mark.
        target: the file to write; the suffix chooses the format.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError("plots need matplotlib; install it with: pip install 'na-deploy[plot]'") from None
    figure = Figure(figsize=(8.5, 4.8), layout="constrained")
    panel: Any = figure.subplots()
    bounds = sweep.tile_bounds
    strides = [np.arange(1, size + 1) for size in bounds.shape]
    product = np.ones((), np.int64)
    for steps in strides:
        product = np.multiply.outer(product, steps)
    x, y = product.reshape(-1), bounds.reshape(-1)
    if len(x) > _MOST_POINTS:
        chosen = np.random.default_rng(0).choice(len(x), _MOST_POINTS, replace=False)
        x, y = x[chosen], y[chosen]
    panel.scatter(x, y, s=5, color=_CLOUD, linewidths=0, rasterized=True, label="every combination of strides")
    front, best = sweep.front(), sweep.recommended()
    sizes = [int(np.prod(each.spec.stride)) for each in front]
    panel.step(sizes, [each.tile_bound for each in front], where="post", color=_FRONT, label="best for its size")
    panel.plot(sizes, [each.tile_bound for each in front], "o", color=_FRONT, markersize=3.5)
    panel.axhline(sweep.base.flop_bound, color=_LIMIT, linestyle="--", linewidth=1)
    panel.text(1, sweep.base.flop_bound, " bound by FLOPs, stride 1", va="bottom", fontsize=8.5, color=_LIMIT)
    _mark(panel, best, "recommended", _BEST)
    if asked is not None and asked.spec.stride != best.spec.stride:
        _mark(panel, asked, "asked for", "#009E73")
    panel.set_xscale("log")
    panel.set_ylim(0, 1.18 * max(float(bounds.max()), sweep.base.flop_bound))
    panel.set_xlabel("product of strides (1: the window slides with every token)")
    panel.set_ylabel("tile-wise bound on the speedup\nover full attention")
    spec = sweep.base.spec
    panel.set_title(
        f"{_times(sweep.base.lengths)} tokens, window {_times(spec.kernel_size)}, tiles {_times(sweep.base.tile_q)} by "
        f"{_times(sweep.base.tile_kv)}",
        loc="left",
        fontsize=10.5,
        fontweight="bold",
    )
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(loc="lower right", frameon=False, fontsize=8.5)
    figure.savefig(target, dpi=150)


def _mark(panel: Any, simulation: Simulation, words: str, colour: str) -> None:
    place = (float(np.prod(simulation.spec.stride)), simulation.tile_bound)
    panel.plot(*place, "o", color=colour, markersize=7, zorder=5)
    panel.annotate(
        f"{words}: stride {_times(simulation.spec.stride)}, {simulation.tile_bound:.2f}×",
        place,
        xytext=(0, 9),
        textcoords="offset points",
        ha="center",
        fontsize=9,
        color=colour,
        fontweight="bold",
    )


def _times(numbers: tuple[int, ...]) -> str:
    return "×".join(map(str, numbers))
