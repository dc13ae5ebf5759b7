"""Registration of the two operators with ``onnx``: their signatures, defaults, and shape and type inference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
from na_deploy.attention.shapes import Shape, check_additional_pair, check_packed, check_shapes
from na_deploy.attention.windows import NeighborhoodSpec
from na_deploy.errors import UsageError


def register_schemas() -> None:
    """Register the operators, so that the checker and shape inference know their nodes. May be called again."""
    for schema in (_packed_schema(), _separate_schema()):
        if not defs.has(schema.name, DOMAIN):
            defs.register_schema(schema)


_FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
_OPTIONAL = defs.OpSchema.FormalParameterOption.Optional
_SINGLE = defs.OpSchema.FormalParameterOption.Single
_ATTRIBUTE_TYPES = {
    AttributeProto.INTS: defs.OpSchema.AttrType.INTS,
    AttributeProto.INT: defs.OpSchema.AttrType.INT,
    AttributeProto.FLOAT: defs.OpSchema.AttrType.FLOAT,
    AttributeProto.STRING: defs.OpSchema.AttrType.STRING,
}
_ATTRIBUTE_TEXT = {
    "kernel_size": "Window size, one per spatial axis.",
    "dilation": "Distance between attended positions, one per spatial axis.",
    "stride": "Neighbouring queries that share one window, one per spatial axis.",
    "is_causal": "1 where no later position is attended, one per spatial axis.",
    "scale": "Factor on the scores; 0 means head_dim**-0.5.",
    "with_lse": "1 where the node has its second output; for TensorRT's plugin.",
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
            with _as_inference_error():
                others = (_shape(context, index) for index in (1, 2))
                check_packed(_spec(context), shape, *others, padded=_is_given(context, 2))
            shape = [*shape[:-3], *shape[-2:]]
        _set_outputs(context, shape)

    inputs = [
        ("qkv", "(B, *X, 3, H, D), as one linear layer leaves it", False),
        ("rel_pos_bias", "(H, 2*K0-1, …), added to the scaled scores", True),
        ("padding", "(3, H, D), query, key and value of positions behind a map smaller than its windows", True),
    ]
    return _schema(PACKED_OPERATOR, "Neighborhood attention over packed query, key and value.", inputs, infer)


def _separate_schema() -> defs.OpSchema:
    def infer(context: InferenceContext) -> None:
        query, *others = (_shape(context, index) for index in range(6))
        with _as_inference_error():
            check_additional_pair(_is_given(context, 4), _is_given(context, 5))
            if query is not None:
                check_shapes(_spec(context), query, *others)
        width = None if others[1] is None else others[1][-1]
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


@contextmanager
def _as_inference_error() -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        raise InferenceError(str(error)) from error


def _spec(context: InferenceContext) -> NeighborhoodSpec:
    kernel_size = _ints(context, "kernel_size")
    if not kernel_size:
        raise InferenceError("neighborhood attention needs the attribute kernel_size, one value per spatial axis")
    dilation, stride, is_causal = (
        _ints(context, name) or [default] for name, default in (("dilation", 1), ("stride", 1), ("is_causal", 0))
    )
    causal = [bool(flag) for flag in is_causal]
    return NeighborhoodSpec.create(len(kernel_size), kernel_size, dilation, stride, causal)


def _ints(context: InferenceContext, name: str) -> list[int]:
    attribute: AttributeProto | None = context.get_attribute(name)
    return [] if attribute is None else list(attribute.ints)


def _is_given(context: InferenceContext, index: int) -> bool:
    return bool(index < context.get_num_inputs() and context.has_input(index))


def _shape(context: InferenceContext, index: int) -> list[int | str | None] | None:
    """Return an input's shape; ``None`` if it is absent or its rank is unknown."""
    if not _is_given(context, index):
        return None
    value = context.get_input_type(index)
    if value is None or not value.tensor_type.HasField("shape"):
        return None
    return [
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None) for dim in value.tensor_type.shape.dim
    ]


def _set_outputs(context: InferenceContext, shape: Shape | None) -> None:
    first: onnx.TypeProto | None = context.get_input_type(0)
    if first is None:
        return
    context.set_output_type(0, _tensor(first.tensor_type.elem_type, shape))
    if context.get_num_outputs() > 1:
        context.set_output_type(1, _tensor(onnx.TensorProto.FLOAT, None if shape is None else shape[:-1]))


def _tensor(kind: int, shape: Shape | None) -> onnx.TypeProto:
    return onnx.helper.make_tensor_type_proto(kind, shape)
