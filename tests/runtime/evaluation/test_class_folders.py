"""Classifiers are scored on class folders, and models side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import na_deploy
from na_deploy.errors import NaDeployError, UsageError
from na_deploy.models.metadata import ModelMetadata
from na_deploy.models.preprocessing import hugging_face_classification
from na_deploy.runtime.evaluation.class_folders import ClassFolders, match_folders
from na_deploy.runtime.evaluation.compare import Target, evaluate
from na_deploy.runtime.images.prepare import prepare

NAMES = {index: f"kind {index}" for index in range(10)}
ABOUT = ModelMetadata("nat_mini", num_classes=10, preprocessing=hugging_face_classification(32), labels=NAMES)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Return a folder of pictures of noise, some in each of ten folders."""
    random = np.random.default_rng(0)
    for index in range(23):
        folder = tmp_path / "val" / f"Kind_{index % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        size = (40, 30) if index % 2 else (25, 31)
        Image.fromarray(random.integers(0, 255, (*size, 3), np.uint8)).save(folder / f"{index:02}.png")
    (tmp_path / "val" / "Kind_3" / "notes.txt").write_text("no picture")
    return tmp_path / "val"


def test_top_1_and_top_5_are_those_of_the_raw_scores(write_model: Callable[..., Path], pictures: Path):
    model = write_model(batch="batch", properties=ABOUT.to_props())
    files = sorted(pictures.rglob("*.png"))
    batch = np.concatenate([prepare(Image.open(path), ABOUT.preprocessing) for path in files])
    with na_deploy.load(model) as session:
        scores = session.run(batch)["logits"]
    wanted = np.array([int(path.parent.name[-1]) for path in files])
    ranks = (scores > scores[range(len(files)), wanted][:, None]).sum(1)
    for size in (1, 4):
        report = evaluate([Target("model", model)], ClassFolders(pictures), batch=size)
        (row,) = report.rows
        assert row.figures.overall[""] == {"top-1": np.mean(ranks < 1), "top-5": np.mean(ranks < 5)}
        assert row.figures.answers == tuple(scores.argmax(1).tolist())
        own = [ranks[wanted == 3] < 1]
        assert row.figures.classes[""]["Kind_3"] == pytest.approx(np.mean(own))
    assert report.pictures == 23
    assert report.notes == ("Folders are the model's classes by name",)


def test_others_are_compared_with_the_first(write_model: Callable[..., Path], pictures: Path):
    one = write_model("one.onnx", properties=ABOUT.to_props())
    two = write_model("two.onnx", properties=ABOUT.to_props(), seed=1)
    shown = []

    def counted(items: range, label: str):
        for item in items:
            yield item
            shown.append((label, item))

    data = ClassFolders(pictures, limit=8)
    targets = [Target("one", one), Target("again", one), Target("two", two)]
    report = evaluate(targets, data, counted=counted)
    first, again, other = report.rows
    assert (first.same, again.same) == (1.0, 1.0)
    assert other.same == pytest.approx(np.mean(np.equal(first.figures.answers, other.figures.answers)))
    assert shown == [(label, item) for label in ("one", "again", "two") for item in range(8)]
    assert len({path.parent for path in data.pictures}) > 4  # spread over the classes


def test_folders_are_classes_by_name_by_number_or_in_order():
    assert match_folders(["great_white-Shark", "tench"], {0: "tench, Tinca tinca", 1: "great white shark"}, 2) == (
        {"great_white-Shark": 1, "tench": 0},
        "by name",
    )
    assert match_folders(["0", "10", "2"], {}, 12) == ({"0": 0, "10": 10, "2": 2}, "by number")
    assert match_folders(["n01", "n02"], NAMES, 2) == ({"n01": 0, "n02": 1}, "in alphabetical order")
    twice = {0: "crane", 1: "crane"}
    assert match_folders(["bird", "crane"], twice, 2)[1] == "in alphabetical order"  # a name of two classes tells none
    for folders, labels, count in ((["a", "b"], NAMES, 10), (["0", "10"], {}, 10), (["a"], {}, 0)):
        with pytest.raises(UsageError, match=f"there are {len(folders)} class folders, the model has"):
            match_folders(folders, labels, count)


def test_what_cannot_be_scored_is_said(write_model: Callable[..., Path], pictures: Path, tmp_path: Path):
    for folder, message in (
        (tmp_path / "absent", "does not exist; give --images a folder of class folders"),
        (pictures / "Kind_1", "holds no class folders with pictures; .* the 4 pictures beside them have no class"),
    ):
        with pytest.raises(UsageError, match=message):
            ClassFolders(folder)
    features = write_model("features.onnx", properties={**ABOUT.to_props(), "na_deploy.task": "features"})
    good = write_model("good.onnx", properties=ABOUT.to_props())
    seen: list[str] = []

    def counted(items: range, label: str):
        seen.append(label)
        yield from items

    with pytest.raises(UsageError, match="answers with features, and class folders are for classifiers"):
        evaluate([Target("good", good), Target("bad", features)], ClassFolders(pictures), counted=counted)
    plain = write_model("plain.onnx")
    with pytest.raises(UsageError, match=r"plain\.onnx does not say how images are prepared"):
        evaluate([Target("good", good), Target("plain", plain)], ClassFolders(pictures), counted=counted)
    assert not seen  # before the first model ran
    (pictures / "Kind_0" / "00.png").write_bytes(b"no picture")
    with pytest.raises(NaDeployError, match=r"good: .*00\.png is not an image"):
        evaluate([Target("good", good)], ClassFolders(pictures))
