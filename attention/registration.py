"""Makes ``onnx`` know the two operators: their signatures, defaults, and shape and type inference."""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx import AttributeProto, defs
from onnx.shape_inference import InferenceContext, InferenceError

from na_deploy.attention.schema import (
    DOMAIN,
    PACKED_OPERATOR,
    SEPARATE_OPERATOR,
    VERSION,
    attribute_defaults,
)
from na_deploy.attention.windows import MAX_RANK

Shape = list[int | str | None]
"""Sizes: a number, a symbol, or unknown."""


def register_schemas() -> None:
    """Make ``onnx`` know the operators: the checker and shape inference then work on our nodes. May be called again."""
    for schema in (_packed_schema(), _separate_schema()):
        if not defs.has(schema.name, DOMAIN):
            defs.register_schema(schema)


_FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
_OPTIONAL = defs.OpSchema.FormalParameterOption.Optional
_SINGLE = defs.OpSchema.FormalParameterOption.Single
_ATTRIBUTE_TYPES = {
    AttributeProto.INTS: defs.OpSchema.AttrType.INTS,
    AttributeProto.FLOAT: defs.OpSchema.AttrType.FLOAT,
    AttributeProto.STRING: defs.OpSchema.AttrType.STRING,
}
_ATTRIBUTE_TEXT = {
    "kernel_size": "Window size, one per spatial axis.",
    "dilation": "Distance between attended positions, one per spatial axis.",
    "stride": "Neighbouring queries that share one window, one per spatial axis.",
    "is_causal": "1 where no later position is attended, one per spatial axis.",
    "scale": "Factor on the scores; 0 means head_dim**-0.5.",
    "plugin_version": "For TensorRT's parser.",
    "plugin_namespace": "For TensorRT's parser.",
}


def _schema(
    name: str, doc: str, inputs: list[tuple[str, str, bool]], infer: Callable[[InferenceContext], None]
) -> defs.OpSchema:
    schema = defs.OpSchema
    required, defaults = attribute_defaults()
    attributes = [
        schema.Attribute(attribute, schema.AttrType.INTS, _ATTRIBUTE_TEXT[attribute], required=True)
        for attribute in required
    ]
    attributes += [schema.Attribute(default.name, default, _ATTRIBUTE_TEXT[default.name]) for default in defaults]
    result = schema(
        name,
        DOMAIN,
        VERSION,
        doc=doc,
        inputs=[
            schema.FormalParameter(parameter, "T", text, param_option=_OPTIONAL if optional else _SINGLE)
            for parameter, text, optional in inputs
        ],
        outputs=[
            schema.FormalParameter("output", "T", "(B, *X, H, Dv)"),
            schema.FormalParameter(
                "lse", "tensor(float)", "(B, *X, H): log of the sum of exp(scores)", param_option=_OPTIONAL
            ),
        ],
        type_constraints=[("T", _FLOATS, "Storage; scores, softmax and accumulation are float32.")],
        attributes=attributes,
    )
    result.set_type_and_shape_inference_function(infer)
    return result


def _packed_schema() -> defs.OpSchema:
    def infer(context: InferenceContext) -> None:
        shape = _shape(context, 0)
        if shape is not None:
            rank = _rank(context)
            if len(shape) != rank + 4 or not _may_be(shape[-3], 3):
                raise InferenceError(
                    f"qkv must be (B, {rank} spatial axes, 3, H, D) for this kernel_size, got {_text(shape)}"
                )
            _check_bias(context, 1, shape[-2])
            shape = [*shape[:-3], *shape[-2:]]
        _set_outputs(context, shape)

    inputs = [
        ("qkv", "(B, *X, 3, H, D), as one linear layer leaves it", False),
        ("rel_pos_bias", "(H, 2*K0-1, …), added to the scaled scores", True),
    ]
    return _schema(PACKED_OPERATOR, "Neighborhood attention over packed query, key and value.", inputs, infer)


