"""Figures of quality, and the parts that make them: a data set, and a scorer for one model on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from na_deploy.runtime.results.predict import Result, ResultOptions
from na_deploy.runtime.session import Session

Shares = Mapping[str, float | None]
"""Numbers of 0 to 1 by name, the most telling first; ``None`` where there is nothing to count."""


@dataclass(frozen=True)
class Figures:
    """The quality of one model.

    Attributes:
        overall: shares by the name of what is scored, such as "boxes" and "masks"; "" where that needs no name.
        classes: the most telling share of every class, by the same names.
        answers: for each picture the number of the class that was found; empty for other models than classifiers.
    """

    overall: Mapping[str, Shares]
    classes: Mapping[str, Shares] = field(default_factory=dict)
    answers: tuple[int, ...] = ()


class Scorer(Protocol):
    """One model's answers on a data set, scored as they come.

    Attributes:
        options: options of the results that are scored.
        notes: sentences on assumptions, for the reader of the figures.
    """

    options: ResultOptions
    notes: tuple[str, ...]

    def add(self, index: int, result: Result) -> None:
        """Score the answer for a picture, given by its place in the data set."""

    def figures(self) -> Figures:
        """Return the figures over all pictures added."""


class DataSet(Protocol):
    """Pictures with known answers.

    Attributes:
        name: the data set, in words.
        pictures: the files.
    """

    name: str
    pictures: Sequence[Path]

    def scorer(self, session: Session, labels: Mapping[int, str] | None) -> Scorer:
        """Return a scorer for a model.

        Args:
            session: over the model.
            labels: class names in place of the model's own.

        Raises:
            UsageError: the model answers something else, or has other classes.
        """
