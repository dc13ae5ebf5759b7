"""Files of ``na_deploy.export``: the graph, its types, its metadata, and what it computes in stock ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto

import na_deploy
from na_deploy import export
from na_deploy.attention.schema import DOMAIN, PACKED_OPERATOR
from na_deploy.errors import UsageError, VerificationError
from na_deploy.exporter import ExportReport
from na_deploy.model_file.inspection import inspect_model
from na_deploy.models import LoadedModel, ModelConfig, ModelMetadata, load_model, random_checkpoint
from na_deploy.runtime.quantization.quantize import quantize

LoadSmall = Callable[[str], LoadedModel]
Exported = Callable[..., ExportReport]
FAMILIES = ["nat", "dinat", "dinat_base", "dinat_s", "isotropic", "backbone", "features"]
SIZE = "1x3x64x64"


def session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def in_torch(loaded: LoadedModel, image: np.ndarray) -> list[np.ndarray]:
    with torch.inference_mode():
        outputs = loaded.module.double()(torch.from_numpy(image).double())
    loaded.module.float()
    return [output.numpy() for output in ([outputs] if isinstance(outputs, torch.Tensor) else outputs)]


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_file_computes_what_float64_pytorch_computes(name: str, load_small: LoadSmall, exported: Exported):
    loaded, report = load_small(name), exported(name)
    image = np.random.default_rng(3).standard_normal((1, 3, 64, 64)).astype(np.float32)
    for found, expected in zip(session(report.path).run(None, {"image": image}), in_torch(loaded, image), strict=True):
        assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("name", ["dinat", "dinat_s", "isotropic", "backbone"])
def test_free_sizes_are_really_free(name: str, load_small: LoadSmall, exported: Exported):
    loaded = load_small(name)
    runtime = session(exported(name, dynamic="batch,spatial").path)
    random = np.random.default_rng(4)
    # Square and not, odd, smaller than a window, larger than traced, one and several images.
    for shape in ((1, 3, 64, 64), (3, 3, 64, 64), (2, 3, 16, 23), (1, 3, 131, 50), (1, 3, 8, 96)):
        image = random.standard_normal(shape).astype(np.float32)
        for found, expected in zip(runtime.run(None, {"image": image}), in_torch(loaded, image), strict=True):
            assert relative(found, expected) < 1e-5, shape


def test_free_sizes_may_start_from_the_smallest_image(load_small: LoadSmall, tmp_path: Path):
    loaded = load_small("dinat")  # reduces images 8 times, so the example's last map is 1x1
    path = export(loaded, tmp_path / "model.onnx", input="1x3x8x8", dynamic="spatial").path
    image = np.random.default_rng(6).standard_normal((1, 3, 40, 72)).astype(np.float32)
    (expected,) = in_torch(loaded, image)
    assert relative(session(path).run(None, {"image": image})[0], expected) < 1e-5


def test_a_free_batch_may_be_empty(exported: Exported):
    (logits,) = session(exported("dinat", dynamic="batch").path).run(
        None, {"image": np.zeros((0, 3, 64, 64), np.float32)}
    )
    assert logits.shape == (0, 10)


def test_the_graph_has_one_node_for_each_thing_a_block_does(load_small: LoadSmall, tmp_path: Path):
    loaded = load_small("dinat_base")
    # 80 pixels: no map is smaller than a dilated window, so nothing is said of padding.
    model = onnx.load(export(loaded, tmp_path / "model.onnx", input="1x3x80x80").path)
    blocks = sum(loaded.config.depths)
    assert Counter(node.op_type for node in model.graph.node) == {
        PACKED_OPERATOR: blocks,
        "LayerNormalization": 2 * blocks + 3,  # tokenizer, downsampler, last
        "Gelu": blocks,
        "MatMul": 4 * blocks,
        "Add": 6 * blocks,  # four biases, two residuals
        "Mul": 2 * blocks,  # layer scale
        "Reshape": 2 * blocks,  # into (3, heads, head_dim) and back
        "Conv": 3,
        "Transpose": 3,  # around the convolutions, which want channels first
        "ReduceMean": 1,
        "Gemm": 1,
    }
    assert {len(node.input) for node in model.graph.node if node.op_type == PACKED_OPERATOR} == {2}


@pytest.mark.parametrize("dynamic", ["", "batch,spatial"])
def test_small_maps_are_told_to_the_node_and_not_padded(dynamic: str, load_small: LoadSmall, exported: Exported):
    loaded = load_small("dinat")
    model = onnx.load(exported("dinat", dynamic=dynamic).path)
    assert not {"Pad", "Slice"} & {node.op_type for node in model.graph.node}
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    state = loaded.module.state_dict()
    for node in model.graph.node:
        if node.op_type == PACKED_OPERATOR:
            reaches_out = bool(dynamic) or node.name == "levels.1.blocks.1.attn"
            assert node.input[2] == f"{node.name}.{'padding' if reaches_out else 'no_padding'}"
            bias = state[f"{node.name}.qkv.bias"].numpy()
            np.testing.assert_array_equal(weights[node.input[2]].ravel(), bias if reaches_out else 0 * bias)


def test_a_projection_without_bias_leaves_zeros_behind_small_maps(tmp_path: Path):
    config = ModelConfig(
        family="nat",
        embed_dim=32,
        depths=(1,),
        heads=(2,),
        kernel_size=5,
        dilations=((2,),),
        mlp_ratio=2.0,
        num_classes=10,
        qkv_bias=False,
    )
    random_checkpoint(config, seed=0, path=tmp_path / "model.pth")
    loaded = load_model(tmp_path / "model.pth", arch="dinat", dilations="2")
    path = export(loaded, tmp_path / "model.onnx", input="1x3x20x32", dynamic="spatial").path
    (node,) = (node for node in onnx.load(path).graph.node if node.op_type == PACKED_OPERATOR)
    assert len(node.input) == 3
    image = np.random.default_rng(6).standard_normal((1, 3, 28, 52)).astype(np.float32)
    (expected,) = in_torch(loaded, image)
    assert relative(session(path).run(None, {"image": image})[0], expected) < 1e-5


@pytest.mark.parametrize("dynamic", ["", "batch", "batch,spatial"])
def test_reshapes_around_attention_have_constant_shapes(dynamic: str, exported: Exported):
    model = onnx.load(exported("dinat", dynamic=dynamic).path)
    constants = {tensor.name for tensor in model.graph.initializer}
    reshapes = {output: node for node in model.graph.node if node.op_type == "Reshape" for output in node.output}
    for node in model.graph.node:
        if node.op_type == PACKED_OPERATOR:
            assert reshapes[node.input[0]].input[1] in constants


def test_attention_nodes_carry_what_plugins_need(exported: Exported):
    model = onnx.load(exported("dinat").path)
    nodes = [node for node in model.graph.node if node.domain == DOMAIN]
    assert [node.name for node in nodes] == [
        "levels.0.blocks.0.attn",
        "levels.1.blocks.0.attn",
        "levels.1.blocks.1.attn",
    ]
    values = [{a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} for node in nodes]
    assert [list(value["dilation"]) for value in values] == [[1, 1], [1, 1], [2, 2]]
    for node, value in zip(nodes, values, strict=True):
        assert list(value["kernel_size"]) == [5, 5]
        assert list(value["stride"]) == [1, 1]
        assert list(value["is_causal"]) == [0, 0]
        assert value["plugin_version"] == b"1"
        assert value["plugin_namespace"] == b"na_deploy"
        assert len(node.input) == 3  # 64 pixels: the last map has 8x8 positions, and its window reaches over 10
        assert len(node.output) == 1
    assert [(function.domain, function.name) for function in model.functions] == [(DOMAIN, PACKED_OPERATOR)]
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize(
    ("dtype", "kind", "limit"), [("fp16", TensorProto.FLOAT16, 5e-3), ("bf16", TensorProto.BFLOAT16, 5e-2)]
)
@pytest.mark.parametrize("name", ["dinat", "dinat_s", "backbone"])
def test_half_precision_is_typed_in_the_file(name: str, dtype: str, kind: int, limit: float, exported: Exported):
    report = exported(name, dtype=dtype)
    assert report.difference < limit
    model = onnx.load(report.path)
    weights = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1}
    assert weights == {kind}
    for value in [*model.graph.input, *model.graph.output]:
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":  # statistics in float32
            assert {a.name: a.i for a in node.attribute}.get("stash_type", 1) == TensorProto.FLOAT
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    edges = 1 + len(model.graph.output)
    pooling = 0 if name == "backbone" else 2
    assert len(casts) == edges + pooling
    onnx.checker.check_model(model, full_check=True)


def test_backbones_return_one_map_for_each_level(exported: Exported):
    runtime = session(exported("backbone").path)
    assert [(output.name, output.shape) for output in runtime.get_outputs()] == [
        ("stage1", [1, 32, 16, 16]),
        ("stage2", [1, 64, 8, 8]),
    ]


def test_a_backbone_in_int8_returns_the_maps_of_the_float_file(exported: Exported, tmp_path: Path):
    source = exported("backbone").path
    images = np.random.default_rng(5).standard_normal((9, 3, 64, 64), dtype=np.float32)
    np.savez(tmp_path / "x.npz", image=images[:8])
    report = quantize(source, tmp_path / "int8.onnx", data=tmp_path / "x.npz")
    assert {product.weights for product in inspect_model(report.path).products} == {"int8"}
    feeds = {"image": images[8:]}
    expected = session(source).run(None, feeds)
    with na_deploy.load(report.path) as ours:
        outputs = ours.run(feeds)
    in_library = [outputs[spec.name] for spec in ours.outputs]
    for found in (session(report.path).run(None, feeds), in_library):
        for own, right in zip(found, expected, strict=True):
            assert 1e-4 < relative(own, right) < 0.1


def test_metadata_says_where_the_model_comes_from(load_small: LoadSmall, exported: Exported):
    loaded, report = load_small("dinat"), exported("dinat", dtype="fp16")
    properties = {entry.key: entry.value for entry in onnx.load(report.path).metadata_props}
    metadata = ModelMetadata.from_props(properties)
    assert metadata is not None
    assert metadata.source_sha256 == loaded.metadata.source_sha256
    assert len(metadata.source_sha256) == 64
    assert metadata.config == loaded.config
    assert (metadata.dtype, metadata.num_classes, metadata.task) == ("fp16", 10, "classification")
    assert metadata.preprocessing == loaded.metadata.preprocessing.with_size(metadata.preprocessing.size)
    assert "x".join(map(str, metadata.input_size)) == SIZE


def test_the_file_tells_nothing_of_the_machine_that_wrote_it(exported: Exported):
    path = exported("dinat").path
    content = path.read_bytes()
    for trace in (str(path.parent).encode(), b"site-packages", b".py", b"stack_trace"):
        assert trace not in content


def test_external_data_stands_beside_the_file(load_small: LoadSmall, exported: Exported, tmp_path: Path):
    inside = exported("dinat")
    beside = export(load_small("dinat"), tmp_path / "beside.onnx", input=SIZE, external_data=True)
    assert [path.name for path in inside.files] == ["dinat.onnx"]
    assert [path.name for path in beside.files] == ["beside.onnx", "beside.onnx.data"]
    assert all(path.is_file() for path in beside.files)
    assert beside.path.stat().st_size < inside.path.stat().st_size / 2
    image = np.random.default_rng(5).standard_normal((1, 3, 64, 64)).astype(np.float32)
    (one,), (other,) = (session(report.path).run(None, {"image": image}) for report in (inside, beside))
    np.testing.assert_array_equal(one, other)


def test_weights_above_the_limit_go_beside_the_file(load_small: LoadSmall, tmp_path: Path, monkeypatch):
    from na_deploy.exporter import pipeline, saving

    monkeypatch.setattr(pipeline, "save", lambda model, path, **given: saving.save(model, path, limit=10_000))
    report = export(load_small("dinat"), tmp_path / "model.onnx", input=SIZE)
    assert [path.name for path in report.files] == ["model.onnx", "model.onnx.data"]


def test_a_file_above_tolerance_is_not_kept_and_the_old_one_is(load_small: LoadSmall, tmp_path: Path):
    target = tmp_path / "model.onnx"
    target.write_bytes(b"the old one")
    sentence = (
        r"its output logits differs from PyTorch by .* for an input of 1x3x64x64, above .*; --tolerance accepts more"
    )
    with pytest.raises(VerificationError, match=sentence):
        export(load_small("dinat"), target, input=SIZE, tolerance=1e-12)
    assert target.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [target]


def test_the_file_takes_the_sources_name_by_default(checkpoints: dict[str, Path], tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = export(checkpoints["nat"], arch="nat", input=SIZE)
    assert report.path == Path("nat.onnx")
    assert (tmp_path / "nat.onnx").is_file()


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"input": "1x3x4x64"}, "too small"),
        ({"input": "1x3x64"}, "batch x channels x height x width"),
        ({"input": "1x4x64x64"}, "4 channels"),
        ({"input": "0x3x64x64"}, "at least 1"),
        ({"input": SIZE, "dynamic": "depth"}, "unknown dynamic dimension 'depth'"),
        ({"input": SIZE, "dtype": "int8"}, "unknown dtype 'int8'"),
        ({"input": SIZE, "opset": 9}, "opset 9 is not supported"),
        ({"input": SIZE, "opset": 20, "dtype": "bf16"}, "bf16 needs opset 22"),
        ({"input": SIZE, "tolerance": 0.0}, "above 0"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_written(
    request_: dict[str, object], sentence: str, load_small: LoadSmall, tmp_path: Path
):
    with pytest.raises(UsageError, match=sentence):
        export(load_small("dinat"), tmp_path / "model.onnx", **request_)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
