"""Outputs of detectors become objects of the picture: boxes mapped back, masks pasted, scores and classes named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from detectors import COLOURS, LABELS, PREPROCESSING, detector
from PIL import Image
from segmenters import colour_picture

import na_deploy
from na_deploy.errors import NaDeployError
from na_deploy.models.metadata import ModelMetadata
from na_deploy.models.preprocessing import Preprocessing
from na_deploy.runtime.pictures.segments import draw_segments, segment_colours
from na_deploy.runtime.results.detections import paste
from na_deploy.runtime.results.predict import Segmentation, read_result
from na_deploy.runtime.results.rle import decode_mask

PLACES = {"person": (0.1, 0.1, 0.4, 0.5), "tree [old]": (0, 0.75, 1, 1), "car": (0.6, 0.2, 0.9, 0.5)}
"""Left, top, right and bottom of what :func:`colour_picture` draws, as shares of the picture."""


def predicted(path: Path, picture: Image.Image, **options: Any) -> Segmentation:
    onnx.save(detector(**options), path)
    with na_deploy.load(path) as session:
        result = session.predict(picture)
    assert isinstance(result, Segmentation)
    return result


@pytest.mark.parametrize("size", [(320, 240), (75, 200), (401, 33)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"height": 96, "width": 96, "preprocessing": PREPROCESSING.with_size((96, 96))},
        {"batch": 3},
        {"masks": False},
    ],
    ids=["free sizes", "a fixed square", "a fixed batch", "boxes alone"],
)
def test_every_detector_finds_what_is_there(size: tuple[int, int], options: dict[str, Any], tmp_path: Path):
    picture = colour_picture(*size)
    result = predicted(tmp_path / "model.onnx", picture, **options)
    assert (result.task, result.size, result.has_masks) == ("detection", size[::-1], options.get("masks", True))
    assert {segment.label for segment in result.segments} == set(LABELS.values())
    assert [segment.score for segment in result.segments] == sorted((s.score for s in result.segments), reverse=True)
    pixels = np.asarray(picture, np.int64)
    truth = np.select([pixels[..., 0] > 200, pixels[..., 1] > 150, pixels[..., 2] > 200], [1, 2, 3], 0)
    coarse = max(size) / 128 * 2 + max(size) / 28  # a pixel of the input, and one of the mask
    for segment in result.segments:
        x, y, width, height = segment.box
        expected = np.array(PLACES[segment.label]) * (*size, *size)
        assert np.abs(np.array([x, y, x + width, y + height]) - expected).max() < max(size) / 96 * 2 + 2
        assert segment.is_thing
        if result.has_masks:
            mask = result.mask(segment)
            assert segment.area == mask.sum() > 0
            assert (mask != (truth == segment.class_index + 1)).sum() < 2 * coarse * sum(size)
        else:
            assert segment.area == round(width * height)
    if not result.has_masks:
        assert not result.ids.any()


@pytest.mark.parametrize("picture", [(40, 50), (7, 9), (1, 1)])
def test_masks_are_pasted_as_by_detectron2_and_mmdetection(picture: tuple[int, int]):
    import torch

    random = np.random.default_rng(0)
    height, width = picture
    compared = 0
    for _ in range(60):
        corners = random.uniform(-0.1, 1.1, (2, 2)) * (width, height)
        box = np.clip([*corners.min(0), *corners.max(0)], 0, [width, height] * 2)
        if random.random() < 0.3:
            box = np.round(box * 2) / 2  # edges on pixels and between them
        if (box[2:] <= box[:2]).any():
            continue
        mask = random.random((28, 28)).astype(np.float32)
        # Detectron2's layers/mask_ops.py and mmdetection's fcn_mask_head.py, _do_paste_mask, over the whole picture.
        left, top, right, bottom = torch.tensor(box, dtype=torch.float32)
        rows = ((torch.arange(height) + 0.5) - top) / (bottom - top) * 2 - 1
        columns = ((torch.arange(width) + 0.5) - left) / (right - left) * 2 - 1
        grid = torch.stack([columns[None].expand(height, -1), rows[:, None].expand(-1, width)], 2)[None]
        theirs = torch.nn.functional.grid_sample(torch.tensor(mask)[None, None], grid, align_corners=False)[
            0, 0
        ].numpy()
        crop = paste(mask, box, picture)
        ours = np.zeros(picture, np.bool_)
        ours[crop.place] = crop.pixels
        decided = np.abs(theirs - 0.5) > 1e-4  # rounding decides nearer to the threshold
        assert np.array_equal(ours[decided], theirs[decided] >= 0.5)
        compared += int(decided.sum())
    assert compared > 40 * height * width


def outputs(boxes: Any, scores: Any, classes: Any, count: int, mask: float = 1.0) -> dict[str, np.ndarray]:
    return {
        "boxes": np.array([boxes], np.float32),
        "scores": np.array([scores], np.float32),
        "classes": np.array([classes], np.int64),
        "masks": np.full((1, len(scores), 28, 28), mask, np.float32),
        "count": np.array([count], np.int64),
    }


FIT = replace(PREPROCESSING.with_size((100, 200)))
ABOUT = ModelMetadata("nat", task="detection", num_classes=3, labels=LABELS, preprocessing=FIT)


def read(found: dict[str, np.ndarray], picture: tuple[int, int] = (50, 40), **changes: Any) -> Segmentation:
    result = read_result(replace(ABOUT, **changes), found, FIT, picture)
    assert isinstance(result, Segmentation)
    return result


def test_boxes_lie_in_the_picture_and_beyond_it_there_is_nothing():
    # A picture of 50×40 becomes 100×80 in an input of 100×200; the rest is padding.
    rows = [[10, 20, 50, 60], [-8, -2, 30, 30], [60, 70, 120, 130], [100, 0, 150, 50], [0, 0, 0, 20], [0, 0, 9, 9]]
    result = read(outputs(rows, [0.6, 0.9, 0.8, 0.9, 0.9, 0.4], [0, 1, 2, 0, 0, 0], 6))
    assert [(each.label, each.box) for each in result.segments] == [
        ("tree [old]", (0, 0, 15, 15)),
        ("car", (30, 35, 10, 15)),
        ("person", (5, 10, 20, 20)),
    ]
    assert [each.area for each in result.segments] == [225, 150, 400]
    assert result.ids[12, 6] == 1  # the better lies on top
    assert read(outputs(rows, [0.6] * 6, [0] * 6, 0)).segments == ()


def test_rows_beyond_the_count_are_no_objects():
    rows, classes = [[0, 0, 20, 20], [0, 0, 0, 0]], [1, -1]
    (segment,) = read(outputs(rows, [0.3, 0.0], classes, 1), thresholds={"score": 0.0}).segments
    assert (segment.class_index, segment.label) == (1, "tree [old]")


def test_an_object_whose_mask_is_empty_keeps_its_box():
    (segment,) = read(outputs([[0, 0, 20, 20]], [0.7], [1], 1, mask=0.2)).segments
    assert (segment.area, segment.box) == (0, (0, 0, 10, 10))


@pytest.mark.parametrize("bad", ["boxes", "scores"])
def test_numbers_that_are_none_are_refused(bad: str):
    found = outputs([[0, 0, 20, 20]], [0.7], [1], 1)
    found[bad][:] = np.nan
    with pytest.raises(NaDeployError, match="boxes or scores that are NaN or infinite"):
        read(found)


def test_coco_s_results_carry_boxes_with_fractions_and_masks_where_there_are_any(tmp_path: Path):
    picture = colour_picture(321, 239)
    entries = predicted(tmp_path / "model.onnx", picture).to_coco(LABELS)
    for entry in entries:
        assert decode_mask(entry["segmentation"]).sum() == entry["area"]
    assert any(side != round(side) for entry in entries for side in entry["bbox"])
    plain = predicted(tmp_path / "model.onnx", picture, masks=False).to_coco(LABELS)
    assert [entry["bbox"] for entry in plain] == [entry["bbox"] for entry in entries]
    assert not any("segmentation" in entry for entry in plain)


@pytest.mark.parametrize("masks", [True, False])
def test_the_drawing_shows_boxes_masks_and_names(masks: bool, tmp_path: Path):
    result = predicted(tmp_path / "model.onnx", colour_picture(640, 480), masks=masks)
    drawn = np.asarray(draw_segments(Image.new("RGB", (640, 480), (128, 128, 128)), result), np.int64)
    colours = segment_colours(result)
    assert [colours[segment.id] for segment in result.segments] == [
        COLOURS[1:][segment.class_index] for segment in result.segments
    ]
    for segment in result.segments:
        x, y, width, height = segment.box
        middle = drawn[round(y + height / 2), round(x) + 20 : round(x + width) - 20]
        wanted = 0.48 * 128 + 0.52 * np.array(colours[segment.id]) if masks else np.full(3, 128)
        assert np.abs(np.median(middle, 0) - wanted).max() < 2
        edge = drawn[round(y + height / 2), max(round(x) - 3, 0) : round(x) + 5]
        assert np.abs(edge - colours[segment.id]).sum(1).min() < 30
        letters = drawn[max(round(y) - 30, 0) : round(y) + 30, round(x) : round(x) + 90]
        assert (letters.min(2) > 230).sum() > 30


def test_a_cropping_preprocessing_is_refused():
    with pytest.raises(NaDeployError, match="cuts off pictures' edges"):
        read_result(ABOUT, outputs([[0, 0, 1, 1]], [0.7], [1], 1), Preprocessing(), (50, 40))
