"""With the schemas registered, onnx's checker and shape inference know the operators."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import pytest
from onnx import TensorProto, helper, shape_inference
from onnx.shape_inference import InferenceError

from na_deploy.attention.registration import register_schemas
from na_deploy.attention.schema import DOMAIN, OPERATORS, PACKED_OPERATOR, SEPARATE_OPERATOR, attribute_defaults
from na_deploy.exporter.function_body import BodyFeatures, packed_function, separate_function

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


def test_a_symbolic_model_of_unknown_rank_is_not_refused():
    proto = model(PACKED_OPERATOR, {"qkv": (1, 9, 9, 3, 2, 8)}, kernel_size=[3, 3])
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    assert inferred(proto) == [(TensorProto.FLOAT, [])]


def test_attributes_left_away_take_their_defaults():
    required, defaults = attribute_defaults()
    for operator in OPERATORS:
        attributes = onnx.defs.get_schema(operator, 1, DOMAIN).attributes
        assert [name for name, attribute in attributes.items() if attribute.required] == required
        found = {name: helper.get_attribute_value(attributes[name].default_value) for name in attributes}
        assert {default.name: helper.get_attribute_value(default) for default in defaults} == {
            name: value for name, value in found.items() if name not in required
        }
        assert found["dilation"] == found["stride"] == [1]
        assert found["is_causal"] == [0]
        assert found["scale"] == 0.0


QKV: dict[str, Shape] = {"qkv": (1, 9, 9, 3, 2, 8)}
SEPARATE: dict[str, Shape] = {"q": (1, 9, 4, 8), "k": (1, 9, 2, 8), "v": (1, 9, 2, 6)}
EVERYTHING: dict[str, Shape] = {**SEPARATE, "bias": (4, 5), "extra_k": (1, 3, 2, 8), "extra_v": (1, 3, 2, 6)}


def test_fitting_inputs_are_accepted():
    assert inferred(model(PACKED_OPERATOR, QKV, kernel_size=[3, 9], dilation=[3, 1], stride=[2, 9]))
    assert inferred(model(PACKED_OPERATOR, {"qkv": ("b", "h", "w", 3, 2, 8)}, kernel_size=[3, 99]))
    padded = {"qkv": ("b", 2, "w", 3, 2, 8), "bias": (2, 5, 197), "padding": (3, 2, 8)}
    expected = [(TensorProto.FLOAT, ["b", 2, "w", 2, 8]), (TensorProto.FLOAT, ["b", 2, "w", 2])]
    assert inferred(model(PACKED_OPERATOR, padded, outputs=2, kernel_size=[3, 99], dilation=[7, 1])) == expected
    proto = model(PACKED_OPERATOR, {**padded, "qkv": (1, 2, 9, 3, 2, 8)}, kernel_size=[3, 99])
    proto.graph.input[2].type.tensor_type.ClearField("shape")
    assert inferred(proto) == [(TensorProto.FLOAT, [1, 2, 9, 2, 8])]
    assert inferred(model(SEPARATE_OPERATOR, EVERYTHING, kernel_size=[3]))
    symbols = {name: tuple(f"{name}{axis}" for axis in range(len(shape))) for name, shape in EVERYTHING.items()}
    assert inferred(model(SEPARATE_OPERATOR, symbols, kernel_size=[3]))


@pytest.mark.parametrize(
    ("inputs", "attributes", "sentence"),
    [
        ({"qkv": (1, 9, 3, 2, 8)}, {}, r"qkv must be \(B, 2 spatial axes, 3, H, D\) .* got \(1, 9, 3, 2, 8\)"),
        ({"qkv": (1, 9, 9, 9, 2, 8)}, {}, "qkv must be"),
        ({**QKV, "bias": (2, 7, 5)}, {}, r"rel_pos_bias must have shape \(2, 5, 5\) .* got \(2, 7, 5\)"),
        ({**QKV, "bias": (1, 5, 5)}, {}, r"rel_pos_bias must have shape \(2, 5, 5\)"),
        ({**QKV, "bias": (2, 5, 5), "padding": (3, 1, 8)}, {}, r"padding must have shape \(3, 2, 8\) for this qkv"),
        ({"qkv": (1, 9, 0, 3, 2, 8), "bias": (2, 5, 5), "padding": (3, 2, 8)}, {}, "axis 1 must have at least one"),
        (QKV, {"kernel_size": None}, "needs the attribute kernel_size"),
        (QKV, {"kernel_size": [3] * 4}, "1 to 3 spatial axes, got 4"),
        (QKV, {"kernel_size": [0, 3]}, "kernel_size must be at least 1"),
        (QKV, {"kernel_size": [3, 11]}, r"11\*1 = 11 exceeds the length 9 of spatial axis 1"),
        ({"qkv": (1, "h", 9, 3, 2, 8)}, {"dilation": [9, 4]}, r"3\*4 = 12 exceeds the length 9 of spatial axis 1"),
        (QKV, {"dilation": [1, 2, 3]}, "dilation has 3 values"),
        (QKV, {"dilation": [0]}, "dilation must be at least 1"),
        (QKV, {"stride": [1, 4]}, "stride must lie between 1 and kernel_size=3, got 4 on axis 1"),
    ],
)
def test_misfits_of_the_packed_operator_are_told_apart(
    inputs: dict[str, Shape], attributes: dict[str, object], sentence: str
):
    given = {name: value for name, value in {"kernel_size": [3, 3], **attributes}.items() if value is not None}
    with pytest.raises(InferenceError, match=sentence):
        inferred(model(PACKED_OPERATOR, inputs, **given))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"q": (1, 9, 9, 4, 8)}, r"query must be \(B, 1 spatial axes, H, D\)"),
        ({"q": (1, 9, 3, 8), "bias": (3, 5)}, "3 heads, which is not a multiple of key's 2"),
        ({"k": (1, 9, 2, 4)}, r"key must have shape \(1, 9, Hkv, 8\) .* got \(1, 9, 2, 4\)"),
        ({"k": (1, 8, 2, 8)}, r"key must have shape \(1, 9, Hkv, 8\)"),
        ({"k": (1, 9, 0, 8)}, "not a multiple of key's 0"),
        ({"v": (1, 9, 1, 6)}, r"value must have shape \(1, 9, 2, Dv\)"),
        ({"v": (1, 3, 3, 2, 6)}, r"value must have shape \(1, 9, 2, Dv\)"),
        ({"bias": (4, 7)}, r"rel_pos_bias must have shape \(4, 5\)"),
        ({"extra_k": (1, 3, 4, 8)}, r"additional_key must have shape \(1, M, 2, 8\)"),
        ({"extra_v": (1, 4, 2, 6)}, r"additional_value must have shape \(1, 3, 2, 6\)"),
        ({"extra_v": None}, "give both or neither"),
    ],
)
def test_misfits_of_separate_tensors_are_told_apart(changed: dict[str, Shape | None], sentence: str):
    inputs = {name: shape for name, shape in {**EVERYTHING, **changed}.items() if shape is not None}
    with pytest.raises(InferenceError, match=sentence):
        inferred(model(SEPARATE_OPERATOR, inputs, kernel_size=[3]))


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_model_may_hold_both_the_node_and_its_function(operator: str):
    features = BodyFeatures(rank=1, mixed_ranks=False, rel_pos_bias=True, additional=operator == SEPARATE_OPERATOR)
    if operator == PACKED_OPERATOR:
        proto = model(operator, {"qkv": (1, 9, 3, 2, 8), "bias": (2, 5)}, kernel_size=[3])
        proto.functions.append(packed_function(features, OPSET))
    else:
        proto = model(operator, EVERYTHING, kernel_size=[3])
        proto.functions.append(separate_function(features, OPSET))
    proto = shape_inference.infer_shapes(proto, strict_mode=True)
    onnx.checker.check_model(proto, full_check=True)