def _separate_schema() -> defs.OpSchema:
    def infer(context: InferenceContext) -> None:
        query, key, value = (_shape(context, index) for index in range(3))
        if query is not None:
            rank = _rank(context)
            if len(query) != rank + 3:
                raise InferenceError(
                    f"query must be (B, {rank} spatial axes, H, D) for this kernel_size, got {_text(query)}"
                )
            for name, other in (("key", key), ("value", value)):
                if other is not None and len(other) != len(query):
                    raise InferenceError(f"{name} must have query's rank {len(query)}, got {_text(other)}")
            if key is not None and not _may_be(key[-1], query[-1]):
                raise InferenceError(f"key's head size must be query's {query[-1]}, got {_text(key)}")
            if key is not None and isinstance(query[-2], int) and isinstance(key[-2], int) and query[-2] % key[-2]:
                raise InferenceError(f"query has {query[-2]} heads, which is not a multiple of key's {key[-2]}")
            _check_bias(context, 3, query[-2])
        width = None if value is None else value[-1]
        _set_outputs(context, None if query is None else [*query[:-1], width])

    inputs = [
        ("query", "(B, *X, H, D)", False),
        ("key", "(B, *X, Hkv, D)", False),
        ("value", "(B, *X, Hkv, Dv)", False),
        ("rel_pos_bias", "(H, 2*K0-1, …), added to the scaled scores", True),
        ("additional_key", "(B, M, Hkv, D), attended by every query", True),
        ("additional_value", "(B, M, Hkv, Dv)", True),
    ]
    return _schema(SEPARATE_OPERATOR, "Neighborhood attention over separate tensors.", inputs, infer)


# --------------------------------------------------------------------------- shape inference


def _rank(context: InferenceContext) -> int:
    attribute: AttributeProto | None = context.get_attribute("kernel_size")
    if attribute is None:
        raise InferenceError("neighborhood attention needs the attribute kernel_size, one value per spatial axis")
    rank = len(attribute.ints)
    if not 1 <= rank <= MAX_RANK:
        raise InferenceError(f"kernel_size must have 1 to {MAX_RANK} values, one per spatial axis, got {rank}")
    return rank


def _shape(context: InferenceContext, index: int) -> Shape | None:
    """Return an input's shape; ``None`` if it is absent or its rank is unknown."""
    if index >= context.get_num_inputs() or not context.has_input(index):
        return None
    value = context.get_input_type(index)
    if value is None or not value.tensor_type.HasField("shape"):
        return None
    return [
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None) for dim in value.tensor_type.shape.dim
    ]


def _check_bias(context: InferenceContext, index: int, heads: int | str | None) -> None:
    bias = _shape(context, index)
    if bias is None:
        return
    kernel = context.get_attribute("kernel_size").ints
    expected: Shape = [heads, *(2 * size - 1 for size in kernel)]
    if len(bias) != len(expected) or not all(map(_may_be, bias, expected)):
        raise InferenceError(f"rel_pos_bias must be {_text(expected)} for this kernel_size, got {_text(bias)}")


def _may_be(found: int | str | None, expected: int | str | None) -> bool:
    """Return whether two sizes can be the same."""
    return found == expected or not (isinstance(found, int) and isinstance(expected, int))


def _text(shape: Shape) -> str:
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"


def _set_outputs(context: InferenceContext, shape: Shape | None) -> None:
    first: onnx.TypeProto | None = context.get_input_type(0)
    if first is None:
        return
    context.set_output_type(0, _tensor(first.tensor_type.elem_type, shape))
    if context.get_num_outputs() > 1:
        context.set_output_type(1, _tensor(onnx.TensorProto.FLOAT, None if shape is None else shape[:-1]))


def _tensor(kind: int, shape: Shape | None) -> onnx.TypeProto:
    return onnx.helper.make_tensor_type_proto(kind, shape)
