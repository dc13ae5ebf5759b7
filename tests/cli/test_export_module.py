"""``na-deploy export package.module:factory`` on a model of the user's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from na_deploy.cli.main import run

SOURCE = """
from natten import NeighborhoodAttention2D

def build():
    return NeighborhoodAttention2D(32, 4, kernel_size=3)

def needs(width):
    return NeighborhoodAttention2D(width, 4, kernel_size=3)

def text():
    return "a model"
"""
INPUT = ("--input", "x=1x6x7x32")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "users_network.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(folder: Path, width: int = 32) -> Path:
    from natten import NeighborhoodAttention2D

    torch.manual_seed(2)
    path = folder / f"weights{width}.pt"
    torch.save({"state_dict": NeighborhoodAttention2D(width, 4, kernel_size=3).state_dict()}, path)
    return path


def test_a_factory_becomes_a_file_with_its_weights_and_free_axes(folder: Path, capsys):
    path = weights(folder)
    code = run(["export", "users_network:build", "--weights", str(path), *INPUT, "--dynamic", "x=0:batch", "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    report = json.loads(captured.out)
    assert (report["path"], report["attention_layers"]) == ("build.onnx", 1)
    session = ort.InferenceSession("build.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 6, 7, 32]
    x = np.random.default_rng(1).standard_normal((3, 6, 7, 32)).astype(np.float32)
    from natten import NeighborhoodAttention2D

    module = NeighborhoodAttention2D(32, 4, kernel_size=3)
    module.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["nowhere_at_all:build", *INPUT], 2, "cannot import 'nowhere_at_all'"),
        (["users_network:other", *INPUT], 2, "has no attribute 'other'"),
        (["users_network:needs", *INPUT], 2, "must be callable without arguments"),
        (["users_network:text", *INPUT], 2, "gave str; it must give a torch.nn.Module"),
        (["users_network:build"], 2, "give one --input for each argument of forward"),
        (["users_network:build", "--input", "1x6x7x32"], 2, "write name=sizes:type"),
        (["users_network:build", "--input", "x=1x6x7x32:fp8"], 2, "unknown type 'fp8'"),
        (["users_network:build", "--input", "y=1x6x7x32"], 2, "forward has no input 'y'; it takes x"),
        (["users_network:build", *INPUT, "--dynamic", "batch"], 2, "write name=axis:name"),
        (["users_network:build", *INPUT, "--arch", "nat_mini"], 2, "--arch is for checkpoints"),
        (["users_network:build", *INPUT, "--set-window", "layer=*"], 2, "write layer=name,kernel=sizes"),
        (["users_network:build", *INPUT, "--set-window", "layer=*,kernel=3,text=left"], 2, "must be first or last"),
        (["users_network:build", *INPUT, "--set-window", "layer=*,kernel=axb"], 2, "write one number per axis"),
        (["users_network:build", *INPUT, "--set-window", "layer=*,kernel=3"], 2, "layers that do: none"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    arguments: list[str], code: int, sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(["export", *arguments]) == code
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not list(folder.glob("*.onnx"))


def test_weights_of_another_model_or_without_weights_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["export", "users_network:build", *INPUT, "--weights", str(weights(folder, 64))]) == 1
    assert "does not fit NeighborhoodAttention2D" in capsys.readouterr().err
    torch.save({"code": Path}, folder / "code.pt")
    assert run(["export", "users_network:build", *INPUT, "--weights", "code.pt"]) == 1
    assert "code.pt holds code and no weights" in capsys.readouterr().err


FULL = """
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.mix = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        return self.mix(x, x, x, need_weights=False)[0]

def build():
    return Network()
"""


def test_full_attention_becomes_a_window_and_its_error_is_shown(folder: Path, capsys):
    (folder / "full_network.py").write_text(FULL)
    window = "layer=mix,kernel=3x-1,grid=4x5,stride=1x2,text=first"
    arguments = ["export", "full_network:build", "--input", "x=1x22x16", "--set-window", window]
    assert run(arguments) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("mix", "4×5", "3×5", "1×2", "output 0"))
    assert run([*arguments, "--json"]) == 0
    (layer,) = json.loads(capsys.readouterr().out)["windows"]["layers"]
    assert layer["layer"] == "mix"
    assert 0 < layer["error"] < 1
    # Text attends to all 22 tokens, each of the 20 others to 15 of the grid and to text.
    assert layer["share"] == pytest.approx((2 * 22 + 20 * (15 + 2)) / 22**2)


def test_a_file_is_verified_against_its_factory_later(folder: Path, capsys):
    path = weights(folder)
    export = ["export", "users_network:build", "--weights", str(path), *INPUT, "--dynamic", "x=0:batch"]
    assert run([*export, "-o", "model.onnx"]) == 0
    capsys.readouterr()
    verify = ["verify", "users_network:build", "model.onnx", "--weights", str(path)]
    assert run([*verify, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"]
    assert [case["inputs"]["x"] for case in report["cases"]] == [[1, 6, 7, 32], [2, 6, 7, 32]]
    assert report["relative_difference"] < 1e-5
    assert run([*verify, "--input", "3x6x7x32"]) == 0
    assert "x 3x6x7x32" in capsys.readouterr().out
    assert run(["verify", "users_network:build", "model.onnx"]) == 1  # other weights
    assert "model.onnx differs from users_network:build by" in capsys.readouterr().err
    assert run([*verify, "--arch", "nat"]) == 2
    assert run([*verify, "--set-window", "layer=x,kernel=3"]) == 2
    assert "was exported with these windows: none" in capsys.readouterr().err


def test_an_exported_module_says_what_it_is(folder: Path, capsys):
    assert run(["export", "users_network:build", *INPUT, "--dynamic", "x=0:batch", "-o", "model.onnx"]) == 0
    capsys.readouterr()
    assert run(["inspect", "model.onnx", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["metadata"]["na_deploy.source_name"] == "users_network:build"
    assert content["input_sizes"] == {"x": [1, 6, 7, 32]}
    np.save("x.npy", np.zeros((2, 6, 7, 32), np.float32))
    assert run(["run", "model.onnx", "x.npy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["outputs"]["output"]["shape"] == [2, 6, 7, 32]
