"""A small detector written by hand: it knows colours, so that what it must find in a picture is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from segmenters import COLOURS, PREPROCESSING

from na_deploy.models.metadata import ModelMetadata

LABELS = {0: "person", 1: "tree [old]", 2: "car"}
"""The colours of :mod:`segmenters`, without the wall."""


def detector(
    batch: int | str = 1,
    height: int | str = "height",
    width: int | str = "width",
    *,
    masks: bool = True,
    **changes: Any,
) -> onnx.ModelProto:
    """A model that puts a box around all pixels of a class's colour; its score is their share of the box.

    Four objects at most, sorted by score; the wall is one without score, so that a row is always left over.
    """
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def const(name: str, values: Any, kind: Any = np.float32) -> str:
        weights.append(numpy_helper.from_array(np.array(values, kind), name))
        return name

    def add(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    centres = np.array(COLOURS, np.float64) / 255
    const("weight", (60 * 2 * centres)[:, :, None, None])  # up to what all classes share, -|x - c|² is 2 x·c - |c|²
    const("bias", -60 * (centres**2).sum(1))
    for name, value in (("zero", 0.0), ("one", 1.0), ("half", 0.5)):
        const(name, value)
    for axis in (1, 2, 3):
        const(f"axis{axis}", [axis], np.int64)
    const("axes23", [2, 3], np.int64)
    const("second", 2, np.int64)
    shares = add("Softmax", [add("Conv", ["image", "weight", "bias"], "nearness")], "shares", axis=1)
    own = add("Cast", [add("Greater", [shares, "half"], "inside")], "own", to=TensorProto.FLOAT)
    edges = []
    for side, other in {"x": 2, "y": 3}.items():
        line = add("ReduceMax", [own, f"axis{other}"], f"line_{side}", keepdims=0)  # (B, C, size)
        ones = add("Add", [add("Mul", [line, "zero"], f"zeros_{side}"), "one"], f"ones_{side}")
        after = add("CumSum", [ones, "second"], f"after_{side}")  # one more than the place
        last = add("Mul", [line, after], f"last_{side}")
        size = add("ReduceMax", [after, "axis2"], f"size_{side}")  # (B, C, 1)
        left = add("Add", [add("Sub", [size, after], f"beyond_{side}"), "one"], f"left_{side}")
        back = add("Mul", [line, left], f"back_{side}")
        first = add("Sub", [size, add("ReduceMax", [back, "axis2"], f"most_{side}")], f"first_{side}")
        edges.append((first, add("ReduceMax", [last, "axis2"], f"end_{side}")))
    (left, right), (top, bottom) = edges
    all_boxes = add("Concat", [left, top, right, bottom], "all_boxes", axis=2)
    wide, tall = add("Sub", [right, left], "wide"), add("Sub", [bottom, top], "tall")
    area = add("Max", [add("Mul", [wide, tall], "around"), "one"], "area")
    filled = add(
        "Div", [add("ReduceSum", [own, "axes23"], "pixels", keepdims=0), add("Squeeze", [area, "axis2"], "a")], "f"
    )
    const("is_object", [0, 1, 1, 1])
    const("four", [4], np.int64)
    nodes.append(
        helper.make_node("TopK", [add("Mul", [filled, "is_object"], "score"), "four"], ["scores", "order"], axis=1)
    )
    const("numbers", [0, 0, 1, 2], np.int64)
    found = add("Greater", ["scores", "zero"], "found")
    const("none", -1, np.int64)
    add("Where", [found, add("Gather", ["numbers", "order"], "any_class"), "none"], "classes")
    counted = add("Cast", [found], "counted", to=TensorProto.INT64)
    add("ReduceSum", [counted, "axis1"], "count", keepdims=0)
    places = add("Unsqueeze", ["order", "axis2"], "places")
    chosen = add("GatherND", [all_boxes, places], "chosen", batch_dims=1)
    add("Where", [add("Unsqueeze", [found, "axis2"], "shown"), chosen, "zero"], "boxes")
    outputs = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, (batch, 4, 4)),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, (batch, 4)),
        helper.make_tensor_value_info("classes", TensorProto.INT64, (batch, 4)),
        helper.make_tensor_value_info("count", TensorProto.INT64, (batch,)),
    ]
    if masks:
        const("flat", [-1], np.int64)
        const("flat4", [-1, 4], np.int64)
        const("back4", [-1, 4, 28, 28], np.int64)
        const("zero_int", 0, np.int64)
        const("one_int", 1, np.int64)
        const("four_int", 4, np.int64)
        size = add("Squeeze", [add("Shape", ["image"], "b", start=0, end=1)], "b_scalar")
        numbers = add("Mul", [add("Range", ["zero_int", size, "one_int"], "pictures"), "four_int"], "offsets")
        maps = add("Add", ["order", add("Unsqueeze", [numbers, "axis1"], "offset")], "maps")
        sides = add("Shape", ["image"], "sides", start=2, end=4)
        each = add(
            "Reshape", [own, add("Concat", [const("single", [-1, 1], np.int64), sides], "shape", axis=0)], "each"
        )
        index = add("Reshape", [maps, "flat"], "index")
        flat = add("Reshape", [chosen, "flat4"], "objects")
        align = add("RoiAlign", [each, flat, index], "aligned", output_height=28, output_width=28, sampling_ratio=2)
        add("Reshape", [align, "back4"], "masks")
        outputs.append(helper.make_tensor_value_info("masks", TensorProto.FLOAT, (batch, 4, 28, 28)))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, (batch, 3, height, width))
    graph = helper.make_graph(nodes, "detector", [image], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    metadata = ModelMetadata(
        "nat", task="detection", num_classes=3, labels=LABELS, palette=COLOURS[1:], preprocessing=PREPROCESSING
    )
    helper.set_model_props(model, replace(metadata, **changes).to_props())
    return model
