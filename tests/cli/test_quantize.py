"""``quantize`` as typed, and what the other commands say of the file it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import digits
import pytest

from na_deploy.cli.main import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits.write_class_folders(tmp_path_factory.mktemp("pictures"), "training", 30)


@pytest.fixture(scope="module")
def int8(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("int8") / "int8.onnx"
    assert run(["quantize", str(digits.exported(tmp_path_factory)), "--images", str(folder), "-o", str(target)]) == 0
    return target


def asked(capsys: pytest.CaptureFixture[str], *words: Any) -> Any:
    capsys.readouterr()
    assert run([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_report_names_layers_time_and_accuracy(
    folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
):
    model, target = digits.exported(tmp_path_factory), tmp_path / "x.onnx"
    words = ["quantize", model, "--images", folder, "-o", target, "--calibration", "percentile", "--exclude", "head"]
    content = asked(capsys, *words)
    assert content["accuracy"] == {"float": 1.0, "quantized": 1.0}
    assert content["kept"] == ["head"]
    assert {each["layer"] for each in content["layers"]} >= {"levels.0.blocks.1.mlp.fc2", "patch_embed.proj.0"}
    assert content["bytes_after"] == target.stat().st_size < content["bytes_before"] / 2
    assert run([str(word) for word in words]) == 0
    out, error = capsys.readouterr()
    assert "19 layers quantized" in out
    assert "levels.0.blocks.1.mlp.fc2" in out
    assert "accuracy 100.00% in float, 100.00% quantized (+0.00 points)" in out
    assert "warning: calibrated on 30 samples; 100 or more are usual" in error


def test_inspect_lists_the_types(int8: Path, capsys: pytest.CaptureFixture[str]):
    capsys.readouterr()
    assert run(["inspect", str(int8)]) == 0
    out = capsys.readouterr().out
    assert "int8 + fp32: minmax, 30 pictures, for any" in out
    assert "MatMul" in out


def test_verify_compares_on_pictures_with_its_own_tolerance(
    int8: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    checkpoint = digits.DIGITS / "digits.pth"
    content = asked(capsys, "verify", checkpoint, int8, "--images", folder)
    assert (content["tolerance"], content["agreement"], content["passed"]) == (0.2, 1.0, True)
    assert 0 < content["relative"] < 0.1
    assert run(["verify", str(checkpoint), str(int8), "--images", str(folder), "--tolerance", "1e-4"]) == 1
    assert run(["verify", str(checkpoint), str(int8)]) == 2
    assert "not on random numbers" in capsys.readouterr().err


def test_eval_and_build_take_it(int8: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (row,) = asked(capsys, "eval", int8, "--images", folder)["models"]
    assert (row["dtype"], row["top-1"]) == ("int8 + fp32", 1.0)
    assert asked(capsys, "build", int8, "--batch", "1", "-o", tmp_path / "bundle.zip")["attention_nodes"] == 4
    assert run(["run", str(tmp_path / "bundle.zip"), str(digits.DIGITS / "seven.png")]) == 0
    assert "seven" in capsys.readouterr().out


def test_flatten_keeps_it_quantized(int8: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    content = asked(capsys, "flatten", int8, "-o", tmp_path / "flat.onnx")
    assert content["relative_difference"] < 2e-2
    assert content["bytes"] < 2 * int8.stat().st_size
