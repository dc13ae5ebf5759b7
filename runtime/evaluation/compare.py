"""Any number of models on one data set, side by side."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from na_deploy.errors import NaDeployError, UsageError
from na_deploy.progress import Counted, silently
from na_deploy.runtime.evaluation.figures import DataSet, Figures, Scorer
from na_deploy.runtime.images.batches import run_in_batches
from na_deploy.runtime.images.prepare import read_image
from na_deploy.runtime.results.predict import Result, ResultOptions, image_preprocessing, prepare_picture, read_result
from na_deploy.runtime.session import Session, load


@dataclass(frozen=True)
class Target:
    """A model and a way to run it.

    Attributes:
        label: its name in tables.
        path: the file.
        options: further arguments of :func:`na_deploy.load`.
    """

    label: str
    path: Path
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One target's figures.

    Attributes:
        label: the target.
        path: its file.
        backend: the runtime it ran on.
        dtype: precision that the file records, empty where it does not.
        runs_on: device, and the part that computes attention, in words.
        run_ms: median milliseconds of the network alone, a picture.
        figures: its quality.
        same: share of pictures that it puts into the same class as the first target; ``None`` for other models
            than classifiers.
    """

    label: str
    path: Path
    backend: str
    dtype: str
    runs_on: str
    run_ms: float
    figures: Figures
    same: float | None


@dataclass(frozen=True)
class Report:
    """All targets on one data set.

    Attributes:
        data: the data set, in words.
        pictures: number of pictures.
        rows: a row for each target, in the order given.
        notes: sentences on assumptions that the figures rest on.
    """

    data: str
    pictures: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def evaluate(
    targets: Sequence[Target],
    data: DataSet,
    *,
    batch: int = 1,
    labels: Mapping[int, str] | None = None,
    counted: Counted = silently,
) -> Report:
    """Run every target on every picture, one target after the other.

    Args:
        targets: models; the others are compared with the first.
        data: pictures with known answers.
        batch: pictures in one run, where a model leaves that free; only those of equal size share a run.
        labels: class names in place of the models' own.
        counted: shows how far a target is.

    Raises:
        UsageError: a model does not answer as the data set asks, or has other classes. All models are looked at before
            the first one runs.
        NaDeployError: a picture is damaged, or a runtime failed.
    """
    for target in targets[1:]:
        with _opened(target) as session:
            _scorer(session, data, labels)
    rows: list[Row] = []
    notes: list[str] = []
    for target in targets:
        with _opened(target) as session:
            scorer = _scorer(session, data, labels)
            times = _score(target.label, session, scorer, data, batch, counted)
            figures = scorer.figures()
            notes += [note for note in scorer.notes if note not in notes]
            first = rows[0].figures.answers if rows else figures.answers
            rows.append(
                Row(
                    target.label,
                    target.path,
                    session.backend,
                    "" if session.metadata is None else session.metadata.precision,
                    f"{session.device}, {session.attention}",
                    statistics.median(times),
                    figures,
                    float(np.mean(np.equal(first, figures.answers))) if first else None,
                )
            )
    return Report(data.name, len(data.pictures), tuple(rows), tuple(notes))


def _opened(target: Target) -> Session:
    return load(target.path, **target.options)


def _scorer(session: Session, data: DataSet, labels: Mapping[int, str] | None) -> Scorer:
    count = 0 if session.metadata is None else session.metadata.num_classes
    if labels is not None and count and len(labels) != count:
        raise UsageError(f"the labels name {len(labels)} classes, {session.path.name} has {count}")
    image_preprocessing(session)  # refuses models that do not take pictures
    return data.scorer(session, labels)


def _score(label: str, session: Session, scorer: Scorer, data: DataSet, batch: int, counted: Counted) -> list[float]:
    """Score all pictures; return the milliseconds each took in the network."""
    times: list[float] = []
    answers = _answers(session, data.pictures, scorer.options, batch, times)
    for index in counted(range(len(data.pictures)), label):
        try:
            scorer.add(index, next(answers))
        except NaDeployError as error:
            raise type(error)(f"{label}: {error}") from error
    return times


def _answers(
    session: Session, pictures: Sequence[Path], options: ResultOptions, batch: int, times: list[float]
) -> Iterator[Result]:
    """Yield the result of each picture, in order."""
    preprocessing = image_preprocessing(session)
    fixed = session.inputs[0].shape[0]
    size = fixed if isinstance(fixed, int) else batch
    for start in range(0, len(pictures), size):
        images = [read_image(path) for path in pictures[start : start + size]]
        pixels = [prepare_picture(session, image, preprocessing) for image in images]
        found: dict[int, Result] = {}
        for shape in dict.fromkeys(each.shape for each in pixels):
            places = [place for place, each in enumerate(pixels) if each.shape == shape]
            joined = np.concatenate([pixels[place] for place in places])
            started = perf_counter()
            outputs = run_in_batches(session, joined)
            times += [1e3 * (perf_counter() - started) / len(places)] * len(places)
            for own, place in enumerate(places):
                one = {name: array[own : own + 1] for name, array in outputs.items()}
                picture = (images[place].height, images[place].width)
                try:
                    found[place] = read_result(session.metadata, one, preprocessing, picture, options)
                except NaDeployError as error:
                    raise type(error)(f"{pictures[start + place]}: {error}") from error
        yield from (found[place] for place in range(len(images)))
