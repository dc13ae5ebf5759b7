"""The picture of ``na-deploy bench``: latency of every target, a panel for each batch size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from na_deploy.errors import MissingDependencyError
from na_deploy.model_file.example_inputs import shapes_text
from na_deploy.runtime.bench.compare import Measurement, Report

_COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5")


def plot_report(report: Report, target: Path) -> None:
    """Draw median latencies as bars, with a line to the 99th percentile.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError("plots need matplotlib; install it with: pip install 'na-deploy[plot]'") from None
    batches = list(dict.fromkeys(m.batch for m in report.measurements))
    labels = list(dict.fromkeys(m.label for m in report.measurements))
    height = 1.5 + len(batches) * (0.5 + 0.34 * len(labels))
    figure = Figure(figsize=(9, height), layout="constrained")
    panels: Any = figure.subplots(len(batches), 1, squeeze=False)
    for panel, batch in zip(panels[:, 0], batches, strict=True):
        rows = [m for m in report.measurements if m.batch == batch]
        _panel(panel, rows, labels)
        sizes = " and ".join(dict.fromkeys(shapes_text(row.shapes) for row in rows))
        panel.set_title(f"batch {batch}, input {sizes}", loc="left", fontsize=10)
    figure.suptitle("Latency of one call", x=0.01, ha="left", fontsize=12, fontweight="bold")
    panels[-1, 0].set_xlabel("milliseconds per call: bar to the median, line to the 99th percentile", fontsize=9)
    threads = "each target's own threads" if report.threads is None else f"{report.threads} threads each"
    figure.supxlabel(f"{report.machine}; {threads}", x=0.01, ha="left", fontsize=8, color="#555555")
    figure.savefig(target, dpi=150)


def _panel(panel: Any, rows: list[Measurement], labels: list[str]) -> None:
    for place, row in enumerate(rows):
        colour = _COLOURS[labels.index(row.label) % len(_COLOURS)]
        panel.barh(place, row.p50_ms, height=0.66, color=colour)
        panel.plot([row.p50_ms, row.p99_ms], [place, place], color="#555555", linewidth=1.2)
        panel.plot([row.p99_ms], [place], color="#555555", marker="|", markersize=7)
        panel.annotate(
            f"{row.p50_ms:.1f} ms, {row.items_per_s:.0f}/s",
            (max(row.p99_ms, row.p50_ms), place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
        )
    panel.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=9)
    panel.invert_yaxis()
    panel.set_xlim(0, 1.28 * max(row.p99_ms for row in rows))
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(axis="x", labelsize=8.5)
