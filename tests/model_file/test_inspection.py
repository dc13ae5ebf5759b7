"""Reports of inspection agree with the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from na_deploy.attention.tiling import plan_axis
from na_deploy.attention.windows import axis_mask
from na_deploy.cli.inspect import command
from na_deploy.errors import MissingDependencyError, NaDeployError, UsageError
from na_deploy.model_file.inspection import NeighborhoodLayer, group_layers, inspect_model
from na_deploy.models.metadata import ModelMetadata
from na_deploy.models.preprocessing import official_classification
from na_deploy.runtime.pictures.model import plot_model

WriteModel = Callable[..., Path]


def test_layers_are_described_by_their_node(write_model: WriteModel):
    summary = inspect_model(write_model(size=32, dilations=(1, 2), kernel_size=3))
    first, second = summary.layers
    assert [layer.name for layer in summary.layers] == ["levels.0.blocks.0.attn", "levels.0.blocks.1.attn"]
    assert first.operator == "NeighborhoodAttentionQKV"
    assert (first.lengths, first.heads, first.head_dim) == ((8, 8), 2, 8)
    assert (first.kernel_size, first.dilation, second.dilation) == ((3, 3), (1, 1), (2, 2))
    assert first.has_bias
    assert first.dtype == "float32"
    plans = [plan_axis(8, 3, dilation) for dilation in (1, 2)]
    assert [layer.tile for layer in summary.layers] == [(plan.tile, plan.tile) for plan in plans]
    assert [layer.span for layer in summary.layers] == [(plan.span, plan.span) for plan in plans]
    assert summary.functions == ("NeighborhoodAttentionQKV",)


def test_work_is_what_the_mask_and_the_shapes_say(write_model: WriteModel):
    summary = inspect_model(write_model(size=32, dilations=(1, 2), kernel_size=3))
    for layer in summary.layers:
        pairs = int(axis_mask(8, 3, layer.dilation[0]).sum()) ** 2
        assert layer.multiply_adds == pairs * 2 * layer.heads * layer.head_dim
        assert layer.tiled_multiply_adds > layer.multiply_adds
        assert layer.memory_bytes == 4 * (4 * 64 * 16 + 2 * 5 * 5)
    assert sum(layer.share for layer in summary.layers) == pytest.approx(1)
    patches, products, head = 64 * 16 * 48, 2 * 64 * 16 * 48, 16 * 10
    assert summary.other_multiply_adds == patches + products + head
    assert summary.uncounted == 0
    assert summary.attention_share == pytest.approx(
        summary.attention_multiply_adds / (summary.attention_multiply_adds + patches + products + head)
    )


def test_keys_behind_a_small_map_are_counted_as_attended(write_model: WriteModel):
    path = write_model(size=32, dilations=(1, 4), kernel_size=3)  # the second window reaches over 12 of 8 positions
    with pytest.raises(NaDeployError, match=r"3\*4 = 12 exceeds the length 8"):
        inspect_model(path)
    model = onnx.load(path)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((3, 2, 8), np.float32), "padding"))
    for node in model.graph.node:
        if node.domain:
            node.input.append("padding")
    onnx.save(model, path)
    summary = inspect_model(path)
    first, second = summary.layers
    assert first.is_padded
    assert first.multiply_adds == int(axis_mask(8, 3).sum()) ** 2 * 2 * 16
    assert second.multiply_adds == int(axis_mask(12, 3, 4)[:8].sum()) ** 2 * 2 * 16
    assert second.memory_bytes == 4 * (4 * 64 * 16 + 2 * 5 * 5 + 3 * 16)
    assert (first.reach, second.reach) == ((8, 8), (12, 12))
    assert plot_model(summary, path.with_suffix(".svg"), "small maps") == 0


def test_parameters_and_size_are_those_of_the_file(write_model: WriteModel, tmp_path: Path):
    path = write_model()
    summary = inspect_model(path)
    model = onnx.load(path)
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    assert summary.parameters == sum(w.size for w in weights if w.dtype == np.float32)
    assert summary.file_bytes == path.stat().st_size
    beside = tmp_path / "beside.onnx"
    onnx.save(model, beside, save_as_external_data=True, location="beside.bin", size_threshold=100)
    assert inspect_model(beside).parameters == summary.parameters
    assert inspect_model(beside).file_bytes == beside.stat().st_size + (tmp_path / "beside.bin").stat().st_size


def test_dynamic_axes_take_the_size_asked_for(write_model: WriteModel):
    path = write_model(batch="batch")
    assert inspect_model(path).layers[0].batch == 1
    summary = inspect_model(path, ["6x3x32x32"])
    assert summary.layers[0].batch == 6
    assert summary.input_sizes == {"image": (6, 3, 32, 32)}
    assert summary.attention_multiply_adds == 6 * inspect_model(path).attention_multiply_adds
    assert summary.other_multiply_adds == 6 * inspect_model(path).other_multiply_adds
    with pytest.raises(UsageError, match=r"batch×3×32×32 in the model, which 1×3×64×64 does not fit"):
        inspect_model(path, ["image=1x3x64x64"])


def separate_model(path: Path, lengths: tuple[object, ...] = (12,)) -> Path:
    """One unpacked, causal, strided layer over a sequence, with grouped keys and additional keys."""
    node = helper.make_node(
        "NeighborhoodAttention",
        ["q", "k", "v", "", "ak", "av"],
        ["o"],
        name="audio.attn",
        domain="na_deploy",
        kernel_size=[4],
        dilation=[1],
        stride=[2],
        is_causal=[1],
    )
    shapes = {
        "q": (2, *lengths, 4, 8),
        "k": (2, *lengths, 2, 8),
        "v": (2, *lengths, 2, 6),
        "ak": (2, 3, 2, 8),
        "av": (2, 3, 2, 6),
    }
    graph = helper.make_graph(
        [node, helper.make_node("Identity", ["o"], ["out"])],
        "audio",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT16, None)],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("na_deploy", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports), path)
    return path


def test_separate_inputs_grouped_heads_and_additional_keys_are_counted(tmp_path: Path):
    (layer,) = inspect_model(separate_model(tmp_path / "audio.onnx")).layers
    assert (layer.name, layer.heads, layer.additional_keys, layer.dtype) == ("audio.attn", 4, 3, "float16")
    assert layer.is_causal == (True,)
    assert not layer.has_bias
    pairs = int(axis_mask(12, 4, 1, 2, True).sum()) + 12 * 3
    assert layer.multiply_adds == 2 * 4 * (8 + 6) * pairs
    numbers = 2 * 12 * (4 * 8 + 2 * 8 + 2 * 6 + 4 * 6) + 2 * 3 * 2 * (8 + 6)
    assert layer.memory_bytes == 2 * numbers


def test_a_malformed_node_is_named(tmp_path: Path):
    with pytest.raises(NaDeployError, match=r"node audio\.attn: kernel_size\*dilation = .* exceeds the length 3"):
        inspect_model(separate_model(tmp_path / "audio.onnx", (3,)))


def test_unknown_shapes_are_an_error_not_a_guess(write_model: WriteModel):
    path = write_model()
    model = onnx.load(path)
    del model.graph.value_info[:]
    onnx.save(model, path)
    with pytest.raises(NaDeployError, match=r"the shape of levels\.0\.blocks\.0\.attn\.packed"):
        inspect_model(path)


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(range(256)) * 4])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(NaDeployError, match="is not an ONNX model, or is damaged"):
        inspect_model(path)


def layer(name: str, dilation: int) -> NeighborhoodLayer:
    two = (7, 7), (dilation, dilation)
    return NeighborhoodLayer(
        name, "NeighborhoodAttentionQKV", 1, (14, 14), 8, 32, *two, (1, 1), (False, False), True, False, 0,
        "float32",
        (7, 7), (13, 13), 100, 200, 300, 0.1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("names", "label"),
    [
        (["levels.0.blocks.1.attn"], "levels.0 block 1"),
        ([f"levels.2.blocks.{i}.attn" for i in (0, 2)], "levels.2 blocks 0, 2"),
        ([f"levels.2.blocks.{i}.attn" for i in range(5)], "levels.2 blocks 0–4"),
        ([f"levels.2.blocks.{i}.attn" for i in range(0, 18, 2)], "levels.2 blocks 0, 2 … 16"),
        ([f"layers.{i}.attn" for i in (1, 3)], "layers 1, 3"),
        (["encoder.attn"], "encoder.attn"),
    ],
)
def test_groups_are_named_after_their_modules(names: list[str], label: str):
    (group,) = group_layers([layer(name, 1) for name in names])
    assert group.label == label
    assert group.share == pytest.approx(0.1 * len(names))


def test_layers_that_attend_differently_are_apart():
    groups = group_layers([layer(f"levels.2.blocks.{i}.attn", 1 + i % 2) for i in range(4)])
    assert [group.label for group in groups] == ["levels.2 blocks 0, 2", "levels.2 blocks 1, 3"]


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_picture_is_drawn(write_model: WriteModel, tmp_path: Path, suffix: str):
    metadata = ModelMetadata("nat_mini", preprocessing=official_classification())
    summary = inspect_model(write_model(properties=metadata.to_props()))
    target = tmp_path / f"picture.{suffix}"
    assert plot_model(summary, target, "nat_mini") == 0
    signature = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert target.read_bytes().startswith(signature)
    if suffix == "svg":
        text = target.read_text()
        assert "levels.0 block 0" in text
        assert "levels.0 block 1" in text
        assert math.isclose(sum(group.share for group in group_layers(summary.layers)), 1)


def test_sequences_are_drawn_as_masks(tmp_path: Path):
    summary = inspect_model(separate_model(tmp_path / "audio.onnx"))
    plot_model(summary, tmp_path / "audio.svg", "audio")
    assert "window 4, dilation 1, stride 2, causal" in (tmp_path / "audio.svg").read_text()


def test_an_unknown_picture_format_is_refused(write_model: WriteModel, tmp_path: Path):
    with pytest.raises(UsageError, match=r"end the name in \.png, \.svg or \.pdf"):
        plot_model(inspect_model(write_model()), tmp_path / "picture.docx", "small")


def test_without_matplotlib_the_message_says_what_to_install(
    write_model: WriteModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    summary = inspect_model(write_model())
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"na-deploy\[plot\]"):
        plot_model(summary, tmp_path / "picture.png", "small")


def looped(path: Path, *, turns: int | None, condition: bool = False) -> Path:
    """A product of 6 multiply-adds, and one of 60 in a Loop, with a copy of the layer in a Loop inside of it.

    Args:
        path: the file.
        turns: of the outer Loop, ``None`` for none stated; the inner one takes 3.
        condition: true to let the outer Loop's body decide whether it goes on.
    """

    def value(name: str, shape: tuple[int, ...], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    def loop(count: str, body: onnx.GraphProto, state: str, result: str) -> onnx.NodeProto:
        return helper.make_node("Loop", [count, "", state], [result], body=body)

    def body(name: str, nodes: list[onnx.NodeProto], going: str, result: str, shape: tuple[int, ...]) -> Any:
        ins = [value(f"{name}.turn", (), TensorProto.INT64), value(f"{name}.going", (), TensorProto.BOOL)]
        outs = [value(going, (), TensorProto.BOOL), value(result, shape)]
        keeps = helper.make_node("Identity", [f"{name}.going"], [f"{name}.on"])
        more = helper.make_node("Less", [f"{name}.turn", "three"], [f"{name}.more"])
        return helper.make_graph([*nodes, keeps, more], name, [*ins, value(f"{name}.state", shape)], outs)

    attend = helper.make_node(
        "NeighborhoodAttention", ["inner.state"] * 3, ["attended"], name="decoder.attn", domain="na_deploy",
        kernel_size=[3], dilation=[1], stride=[1], is_causal=[0],
    )  # fmt: skip
    inner = body("inner", [attend], "inner.on", "attended", (1, 5, 1, 4))
    nodes = [
        helper.make_node("MatMul", ["outer.state", "weight"], ["turned"], name="turned"),
        loop("three", inner, "q", "q.turned"),
    ]
    outer = body("outer", nodes, "outer.more" if condition else "outer.on", "turned", (2, 5, 6))
    outer.value_info.append(value("q.turned", (1, 5, 1, 4)))
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["a", "b"], ["product"]),
            loop("turns" if turns else "", outer, "x", "out"),
        ],
        "loops",
        [value("x", (2, 5, 6)), value("q", (1, 5, 1, 4)), value("a", (1, 6)), value("b", (6, 1))],
        [value("out", (2, 5, 6)), value("product", (1, 1))],
        [
            onnx.numpy_helper.from_array(np.array(turns or 0), "turns"),
            onnx.numpy_helper.from_array(np.array(3), "three"),
            onnx.numpy_helper.from_array(np.zeros((6, 6), np.float32), "weight"),
        ],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("na_deploy", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports), path)
    return path


def test_products_and_layers_in_loops_count_for_every_turn_that_the_file_states(tmp_path: Path):
    summary = inspect_model(looped(tmp_path / "loops.onnx", turns=7))
    pairs = int(axis_mask(5, 3).sum())
    assert summary.other_multiply_adds == 6 + 7 * 2 * 5 * 6 * 6
    (found,) = summary.layers
    assert (found.name, found.multiply_adds) == ("decoder.attn", 7 * 3 * pairs * 2 * 4)
    assert [product.name for product in summary.products] == ["turned"]
    assert summary.counted_once == summary.uncounted == 0


@pytest.mark.parametrize(("turns", "condition"), [(None, False), (7, True)])
def test_loops_that_the_data_end_count_for_one_turn_and_the_table_says_so(
    turns: int | None, condition: bool, tmp_path: Path
):
    path = looped(tmp_path / "loops.onnx", turns=turns, condition=condition)
    summary = inspect_model(path)
    pairs = int(axis_mask(5, 3).sum())
    assert summary.other_multiply_adds == 6 + 2 * 5 * 6 * 6
    assert summary.layers[0].multiply_adds == 3 * pairs * 2 * 4
    assert (summary.counted_once, summary.once_multiply_adds) == (2, 360 + 3 * pairs * 8)
    shown = CliRunner().invoke(command, [str(path)], terminal_width=300).output
    assert "one turn of loops whose length the data decide (2 products), more turns are not counted" in " ".join(
        shown.split()
    )


def test_of_two_branches_the_one_with_more_work_counts_and_a_scan_counts_its_sequence(tmp_path: Path):
    def value(name: str, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(nodes, name, [], [value(nodes[-1].output[0], 4, 4)])

    def product(name: str, left: str = "x") -> onnx.NodeProto:
        return helper.make_node("MatMul", [left, "x"], [name])

    choice = {"then_branch": branch("yes", product("one")), "else_branch": branch("no", product("a"), product("b"))}
    step = helper.make_graph([product("row", "part")], "step", [value("part", 1, 4)], [value("row", 1, 4)])
    nodes = [
        helper.make_node("If", ["flag"], ["chosen"], **choice),
        helper.make_node("Scan", ["many"], ["rows"], body=step, num_scan_inputs=1),
    ]
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, ())
    outputs = [value("chosen", 4, 4), value("rows", 9, 1, 4)]
    graph = helper.make_graph(nodes, "choice", [value("x", 4, 4), value("many", 9, 1, 4), flag], outputs)
    onnx.save(helper.make_model(graph), tmp_path / "choice.onnx")
    summary = inspect_model(tmp_path / "choice.onnx")
    assert summary.other_multiply_adds == 2 * 4 * 4 * 4 + 9 * 4 * 4
    assert summary.uncounted == summary.counted_once == 0
