"""Typed results of any model that takes pictures: one way for Python, commands and servers.

:func:`prepare_picture` turns a picture into a model's input, and :func:`read_result` turns outputs into a result; a
session or a server's batcher runs the model between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from na_deploy.errors import UsageError
from na_deploy.model_file.answers import CLASS_QUERIES, LOGITS, MASK_QUERIES, answer_of
from na_deploy.model_file.tensors import Array, TensorSpec, numpy_type
from na_deploy.models.metadata import SEGMENT_TASKS, ModelMetadata
from na_deploy.models.preprocessing import Preprocessing
from na_deploy.runtime.images.prepare import prepare, read_image
from na_deploy.runtime.results.classification import Prediction, score_function_of, top_classes
from na_deploy.runtime.results.detections import detections
from na_deploy.runtime.results.queries import instances, panoptic_map, semantic_map, semantic_scores
from na_deploy.runtime.results.resampling import View
from na_deploy.runtime.results.segments import Segmentation, from_ids, from_masks
from na_deploy.runtime.session import Session

Picture = str | Path | Image.Image | Array


@dataclass(frozen=True)
class Classification:
    """The most probable classes of a picture, most probable first.

    Attributes:
        predictions: class number, name and probability.
    """

    predictions: tuple[Prediction, ...]


@dataclass(frozen=True, eq=False)
class Features:
    """The answer of a model without a head: pooled features, or maps of several levels.

    Attributes:
        outputs: arrays of batch 1 by output name.
    """

    outputs: Mapping[str, Array]


Result = Classification | Segmentation | Features


@dataclass(frozen=True)
class ResultOptions:
    """Options for turning outputs into results.

    Attributes:
        top: number of classes in a classification.
        thresholds: in place of the model's own, by the names in ``models.metadata.THRESHOLDS``.
        task: "semantic", "instance" or "panoptic" in place of the file's own, for a model with queries.
        labels: class names in place of the model's own.
    """

    top: int = 5
    thresholds: Mapping[str, float] | None = None
    task: str | None = None
    labels: Mapping[int, str] | None = None


def predict(session: Session, picture: Picture, options: ResultOptions | None = None) -> Result:
    """Run a model on one picture.

    Args:
        session: over a model with one input, for images.
        picture: a file, a Pillow image, or an array (H, W, 3) of uint8.
        options: options of the result.

    Raises:
        UsageError: the model does not take pictures, or the picture cannot be read.
        NaDeployError: the picture is damaged, or the runtime failed.
    """
    image = as_image(picture)
    preprocessing = image_preprocessing(session)
    outputs = run_picture(session, prepare_picture(session, image, preprocessing))
    return read_result(session.metadata, outputs, preprocessing, (image.height, image.width), options)


def prepare_picture(session: Session, image: Image.Image, preprocessing: Preprocessing) -> Array:
    """Return a picture as a model's input of batch 1, in the input's type."""
    return prepare(image, preprocessing).astype(numpy_type(session.inputs[0].dtype), copy=False)


def run_picture(session: Session, pixels: Array) -> dict[str, Array]:
    """Run an input of batch 1 and return outputs of batch 1, also with a model of a larger fixed batch."""
    batch = session.inputs[0].shape[0]
    if isinstance(batch, int) and batch > 1:  # the picture fills all of it
        pixels = pixels.repeat(batch, axis=0)
    return {name: array[:1] for name, array in session.run(pixels).items()}


def as_image(picture: Picture) -> Image.Image:
    """Return a Pillow image of a file, an image or an array.

    Raises:
        UsageError: the array is no picture, or the file does not exist.
        NaDeployError: the file is damaged.
    """
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, str | Path):
        return read_image(Path(picture))
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        shape = "×".join(map(str, picture.shape))
        raise UsageError(f"a picture is an array of uint8, height×width×3, got {picture.dtype} of {shape}")
    return Image.fromarray(picture)


def image_preprocessing(session: Session) -> Preprocessing:
    """Return the steps by which pictures become a model's input, at the size that the model fixes.

    Raises:
        UsageError: the model does not take one image, or does not say how it is prepared.
    """
    if len(session.inputs) != 1:
        names = ", ".join(str(spec) for spec in session.inputs)
        raise UsageError(f"{session.path.name} takes several inputs ({names}); run it with a dict of arrays")
    spec: TensorSpec = session.inputs[0]
    if session.metadata is None or len(spec.shape) != 4:
        raise UsageError(f"{session.path.name} does not say how images are prepared; give an array for {spec}")
    return session.metadata.preprocessing.for_input(spec.shape)


def read_result(
    metadata: ModelMetadata | None,
    outputs: Mapping[str, Array],
    preprocessing: Preprocessing,
    picture: tuple[int, int],
    options: ResultOptions | None = None,
) -> Result:
    """Return the result of one picture.

    Args:
        metadata: the model's metadata.
        outputs: its outputs of batch 1.
        preprocessing: the steps by which the picture became the input.
        picture: the picture's (H, W).
        options: options of the result.

    Raises:
        UsageError: the outputs are not those of the model's task, or the picture's edges were cut off.
    """
    options = options or ResultOptions()
    specs = [TensorSpec(name, array.dtype.name, array.shape) for name, array in outputs.items()]
    answer = answer_of(specs, metadata, labelled=options.labels is not None)
    metadata = metadata or ModelMetadata("unknown")
    labels = metadata.labels if options.labels is None else options.labels
    if options.task not in (None, answer.task) and not (answer.has_queries and options.task in SEGMENT_TASKS):
        raise UsageError(
            f"a result as {options.task} was asked for, and the model answers as {answer.task}; "
            "only segmenters with class_logits and mask_logits answer as semantic, instance or panoptic"
        )
    if answer.scores is not None:
        logits = outputs[answer.scores.name]
        return Classification(tuple(top_classes(logits, options.top, labels, score_function_of(metadata, logits))[0]))
    if not answer.has_segments:
        return Features(dict(outputs))
    task = options.task or answer.task
    if preprocessing.mode == "resize-then-crop":
        raise UsageError("the model's preprocessing cuts off pictures' edges, so its answer does not cover them")
    view = View(preprocessing.placement(*picture), picture, metadata.segment_rule)
    metadata = replace(
        metadata, task=task, labels=labels, thresholds={**metadata.thresholds, **(options.thresholds or {})}
    )
    if answer.has_boxes:
        return detections({name: array[0] for name, array in outputs.items()}, view, metadata)
    arrays = {name: array[0].astype(np.float32) for name, array in outputs.items()}
    if answer.has_queries:
        return _of_queries(metadata, arrays[CLASS_QUERIES], arrays[MASK_QUERIES], view)
    if LOGITS not in arrays or task != "semantic":
        raise UsageError(
            f"a model for {task} segmentation gives class_logits and mask_logits, or logits for semantic; "
            f"this one gives {', '.join(outputs)}"
        )
    ids, found = semantic_map(arrays[LOGITS], view, logits=True)
    return from_ids("semantic", ids, found, labels, metadata.things, metadata.palette)


def _of_queries(metadata: ModelMetadata, classes: Array, masks: Array, view: View) -> Segmentation:
    labels, things, palette = metadata.labels, metadata.things, metadata.palette
    thresholds = metadata.thresholds
    if metadata.task == "semantic":
        ids, found = semantic_map(semantic_scores(classes, masks, thresholds), view, logits=False)
        return from_ids("semantic", ids, found, labels, things, palette)
    if metadata.task == "instance":
        wanted = None if things is None else frozenset(things)
        pixels, objects = instances(classes, masks, view, thresholds, wanted)
        return from_masks(pixels, objects, view.picture, labels, palette)
    stuff = () if things is None else frozenset(range(classes.shape[-1] - 1)) - frozenset(things)
    ids, found = panoptic_map(classes, masks, view, thresholds, stuff)
    return from_ids("panoptic", ids, found, labels, things, palette)


__all__ = [
    "Classification",
    "Features",
    "Prediction",
    "Result",
    "ResultOptions",
    "Segmentation",
    "as_image",
    "image_preprocessing",
    "predict",
    "prepare_picture",
    "read_result",
    "run_picture",
]
