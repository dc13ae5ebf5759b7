"""Opens a model for serving: loads it, finds out whether requests may share a run, warms it up. Call it in a thread.

Requests share a run only if the model says its first axis is free, everywhere by the same name, and then gives the same
numbers for a batch as for its items one by one. A model that fails this is served all the same, one request at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from na_deploy.errors import NaDeployError, UsageError
from na_deploy.model_file.answers import Answer, answer_of
from na_deploy.model_file.example_inputs import example_inputs, example_shapes
from na_deploy.model_file.tensors import Array, TensorSpec, random_input
from na_deploy.models.preprocessing import Preprocessing
from na_deploy.runtime.precision_difference import precision_note
from na_deploy.runtime.results.classification import read_labels
from na_deploy.runtime.session import Session, load
from na_deploy.serving.options import ServeOptions
from na_deploy.serving.sources import Source

log = logging.getLogger("na_deploy.serving")

_TOLERANCES = {"float16": 2e-2, "bfloat16": 1e-1}


@dataclass(frozen=True)
class OpenedModel:
    """A model that is ready to run.

    Attributes:
        session: over the model.
        max_batch: items of one run; 0 where requests cannot share one, and the first axis is like any other.
        labels: class names by number, empty if unknown.
        logits: the output with one number per class, if the model is a classifier.
        preprocessing: the way from images to its input, if it is one for images.
        seconds: time it took to be ready.
    """

    session: Session
    max_batch: int
    labels: Mapping[int, str]
    logits: str | None
    preprocessing: Preprocessing | None
    seconds: float


def open_model(source: Source, options: ServeOptions) -> OpenedModel:
    """Load a model and make it ready.

    Raises:
        NaDeployError: it cannot be loaded or does not run; a sentence.
    """
    started = perf_counter()
    session = load(
        source.path,
        options.backend,
        precision=options.precision,
        device=options.device,
        cuda_graphs=options.cuda_graphs,
        threads=options.threads,
        custom_operators=options.custom_operators,
    )
    try:
        preprocessing = _preprocessing(session)
        answer = answer_of(session.outputs, session.metadata, labelled=source.labels is not None)
        labels = _labels(session, source, options, answer)
        one = _example(session)
        max_batch = 0
        if one is None:
            log.warning("%s/%d has free sizes of unknown meaning, so it is not warmed up", source.name, source.version)
        else:
            session.run(one)
            note = precision_note(session, options.threads)
            if note is not None:
                log.info("%s/%d %s", source.name, source.version, note)
            if options.batching.largest > 1 and _free_first_axis(session):
                max_batch = _batch_that_agrees(session, one, options.batching.largest)
                if not max_batch:
                    log.warning(
                        "%s/%d gives other numbers in a batch than one by one, so its requests run one at a time",
                        source.name,
                        source.version,
                    )
        logits = None if answer.scores is None else answer.scores.name
        return OpenedModel(session, max_batch, labels, logits, preprocessing, perf_counter() - started)
    except BaseException:
        session.close()
        raise


def _preprocessing(session: Session) -> Preprocessing | None:
    if session.metadata is None or len(session.inputs) != 1:
        return None
    spec = session.inputs[0]
    preprocessing = session.metadata.preprocessing
    if len(spec.shape) != 4 or spec.shape[1] != len(preprocessing.mean) or not preprocessing.prepares_images:
        return None
    return preprocessing.for_input(spec.shape)


def _labels(session: Session, source: Source, options: ServeOptions, answer: Answer) -> Mapping[int, str]:
    path = source.labels or (options.labels if answer.scores is not None else None)
    if path is not None:
        return read_labels(path, answer.class_count)
    return {} if session.metadata is None else dict(session.metadata.labels)


def _example(session: Session) -> dict[str, Array] | None:
    """Return random inputs of batch 1, or ``None`` where free sizes have no known value."""
    batch = 1 if _free_first_axis(session) else None
    try:
        shapes = example_shapes(session.inputs, session.metadata, batch=batch, usual=session.usual_shapes or None)
    except UsageError:
        return None
    return example_inputs(session.inputs, shapes)


def _free_first_axis(session: Session) -> bool:
    """Tell whether the first axis of every input and output is free and the same."""
    specs: tuple[TensorSpec, ...] = session.inputs + session.outputs
    names = {spec.shape[0] if spec.shape else 1 for spec in specs}
    # ONNX Runtime leaves free axes without a name apart; sessions name each after its tensor and axis.
    unnamed = {f"{spec.name}.0" for spec in specs}
    return all(isinstance(name, str) for name in names) and (len(names) == 1 or names <= unnamed)


def _batch_that_agrees(session: Session, one: dict[str, Array], largest: int) -> int:
    """Return ``largest`` if a batch gives what its items give one by one, else 0. Warms that size up on the way."""
    dtypes = {spec.name: spec.dtype for spec in session.inputs}
    rows = [one, {name: _another(array, dtypes[name]) for name, array in one.items()}]
    alone = [session.run(row) for row in rows]
    batch = {name: np.concatenate([rows[index % 2][name] for index in range(largest)]) for name in one}
    try:
        together = session.run(batch)
    except NaDeployError:
        return 0
    for spec in session.outputs:
        tolerance = _TOLERANCES.get(spec.dtype, 1e-3)
        for index in range(largest):
            expected = alone[index % 2][spec.name].astype(np.float64)
            got = together[spec.name]
            if got.ndim != expected.ndim or len(got) != largest or got.shape[1:] != expected.shape[1:]:
                return 0
            scale = float(np.abs(expected).max(initial=0.0)) or 1.0
            difference = np.abs(got[index : index + 1].astype(np.float64) - expected)
            if not float(difference.max(initial=0.0)) <= tolerance * scale:
                return 0
    return largest


def _another(array: Array, dtype: str) -> Array:
    return random_input(TensorSpec("", dtype, array.shape), seed=17)
