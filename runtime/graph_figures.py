"""Counts of CUDA graphs, as sessions keep them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class GraphFigures:
    """Counts of CUDA graphs so far.

    Attributes:
        captured: graphs that were recorded.
        launched: launches of a graph.
        dropped: graphs that were given up, for other shapes or addresses.
        refusal: the reason why no more are recorded; ``None`` while some may be.
    """

    captured: int = 0
    launched: int = 0
    dropped: int = 0
    refusal: str | None = None
