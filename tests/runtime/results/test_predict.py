"""A session answers a picture with a typed result, whatever the size of the picture and of the model's input."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from PIL import Image
from segmenters import LABELS, PREPROCESSING, colour_picture, segmenter, squared

import na_deploy
from na_deploy.errors import UsageError
from na_deploy.models.metadata import ModelMetadata
from na_deploy.models.preprocessing import hugging_face_classification, official_classification
from na_deploy.runtime.pictures.segments import class_colour, draw_segments, segment_colours
from na_deploy.runtime.results.predict import Classification, Features, Segmentation

TASKS = ("semantic", "instance", "panoptic")


def write(path: Path, *arguments: Any, **options: Any) -> Path:
    onnx.save(segmenter(*arguments, **options), path)
    return path


def truth(picture: Image.Image) -> np.ndarray:
    """Return the class of each pixel, by its colour."""
    pixels = np.asarray(picture, np.int64)
    return np.select([pixels[..., 0] > 200, pixels[..., 1] > 150, pixels[..., 2] > 200], [1, 2, 3], 0)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", [(320, 240), (75, 200)])
@pytest.mark.parametrize(
    "options",
    [{}, {"height": 96, "width": 96, "preprocessing": squared(96)}, {"batch": 3}, {"dtype": TensorProto.FLOAT16}],
    ids=["free sizes", "a fixed square", "a fixed batch", "half precision"],
)
def test_every_segmenter_finds_what_is_there(task: str, size: tuple[int, int], options: dict[str, Any], tmp_path: Path):
    picture = colour_picture(*size)
    with na_deploy.load(write(tmp_path / "model.onnx", task, **options)) as session:
        result = session.predict(picture)
    assert isinstance(result, Segmentation)
    assert (result.task, result.size) == (task, size[::-1])
    assert {segment.label for segment in result.segments} == set(LABELS.values())
    assert np.mean(result.class_map() == truth(picture)) > 0.9
    for segment in result.segments:
        mask = result.mask(segment)
        assert segment.area == mask.sum()
        assert 0.5 < segment.score <= 1
        x, y, width, height = segment.box
        assert mask[y : y + height, x : x + width].sum() == segment.area
    things = {segment.label for segment in result.segments if segment.is_thing}
    assert things == ({"person", "car"} if task == "panoptic" else set(LABELS.values()))


def test_files_images_and_arrays_are_pictures(tmp_path: Path):
    picture = colour_picture()
    picture.save(tmp_path / "picture.png")
    with na_deploy.load(write(tmp_path / "model.onnx", "semantic")) as session:
        results = [
            session.predict(given)
            for given in (picture, tmp_path / "picture.png", str(tmp_path / "picture.png"), np.asarray(picture))
        ]
        for result in results:
            assert isinstance(result, Segmentation)
            assert np.array_equal(result.ids, results[0].ids)  # type: ignore[union-attr]
        for wrong in (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)):
            with pytest.raises(UsageError, match="array of uint8, height×width×3"):
                session.predict(wrong)
        with pytest.raises(UsageError, match=r"absent\.png does not exist; give an image"):
            session.predict(tmp_path / "absent.png")


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (3000, 2), (6, 5)])
def test_pictures_of_extreme_sizes_are_answered_at_their_size(size: tuple[int, int], tmp_path: Path):
    for task in TASKS:
        with na_deploy.load(write(tmp_path / f"{task}.onnx", task)) as session:
            result = session.predict(Image.new("RGB", size, (230, 40, 40)))
        assert isinstance(result, Segmentation)
        assert (result.size, len(result.segments)) == (size[::-1], 1)
        assert result.segments[0].area == size[0] * size[1]
        assert draw_segments(Image.new("RGB", size), result).width >= size[0]


def test_a_segmenter_with_queries_answers_other_tasks_and_thresholds(tmp_path: Path):
    picture = colour_picture()
    with na_deploy.load(write(tmp_path / "model.onnx", "panoptic")) as session:
        found = {task: session.predict(picture, task=task) for task in TASKS}
        assert [found[task].task for task in TASKS] == list(TASKS)  # type: ignore[union-attr]
        objects = found["instance"]
        assert {segment.label for segment in objects.segments} == {"person", "car"}  # type: ignore[union-attr]
        assert session.predict(picture, thresholds={"score": 0.9999}).segments == ()  # type: ignore[union-attr]
        named = session.predict(picture, labels={0: "house"})
        assert {segment.label for segment in named.segments} == {"house", "class 1", "class 2", "class 3"}  # type: ignore[union-attr]
    plain = write(tmp_path / "plain.onnx", "semantic")
    with (
        na_deploy.load(plain) as session,
        pytest.raises(UsageError, match="asked for, and the model answers as semantic"),
    ):
        session.predict(picture, task="instance")


def test_models_that_cannot_answer_say_why(tmp_path: Path):
    picture = colour_picture()
    cropping = write(tmp_path / "crop.onnx", "semantic", preprocessing=official_classification(64))
    with na_deploy.load(cropping) as session, pytest.raises(UsageError, match="cuts off pictures' edges"):
        session.predict(picture)
    model = segmenter("semantic")
    onnx.helper.set_model_props(model, ModelMetadata("nat", task="panoptic", preprocessing=PREPROCESSING).to_props())
    wrong = tmp_path / "wrong.onnx"
    onnx.save(model, wrong)
    with na_deploy.load(wrong) as session, pytest.raises(UsageError, match="gives class_logits and mask_logits, or"):
        session.predict(picture)


def test_classifiers_and_features_have_their_own_results(write_model: Callable[..., Path], tmp_path: Path):
    about = ModelMetadata("nat_mini", preprocessing=hugging_face_classification(32), labels={3: "finch"})
    with na_deploy.load(write_model(properties=about.to_props())) as session:
        result = session.predict(colour_picture(), top=10)
        assert isinstance(result, Classification)
        assert sum(each.probability for each in result.predictions) == pytest.approx(1)
        assert next(each.label for each in result.predictions if each.index == 3) == "finch"
    features = replace(about, task="features")
    with na_deploy.load(write_model("features.onnx", properties=features.to_props())) as session:
        result = session.predict(colour_picture())
        assert isinstance(result, Features)
        assert {name: array.shape for name, array in result.outputs.items()} == {"logits": (1, 10)}
    with na_deploy.load(write_model("plain.onnx")) as session, pytest.raises(UsageError, match="does not say how"):
        session.predict(colour_picture())


def test_the_drawing_shows_masks_in_their_colours_outlines_and_names(tmp_path: Path):
    picture = Image.new("RGB", (640, 480), (128, 128, 128))
    shown = colour_picture(640, 480)
    with na_deploy.load(write(tmp_path / "model.onnx", "panoptic")) as session:
        result = session.predict(shown)
    assert isinstance(result, Segmentation)
    drawn = np.asarray(draw_segments(picture, result), np.int64)
    assert drawn.shape == (480, 640, 3)
    colours = segment_colours(result)
    assert len(set(colours.values())) == len(result.segments) == 4
    for segment in result.segments:
        mask = result.mask(segment)
        mean = drawn[mask].mean(0)
        nearest = min(colours, key=lambda number: np.abs(mean - (0.48 * 128 + 0.52 * np.array(colours[number]))).sum())
        assert nearest == segment.id
        assert (drawn[mask].min(1) > 180).sum() > 50  # outline and letters
    small = draw_segments(colour_picture(60, 45), session_free(result, (45, 60)))
    assert small.size == (480, 360)


def session_free(result: Segmentation, size: tuple[int, int]) -> Segmentation:
    """Return a result cut to another size."""
    return replace(result, ids=result.ids[: size[0], : size[1]])


def test_classes_without_a_palette_get_colours_that_differ():
    colours = [class_colour(index) for index in range(150)]
    assert len(set(colours)) > 145
    assert all(max(abs(a - b) for a, b in zip(one, two, strict=True)) > 30 for one, two in itertools.pairwise(colours))
    assert class_colour(1, ((1, 2, 3), (4, 5, 6))) == (4, 5, 6)


def test_the_preprocessing_follows_the_input_s_fixed_sides():
    assert PREPROCESSING.for_input(("batch", 3, "height", "width")) == PREPROCESSING
    fixed = PREPROCESSING.for_input((1, 3, 64, 64))
    assert (fixed.mode, fixed.size) == ("fit", (64, 64))
    half = hugging_face_classification(32).for_input((1, 3, "height", 48))
    assert half.size == (32, 48)
