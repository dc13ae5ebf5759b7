"""Models that the server's tests are made with: of every element type, one that fails, one that takes its time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
}


def types_model(half: bool = True) -> onnx.ModelProto:
    """Return what it is given, for every element type: in_FP32 (batch, 3) to out_FP32 (batch, 3).

    Without ``half``, FP16 and BF16 are left out.
    """
    names = [name for name in TYPES if half or name not in ("FP16", "BF16")]
    return _model(
        [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in names],
        [helper.make_tensor_value_info(f"in_{name}", TYPES[name], ["batch", 3]) for name in names],
        [helper.make_tensor_value_info(f"out_{name}", TYPES[name], ["batch", 3]) for name in names],
    )


def table_model() -> onnx.ModelProto:
    """Look rows up in a table of four: index (batch) to row (batch, 2). An index beyond the table fails the run."""
    table = numpy_helper.from_array(np.arange(8, dtype=np.float32).reshape(4, 2), "table")
    return _model(
        [helper.make_node("Gather", ["table", "index"], ["row"])],
        [helper.make_tensor_value_info("index", TensorProto.INT64, ["batch"])],
        [helper.make_tensor_value_info("row", TensorProto.FLOAT, ["batch", 2])],
        [table],
    )


def slow_model() -> onnx.ModelProto:
    """Multiply matrices ``turns`` times, about 10 µs each: turns (1) to last (1)."""
    square = numpy_helper.from_array(np.eye(16, dtype=np.float32), "square")
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "square"], ["next"]),
            helper.make_node("Identity", ["going"], ["still"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [16, 16]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [16, 16]),
        ],
    )
    axes = numpy_helper.from_array(np.array([0, 1], np.int64), "axes")
    scalar = numpy_helper.from_array(np.array([], np.int64), "scalar")
    one = numpy_helper.from_array(np.array([1], np.int64), "one")
    nodes = [
        helper.make_node("Reshape", ["turns", "scalar"], ["count"]),
        helper.make_node("Loop", ["count", "", "square"], ["end"], body=body),
        helper.make_node("ReduceMax", ["end", "axes"], ["largest"], keepdims=0),
        helper.make_node("Reshape", ["largest", "one"], ["last"]),
    ]
    return _model(
        nodes,
        [helper.make_tensor_value_info("turns", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("last", TensorProto.FLOAT, [1])],
        [square, axes, scalar, one],
    )


def mixing_model() -> onnx.ModelProto:
    """Subtract the mean over the first axis: a batch is not what its items are one by one."""
    axes = numpy_helper.from_array(np.array([0], np.int64), "axes")
    return _model(
        [
            helper.make_node("ReduceMean", ["x", "axes"], ["mean"]),
            helper.make_node("Sub", ["x", "mean"], ["y"]),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [axes],
    )


def scaling_model(factor: float) -> onnx.ModelProto:
    """Multiply: x (batch, 4) to y (batch, 4)."""
    return _model(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.array(factor, np.float32), "factor")],
    )


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Write a model, making folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: list[onnx.TensorProto] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, weights or [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model
