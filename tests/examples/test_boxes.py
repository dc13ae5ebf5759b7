"""The trained detector of shapes: exported, it finds boxes and masks of shapes that training did not show it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

SHAPES = Path(__file__).parents[2] / "examples" / "shapes"
sys.path.insert(0, str(SHAPES))

import train_boxes as script  # noqa: E402
from boxes_loss import Objects, encoded  # noqa: E402
from draw import CLASSES, draw_folder, draw_objects  # noqa: E402
from evaluate import evaluate  # noqa: E402

import na_deploy  # noqa: E402
from na_deploy.models.detectors.boxes import decoded  # noqa: E402
from na_deploy.runtime.quantization.quantize import QuantizationOptions, quantize  # noqa: E402

REPORTED = 0.85
"""AP50 that examples/shapes/README.md reports; that of ten pictures differs by less than 0.15."""


def test_shapes_are_found_in_unseen_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    """The committed checkpoint, in PyTorch; examples/shapes/README.md reports the exported file on 200 pictures."""
    assert (SHAPES / "boxes.pth").stat().st_size < 2_000_000
    assert evaluate([str(SHAPES / "boxes.pth")], 10, 128, 128, "--json", "--threads", "1", objects=True) == 0
    (row,) = json.loads(capsys.readouterr().out)["models"]
    assert set(row["classes"]["boxes"]) == set(CLASSES[1:])
    assert row["boxes"]["AP50"] > REPORTED - 0.15
    assert row["masks"]["AP50"] > REPORTED - 0.15


def test_deltas_move_regions_onto_objects() -> None:
    regions = torch.tensor([[10.0, 20, 40, 30], [0, 0, 5, 50]])
    wanted = torch.tensor([[12.0, 18, 33, 44], [3, 7, 20, 60]])
    stds = (0.1, 0.1, 0.2, 0.2)
    found = decoded(regions, encoded(regions, wanted, stds), (0, 0, 0, 0), stds, torch.tensor([100.0, 100]))
    torch.testing.assert_close(found, wanted)


def test_objects_are_the_shapes_that_show() -> None:
    _, numbers, kinds = draw_objects(3)
    numbers[numbers == 1] = 0
    numbers[0, :5] = 1  # too few pixels to count
    padded = torch.tensor([[0, *kinds, *[0] * (5 - len(kinds))]], dtype=torch.uint8)
    (objects,) = Objects.of(torch.from_numpy(numbers)[None], padded)
    assert objects.kinds.tolist() == [kind - 1 for kind in kinds[1:]]
    for box, mask in zip(objects.boxes.int().tolist(), objects.masks, strict=True):
        left, top, right, bottom = box
        assert mask[top:bottom, left:right].sum() == mask.sum()
        assert all(line.any() for line in (mask[top], mask[bottom - 1], mask[:, left], mask[:, right - 1]))


@pytest.mark.usefixtures("one_thread")
def test_training_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps of the very script lower the losses of scores, classes and masks of a new detector."""
    monkeypatch.setattr(script, "PICTURES", 8)
    monkeypatch.setattr(script, "BATCH", 2)
    monkeypatch.setattr(script, "WARM", 3)
    torch.manual_seed(0)
    losses = script.train(script.network_from(SHAPES / "shapes.pth", None), 12)
    before, after = losses[:3].mean(0), losses[-3:].mean(0)
    assert (after < before)[[0, 2, 4]].all()
    assert (after < 0.9 * before)[[0, 2]].all()


@pytest.mark.slow
def test_int8_finds_the_shapes_that_float_finds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exported checkpoint, quantized on pictures that it was not trained on, in both ways of running it."""
    na_deploy.export(SHAPES / "boxes.pth", tmp_path / "boxes.onnx", input="1x3x128x128")
    draw_folder(tmp_path / "others", 24, 128, 128, first=2_000_000)
    options = QuantizationOptions(limit=24)
    report = quantize(tmp_path / "boxes.onnx", tmp_path / "int8.onnx", options, images=tmp_path / "others" / "images")
    assert report.bytes_after < 0.6 * report.bytes_before
    found = {}
    for runtime in ("operator library", "function bodies"):
        if runtime == "function bodies":
            monkeypatch.setenv("NA_DEPLOY_ORT_LIBRARY", "")
        files = [str(tmp_path / name) for name in ("boxes.onnx", "int8.onnx")]
        assert evaluate(files, 20, 128, 128, "--json", "--threads", "1", objects=True) == 0
        before, after = json.loads(capsys.readouterr().out)["models"]
        for kind in ("boxes", "masks"):
            assert before[kind]["AP"] > 0.4
            assert abs(after[kind]["AP"] - before[kind]["AP"]) < 0.03
        found[runtime] = after["boxes"]["AP"]
    assert abs(found["operator library"] - found["function bodies"]) < 0.02
