"""``na-deploy verify``: an exported file against a checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from na_deploy import export
from na_deploy.errors import NaDeployError, UsageError
from na_deploy.exporter.verify_checkpoint import verify_checkpoint
from na_deploy.models import load_model

SIZE = "1x3x80x80"


@pytest.fixture
def exported(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    return export(checkpoints["nat"], tmp_path / "model.onnx", arch="nat", input=SIZE).path


def test_a_faithful_file_passes_in_every_layer(exported: Path, checkpoints: dict[str, Path]):
    report = verify_checkpoint(checkpoints["nat"], exported)
    assert report.passed
    assert report.input_shape == (1, 3, 80, 80)
    assert [layer.name for layer in report.layers] == [
        "levels.0.blocks.0.attn",
        "levels.1.blocks.0.attn",
        "levels.1.blocks.1.attn",
    ]
    assert 0 < report.worst.relative < 1e-5
    assert not report.warnings


def test_layers_that_attend_to_padding_pass_in_stock_onnx_runtime(checkpoints: dict[str, Path], tmp_path: Path):
    given = {"arch": "dinat", "dilations": "1/1,2"}
    path = export(checkpoints["dinat"], tmp_path / "model.onnx", input="1x3x64x64", dynamic="spatial", **given).path
    for size in ("1x3x64x64", "1x3x8x8", "1x3x33x70", "1x3x120x24"):
        report = verify_checkpoint(checkpoints["dinat"], path, input=size)
        assert report.passed
        assert 0 < report.worst.relative < 1e-5


def test_a_changed_padding_shows_in_the_layer_that_attends_to_it(checkpoints: dict[str, Path], tmp_path: Path):
    given = {"arch": "dinat", "dilations": "1/1,2"}
    path = export(checkpoints["dinat"], tmp_path / "model.onnx", input="1x3x64x64", **given).path
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("padding"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.5), tensor.name))
    onnx.save(model, path)
    report = verify_checkpoint(checkpoints["dinat"], path)
    assert [layer.relative > 1e-3 for layer in report.layers] == [False, False, True]


def test_a_changed_weight_shows_in_the_layer_where_it_acts(exported: Path, checkpoints: dict[str, Path]):
    model = onnx.load(exported)
    for tensor in model.graph.initializer:
        if tensor.name == "levels.1.blocks.1.attn.rpb":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:, ::-1] * 1.0, tensor.name))
    onnx.save(model, exported)
    report = verify_checkpoint(checkpoints["nat"], exported)
    assert not report.passed
    assert [layer.relative > 1e-3 for layer in report.layers] == [False, False, True]
    assert report.outputs[0].relative > 1e-3


def test_nat_weights_run_as_dinat_are_told_apart(exported: Path, checkpoints: dict[str, Path]):
    report = verify_checkpoint(checkpoints["nat"], exported, arch="dinat", dilations="1/1,2")
    assert not report.passed


def test_an_architecture_without_dilations_is_compared_with_a_dilated_file(
    checkpoints: dict[str, Path], tmp_path: Path
):
    given = {"arch": "dinat", "dilations": "1/1,2"}
    path = export(checkpoints["dinat"], tmp_path / "model.onnx", input=SIZE, **given).path
    report = verify_checkpoint(checkpoints["dinat"], path, arch="nat")  # its own dilations, none
    assert not report.passed
    assert [layer.relative > 1e-3 for layer in report.layers] == [False, False, True]
    assert verify_checkpoint(checkpoints["dinat"], path, arch="dinat").passed  # has none of its own: the file's


def test_another_checkpoint_is_pointed_out(exported: Path, checkpoints: dict[str, Path]):
    report = verify_checkpoint(checkpoints["dinat"], exported)
    assert any("another file" in warning for warning in report.warnings)
    assert not report.passed


def test_half_precision_is_held_to_its_own_tolerance(checkpoints: dict[str, Path], tmp_path: Path):
    path = export(checkpoints["nat"], tmp_path / "model.onnx", arch="nat", input=SIZE, dtype="bf16").path
    report = verify_checkpoint(checkpoints["nat"], path)
    assert report.passed
    assert 1e-4 < report.worst.relative < report.tolerance


def test_weights_beside_the_file_are_found(checkpoints: dict[str, Path], tmp_path: Path):
    path = export(checkpoints["nat"], tmp_path / "m.onnx", arch="nat", input=SIZE, external_data=True).path
    assert verify_checkpoint(checkpoints["nat"], path).passed


def test_a_fixed_size_cannot_be_overruled(exported: Path, checkpoints: dict[str, Path]):
    with pytest.raises(UsageError, match="takes inputs of 1x3x80x80, got 1x3x96x96"):
        verify_checkpoint(checkpoints["nat"], exported, input="1x3x96x96")


def test_files_of_others_are_refused(checkpoints: dict[str, Path], exported: Path, tmp_path: Path):
    model = onnx.load(exported)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    for name, sentence in (
        ("bare", "no na-deploy metadata"),
        ("text", "not an ONNX model"),
        ("none", "does not exist"),
    ):
        with pytest.raises(NaDeployError, match=sentence):
            verify_checkpoint(checkpoints["nat"], tmp_path / f"{name}.onnx")


def test_a_difference_that_is_not_finite_never_passes(checkpoints: dict[str, Path]):
    from na_deploy.model_file.differences import Difference

    expected = np.ones(3)
    for bad in (np.nan, np.inf):
        assert Difference.between("x", np.array([1.0, bad, 1.0]), expected).relative == np.inf
    assert load_model(checkpoints["nat"], arch="nat").warnings == []
