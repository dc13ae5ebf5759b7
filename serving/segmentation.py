"""Segmenters and detectors as a service: an image in, segments out as JSON, as a PNG of ids or drawn over the image."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass, replace
from io import BytesIO
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from PIL import Image

from na_deploy.errors import NaDeployError
from na_deploy.model_file.answers import answer_of
from na_deploy.model_file.tensors import Array
from na_deploy.models.metadata import SEGMENT_TASKS
from na_deploy.models.preprocessing import Preprocessing
from na_deploy.runtime.images.prepare import prepare
from na_deploy.runtime.pictures.id_map import id_map_png
from na_deploy.runtime.pictures.segments import draw_segments, segment_colours
from na_deploy.runtime.results.predict import ResultOptions, read_result
from na_deploy.runtime.results.segments import Segmentation
from na_deploy.serving.errors import InvalidRequestError, ModelFailedError, public_text
from na_deploy.serving.images import decoded_image
from na_deploy.serving.served_model import ServedModel

if TYPE_CHECKING:
    from na_deploy.serving.service import Service

FORMATS = ("json", "png", "overlay")
"""Answers: segments with masks as run lengths, a PNG of ids, a PNG of the image with segments drawn on it."""


@dataclass(frozen=True)
class SegmentRequest:
    """Options of a request for segments.

    Attributes:
        form: one of :data:`FORMATS`.
        overlay: add the drawing to JSON, in base64.
        options: threshold and task.
    """

    form: str = "json"
    overlay: bool = False
    options: ResultOptions | None = None

    @classmethod
    def of(cls, parameters: Any) -> SegmentRequest:
        """Read an address's parameters.

        Raises:
            InvalidRequestError: one has no possible value.
        """
        form, task = parameters.get("format", "json"), parameters.get("task")
        if form not in FORMATS:
            raise InvalidRequestError(f"format is {form[:40]!r}; expected {', '.join(FORMATS)}")
        if task is not None and task not in SEGMENT_TASKS:
            raise InvalidRequestError(f"task is {task[:40]!r}; expected {', '.join(SEGMENT_TASKS)}")
        overlay, text = parameters.get("overlay", "false"), parameters.get("threshold")
        if overlay not in ("true", "false"):
            raise InvalidRequestError(f"overlay is {overlay[:40]!r}; expected true or false")
        thresholds = {}
        if text is not None:
            try:
                thresholds["score"] = float(text)
            except ValueError:
                thresholds["score"] = math.nan
            if not 0 <= thresholds["score"] <= 1:
                raise InvalidRequestError(f"threshold is {text[:40]!r}; expected a number of 0 to 1")
        return cls(form, overlay == "true", ResultOptions(thresholds=thresholds, task=task))


def segments(served: ServedModel) -> bool:
    """Tell whether a model answers images with segments."""
    session = served.opened.session
    return answer_of(session.outputs, session.metadata).has_segments and served.opened.preprocessing is not None


async def segment_image(service: Service, model: str, version: str, data: bytes, wanted: SegmentRequest) -> bytes:
    """Return the segments of a JPEG or PNG file in the form that is wanted.

    Raises:
        RequestError: the model is no segmenter or detector, or the image cannot be read.
    """
    served = service.segmenter(model, version)
    started = perf_counter_ns()
    image, pixels = await service.in_decoder(_decode, data, served, service.options.max_image_pixels)
    # Decoding took a while; the version may have been replaced by one that wants images otherwise.
    current = service.segmenter(model, version)
    if current.opened.preprocessing != served.opened.preprocessing:
        pixels = await service.in_decoder(prepare, image, current.opened.preprocessing)
    served, prepared = current, perf_counter_ns()
    ran = await service.run_pixels(served, pixels, [spec.name for spec in served.opened.session.outputs])
    times = {
        "prepare_ms": (prepared - started) / 1e6,
        "queue_ms": ran.queue_ns / 1e6,
        "compute_ms": ran.compute_ns / 1e6,
    }
    return await service.in_decoder(_answer, served, image, ran.outputs, wanted, {**times, "batch": ran.batch})


def _decode(data: bytes, served: ServedModel, max_pixels: int) -> tuple[Image.Image, Array]:
    image = decoded_image(data, max_pixels)
    return image, prepare(image, _preprocessing(served))


def _preprocessing(served: ServedModel) -> Preprocessing:
    assert served.opened.preprocessing is not None
    return served.opened.preprocessing


def _answer(
    served: ServedModel, image: Image.Image, outputs: dict[str, Array], wanted: SegmentRequest, times: dict[str, float]
) -> bytes:
    started = perf_counter_ns()
    metadata, size = served.opened.session.metadata, (image.height, image.width)
    options = replace(wanted.options or ResultOptions(), labels=served.opened.labels)
    try:
        result = read_result(metadata, outputs, _preprocessing(served), size, options)
        if wanted.form == "png" and isinstance(result, Segmentation):
            return id_map_png(result)
    except NaDeployError as error:
        raise InvalidRequestError(public_text(error)) from None
    if not isinstance(result, Segmentation):
        raise ModelFailedError(f"{served.name} gave no segments")
    if wanted.form == "overlay":
        return _drawn(image, result)
    drawing = {"overlay": base64.b64encode(_drawn(image, result)).decode()} if wanted.overlay else {}
    content = {
        "model_name": served.name,
        "model_version": served.version,
        "task": result.task,
        "height": result.size[0],
        "width": result.size[1],
        "segments": result.to_coco(served.opened.labels),
        "colours": {number: f"#{r:02x}{g:02x}{b:02x}" for number, (r, g, b) in segment_colours(result).items()},
        **times,
        "segments_ms": (perf_counter_ns() - started) / 1e6,
        **drawing,
    }
    return json.dumps(content, separators=(",", ":")).encode()


def _drawn(image: Image.Image, result: Segmentation) -> bytes:
    buffer = BytesIO()
    draw_segments(image, result).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
