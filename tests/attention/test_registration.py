"""With the schemas registered, onnx's checker and shape inference know the operators."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import pytest
from onnx import TensorProto, helper, shape_inference

from na_deploy.attention.registration import register_schemas
from na_deploy.attention.schema import DOMAIN, PACKED_OPERATOR, SEPARATE_OPERATOR
from na_deploy.exporter.function_body import BodyFeatures, packed_function

Shape = Sequence[int | str]
OPSET = 22


@pytest.fixture(autouse=True)
def _registered() -> None:
    register_schemas()
    register_schemas()  # again: nothing happens


def model(
    operator: str, inputs: dict[str, Shape], outputs: int = 1, kind: int = TensorProto.FLOAT, **attributes: object
) -> onnx.ModelProto:
    names = ["output", "lse"][:outputs]
    node = helper.make_node(operator, list(inputs), names, domain=DOMAIN, **attributes)
    graph = helper.make_graph(
        [node],
        "one_node",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in names],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def inferred(proto: onnx.ModelProto) -> list[tuple[int, list[int | str]]]:
    result = shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    return [
        (
            value.type.tensor_type.elem_type,
            [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in value.type.tensor_type.shape.dim],
        )
        for value in result.graph.output
    ]


def test_symbols_pass_through_the_packed_operator():
    proto = model(
        PACKED_OPERATOR, {"qkv": ("b", "h", 56, 3, 2, 32), "bias": (2, 13, 13)}, outputs=2, kernel_size=[7, 7]
    )
    assert inferred(proto) == [(TensorProto.FLOAT, ["b", "h", 56, 2, 32]), (TensorProto.FLOAT, ["b", "h", 56, 2])]


def test_the_output_takes_values_width_and_the_type_of_query():
    shapes: dict[str, Shape] = {"q": ("b", "n", 4, 16), "k": ("b", "n", 2, 16), "v": ("b", "n", 2, 24)}
    proto = model(SEPARATE_OPERATOR, shapes, outputs=2, kind=TensorProto.FLOAT16, kernel_size=[5])
    assert inferred(proto) == [(TensorProto.FLOAT16, ["b", "n", 4, 24]), (TensorProto.FLOAT, ["b", "n", 4])]


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "sentence"),
    [
        (PACKED_OPERATOR, {"qkv": (1, 9, 3, 2, 8)}, {"kernel_size": [3, 3]}, "qkv must be"),
        (PACKED_OPERATOR, {"qkv": (1, 9, 9, 2, 2, 8)}, {"kernel_size": [3, 3]}, "qkv must be"),
        (PACKED_OPERATOR, {"qkv": (1, 9, 9, 3, 2, 8)}, {}, "kernel_size"),
        (
            PACKED_OPERATOR,
            {"qkv": (1, 9, 9, 3, 2, 8), "bias": (2, 7, 5)},
            {"kernel_size": [3, 3]},
            r"rel_pos_bias must be \(2, 5, 5\)",
        ),
        (
            SEPARATE_OPERATOR,
            {"q": (1, 9, 3, 8), "k": (1, 9, 2, 8), "v": (1, 9, 2, 8)},
            {"kernel_size": [3]},
            "not a multiple",
        ),
        (
            SEPARATE_OPERATOR,
            {"q": (1, 9, 2, 8), "k": (1, 9, 2, 4), "v": (1, 9, 2, 8)},
            {"kernel_size": [3]},
            "head size",
        ),
    ],
)
def test_misfits_are_told_apart(operator: str, inputs: dict[str, Shape], attributes: dict[str, object], sentence: str):
    with pytest.raises(Exception, match=sentence):
        inferred(model(operator, inputs, **attributes))


def test_a_model_may_hold_both_the_node_and_its_function():
    proto = model(PACKED_OPERATOR, {"qkv": (1, 9, 9, 3, 2, 8)}, kernel_size=[3, 3])
    proto.functions.append(packed_function(BodyFeatures(rank=2, mixed_ranks=False), OPSET))
    proto = shape_inference.infer_shapes(proto, strict_mode=True)
    onnx.checker.check_model(proto, full_check=True)
