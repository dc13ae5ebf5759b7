"""Running bfloat16 graphs in float32: loops are widened with the graph around them."""

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from na_deploy.exporter.bfloat16_emulation import widen_bfloat16

BF16 = TensorProto.BFLOAT16


def test_results_inside_loops_are_rounded_too() -> None:
    """1 + 2^-9 is 1 in bfloat16, so adding it up inside a loop stays at 1; in float32 it would grow."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Add", ["before", "small"], ["after"]), helper.make_node("Identity", ["going"], ["still"])],
        "body",
        [value("number", TensorProto.INT64, []), value("going", TensorProto.BOOL, []), value("before", BF16, [1])],
        [value("still", TensorProto.BOOL, []), value("after", BF16, [1])],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["narrow"], to=BF16),
            helper.make_node("Loop", ["times", "true", "narrow"], ["sum"], body=body),
            helper.make_node("Cast", ["sum"], ["y"], to=TensorProto.FLOAT),
        ],
        "graph",
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
        [
            helper.make_tensor("times", TensorProto.INT64, [], [100]),
            helper.make_tensor("true", TensorProto.BOOL, [], [True]),
            helper.make_tensor("small", BF16, [1], [2.0**-9]),
        ],
        value_info=[value("narrow", BF16, [1]), value("sum", BF16, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    onnx.checker.check_model(model)
    session = ort.InferenceSession(widen_bfloat16(model).SerializeToString(), providers=["CPUExecutionProvider"])
    for start, wanted in ((1.0, 1.0), (0.0, 100 / 512)):
        (found,) = session.run(None, {"x": np.array([start], np.float32)})
        assert found.tolist() == [wanted]
