"""Quantized files: their types, errors by layer, layers kept in float, and sentences for what cannot be quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import digits
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

import na_deploy
from na_deploy.errors import NaDeployError, UsageError, VerificationError
from na_deploy.model_file.inspection import inspect_model
from na_deploy.model_file.products import by_types
from na_deploy.runtime.quantization import quantize as module
from na_deploy.runtime.quantization.calibration import Statistics, calibrate
from na_deploy.runtime.quantization.layers import find_layers
from na_deploy.runtime.quantization.quantize import QuantizationOptions, QuantizationReport, quantize
from na_deploy.runtime.quantization.smoothing import smooth
from na_deploy.runtime.quantization.trial import Measured

FLOAT_LAYERS = ("NeighborhoodAttentionQKV", "LayerNormalization", "Softmax", "Gelu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits.exported(tmp_path_factory)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "x.npz"
    np.savez(path, image=digits.inputs("training")[:24])
    return path


@pytest.fixture(scope="module")
def int8(model: Path, samples: Path, tmp_path_factory: pytest.TempPathFactory) -> QuantizationReport:
    return quantize(model, tmp_path_factory.mktemp("int8") / "int8.onnx", data=samples)


def test_products_are_int8_and_all_else_is_float(int8: QuantizationReport):
    proto = onnx.load(int8.path)
    widened = {node.output[0]: node for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    seen = set()
    for node in proto.graph.node:
        if node.op_type in ("MatMul", "Gemm", "Conv"):
            activation, weight = (widened[name] for name in node.input[:2])
            assert tensors[weight.input[0]].data_type == TensorProto.INT8
            assert tensors[weight.input[1]].dims == [tensors[weight.input[0]].dims[_output_axis(node, tensors, weight)]]
            assert not numpy_helper.to_array(tensors[weight.input[2]]).any()
            assert not numpy_helper.to_array(tensors[activation.input[2]]).any()
        if node.op_type in FLOAT_LAYERS:
            seen.add(node.op_type)
            assert all(name not in widened for name in node.input[1:])
    assert {"NeighborhoodAttentionQKV", "LayerNormalization", "Gelu"} <= seen
    assert [function.name for function in proto.functions] == ["NeighborhoodAttentionQKV"]


def _output_axis(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto], weight: onnx.NodeProto) -> int:
    turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 1 if node.op_type == "MatMul" or (node.op_type == "Gemm" and not turned) else 0


def test_metadata_stays_and_says_how_it_was_quantized(int8: QuantizationReport, model: Path):
    with na_deploy.load(int8.path) as session, na_deploy.load(model) as before:
        assert session.metadata is not None
        assert before.metadata is not None
        assert (session.metadata.quantized, session.metadata.precision) == ("int8", "int8 + fp32")
        assert session.metadata.quantization == "minmax, 24 samples, for any"
        assert session.metadata.labels == before.metadata.labels
        assert session.metadata.preprocessing == before.metadata.preprocessing
        assert session.inputs == before.inputs


def test_stock_onnx_runtime_computes_integer_products_without_an_option(int8: QuantizationReport, tmp_path: Path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(int8.path, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("MatMulIntegerToFloat") == 16
    assert kinds.count("QLinearConv") == 3


def test_inspection_counts_types_and_weights(int8: QuantizationReport, model: Path):
    before, after = inspect_model(model), inspect_model(int8.path)
    groups = by_types(after.products)
    assert {key: len(group) for key, group in groups.items()} == {
        ("Conv", "int8", "int8"): 3,
        ("MatMul", "int8", "int8"): 16,
        ("Gemm", "int8", "int8"): 1,
    }
    assert after.uncounted == 0
    assert after.other_multiply_adds == before.other_multiply_adds
    assert abs(after.parameters / before.parameters - 1) < 0.05


def test_each_layer_s_error_is_that_of_its_own_rounding(int8: QuantizationReport):
    assert [each.decibels for each in int8.layers] == sorted(each.decibels for each in int8.layers)
    assert len(int8.layers) == 20
    assert all(25 < each.decibels < 60 for each in int8.layers)
    assert 0.05 < sum(each.time for each in int8.layers) < 1


def test_a_layer_that_is_excluded_stays_float(model: Path, samples: Path, tmp_path: Path):
    report = quantize(model, tmp_path / "x.onnx", QuantizationOptions(exclude=("levels.0.*", "head")), data=samples)
    kept = [each for each in inspect_model(report.path).products if each.weights == "float32"]
    assert {each.name for each in kept} == set(report.kept)
    assert len(kept) == 10
    with pytest.raises(UsageError, match=r"--exclude nothing\.\* names no layer; there are 20: patch_embed\.proj\.0"):
        quantize(model, tmp_path / "y.onnx", QuantizationOptions(exclude=("nothing.*",)), data=samples)


def test_the_most_sensitive_layers_are_kept_until_no_more_is_lost(
    model: Path, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real, answers = module.Trial.compare, iter([0.9, 0.99, 0.999])

    def pretended(trial: Any, path: Path) -> Measured:
        found = real(trial, path)
        return Measured(found.worst, next(answers), None)

    monkeypatch.setattr(module.Trial, "compare", pretended)
    report = quantize(model, tmp_path / "x.onnx", QuantizationOptions(max_drop=0.2), data=samples)
    assert report.kept == tuple(each.layer for each in report.layers[:2])
    products = {each.name: each.weights for each in inspect_model(report.path).products}
    assert [name for name, weights in products.items() if weights == "float32"] == sorted(
        report.kept, key=list(products).index
    )


def exaggerated(model: Path, path: Path) -> str:
    """Save the model with one channel of a normalisation a thousand times larger, and the weights behind it as small.

    The function stays the same, but one step for all channels now rounds the others away. Return the layer's name.
    """
    proto = onnx.load(model)
    layer = next(each for each in find_layers(proto, "model") if each.name == "levels.1.blocks.0.attn.qkv")
    norm = next(node for node in proto.graph.node if node.output[0] == layer.source)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for name, factor in ((norm.input[1], 1000), (norm.input[2], 1000), (layer.weight, 1 / 1000)):
        values = numpy_helper.to_array(tensors[name]).copy()
        values[3] *= factor
        tensors[name].CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(proto, path)
    return layer.name


def test_a_layer_whose_rounding_costs_labelled_pictures_stays_in_float(model: Path, tmp_path: Path):
    """Of forty labelled digits some are lost to an outlier, and read again once --max-drop keeps its layer."""
    pictures = digits.write_class_folders(tmp_path / "pictures", "training", 40)
    spoilt = exaggerated(model, tmp_path / "spoilt.onnx")
    rounded = quantize(
        tmp_path / "spoilt.onnx", tmp_path / "a.onnx", QuantizationOptions(smooth=False), images=pictures
    )
    assert rounded.accuracy is not None
    assert rounded.kept == ()
    assert rounded.layers[0].layer == spoilt
    assert rounded.accuracy[0] - rounded.accuracy[1] > 0.05
    kept = quantize(
        tmp_path / "spoilt.onnx", tmp_path / "b.onnx", QuantizationOptions(smooth=False, max_drop=1), images=pictures
    )
    assert kept.accuracy is not None
    assert kept.kept[0] == spoilt
    assert len(kept.kept) < len(kept.layers) / 2
    assert kept.accuracy[0] - kept.accuracy[1] <= 0.01
    weights = {each.name: each.weights for each in inspect_model(kept.path).products}
    assert weights[spoilt] == "float32"
    assert set(weights.values()) == {"float32", "int8"}


def test_a_drop_that_nothing_keeps_leaves_no_file(
    model: Path, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = module.Trial.compare
    monkeypatch.setattr(module.Trial, "compare", lambda trial, path: Measured(real(trial, path).worst, 0.5, None))
    monkeypatch.setattr(module, "STEPS", 2)
    with pytest.raises(VerificationError, match=r"no choice of layers keeps --max-drop 0\.2"):
        quantize(model, tmp_path / "x.onnx", QuantizationOptions(max_drop=0.2), data=samples)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_calibration_leaves_nothing(model: Path, samples: Path, tmp_path: Path):
    def interrupted(items: Sequence[int], words: str) -> Iterator[int]:
        yield from items[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(model, tmp_path / "x.onnx", data=samples, counted=interrupted)
    assert list(tmp_path.iterdir()) == []


def test_outliers_of_a_normalisation_move_into_the_weights(model: Path, samples: Path):
    """A channel a hundred times too large costs the layer its accuracy; smoothed, the product is the same and finer."""
    proto = onnx.load(model)
    layer = next(each for each in find_layers(proto, "model") if each.name == "levels.0.blocks.0.attn.qkv")
    norm = next(node for node in proto.graph.node if node.output[0] == layer.source)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    scale, weight = numpy_helper.to_array(tensors[norm.input[1]]).copy(), numpy_helper.to_array(tensors[layer.weight])
    weight = weight.copy()
    scale[3] *= 100
    bias = numpy_helper.to_array(tensors[norm.input[2]]).copy()
    bias[3] *= 100
    weight[3] /= 100
    for name, values in ((norm.input[1], scale), (norm.input[2], bias), (layer.weight, weight)):
        tensors[name].CopyFrom(numpy_helper.from_array(values, name))
    source, expected = _statistics(proto, [layer.source, layer.result], samples)
    found = Statistics(source.ranges, source.rows, source.channels)
    assert smooth(proto, [layer], found) == [layer.name]
    after, result = _statistics(proto, [layer.source, layer.result], samples)
    assert after.channels[layer.source].max() < 0.2 * source.channels[layer.source].max()
    assert found.ranges[layer.source][1] == pytest.approx(after.channels[layer.source].max(), rel=0.5)
    np.testing.assert_allclose(result.ranges[layer.result], expected.ranges[layer.result], rtol=1e-4)


def _statistics(proto: onnx.ModelProto, names: list[str], samples: Path) -> tuple[Statistics, Statistics]:
    array = np.load(samples)["image"][:4]
    found = calibrate(
        proto,
        names,
        [{"image": each[None]} for each in array],
        "minmax",
        100,
        detailed=names[:1],
        counted=lambda items, _: iter(items),
    )
    return found, found


def refused(model: Path, tmp_path: Path, **options: Any) -> str:
    with pytest.raises(NaDeployError) as caught:
        quantize(model, tmp_path / "out.onnx", **options)
    assert not (tmp_path / "out.onnx").exists()
    return str(caught.value)


def test_bad_samples_are_named(model: Path, tmp_path: Path):
    assert "give either --images" in refused(model, tmp_path)
    (tmp_path / "empty").mkdir()
    assert "holds no pictures" in refused(model, tmp_path, images=tmp_path / "empty")
    assert "does not exist; give --images a folder" in refused(model, tmp_path, images=tmp_path / "absent")
    np.savez(tmp_path / "other.npz", pixels=np.zeros((2, 3, 32, 32), np.float32))
    assert "holds pixels; expected an array for each" in refused(model, tmp_path, data=tmp_path / "other.npz")
    np.savez(tmp_path / "small.npz", image=np.zeros((2, 3, 16, 16), np.float32))
    assert "axis 2 is 16, not 32" in refused(model, tmp_path, data=tmp_path / "small.npz")
    np.savez(tmp_path / "nan.npz", image=np.full((2, 3, 32, 32), np.nan, np.float32))
    assert "numbers that are not finite" in refused(model, tmp_path, data=tmp_path / "nan.npz")
    np.savez(tmp_path / "none.npz", image=np.zeros((0, 3, 32, 32), np.float32))
    assert "at least one" in refused(model, tmp_path, data=tmp_path / "none.npz")
    (tmp_path / "broken.npz").write_bytes(b"PK\3\4 not an archive")
    assert "is damaged" in refused(model, tmp_path, data=tmp_path / "broken.npz")


def test_one_picture_is_taken_with_a_warning(model: Path, tmp_path: Path):
    folder = digits.write_class_folders(tmp_path / "pictures", "training", 1)
    report = quantize(model, tmp_path / "x.onnx", images=folder)
    assert report.warnings == ("calibrated on 1 sample; 100 or more are usual, rarer activations are cut off",)
    assert report.accuracy == (1.0, 1.0)


@pytest.mark.parametrize("calibration", ["percentile", "entropy"])
def test_constant_activations_are_quantized(calibration: str, model: Path, samples: Path, tmp_path: Path):
    """Pictures of zeros, and a normalisation whose output is zero everywhere."""
    proto = onnx.load(model)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for part in ("weight", "bias"):
        tensor = tensors[f"levels.1.blocks.0.norm1.{part}"]
        tensor.CopyFrom(numpy_helper.from_array(np.zeros(tensor.dims, np.float32), tensor.name))
    onnx.save(proto, tmp_path / "zeros.onnx")
    np.savez(tmp_path / "zeros.npz", image=np.zeros((3, 3, 32, 32), np.float32))
    options = QuantizationOptions(calibration=calibration, exclude=("levels.0.*", "patch_embed.*"))
    report = quantize(tmp_path / "zeros.onnx", tmp_path / "x.onnx", options, data=tmp_path / "zeros.npz")
    assert report.difference < 0.05
    silent = next(each for each in report.layers if each.layer == "levels.1.blocks.0.attn.qkv")
    assert silent.decibels == float("inf")


def test_files_that_cannot_be_quantized_are_named(
    int8: QuantizationReport, samples: Path, tmp_path: Path, write_model: Callable[..., Path]
):
    assert "int8.onnx is quantized already" in refused(int8.path, tmp_path, data=samples)
    proto = onnx.load(write_model())
    numbers = [node for node in proto.graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    for node in numbers:  # weights that are inputs of the model are no constants
        weight = next(tensor for tensor in proto.graph.initializer if tensor.name == node.input[1])
        proto.graph.input.append(onnx.helper.make_tensor_value_info(weight.name, TensorProto.FLOAT, weight.dims))
        proto.graph.initializer.remove(weight)
    onnx.save(proto, tmp_path / "bare.onnx")
    assert "has no MatMul, Gemm or Conv with constant weights" in refused(
        tmp_path / "bare.onnx", tmp_path, data=samples
    )
    with pytest.raises(UsageError, match="it is the input"):
        quantize(int8.path, int8.path, data=samples)


def test_the_option_max_drop_needs_classes(samples: Path, tmp_path: Path, write_model: Callable[..., Path]):
    said = refused(write_model(), tmp_path, options=QuantizationOptions(max_drop=1.0), data=samples)
    assert "--max-drop compares classes, and small.onnx has none" in said
