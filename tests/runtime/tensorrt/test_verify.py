"""``na-deploy verify`` on bundles: the engine in them is run, and where it is wrong the layer is named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from na_deploy.cli.main import run
from na_deploy.exporter import export
from na_deploy.models import ModelConfig, random_checkpoint
from na_deploy.runtime.building.build import build
from na_deploy.runtime.building.options import BuildOptions

CONFIG = ModelConfig(
    family="nat",
    embed_dim=32,
    depths=(1, 2),
    heads=(1, 2),
    kernel_size=3,
    dilations=((1,), (1, 2)),
    mlp_ratio=2.0,
    num_classes=10,
)
DILATIONS = "1/1,2"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and its exported file."""
    folder = tmp_path_factory.mktemp("exported")
    random_checkpoint(CONFIG, seed=5, path=folder / "small.pth")
    options = {"arch": "dinat", "dilations": DILATIONS, "input": "1x3x64x64"}
    return folder / "small.pth", export(folder / "small.pth", folder / "small.onnx", **options).path


def test_a_right_engine_passes(machine, exported, tmp_path: Path, capsys):
    checkpoint, model = exported
    build(model, tmp_path / "b.bundle", BuildOptions(backend="tensorrt"))
    assert run(["verify", str(checkpoint), str(tmp_path / "b.bundle")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "on tensorrt on Fake GPU (device 0) against PyTorch float32" in out


def test_a_wrong_engine_is_told_from_a_wrong_model_and_its_layer_is_named(
    machine, exported, tmp_path: Path, capsys, monkeypatch
):
    checkpoint, model = exported
    machine.set(FAKE_WRONG_FROM=1)  # the second attention layer computes something else
    build(model, tmp_path / "b.bundle", BuildOptions(backend="tensorrt"))
    assert run(["verify", str(checkpoint), str(tmp_path / "b.bundle"), "--json"]) == 1
    out, err = capsys.readouterr()
    assert re.search(r"is right in ONNX Runtime, but run on tensorrt on .* its output logits differs by", err)
    report = json.loads(out)
    assert report["passed"]
    assert not report["session"]["passed"]
    first, second, third = report["session"]["layers"]
    assert first["relative"] < 1e-4
    assert second["relative"] > 1e-2
    assert third["relative"] > 0


def test_an_onnxruntime_bundle_is_run_too(exported, tmp_path: Path, capsys):
    checkpoint, model = exported
    build(model, tmp_path / "b.zip")
    assert run(["verify", str(checkpoint), str(tmp_path / "b.zip")]) == 0
    assert "on onnxruntime on CPU" in " ".join(capsys.readouterr().out.split())
