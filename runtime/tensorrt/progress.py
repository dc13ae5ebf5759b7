"""Progress of a build, from the phases that TensorRT's progress monitor reports. Shows nothing itself.

Phases nest: a phase counts its steps, and a phase inside it is part of its current step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any


@dataclass
class Phase:
    """One phase that has begun and not ended.

    Attributes:
        name: TensorRT's name of it.
        parent: the phase it is part of.
        steps: number of its steps.
        done: number of complete ones.
    """

    name: str
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """The phases of a build, in the order they began."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._open: dict[str, Phase] = {}
        self._highest = 0.0

    def update(self, event: dict[str, Any]) -> bool:
        """Take one event of the build: "phase", "step" or "phase_end"; return whether it was one of these."""
        kind = event.get("event")
        if kind == "phase":
            self._open[event["name"]] = Phase(event["name"], event.get("parent"), max(1, int(event["steps"])))
        elif kind == "step":
            phase = self._open.get(event["name"])
            if phase is not None:
                phase.done = min(phase.steps, max(phase.done, int(event["step"]) + 1))
        elif kind == "phase_end":
            self._open.pop(event["name"], None)
        else:
            return False
        self._highest = max(self._highest, self._fraction())
        return True

    @property
    def open(self) -> list[Phase]:
        """The phases that have begun and not ended, outermost first."""
        return list(self._open.values())

    @property
    def fraction(self) -> float:
        """Completed part of the build, from 0 to 1; it never shrinks."""
        return self._highest

    def seconds_left(self) -> float | None:
        """Estimate the seconds left from the time of the completed part; ``None`` while too little is known."""
        elapsed = self._clock() - self._started
        if self._highest < 0.02 or elapsed < 1.0:
            return None
        return elapsed * (1.0 - self._highest) / self._highest

    def _fraction(self) -> float:
        roots = [phase for phase in self._open.values() if phase.parent not in self._open]
        return self._part(roots[0]) if roots else self._highest

    def _part(self, phase: Phase) -> float:
        """Return the completed part of a phase; the most complete phase inside counts towards its current step."""
        inside = [self._part(child) for child in self._open.values() if child.parent == phase.name]
        within = min(max(inside, default=0.0), 1.0) if phase.done < phase.steps else 0.0
        return (phase.done + within) / phase.steps
