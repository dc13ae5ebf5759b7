"""Detectors and segmenters of objects are scored as pycocotools scores their results."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from detectors import LABELS, detector
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from segmenters import colour_picture, segmenter

from na_deploy.cli.main import run
from na_deploy.errors import MissingDependencyError, NaDeployError, UsageError
from na_deploy.models.class_sets import class_set
from na_deploy.runtime.evaluation.annotations import match_categories
from na_deploy.runtime.evaluation.coco import CocoPictures
from na_deploy.runtime.evaluation.compare import Target, evaluate
from na_deploy.runtime.results.rle import encode_mask

CATEGORIES = {7: "Car", 3: "person", 90: "nothing", 4: "tree [old]"}


def annotations(folder: Path, masks: bool = True) -> dict[str, Any]:
    """Draw pictures and return their annotations: boxes that are off by some pixels, so that precision is not one."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(exist_ok=True)
    images, objects = [], []
    for number, (width, height) in enumerate([(160, 120), (200, 90), (300, 300), (64, 64), (400, 220)]):
        name = f"{number}.png"
        colour_picture(width, height).save(folder / "images" / name)
        images.append({"id": number + 10, "file_name": name, "width": width, "height": height})
        places = {3: (0.1, 0.1, 0.3, 0.4), 7: (0.6, 0.2, 0.3, 0.3), 4: (0, 0.75, 1, 0.25)}
        for category, place in places.items():
            box = np.array(place) * [width, height, width, height] + random.uniform(-0.04, 0.04, 4) * min(width, height)
            x, y, wide, tall = np.clip(box, 0, None).tolist()
            mask = np.zeros((height, width), np.bool_)
            mask[round(y) : round(y + tall), round(x) : round(x + wide)] = True
            entry = {"id": len(objects), "image_id": number + 10, "category_id": category, "bbox": [x, y, wide, tall]}
            entry |= {"area": int(mask.sum()), "iscrowd": 0}
            objects.append({**entry, **({"segmentation": encode_mask(mask)} if masks else {})})
    categories = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
    return {"images": images, "annotations": objects, "categories": categories}


def written(folder: Path, content: Any) -> Path:
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def reference(content: dict[str, Any], results: list[dict[str, Any]], kind: str) -> np.ndarray:
    """Return pycocotools' figures, from files as its users give them."""
    with redirect_stdout(StringIO()):
        truth = COCO()
        truth.dataset = {**content, "annotations": [{**each, "id": each["id"] + 1} for each in content["annotations"]]}
        truth.createIndex()
        measured = COCOeval(truth, truth.loadRes(results), kind)
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    return np.asarray(measured.stats)


@pytest.mark.parametrize("masks", [True, False])
def test_precision_is_pycocotools_on_the_results_that_run_prints(masks: bool, tmp_path: Path, capsys: Any):
    content = annotations(tmp_path)
    onnx.save(detector("batch", masks=masks), tmp_path / "model.onnx")
    data = CocoPictures(written(tmp_path, content), tmp_path / "images")
    (row,) = evaluate([Target("model", tmp_path / "model.onnx")], data, batch=2).rows
    pictures = [str(path) for path in data.pictures]
    assert run(["run", str(tmp_path / "model.onnx"), *pictures, "--threshold", "0", "--json"]) == 0
    numbers = {
        number: category
        for category, name in CATEGORIES.items()
        for number, own in LABELS.items()
        if own.casefold() == name.casefold()
    }
    results = [
        {**entry, "image_id": image["id"], "category_id": numbers[entry["class"]]}
        for image, picture in zip(content["images"], json.loads(capsys.readouterr().out)["pictures"], strict=True)
        for entry in picture["segments"]
    ]
    assert all(("segmentation" in entry) == masks for entry in results)
    wanted = {"boxes": "bbox", "masks": "segm"} if masks else {"boxes": "bbox"}
    assert set(row.figures.overall) == set(wanted)
    for name, kind in wanted.items():
        if kind == "segm":
            results = [{key: value for key, value in entry.items() if key != "bbox"} for entry in results]
        stats = reference(content, results, kind)
        own = row.figures.overall[name]
        assert 0.1 < stats[0] < 0.95
        expected = [None if value < 0 else pytest.approx(value, abs=1e-6) for value in stats[[0, 1, 2, 3, 4, 5, 8]]]
        assert list(own.values()) == expected
        classes = [value for value in row.figures.classes[name].values() if value is not None]
        assert len(classes) == 3
        assert np.mean(classes) == pytest.approx(stats[0])


