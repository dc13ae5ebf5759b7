"""No command overwrites what it reads, and no file's name says something else than it holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from na_deploy.cli.main import run
from na_deploy.models import ModelConfig, random_checkpoint

TINY = ModelConfig(
    family="nat",
    embed_dim=32,
    depths=(1, 1),
    heads=(1, 2),
    kernel_size=3,
    dilations=((1,), (1,)),
    mlp_ratio=1.0,
    num_classes=4,
)


@pytest.fixture
def files(tmp_path: Path, write_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, an array and a checkpoint, which is the current one."""
    monkeypatch.chdir(tmp_path)
    write_model("model.onnx")
    np.save(tmp_path / "image.npy", np.zeros((1, 3, 32, 32), np.float32))
    random_checkpoint(TINY, seed=1, path=tmp_path / "tiny.pth")
    (tmp_path / "link.onnx").symlink_to("model.onnx")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    "command",
    [
        "export tiny.pth --arch nat -o tiny.pth",
        "export tiny.pth --arch nat -o out.pt",
        "export tiny.pth --arch nat -o out",
        "build model.onnx -o model.onnx",
        "build model.onnx -o ./link.onnx",
        "build model.onnx -o out.tar",
        "build model.onnx -o out.onnx",
        "run model.onnx image.npy -o image.npy",
        "run model.onnx image.npy -o model.onnx",
        "run model.onnx image.npy -o out.txt",
        "inspect model.onnx --plot model.onnx",
        "inspect model.onnx --plot out.bmp",
        "bench model.onnx --plot model.onnx",
        "bench model.onnx --plot out",
        "simulate --shape 8x8 --window 3 --plot out.gif",
    ],
)
def test_an_output_that_would_destroy_an_input_or_misname_itself_is_refused(
    files: Path, command: str, capsys: pytest.CaptureFixture[str]
):
    before = contents(files)
    assert run(command.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: cannot write ")
    assert error.count("\n") == 1
    assert contents(files) == before
    assert {path.name for path in files.iterdir()} == before.keys()


def test_weights_beside_a_rewritten_model_go_when_nothing_reads_them(files: Path):
    export = ["export", "tiny.pth", "--arch", "nat", "-o", "tiny.onnx", "--input", "1x3x32x32"]
    assert run([*export, "--external-data"]) == 0
    assert (files / "tiny.onnx.data").exists()
    assert run(export) == 0
    assert not (files / "tiny.onnx.data").exists()
    assert run(["run", "tiny.onnx", "image.npy", "--json"]) == 0
