"""Images sent to a segmenter come back as segments, as ids or as a drawing: the same that a session finds."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from running import Running
from segmenters import LABELS, colour_picture, png_start

import na_deploy
from na_deploy.runtime.pictures.segments import draw_segments
from na_deploy.runtime.results.rle import decode_mask


def file_of(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = colour_picture(150, 110)
FILE = file_of(PICTURE)


def predicted(server: Running, model: str, **options: Any) -> Any:
    assert server.service is not None
    with na_deploy.load(server.service.repository.get(model).source.path) as session:
        return session.predict(PICTURE, **options)


@pytest.mark.parametrize("model", ["semantic", "panoptic", "things", "things_boxed"])
def test_segments_are_those_of_a_session(segmenters: Running, model: str):
    status, content = segmenters.call(f"/v2/models/{model}/segment", FILE)
    assert status == 200
    expected = predicted(segmenters, model)
    task = "detection" if model.startswith("things") else model
    assert (content["task"], content["height"], content["width"]) == (task, 110, 150)
    assert content["segments"] == expected.to_coco(LABELS)
    assert len(content["segments"]) == (3 if task == "detection" else 4)
    assert "overlay" not in content
    assert all(content[name] >= 0 for name in ("prepare_ms", "queue_ms", "compute_ms", "segments_ms"))
    assert set(content["colours"]) == {str(segment["id"]) for segment in content["segments"]}


@pytest.mark.parametrize("model", ["panoptic", "things"])
def test_ids_come_as_a_png_that_says_what_they_are(segmenters: Running, model: str):
    status, data = segmenters.call(f"/v2/models/{model}/segment?format=png", FILE)
    assert status == 200
    image = Image.open(io.BytesIO(data))
    expected = predicted(segmenters, model)
    assert image.mode == "P"
    assert np.array_equal(np.asarray(image), expected.ids)
    entries = json.loads(image.text["segments"])  # type: ignore[attr-defined]
    assert [(entry["id"], entry["label"]) for entry in entries] == [(each.id, each.label) for each in expected.segments]


@pytest.mark.parametrize("model", ["panoptic", "things_boxed"])
def test_the_drawing_comes_alone_or_with_the_segments(segmenters: Running, model: str):
    expected = np.asarray(draw_segments(PICTURE, predicted(segmenters, model)))
    _, data = segmenters.call(f"/v2/models/{model}/segment?format=overlay", FILE)
    _, content = segmenters.call(f"/v2/models/{model}/segment?overlay=true", FILE)
    for drawing in (data, base64.b64decode(content["overlay"])):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(drawing))), expected)


def test_task_and_threshold_are_taken_from_the_address(segmenters: Running):
    _, content = segmenters.call("/v2/models/panoptic/segment?task=instance&threshold=0.1", FILE)
    assert content["task"] == "instance"
    assert {entry["category"] for entry in content["segments"]} == {"person", "car"}
    whole = predicted(segmenters, "panoptic", task="instance", thresholds={"score": 0.1})
    assert [int(decode_mask(entry["segmentation"]).sum()) for entry in content["segments"]] == [
        segment.area for segment in whole.segments
    ]
    _, content = segmenters.call("/v2/models/panoptic/segment?threshold=1", FILE)
    assert content["segments"] == []


@pytest.mark.parametrize(
    ("address", "body", "message"),
    [
        ("semantic/segment?format=gif", FILE, "format is 'gif'; expected json, png, overlay"),
        ("semantic/segment?task=boxes", FILE, "task is 'boxes'"),
        ("semantic/segment?threshold=much", FILE, "threshold is 'much'; expected a number of 0 to 1"),
        ("semantic/segment?threshold=nan", FILE, "threshold is 'nan'"),
        ("semantic/segment?overlay=1", FILE, "overlay is '1'"),
        ("semantic/segment?task=instance", FILE, "asked for, and the model answers as semantic"),
        ("things_boxed/segment?format=png", FILE, "the model finds boxes without masks, so no pixel has an id"),
        ("things/segment?task=instance", FILE, "asked for, and the model answers as detection"),
        ("things/classify", FILE, "is no classifier; use segment"),
        ("semantic/segment", b"", "the request has no image"),
        ("semantic/segment", b"nothing", "give a JPEG or PNG file"),
        ("semantic/classify", FILE, "is no classifier; use segment"),
    ],
)
def test_what_cannot_be_answered_is_refused(segmenters: Running, address: str, body: bytes, message: str):
    status, content = segmenters.call(f"/v2/models/{address}", body, method="POST")
    assert status == 400
    assert message in content["error"]


def test_other_models_give_no_segments(server: Running, segmenters: Running):
    status, content = server.call("/v2/models/small/segment", FILE)
    assert (status, "is no segmenter or detector of images" in content["error"]) == (400, True)
    assert segmenters.call("/v2/models/absent/segment", FILE)[0] == 404


@pytest.mark.parametrize("model", ["semantic", "panoptic"])
@pytest.mark.parametrize("size", [(1, 1), (12_000, 1), (1, 12_000), (12_000, 300)])
def test_tiny_and_very_long_pictures_are_answered_at_their_own_size(
    segmenters: Running, model: str, size: tuple[int, int]
):
    status, content = segmenters.call(f"/v2/models/{model}/segment", file_of(colour_picture(*size)))
    assert (status, content["width"], content["height"]) == (200, *size)
    assert sum(each["area"] for each in content["segments"]) == size[0] * size[1]


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(segmenters: Running):
    status, content = segmenters.call("/v2/models/panoptic/segment", png_start(12_000, 12_000))
    assert status == 413
    assert "the image has 12000×12000 pixels, at most 50000000 are taken" in content["error"]
