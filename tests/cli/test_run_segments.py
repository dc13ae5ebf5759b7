"""``na-deploy run`` on segmenters: a table, a drawing, COCO's results and raw outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from detectors import detector
from PIL import Image
from segmenters import colour_picture, png_start, segmenter

from na_deploy.cli.main import run
from na_deploy.runtime.results.rle import decode_mask


def call(capsys: Any, *arguments: Any) -> tuple[int, str, str]:
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(segmenter("panoptic"), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "first.png", tmp_path / "second.jpg"]
    for path, size in zip(paths, [(160, 120), (90, 200)], strict=True):
        colour_picture(*size).save(path)
    return paths


def test_segments_are_listed_and_drawn(model: Path, photos: list[Path], tmp_path: Path, capsys):
    code, out, _ = call(capsys, "run", model, photos[0], "-o", tmp_path / "out.png")
    assert code == 0
    assert "first.png, 160×120: 4 segments" in out
    rows = [line.split() for line in out.splitlines() if "■" in line]
    assert {row[1] for row in rows} == {"wall", "person", "tree", "car"}
    areas = [
        int(row[-3].replace(",", "")) if row[-2].startswith("█") else int(row[-2].replace(",", "")) for row in rows
    ]
    assert areas == sorted(areas, reverse=True)
    assert sum(areas) == 160 * 120
    assert "[old]" in out  # names are text, not markup
    assert Image.open(tmp_path / "out.png").size == (480, 360)


def test_many_pictures_are_drawn_into_a_folder(model: Path, photos: list[Path], tmp_path: Path, capsys):
    folder = tmp_path / "drawn"
    folder.mkdir()
    code, out, _ = call(capsys, "run", model, *photos, "-o", folder)
    assert code == 0
    assert "for 2 pictures" in out
    assert sorted(path.name for path in folder.iterdir()) == ["first_segments.png", "second_segments.png"]
    code, _, err = call(capsys, "run", model, *photos, "-o", tmp_path / "one.png")
    assert (code, (tmp_path / "one.png").exists()) == (2, False)
    assert "is one picture and 2 were given; give a folder" in err


def test_json_gives_coco_s_results(model: Path, photos: list[Path], capsys):
    code, out, _ = call(capsys, "run", model, *photos, "--json", "--task", "instance", "--threshold", "0.2")
    assert code == 0
    content = json.loads(out)
    assert [(each["task"], each["width"], each["height"]) for each in content["pictures"]] == [
        ("instance", 160, 120),
        ("instance", 90, 200),
    ]
    for picture in content["pictures"]:
        assert {each["category"] for each in picture["segments"]} == {"person", "car"}
        for each in picture["segments"]:
            mask = decode_mask(each["segmentation"])
            assert mask.shape == (picture["height"], picture["width"])
            assert mask.sum() == each["area"]


def test_objects_are_listed_with_their_boxes_and_drawn(photos: list[Path], tmp_path: Path, capsys):
    onnx.save(detector(), tmp_path / "things.onnx")
    code, out, _ = call(capsys, "run", tmp_path / "things.onnx", photos[0], "-o", tmp_path / "out.png")
    assert code == 0
    assert "first.png, 160×120: 3 objects" in out
    rows = [line.split() for line in out.splitlines() if "■" in line]
    tree = next(row for row in rows if row[1] == "tree")
    assert tree[2:8] == ["[old]", "100.0%", "0.0", "90.0", "160.0", "30.0"]
    assert Image.open(tmp_path / "out.png").size == (480, 360)
    code, out, _ = call(capsys, "run", tmp_path / "things.onnx", photos[0], "--threshold", "0.9", "--json")
    (picture,) = json.loads(out)["pictures"]
    assert (code, picture["task"]) == (0, "detection")
    assert all(each["score"] > 0.9 for each in picture["segments"])
    code, out, _ = call(capsys, "run", tmp_path / "things.onnx", photos[0], "-o", tmp_path / "raw.npz")
    with np.load(tmp_path / "raw.npz") as arrays:
        assert set(arrays) == {"boxes", "scores", "classes", "masks", "count"}


def test_raw_outputs_are_written_as_arrays(model: Path, photos: list[Path], tmp_path: Path, capsys):
    code, _, _ = call(capsys, "run", model, photos[0], "-o", tmp_path / "raw.npz")
    assert code == 0
    with np.load(tmp_path / "raw.npz") as arrays:
        assert {name: arrays[name].shape[:2] for name in arrays} == {"class_logits": (1, 5), "mask_logits": (1, 5)}
    code, _, err = call(capsys, "run", model, *photos, "-o", tmp_path / "raw.npz")
    assert code == 2
    assert "several sizes" in err


def test_other_names_can_be_given(model: Path, photos: list[Path], tmp_path: Path, capsys):
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\n")
    code, out, _ = call(capsys, "run", model, photos[0], "--labels", tmp_path / "names.txt")
    assert code == 0
    assert {line.split()[1] for line in out.splitlines() if "■" in line} == set("abcd")
    (tmp_path / "names.txt").write_text("a\nb\n")
    code, _, err = call(capsys, "run", model, photos[0], "--labels", tmp_path / "names.txt")
    assert (code, "name 2 classes, the model has 4" in err) == (2, True)


def test_what_only_segmenters_have_is_refused_elsewhere(write_model, photos: list[Path], tmp_path: Path, capsys):
    plain = write_model()
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 32, 32), np.float32))
    for options, word in (
        (("--threshold", "0.5"), "--threshold"),
        (("--task", "semantic"), "--task"),
        (("-o", tmp_path / "a.png"), "-o with a picture"),
    ):
        code, _, err = call(capsys, "run", plain, tmp_path / "x.npy", *options)
        assert code == 2
        assert f"gives no segments of these inputs; remove {word}" in err


@pytest.mark.parametrize("size", [(1, 1), (12_000, 1), (1, 12_000), (12_000, 300)])
def test_tiny_and_very_long_pictures_are_answered_at_their_own_size(
    model: Path, size: tuple[int, int], tmp_path, capsys
):
    width, height = size
    colour_picture(*size).save(tmp_path / "photo.png")
    code, out, _ = call(capsys, "run", model, tmp_path / "photo.png", "-o", tmp_path / "out.png", "--json")
    (picture,) = json.loads(out)["pictures"]
    assert (code, picture["width"], picture["height"]) == (0, width, height)
    assert sum(each["area"] for each in picture["segments"]) == width * height
    wide, tall = Image.open(tmp_path / "out.png").size
    assert max(wide, tall) <= 12_000
    assert wide * height == tall * width


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(model: Path, tmp_path: Path, capsys):
    (tmp_path / "large.png").write_bytes(png_start(12_000, 12_000))
    code, _, err = call(capsys, "run", model, tmp_path / "large.png")
    assert (code, "large.png has 12000×12000 pixels, at most 89478485 are taken; scale it down first" in err) == (
        1,
        True,
    )
