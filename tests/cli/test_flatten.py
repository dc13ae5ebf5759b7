"""``flatten`` and ``export --flat`` write standard operators alone, which are compared before they are kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
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


def domains(path: Path) -> set[str]:
    model = onnx.load(path)
    assert not model.functions
    return {node.domain for node in model.graph.node}


def test_a_model_is_flattened_beside_itself(write_model: Callable[..., Path], capsys: pytest.CaptureFixture[str]):
    model = write_model("small.onnx", batch="batch")
    assert run(["flatten", str(model), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    flat = model.with_name("small_flat.onnx")
    assert content["path"] == str(flat)
    assert content["relative_difference"] < 1e-6
    assert domains(flat) == {""}
    assert run(["flatten", str(flat), "-o", str(flat)]) == 2
    assert "it is the input" in capsys.readouterr().err


@pytest.mark.parametrize("external", [False, True])
def test_export_writes_flat_files_too(tmp_path: Path, external: bool):
    checkpoint, flat = tmp_path / "tiny.pth", tmp_path / "tiny.onnx"
    random_checkpoint(TINY, seed=1, path=checkpoint)
    command = ["export", str(checkpoint), "--arch", "nat", "-o", str(flat), "--input", "1x3x32x32", "--flat"]
    assert run([*command, *(["--external-data"] if external else [])]) == 0
    assert domains(flat) == {""}
    session = onnxruntime.InferenceSession(flat, providers=["CPUExecutionProvider"])
    assert session.run(None, {"image": np.ones((1, 3, 32, 32), np.float32)})[0].shape == (1, 4)
    assert run(["inspect", str(flat)]) in (0, 1)


def test_what_is_no_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "text.onnx").write_text("no model")
    assert run(["flatten", str(tmp_path / "text.onnx")]) == 1
    assert "is not an ONNX model" in capsys.readouterr().err
    assert run(["flatten", str(tmp_path / "absent.onnx")]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["text.onnx"]


def test_a_flat_file_that_is_not_finite_is_not_kept(
    write_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from na_deploy.model_file import flatten as flattening

    def broken(source: Path, target: Path) -> list[Path]:
        model = onnx.load(source)
        weights = next(tensor for tensor in model.graph.initializer if tensor.name == "head")
        weights.CopyFrom(onnx.numpy_helper.from_array(np.full(list(weights.dims), np.nan, np.float32), "head"))
        onnx.save(model, target)
        return [target]

    monkeypatch.setattr(flattening, "flatten_file", broken)
    model = write_model("small.onnx")
    assert run(["flatten", str(model)]) == 1
    assert "differs from small.onnx by inf" in capsys.readouterr().err
    assert [path.name for path in model.parent.iterdir()] == ["small.onnx"]
