"""The trained segmenter of shapes: in fp32, fp16 and int8, it finds what training did not show it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import na_deploy
from na_deploy.models.metadata import ModelMetadata
from na_deploy.runtime.quantization.quantize import quantize
from na_deploy.runtime.results.predict import Segmentation

SHAPES = Path(__file__).parents[2] / "examples" / "shapes"
sys.path.insert(0, str(SHAPES))

from draw import CLASSES, PALETTE, UNSEEN, draw_folder, draw_picture  # noqa: E402
from evaluate import evaluate  # noqa: E402
from train import mean_iou, train  # noqa: E402

REPORTED = 0.796
"""mIoU that examples/shapes/README.md reports, on 200 pictures; that of fewer differs by less than 0.04."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the committed checkpoint in both precisions, and quantized on pictures of the training."""
    folder = tmp_path_factory.mktemp("shapes")
    files = {dtype: folder / f"{dtype}.onnx" for dtype in ("fp32", "fp16")}
    for dtype, path in files.items():
        na_deploy.export(SHAPES / "shapes.pth", path, dtype=dtype)
    draw_folder(folder / "seen", 12, first=1)
    files["int8"] = folder / "int8.onnx"
    quantize(files["fp32"], files["int8"], images=folder / "seen" / "images")
    return files


def test_the_checkpoint_is_small_and_says_what_it_finds(exported: dict[str, Path]) -> None:
    assert (SHAPES / "shapes.pth").stat().st_size < 2_000_000
    with na_deploy.load(exported["fp32"]) as session:
        metadata = session.metadata
    assert isinstance(metadata, ModelMetadata)
    assert (metadata.task, metadata.num_classes, metadata.palette) == ("semantic", 5, PALETTE)
    assert tuple(metadata.labels.values()) == CLASSES


def evaluated(capsys: pytest.CaptureFixture[str], models: list[Path], *arguments: Any) -> list[dict[str, Any]]:
    assert evaluate([str(path) for path in models], *arguments, "--json") == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["models"]
    return rows


def test_shapes_are_found_in_unseen_pictures_in_every_precision(
    exported: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = evaluated(capsys, list(exported.values()), 40, 128, 128)
    assert [row["dtype"] for row in rows] == ["fp32", "fp16", "int8 + fp32"]
    for row in rows:
        assert row["mIoU"] > REPORTED - 0.04
        assert row["classes"]["ground"] > 0.9
    assert abs(rows[0]["mIoU"] - rows[1]["mIoU"]) < 0.002
    assert abs(rows[0]["mIoU"] - rows[2]["mIoU"]) < 0.02


@pytest.mark.slow
def test_shapes_are_found_in_pictures_of_another_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    na_deploy.export(SHAPES / "shapes.pth", tmp_path / "free.onnx", dynamic="spatial")
    (row,) = evaluated(capsys, [tmp_path / "free.onnx"], 8, 160, 224)
    assert row["mIoU"] > REPORTED - 0.15


def test_half_precision_finds_the_same(exported: dict[str, Path]) -> None:
    picture, _ = draw_picture(UNSEEN)
    maps = []
    for path in (exported["fp32"], exported["fp16"]):
        with na_deploy.load(path) as session:
            result = session.predict(picture)
        assert isinstance(result, Segmentation)
        maps.append(result.class_map())
    assert np.mean(maps[0] == maps[1]) > 0.995


@pytest.mark.usefixtures("one_thread")
def test_training_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps of the very script raise the mIoU of an untrained network."""
    import train as script

    from na_deploy.models import build_model
    from na_deploy.models.heads.upernet import UPerNet

    monkeypatch.setattr(script, "BATCH", 4)
    torch.manual_seed(0)
    network: Any = UPerNet(build_model(script.BACKBONE), script.HEAD).train()
    before = np.mean(mean_iou(network, 10))
    train(network, *script.draw(range(16)), 25)
    assert np.mean(mean_iou(network, 10)) > before + 0.03
