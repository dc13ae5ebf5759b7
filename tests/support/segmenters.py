"""Small segmenters written by hand: they know colours, so that what they must find in a picture is known."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw

from na_deploy.models.metadata import ModelMetadata
from na_deploy.models.preprocessing import Preprocessing, shortest_side

COLOURS = ((40, 60, 90), (230, 40, 40), (40, 200, 60), (60, 90, 235))
LABELS = {0: "wall", 1: "person", 2: "tree [old]", 3: "car"}
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (255.0, 255.0, 255.0)}
PREPROCESSING = replace(shortest_side(64, 128, 8), **PLAIN)


def colour_picture(width: int = 100, height: int = 80) -> Image.Image:
    """A dark wall, a red disc, a green band below and a blue square."""
    picture = Image.new("RGB", (width, height), COLOURS[0])
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, int(0.75 * height), width, height), fill=COLOURS[2])
    pen.ellipse((int(0.1 * width), int(0.1 * height), int(0.4 * width), int(0.5 * height)), fill=COLOURS[1])
    pen.rectangle((int(0.6 * width), int(0.2 * height), int(0.9 * width), int(0.5 * height)), fill=COLOURS[3])
    return picture


def png_start(width: int, height: int) -> bytes:
    """Return the start of a PNG file, which says its size; the pixels are missing."""
    header = struct.pack(">4sIIBBBBB", b"IHDR", width, height, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(b"")]
    lengths = [len(chunk) - 4 for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", length) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for length, chunk in zip(lengths, chunks, strict=True)
    )


def segmenter(
    task: str,
    batch: int | str = 1,
    height: int | str = "height",
    width: int | str = "width",
    dtype: int = TensorProto.FLOAT,
    **changes: Any,
) -> onnx.ModelProto:
    """A model that scores every fourth pixel by how near its colour is to each class's.

    ``task`` "semantic" gives logits; "instance" and "panoptic" give class_logits and mask_logits of one query for each
    class and one for nothing.
    """
    kind = np.float16 if dtype == TensorProto.FLOAT16 else np.float32
    centres = np.array(COLOURS, np.float64) / 255
    # Up to what all classes share, -|x - c|² is 2 x·c - |c|².
    weight = (60 * 2 * centres).astype(kind)[:, :, None, None]
    bias = (-60 * (centres**2).sum(1)).astype(kind)
    weights = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")]
    nodes = [
        helper.make_node("AveragePool", ["image"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Conv", ["pooled", "weight", "bias"], ["scores"]),
    ]
    image = helper.make_tensor_value_info("image", dtype, (batch, 3, height, width))
    maps = [each // 4 if isinstance(each, int) else f"{each}_maps" for each in (height, width)]
    if task == "semantic":
        nodes.append(helper.make_node("Identity", ["scores"], ["logits"]))
        outputs = [helper.make_tensor_value_info("logits", dtype, (batch, len(COLOURS), *maps))]
    else:
        # A mask is its class's share of the softmax as a logit; the fifth query sees nothing and is no object.
        classes = np.full((1, 5, 5), -4, kind)
        classes[0, range(5), range(5)] = 4
        mix = np.zeros((5, 4, 1, 1), kind)
        mix[range(4), range(4), 0, 0] = 1
        weights += [
            numpy_helper.from_array(classes, "classes"),
            numpy_helper.from_array(np.array([1, 1, 1], np.int64), "ones"),
            numpy_helper.from_array(mix, "mix"),
            numpy_helper.from_array(np.array([0, 0, 0, 0, -1], kind), "shift"),
            numpy_helper.from_array(np.array(20, kind), "gain"),
            numpy_helper.from_array(np.array(0.5, kind), "half"),
            numpy_helper.from_array(np.array([0], np.int64), "first"),
            numpy_helper.from_array(np.array([1], np.int64), "second"),
        ]
        nodes += [
            helper.make_node("Softmax", ["scores"], ["shares"], axis=1),
            helper.make_node("Conv", ["shares", "mix", "shift"], ["mixed"]),
            helper.make_node("Sub", ["mixed", "half"], ["centred"]),
            helper.make_node("Mul", ["centred", "gain"], ["mask_logits"]),
            helper.make_node("Shape", ["image"], ["size"], start=0, end=1),
            helper.make_node("Concat", ["size", "second", "second"], ["times"], axis=0),
            helper.make_node("Tile", ["classes", "times"], ["class_logits"]),
        ]
        outputs = [
            helper.make_tensor_value_info("class_logits", dtype, (batch, 5, 5)),
            helper.make_tensor_value_info("mask_logits", dtype, (batch, 5, *maps)),
        ]
    graph = helper.make_graph(nodes, "segmenter", [image], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    metadata = ModelMetadata(
        "nat",
        task=task,
        num_classes=4,
        labels=LABELS,
        palette=COLOURS,
        things=(1, 3) if task == "panoptic" else None,
        preprocessing=PREPROCESSING,
    )
    helper.set_model_props(model, replace(metadata, **changes).to_props())
    return model


def squared(side: int = 64) -> Preprocessing:
    """Return the preprocessing of a segmenter of a fixed square."""
    return PREPROCESSING.with_size((side, side))