def test_instances_of_a_segmenter_are_scored(tmp_path: Path):
    onnx.save(segmenter("panoptic"), tmp_path / "model.onnx")
    content = annotations(tmp_path)
    content["annotations"] = [each for each in content["annotations"] if each["category_id"] != 4]
    data = CocoPictures(written(tmp_path, content), tmp_path / "images")
    (row,) = evaluate([Target("model", tmp_path / "model.onnx")], data).rows
    assert row.figures.overall["boxes"]["AP50"] == pytest.approx(1)
    assert (row.figures.overall["masks"]["AP50"] or 0) > 0.1
    assert set(row.figures.classes["masks"]) == {"Car", "person"}


def test_a_detector_that_finds_nothing_has_no_precision(tmp_path: Path):
    content = annotations(tmp_path)
    for image in content["images"]:
        colour_picture(image["width"], image["height"]).convert("1").point(lambda _: 0).save(
            tmp_path / "images" / image["file_name"]
        )
    onnx.save(detector(), tmp_path / "model.onnx")
    data = CocoPictures(written(tmp_path, content), tmp_path / "images")
    (row,) = evaluate([Target("model", tmp_path / "model.onnx")], data).rows
    assert row.figures.overall["boxes"]["AP"] == row.figures.overall["masks"]["AP"] == 0


def test_categories_are_classes_by_name_by_number_or_in_order():
    assert match_categories({5: "Cat", 2: "dog"}, {0: "bird", 1: "dog", 2: "cat"}, 3) == ({1: 2, 2: 5}, "by name")
    coco = class_set("coco")
    numbers, rule = match_categories({1: "Mensch", 90: "Zahnbürste"}, coco.labels, 80)
    assert (numbers[0], numbers[79], "COCO" in rule) == (1, 90, True)
    assert match_categories({4: "b", 2: "a"}, {}, 2) == ({0: 2, 1: 4}, "in the order of their numbers")
    with pytest.raises(UsageError, match="have 2 categories, the model has 3 classes, none named 'b'"):
        match_categories({4: "b", 2: "a"}, {0: "a", 1: "c", 2: "d"}, 3)


def test_pycocotools_is_asked_for_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(MissingDependencyError, match=r"needs pycocotools; .*'na-deploy\[eval\]'"):
        CocoPictures(written(tmp_path, annotations(tmp_path)), tmp_path / "images")


def test_what_cannot_be_scored_is_said(tmp_path: Path):
    content = annotations(tmp_path)
    images = tmp_path / "images"
    for change, message in (
        ({"annotations": []}, "holds no annotations"),
        ({"annotations": None}, "needs a list 'annotations' of objects with image_id and category_id"),
        ({"images": [{"id": 1}]}, "needs a list 'images' of objects with id and file_name"),
        ({"annotations": [{"image_id": 10, "category_id": 3}]}, "annotations without bbox"),
        (
            {"images": [{"id": 10, "file_name": "gone.png"}]},
            "1 of 1 pictures that .* lists are not in .*first is gone.png",
        ),
        (
            {"images": content["images"][:1], "annotations": content["annotations"][3:]},
            "no annotation of the 1 pictures",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            CocoPictures(written(tmp_path, {**content, **change}), images)
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(NaDeployError, match="are not valid JSON"):
        CocoPictures(tmp_path / "text.json", images)
    with pytest.raises(UsageError, match="cannot read the annotations"):
        CocoPictures(tmp_path / "absent.json", images)
    data = CocoPictures(written(tmp_path, content), images)
    onnx.save(segmenter("semantic"), tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="answers with semantic, and --coco is for detectors"):
        evaluate([Target("model", tmp_path / "model.onnx")], data)
    onnx.save(detector(), tmp_path / "model.onnx")
    colour_picture(20, 20).save(data.pictures[0])
    with pytest.raises(UsageError, match="has 20×20 pixels and is annotated with 160×120"):
        evaluate([Target("model", tmp_path / "model.onnx")], data)
