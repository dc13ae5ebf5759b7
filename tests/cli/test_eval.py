"""``na-deploy eval``: models side by side, as tables and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from detectors import LABELS, detector
from PIL import Image
from segmenters import colour_picture, segmenter

from na_deploy.cli.eval import choose_targets
from na_deploy.cli.main import run
from na_deploy.errors import UsageError
from na_deploy.models.metadata import ModelMetadata
from na_deploy.models.preprocessing import hugging_face_classification


def call(capsys: Any, *arguments: Any) -> tuple[int, str, str]:
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of pictures, with id maps and boxes."""
    for part in ("images", "maps"):
        (tmp_path / part).mkdir()
    for index, size in enumerate([(60, 40), (33, 50)]):
        picture = colour_picture(*size)
        picture.save(tmp_path / "images" / f"{index}.png")
        pixels = np.asarray(picture)
        truth = np.select([pixels[..., 0] > 200, pixels[..., 1] > 150, pixels[..., 2] > 200], [1, 2, 3], 0)
        Image.fromarray(truth.astype(np.uint8)).save(tmp_path / "maps" / f"{index}.png")
    content = {
        "images": [{"id": 1, "file_name": "0.png"}, {"id": 2, "file_name": "1.png"}],
        "categories": [{"id": number, "name": name} for number, name in LABELS.items()],
        "annotations": [{"image_id": 1, "category_id": 2, "bbox": [36, 8, 18, 12]}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    return tmp_path


def test_segmenters_stand_side_by_side_with_a_table_of_classes(folder: Path, capsys: Any):
    onnx.save(segmenter("semantic"), folder / "one.onnx")
    onnx.save(segmenter("semantic", dtype=onnx.TensorProto.FLOAT16), folder / "two.onnx")
    models = (folder / "one.onnx", folder / "two.onnx")
    data = ("--images", folder / "images", "--maps", folder / "maps")
    code, out, _ = call(capsys, "eval", *models, *data)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert [line[:2] for line in lines if line[:1] == ["model"]] == [["model", "mIoU"]]
    assert sum(line[0] in ("one.onnx", "two.onnx") for line in lines if line) == 2
    assert "tree [old]" in out  # names are text, not markup
    assert "against the first" in out
    code, out, _ = call(capsys, "eval", *models, *data, "--json", "--limit", "1", "--backend", "onnxruntime")
    content = json.loads(out)
    assert (code, content["pictures"], len(content["models"])) == (0, 1, 2)
    assert content["models"][0]["mIoU"] > 0.8
    assert content["models"][0]["classes"]["person"] > 0.7


def test_every_model_runs_on_every_backend_that_is_asked_for(folder: Path, capsys: Any):
    pytest.importorskip("openvino")
    onnx.save(segmenter("semantic"), folder / "one.onnx")
    data = ("--images", folder / "images", "--maps", folder / "maps", "--json")
    code, out, _ = call(capsys, "eval", folder / "one.onnx", *data, "--backend", "onnxruntime,openvino:f32")
    rows = json.loads(out)["models"]
    assert (code, [row["label"] for row in rows]) == (0, ["one.onnx, onnxruntime", "one.onnx, openvino f32"])
    assert rows[0]["mIoU"] == pytest.approx(rows[1]["mIoU"], abs=1e-3)


def test_detectors_get_a_table_for_boxes_and_one_for_masks(folder: Path, capsys: Any):
    onnx.save(detector(), folder / "one.onnx")
    data = ("--images", folder / "images", "--coco", folder / "boxes.json")
    code, out, _ = call(capsys, "eval", folder / "one.onnx", *data)
    assert code == 0
    assert "Categories are the model's classes by name." in out
    assert [line.split()[:3] for line in out.splitlines() if line.split()[:1] == ["boxes"]] == [["boxes", "AP", "AP50"]]
    code, out, _ = call(capsys, "eval", folder / "one.onnx", *data, "--json")
    (row,) = json.loads(out)["models"]
    assert (code, row["boxes"]["large"], "masks" in row) == (0, None, False)
    assert row["boxes"]["AP50"] == pytest.approx(1)
    assert row["classes"]["boxes"]["car"] > 0.5


def test_classifiers_are_scored_on_class_folders(folder: Path, write_model: Any, capsys: Any):
    about = ModelMetadata("nat_mini", num_classes=10, preprocessing=hugging_face_classification(32))
    write_model("one.onnx", properties=about.to_props())
    for name in ("3", "8"):
        (folder / "classes" / name).mkdir(parents=True)
        colour_picture().save(folder / "classes" / name / "a.png")
    code, out, _ = call(capsys, "eval", folder / "one.onnx", "--images", folder / "classes")
    assert code == 0
    assert "Folders are the model's classes by number." in out
    assert "top-1" in out
    assert "top-5" in out


def test_what_does_not_fit_together_is_refused(folder: Path, capsys: Any):
    model = folder / "one.onnx"
    onnx.save(segmenter("semantic"), model)
    names = folder / "names.txt"
    names.write_text("a\nb\n")
    images = ("--images", folder / "images")
    for arguments, message in (
        ((model, *images, "--maps", folder / "maps", "--coco", folder / "boxes.json"), "give one of them"),
        ((model, model, *images), "is given twice"),
        ((model, *images), "holds no class folders with pictures"),
        ((model, "--images", folder), "answers with semantic, and class folders are for classifiers; give --maps"),
        ((model, *images, "--maps", folder / "maps", "--labels", names), "the labels name 2 classes, one.onnx has 4"),
        ((model, *images, "--precision", "bf16"), "--precision goes with --backend openvino"),
    ):
        code, out, err = call(capsys, "eval", *arguments)
        assert (code, out) == (2, "")
        assert message in err
        assert len(err.splitlines()) == 1


def test_what_only_checkpoints_are_asked_goes_to_them_alone(tmp_path: Path):
    file, checkpoint, folder = tmp_path / "model.onnx", tmp_path / "model.pth", tmp_path / "folder"
    for path in (file, checkpoint):
        path.touch()
    folder.mkdir()
    asked = {"arch": "nat", "task": "semantic"}
    targets, _ = choose_targets((file, checkpoint), None, None, {"threads": 1}, asked)
    assert [target.options for target in targets] == [{"threads": 1}, {"threads": 1, **asked}]
    (target,), _ = choose_targets((folder,), "torch", None, {}, asked)
    assert target.options == {"backend": "torch", **asked}
    with pytest.raises(UsageError, match="--arch is for checkpoints, and none is given; remove it"):
        choose_targets((file,), None, None, {}, asked)
