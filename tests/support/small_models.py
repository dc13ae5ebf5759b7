"""Small exported models, written by hand so that tests of runtime/ and cli/ need no PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from na_deploy.exporter.function_body import BodyFeatures, packed_function

HEADS, HEAD_DIM, CLASSES = 2, 8, 10


def small_model(
    size: int = 32,
    dilations: Sequence[int] = (1, 2),
    kernel_size: int = 3,
    batch: int | str = 1,
    properties: dict[str, str] | None = None,
    seed: int = 0,
) -> onnx.ModelProto:
    """A patch embedding (patch 4), one neighborhood attention layer per dilation, a mean and a classifier."""
    random = np.random.default_rng(seed)
    channels, side = HEADS * HEAD_DIM, size // 4
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    values: list[onnx.ValueInfoProto] = []

    def weight(name: str, *shape: int) -> str:
        weights.append(numpy_helper.from_array(random.normal(0, 0.3, shape).astype(np.float32), name))
        return name

    def ints(name: str, *numbers: int) -> str:
        weights.append(numpy_helper.from_array(np.array(numbers, np.int64), name))
        return name

    def add(operator: str, inputs: list[str], output: str, shape: Sequence[int | str], **attributes: object) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        values.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, shape))
        return output

    x = add(
        "Conv",
        ["image", weight("embed", channels, 3, 4, 4)],
        "tokens_nchw",
        (batch, channels, side, side),
        strides=[4, 4],
    )
    x = add("Transpose", [x], "tokens", (batch, side, side, channels), perm=[0, 2, 3, 1])
    ints("packed_shape", 0, side, side, 3, HEADS, HEAD_DIM)
    ints("flat_shape", 0, side, side, channels)
    for index, dilation in enumerate(dilations):
        module = f"levels.0.blocks.{index}.attn"
        y = add(
            "MatMul",
            [x, weight(f"{module}.qkv", channels, 3 * channels)],
            f"{module}.rows",
            (batch, side, side, 3 * channels),
        )
        y = add("Reshape", [y, "packed_shape"], f"{module}.packed", (batch, side, side, 3, HEADS, HEAD_DIM))
        y = add(
            "NeighborhoodAttentionQKV",
            [y, weight(f"{module}.rpb", HEADS, 2 * kernel_size - 1, 2 * kernel_size - 1)],
            f"{module}.heads",
            (batch, side, side, HEADS, HEAD_DIM),
            name=f"{module}.NeighborhoodAttentionQKV",
            domain="na_deploy",
            kernel_size=[kernel_size] * 2,
            dilation=[dilation] * 2,
            stride=[1, 1],
            is_causal=[0, 0],
            scale=HEAD_DIM**-0.5,
            plugin_version="1",
            plugin_namespace="na_deploy",
        )
        y = add("Reshape", [y, "flat_shape"], f"{module}.flat", (batch, side, side, channels))
        x = add("Add", [x, y], f"{module}.sum", (batch, side, side, channels))
    ints("map_axes", 1, 2)
    x = add("ReduceMean", [x, "map_axes"], "pooled", (batch, channels), keepdims=0)
    nodes.append(helper.make_node("Gemm", [x, weight("head", channels, CLASSES)], ["logits"], name="head"))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (batch, 3, size, size))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (batch, CLASSES))],
        weights,
        value_info=values,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("na_deploy", 1)],
        functions=[packed_function(BodyFeatures(rel_pos_bias=True), 20)],
        ir_version=10,
    )
    helper.set_model_props(model, properties or {})
    return model
