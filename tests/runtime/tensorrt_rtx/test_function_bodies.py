"""TensorRT-RTX takes both operators' function bodies, with static and with dynamic sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from rtx_engines import Shape, build_rtx_engine

from na_deploy.attention.schema import DOMAIN, PACKED_OPERATOR, PLUGIN_ATTRIBUTES, SEPARATE_OPERATOR, VERSION
from na_deploy.exporter.function_body import BodyFeatures, packed_function, separate_function

OPSET = 20
HEADS, HEAD_DIM = 2, 32


def _model(
    function: onnx.FunctionProto,
    inputs: dict[str, Sequence[int | str]],
    output: Sequence[int | str],
    constants: dict[str, np.ndarray],
    attributes: dict[str, list[int]],
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    node = helper.make_node(
        function.name,
        list(function.input),
        list(function.output),
        name="attention",
        domain=DOMAIN,
        **attributes,
        **PLUGIN_ATTRIBUTES,
    )
    outputs = [helper.make_tensor_value_info("output", dtype, output)]
    if "lse" in function.output:
        outputs.append(helper.make_tensor_value_info("lse", TensorProto.FLOAT, output[:-1]))
    graph = helper.make_graph(
        [node],
        "one_layer",
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs.items()],
        outputs,
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)


def _bias(rank: int, kernel_size: int, heads: int = HEADS) -> np.ndarray:
    shape = (heads,) + (2 * kernel_size - 1,) * rank
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def _packed(
    batch: int | str,
    lengths: Sequence[int | str],
    kernel_size: int,
    *,
    bias: bool = True,
    lse: bool = False,
    in_parts: bool = False,
    padding: bool = False,
    **of: int,
) -> onnx.ModelProto:
    rank = len(lengths)
    attributes = {name: [value] * rank for name, value in {"kernel_size": kernel_size, **of}.items()}
    constants = {"rel_pos_bias": _bias(rank, kernel_size)} if bias or padding else {}
    if padding:
        constants["padding"] = np.random.default_rng(8).standard_normal((3, HEADS, HEAD_DIM)).astype(np.float32)
    return _model(
        packed_function(BodyFeatures(rel_pos_bias=bias, lse=lse, in_parts=in_parts, padding=padding), OPSET),
        {"qkv": [batch, *lengths, 3, HEADS, HEAD_DIM]},
        [batch, *lengths, HEADS, HEAD_DIM],
        constants,
        attributes,
    )


def _profile(*shapes: Shape) -> dict[str, tuple[Shape, Shape, Shape]]:
    smallest, usual, largest = ((*shape, 3, HEADS, HEAD_DIM) for shape in shapes)
    return {"qkv": (smallest, usual, largest)}


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(_packed(1, (14, 14), 7), id="2-D"),
        pytest.param(_packed(4, (15, 17), 7, dilation=2, lse=True), id="2-D odd sizes, dilation, lse"),
        pytest.param(_packed(1, (100,), 13, bias=False, stride=4, is_causal=1), id="1-D stride causal"),
        pytest.param(_packed(1, (8, 12, 12), 5, bias=False, stride=2), id="3-D stride"),
        pytest.param(_packed(1, (64, 64), 16, bias=False, lse=True, in_parts=True), id="2-D in parts"),
        pytest.param(_packed(2, (10, 30), 7, dilation=2, lse=True, padding=True), id="2-D padding"),
        pytest.param(_packed(1, (3, 9, 9), 5, dilation=2, bias=False, padding=True), id="3-D padding, no bias"),
        pytest.param(_packed(1, (64, 12), 16, in_parts=True, padding=True), id="2-D padding in parts"),
        pytest.param(_packed(1, (16, 64, 64), 8, in_parts=True, stride=4), id="3-D in parts, bias, stride"),
    ],
)
def test_the_packed_body_builds_for_static_sizes(tmp_path: Path, model: onnx.ModelProto) -> None:
    onnx.save(model, tmp_path / "model.onnx")
    assert build_rtx_engine(tmp_path / "model.onnx").engine_bytes > 100_000


@pytest.mark.parametrize("full", [False, True], ids=["alone", "with bias and additional keys"])
def test_the_separate_body_builds_with_grouped_queries(tmp_path: Path, full: bool) -> None:
    heads, extra = 4, 5
    shapes = {name: [1, 14, 14, HEADS, HEAD_DIM] for name in ("key", "value")}
    inputs: dict[str, list[int | str]] = {"query": [1, 14, 14, heads, HEAD_DIM], **shapes}
    constants = {}
    if full:
        inputs |= {f"additional_{name}": [1, extra, HEADS, HEAD_DIM] for name in ("key", "value")}
        constants = {"rel_pos_bias": _bias(2, 7, heads)}
    function = separate_function(BodyFeatures(rel_pos_bias=full, additional=full), OPSET)
    assert function.name == SEPARATE_OPERATOR
    model = _model(function, inputs, inputs["query"], constants, {"kernel_size": [7, 7]})
    onnx.save(model, tmp_path / "model.onnx")
    assert build_rtx_engine(tmp_path / "model.onnx").engine_bytes > 100_000


@pytest.mark.parametrize(
    ("model", "shapes"),
    [
        pytest.param(_packed("n", (14, 14), 7), ((1, 14, 14), (2, 14, 14), (8, 14, 14)), id="batch"),
        pytest.param(_packed(1, ("h", "w"), 7), ((1, 14, 14), (1, 28, 28), (1, 56, 56)), id="2-D"),
        pytest.param(_packed("n", ("h", "w"), 7, dilation=4), ((1, 28, 28), (2, 28, 28), (4, 64, 64)), id="batch, 2-D"),
        pytest.param(
            _packed(1, ("d", "h", "w"), 5, bias=False, stride=2),
            ((1, 8, 8, 8), (1, 8, 12, 12), (1, 8, 24, 24)),
            id="3-D",
        ),
        pytest.param(
            _packed("n", ("h", "w"), 7, dilation=4, padding=True),
            ((1, 1, 5), (2, 14, 14), (4, 64, 64)),
            id="batch, 2-D padding",
        ),
        pytest.param(
            _packed("n", ("h", "w"), 16, bias=False, in_parts=True),
            ((1, 16, 16), (1, 64, 64), (2, 96, 96)),
            id="batch, 2-D in parts",
        ),
    ],
)
def test_the_packed_body_builds_for_dynamic_sizes(
    tmp_path: Path, model: onnx.ModelProto, shapes: tuple[Shape, Shape, Shape]
) -> None:
    assert model.functions[0].name == PACKED_OPERATOR
    onnx.save(model, tmp_path / "model.onnx")
    assert build_rtx_engine(tmp_path / "model.onnx", _profile(*shapes)).engine_bytes > 100_000


@pytest.mark.parametrize("padding", [False, True], ids=["", "padding"])
def test_dynamic_sizes_need_little_more_memory_than_the_largest_of_them(tmp_path: Path, padding: bool) -> None:
    # TensorRT allocates for the bounds it can prove: a tile count it cannot bound costs gigabytes.
    onnx.save(_packed(1, (56, 56), 7, padding=padding), tmp_path / "static.onnx")
    onnx.save(_packed(1, ("h", "w"), 7, padding=padding), tmp_path / "dynamic.onnx")
    largest = build_rtx_engine(tmp_path / "static.onnx").report.activation_bytes
    shapes = ((1, 14, 14), (1, 28, 28), (1, 56, 56))
    dynamic = build_rtx_engine(tmp_path / "dynamic.onnx", _profile(*shapes)).report.activation_bytes
    assert largest > 0
    assert dynamic < 3 * largest
