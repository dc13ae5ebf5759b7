"""Answers to every kind of bad input to ``export`` and ``verify``: one sentence, a code, nothing written."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from na_deploy.cli.main import run
from na_deploy.models import ModelConfig, random_checkpoint

CONFIG = ModelConfig(
    family="nat",
    embed_dim=32,
    depths=(1, 1),
    heads=(1, 2),
    kernel_size=3,
    dilations=((1,), (1,)),
    mlp_ratio=2.0,
    num_classes=10,
)


class Payload:
    """Creates a file when unpickled, as code hidden in a checkpoint could do anything."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.marker,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of checkpoints, one good and many bad."""
    weights = random_checkpoint(CONFIG, path=tmp_path / "good.pth")
    content = (tmp_path / "good.pth").read_bytes()
    (tmp_path / "truncated.pth").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_text("these are not weights")
    with zipfile.ZipFile(tmp_path / "archive.pth", "w") as archive:
        archive.writestr("photo.txt", "holiday")
    torch.save({"weight": torch.ones(3, 4), "bias": torch.ones(3)}, tmp_path / "linear.pth")
    torch.save([1, 2, 3], tmp_path / "list.pth")
    torch.save({"hook": Payload(tmp_path / "executed"), "code": 1}, tmp_path / "code.pth")
    (tmp_path / "plain_pickle.pkl").write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    name = "levels.1.blocks.0.attn.qkv.weight"
    torch.save({**weights, name: weights[name] * float("nan")}, tmp_path / "nan.pth")
    torch.save({key: value for key, value in weights.items() if key != name}, tmp_path / "missing.pth")
    torch.save({**weights, name: weights[name][:-1]}, tmp_path / "clash.pth")
    return tmp_path


def refuse(folder: Path, capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """Run the command, check that it fails as failures should, and return what it said."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    found = run([argument.replace("@", f"{folder}/") for argument in arguments])
    captured = capsys.readouterr()
    assert found == code, captured.err
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len([line for line in lines if line.startswith("error: ")]) == 1, captured.err
    assert all(line.startswith(("error: ", "warning: ")) for line in lines), captured.err
    assert "Traceback" not in captured.err
    assert "defect" not in captured.err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    return lines[-1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("truncated.pth", "truncated"),
        ("empty.pth", "empty"),
        ("text.pth", "text.pth"),
        ("archive.pth", "archive.pth"),
        ("linear.pth", "linear.pth"),
        ("list.pth", "list"),
        ("code.pth", "code"),
        ("plain_pickle.pkl", "plain_pickle.pkl"),
        ("nan.pth", "levels.1.blocks.0.attn.qkv.weight"),
        ("missing.pth", "levels.1.blocks.0.attn.qkv.weight"),
        ("clash.pth", "levels.1.blocks.0.attn.qkv.weight"),
    ],
)
def test_a_bad_checkpoint_is_told_apart(name: str, words: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    said = refuse(folder, capsys, 1, "export", f"@{name}", "-o", "@model.onnx", "--arch", "nat", "--input", "1x3x64x64")
    assert words in said
    assert not (folder / "executed").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arch", "natt_mini"], "nat_mini"),  # a near name is suggested
        (["--arch", "dinat_s_tiny"], "dinat_s_tiny"),
        (["--arch", "nat", "--input", "1x3x4x4"], "too small"),
        (["--arch", "nat", "--input", "224"], "1x3x224x224"),
        (["--arch", "nat", "--dtype", "int8"], "fp16"),
        (["--arch", "nat", "--dynamic", "width"], "spatial"),
        (["--arch", "nat", "--out-indices", "first"], "0,1,2,3"),
        (["--arch", "nat", "--opset", "7"], "20 to 23"),
        (["--arch", "dinat", "--dilations", "1/1,2"], "dilation"),
        (["--arch", "nat", "--no-such-option"], "--no-such-option"),
    ],
)
def test_a_bad_request_is_told_apart(
    arguments: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
):
    said = refuse(folder, capsys, 2, "export", "@good.pth", "-o", "@model.onnx", *arguments)
    assert words in said


@pytest.mark.parametrize(
    ("output", "words"),
    [("@", "folder"), ("@no/such/folder/model.onnx", "does not exist"), ("@good.pth/model.onnx", "good.pth")],
)
def test_an_output_that_cannot_be_written_is_told_apart(
    output: str, words: str, folder: Path, capsys: pytest.CaptureFixture[str]
):
    said = refuse(folder, capsys, 2, "export", "@good.pth", "-o", output, "--arch", "nat", "--input", "1x3x64x64")
    assert words in said


def test_weights_that_fit_nat_and_dinat_are_not_guessed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    random_checkpoint("nat_mini", path=tmp_path / "weights.pth")
    said = refuse(tmp_path, capsys, 2, "export", "@weights.pth", "-o", "@model.onnx")
    assert "nat_mini" in said
    assert "dinat_mini" in said
    assert "--arch" in said


def test_verify_says_what_differs_and_fails(folder: Path, capsys: pytest.CaptureFixture[str]):
    model = str(folder / "model.onnx")
    common = ["--arch", "nat", "--input", "1x3x64x64"]
    assert run(["export", str(folder / "good.pth"), "-o", model, *common]) == 0
    random_checkpoint(CONFIG, seed=1, path=folder / "other.pth")
    assert run(["verify", str(folder / "good.pth"), model]) == 0
    assert "same model" in capsys.readouterr().out
    assert run(["verify", str(folder / "good.pth"), model, "--threads", "1", "--backend", "openvino"]) == 0
    assert "on openvino on CPU (f32)" in capsys.readouterr().out
    wrong = ["verify", str(folder / "good.pth"), model, "--backend", "onnxruntime", "--tolerance", "1e-9", "--json"]
    assert run(wrong) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["session"]["runs_on"].startswith("onnxruntime on CPU")
    assert not report["session"]["passed"]
    assert len(report["session"]["layers"]) == len(report["layers"]) > 0
    assert run(["verify", str(folder / "other.pth"), model]) == 1
    captured = capsys.readouterr()
    assert "differs" in captured.out
    assert "another file" in captured.err
    assert "above the tolerance" in captured.err.splitlines()[-1]
