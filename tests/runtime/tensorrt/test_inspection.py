"""``na-deploy inspect`` on bundles with engines, and ``run`` and ``bench`` on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import na_deploy
from na_deploy.cli.main import run
from na_deploy.runtime.building.build import build
from na_deploy.runtime.building.options import BuildOptions
from na_deploy.runtime.tensorrt.layers import parse_layers, summarize_layers


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, " ".join(captured.out.split()), captured.err


@pytest.fixture
def plugged(machine, write_model: Callable[..., Path], tmp_path: Path, plugin_library) -> Path:
    target = tmp_path / "plugged.bundle"
    build(write_model(batch="batch"), target, BuildOptions(backend="tensorrt", batch=(2, 4, 40)))
    return target


def test_inspect_shows_the_engines_layers(plugged: Path, capsys):
    code, out, err = call(capsys, "inspect", plugged, "--layers")
    assert (code, err) == (0, "")
    assert "plugins: 2 NeighborhoodAttentionQKV; tactics: pluginv3_kernel (2)" in out
    assert "levels.0.blocks.0.attn.NeighborhoodAttentionQKV" in out
    assert "in all layers" not in out
    content = json.loads(_raw(capsys, "inspect", plugged, "--layers", "--json"))
    kinds = [layer["operator"] for layer in content["engine_layers"] if layer["operator"]]
    assert kinds == ["NeighborhoodAttentionQKV"] * 2


def _raw(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert run([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_inspect_times_the_layers_on_the_gpu(plugged: Path, capsys):
    code, out, err = call(capsys, "inspect", plugged, "--times")
    assert (code, err) == (0, "")
    layers = parse_layers((plugged / "layers.json").read_text(), "")
    assert f"{sum(0.5 + index for index in range(len(layers))):.3f} ms in all layers" in out
    with na_deploy.load(plugged) as session:
        session.warm_up({"image": (2, 3, 32, 32)})


def test_what_has_no_layers_says_so(plugged: Path, write_model: Callable[..., Path], tmp_path: Path, capsys):
    code, out, err = call(capsys, "inspect", write_model(), "--layers")
    assert (code, out) == (2, "")
    assert "holds no engine; build one with" in err
    build(write_model(), tmp_path / "plain.bundle")
    assert call(capsys, "inspect", tmp_path / "plain.bundle", "--times")[0] == 2


def test_run_cuts_and_fills_batches_to_what_the_engine_takes(plugged: Path, tmp_path: Path, capsys):
    array = np.random.default_rng(0).standard_normal((81, 3, 32, 32), dtype=np.float32)
    np.save(tmp_path / "images.npy", array)
    assert call(capsys, "run", plugged, tmp_path / "images.npy", "-o", tmp_path / "out.npy")[0] == 0
    with na_deploy.load(plugged, backend="onnxruntime", custom_operators=False) as session:
        right = session.run(array)["logits"]
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), right, rtol=1e-4, atol=1e-5)
    one = tmp_path / "one.npy"
    np.save(one, array[:1])  # fewer than the engine's smallest batch
    assert call(capsys, "run", plugged, one, "-o", tmp_path / "out.npy")[0] == 0
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), right[:1], rtol=1e-4, atol=1e-5)


def test_layers_of_real_inspectors_are_read():
    # The forms that TensorRT's documentation and logs show.
    text = json.dumps(
        {
            "Layers": [
                {
                    "Name": "{ForeignNode[/a/MatMul.../b/Add]}",
                    "LayerType": "Myelin",
                    "Outputs": [{"Name": "y", "Dimensions": [1, 8], "Format/Datatype": "Half"}],
                    "TacticValue": "0x0000000000000000",
                },
                {
                    "Name": "blocks.0.attn",
                    "LayerType": "PluginV3",
                    "PluginType": "NeighborhoodAttention",
                    "Outputs": [{"Name": "z", "Format/Datatype": "Row major linear FP32 format"}],
                    "TacticValue": "0x0000000000000003",
                },
                {"Name": "embed", "LayerType": "CaskConvolution", "Outputs": [{"Format/Datatype": "BFloat16"}]},
                "only a name",
            ]
        }
    )
    layers = parse_layers(text, "x")
    assert [layer.precision for layer in layers] == ["float16", "float32", "bfloat16", ""]
    assert [layer.operator for layer in layers] == ["", "NeighborhoodAttention", "", ""]
    assert summarize_layers(layers)["plugin_tactics"] == {"0x0000000000000003": 1}
