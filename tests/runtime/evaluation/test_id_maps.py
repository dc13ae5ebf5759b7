"""Semantic segmenters are scored on maps of class numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from segmenters import LABELS, colour_picture, segmenter

import na_deploy
from na_deploy.errors import NaDeployError, UsageError
from na_deploy.runtime.evaluation.compare import Target, evaluate
from na_deploy.runtime.evaluation.id_maps import IdMaps, confusion, intersection_over_union

SIZES = ((60, 40), (33, 50), (60, 40), (90, 20), (21, 21))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of pictures and maps, whose class of a random part is another."""
    random = np.random.default_rng(0)
    for part in ("images/town", "maps/town"):
        (tmp_path / part).mkdir(parents=True)
    for index, size in enumerate(SIZES):
        picture = colour_picture(*size)
        picture.save(tmp_path / f"images/town/{index}_leftImg8bit.png")
        pixels = np.asarray(picture, np.int64)
        truth = np.select([pixels[..., 0] > 200, pixels[..., 1] > 150, pixels[..., 2] > 200], [1, 2, 3], 0)
        wrong = random.random(truth.shape) < 0.1
        truth[wrong] = random.integers(0, 4, int(wrong.sum()))
        truth[:2] = 255
        Image.fromarray(truth.astype(np.uint8)).save(tmp_path / f"maps/town/{index}_gtFine_labelTrainIds.png")
    return tmp_path


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_overlaps_are_those_of_all_pixels_together(folder: Path, task: str):
    model = folder / "model.onnx"
    onnx.save(segmenter(task, "batch"), model)
    data = IdMaps(folder / "images", folder / "maps")
    shared, union, right, count = np.zeros(4), np.zeros(4), 0, 0
    with na_deploy.load(model) as session:
        for picture, path in zip(data.pictures, data.maps, strict=True):
            found = session.predict(picture, task="semantic").class_map()  # type: ignore[union-attr]
            there = np.asarray(Image.open(path))
            counted = there != 255
            right, count = right + (found == there)[counted].sum(), count + counted.sum()
            for number in range(4):
                own, others = (there == number)[counted], (found == number)[counted]
                shared[number] += (own & others).sum()
                union[number] += (own | others).sum()
    for batch in (1, 3):
        (row,) = evaluate([Target("model", model)], data, batch=batch).rows
        shares = row.figures.overall[""]
        assert shares["mIoU"] == pytest.approx(np.mean(shared / union))
        assert shares["pixel accuracy"] == pytest.approx(right / count)
        assert list(row.figures.classes[""].items()) == [
            (LABELS[number], pytest.approx(shared[number] / union[number])) for number in range(4)
        ]


def test_pixels_are_counted_by_class():
    there, found = np.array([[0, 0, 1, 1, -1]]), np.array([[0, 1, 1, -1, 0]])
    counts = confusion(there, found, 3)
    assert counts.tolist() == [[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]]
    np.testing.assert_allclose(intersection_over_union(counts), [0.5, 1 / 3, np.nan])


def test_maps_may_count_from_one_and_have_a_palette(folder: Path):
    for path in (folder / "maps").rglob("*.png"):
        values = np.asarray(Image.open(path))
        image = Image.fromarray(np.where(values == 255, 0, values + 1).astype(np.uint8))
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette(list(range(256)) * 3)
        image.save(path)
    before = IdMaps(folder / "images", folder / "maps", first=1).truth(0, 4)
    assert before.min() == -1
    assert before.max() == 3
    assert (before[:2] == -1).all()


def test_what_cannot_be_scored_is_said(folder: Path):
    model = folder / "model.onnx"
    onnx.save(segmenter("instance"), model)
    images, maps = folder / "images", folder / "maps"
    (folder / "empty").mkdir()
    for arguments, message in (
        ((folder / "absent", maps), "does not exist; give --images a folder of pictures"),
        ((images, model), "is a file; give --maps a folder of id maps"),
        ((folder / "empty", maps), "holds no pictures"),
        (
            (images, folder / "empty"),
            r"5 of 5 pictures have no id map in .*empty, the first is 0_left.*expected town/0.png",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            IdMaps(*arguments)
    data = IdMaps(images, maps, ignored=254)
    with pytest.raises(UsageError, match="holds the value 255, and the model has 4 classes; give --ignore"):
        evaluate([Target("model", model)], data)
    Image.new("RGB", SIZES[0]).save(data.maps[0])
    with pytest.raises(UsageError, match="is a picture in colours"):
        evaluate([Target("model", model)], data)
    Image.new("L", (7, 9)).save(data.maps[0])
    with pytest.raises(UsageError, match="has 7×9 pixels and its picture 60×40"):
        evaluate([Target("model", model)], data)
    data.maps[0].write_bytes(b"\x89PNG")
    with pytest.raises(NaDeployError, match="is not an id map that can be read"):
        evaluate([Target("model", model)], data)
