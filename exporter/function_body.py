"""The two operators as ONNX model-local functions over standard operators.

A runtime without our kernels runs these. The arithmetic is that of ``attention/tiling.py``, stated on tensors so that
one body serves every rank, size and attribute, static or dynamic: with static sizes a runtime folds all of it into
constants and is left with three gathers, two matrix products, an addition, a softmax and a gather back.

The data path never transposes. ``query``, ``key`` and ``value`` are seen as rows of ``head_dim`` numbers; one Gather
with a table of row numbers, laid out (tiles, heads, rows of a tile), cuts tiles, separates dilation groups, repeats
grouped-query heads and moves heads in front at once, in contiguous copies of ``head_dim`` numbers.

Planning is :mod:`function_planning`, cutting and masking :mod:`function_tables`, and layers too large to hold at once
:mod:`function_parts`; here the operators' inputs are told apart and the tiles put back in place.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from na_deploy.attention.schema import DOMAIN, PACKED_OPERATOR, SEPARATE_OPERATOR, VERSION
from na_deploy.exporter.function_parts import layer_in_parts
from na_deploy.exporter.function_planning import BodyFeatures, plan, without_batch
from na_deploy.exporter.function_tables import MASKED, Attended, Layer, Source, rows_of, whole_layer
from na_deploy.exporter.graph_builder import FunctionBuilder

__all__ = ["MASKED", "BodyFeatures", "packed_function", "separate_function"]


def packed_function(features: BodyFeatures, opset: int) -> onnx.FunctionProto:
    """Return the body of ``NeighborhoodAttentionQKV`` for ONNX ``opset``."""
    # Inputs are positional: padding stands behind rel_pos_bias whether or not the body reads that one.
    inputs = ["qkv"]
    if features.rel_pos_bias or features.padding:
        inputs.append("rel_pos_bias")
    if features.padding:
        inputs.append("padding")
    body = FunctionBuilder(PACKED_OPERATOR, inputs)
    empty = without_batch(body, "qkv")
    heads, head_dim = body.dimension(empty, -2), body.dimension(empty, -1)
    axes = plan(body, body.op("Shape", empty, start=1, end=-3), features)
    rows, per_position, behind = rows_of(body, "qkv", head_dim), body.op("Mul", body.int64(3), heads), None
    if features.padding:  # one more position, behind the map's last
        rows = body.op("Concat", rows, _padding_rows(body, head_dim), axis=1)
        behind = body.product(*[axis.length for axis in axes])
    query, key, value = (  # row ((position * 3) + part) * heads + head
        Source(rows, per_position, body.op("Add", body.range(heads), body.op("Mul", body.int64(part), heads)))
        for part in range(3)
    )
    layer = Layer(axes, heads, query, key, value, additional=None, scale=_scale(body, head_dim), behind=behind)
    shape = body.op("Concat", body.op("Shape", empty, start=1, end=-3), body.op("Shape", empty, start=-2), axis=0)
    return _finish(body, layer, _attend(body, layer, features), "qkv", shape, features, opset)


def _padding_rows(body: FunctionBuilder, head_dim: str) -> str:
    """Return the padding as rows of every image, (B, 3 * H, D) float32."""
    shape = body.op("Concat", body.ints(1, -1), body.op("Unsqueeze", head_dim, body.ints(0)), axis=0)
    rows = body.op("Cast", body.op("Reshape", "padding", shape), to=TensorProto.FLOAT)
    # Not Expand, of which ONNX infers an image where there is none.
    none = helper.make_tensor("value", TensorProto.INT64, [1], [0])
    images = body.op("ConstantOfShape", body.op("Shape", "qkv", start=0, end=1), value=none)
    return body.op("Gather", rows, images, axis=0)


def separate_function(features: BodyFeatures, opset: int) -> onnx.FunctionProto:
    """Return the body of ``NeighborhoodAttention`` for ONNX ``opset``."""
    # Inputs are positional: additional keys stand behind rel_pos_bias whether or not the body reads that one.
    inputs = ["query", "key", "value"]
    if features.rel_pos_bias or features.additional:
        inputs.append("rel_pos_bias")
    if features.additional:
        inputs += ["additional_key", "additional_value"]
    body = FunctionBuilder(SEPARATE_OPERATOR, inputs)
    empty_query, empty_key, empty_value = (without_batch(body, name) for name in ("query", "key", "value"))
    heads, key_heads = body.dimension(empty_query, -2), body.dimension(empty_key, -2)
    head_dim, value_dim = body.dimension(empty_query, -1), body.dimension(empty_value, -1)
    axes = plan(body, body.op("Shape", empty_query, start=1, end=-2), features)

    key_head = body.op("Div", body.range(heads), body.op("Div", heads, key_heads))  # grouped-query
    key_rows, value_rows, additional = rows_of(body, "key", head_dim), rows_of(body, "value", value_dim), None
    if features.additional:  # their rows stand after the map's own
        extra = body.dimension(without_batch(body, "additional_key"), 1)
        window_rows = body.product(*[axis.length for axis in axes], key_heads)
        numbers = body.op("Mul", body.range(extra), key_heads)  # (M,)
        additional = body.op("Add", body.op("Unsqueeze", key_head, body.ints(1)), numbers)
        additional = body.op("Add", additional, window_rows)
        key_rows = body.op("Concat", key_rows, rows_of(body, "additional_key", head_dim), axis=1)
        value_rows = body.op("Concat", value_rows, rows_of(body, "additional_value", value_dim), axis=1)
    layer = Layer(
        axes,
        heads,
        query=Source(rows_of(body, "query", head_dim), heads, body.range(heads)),
        key=Source(key_rows, key_heads, key_head),
        value=Source(value_rows, key_heads, key_head),
        additional=additional,
        scale=_scale(body, head_dim),
    )
    shape = body.op(
        "Concat", body.op("Shape", empty_query, start=1, end=-1), body.op("Shape", empty_value, start=-1), axis=0
    )
    return _finish(body, layer, _attend(body, layer, features), "query", shape, features, opset)


def _scale(body: FunctionBuilder, head_dim: str) -> str:
    given = body.attribute_float("scale")
    standard = body.op("Pow", body.op("Cast", head_dim, to=TensorProto.FLOAT), body.float32(-0.5))
    return body.op("Where", body.op("Equal", given, body.float32(0.0)), standard, given)


def _attend(body: FunctionBuilder, layer: Layer, features: BodyFeatures) -> Attended:
    return layer_in_parts(body, layer, features) if features.in_parts else whole_layer(body, layer, features)


def _finish(
    body: FunctionBuilder,
    layer: Layer,
    attended: Attended,
    like: str,
    shape: str,  # of the output, less the batch
    features: BodyFeatures,
    opset: int,
) -> onnx.FunctionProto:
    """Put tiles back in place, give the result the input's type, and close the function."""
    axes, heads = layer.axes, layer.heads
    rank = len(axes)
    queries = body.product(*[axis.tile for axis in axes])
    home = place = ""  # (n0, …, 1)
    for number, axis in enumerate(axes):
        unit = body.ints(*[other for other in range(rank + 1) if other != number])
        own_home, own_place = body.op("Unsqueeze", axis.home, unit), body.op("Unsqueeze", axis.place, unit)
        home = own_home if not home else body.op("Add", body.op("Mul", home, axis.combos), own_home)
        place = own_place if not place else body.op("Add", body.op("Mul", place, axis.tile), own_place)
    head = body.op("Reshape", body.range(heads), body.ints(*[1] * rank, -1))
    row = body.op("Add", body.op("Mul", home, heads), head)
    row = body.op("Add", body.op("Mul", row, queries), place)
    row = body.op("Reshape", row, body.ints(-1))
    total = body.product(attended.tiles, heads, queries)

    def restore(tensor: str, shape: str) -> str:  # (B, tiles, H, queries, e) -> (B, *X, H, e)
        width = body.op("Slice", shape, body.ints(-1), body.ints(2**31 - 1))
        flat = body.op("Concat", body.ints(0), body.op("Unsqueeze", total, body.ints(0)), width, axis=0)
        home = body.op("Concat", body.ints(0), shape, axis=0)  # 0 keeps the batch as it is
        return body.op("Reshape", body.op("Gather", body.op("Reshape", tensor, flat), row, axis=1), home)

    body.rename(body.op("CastLike", restore(attended.output, shape), like), "output")
    outputs = ["output"]
    if features.lse:
        assert attended.lse is not None
        one = body.ints(1)
        lse_shape = body.op("Concat", body.op("Slice", shape, body.ints(0), body.ints(-1)), one, axis=0)
        body.rename(body.op("Squeeze", restore(attended.lse, lse_shape), body.ints(-1)), "lse")
        outputs.append("lse")
    return body.function(DOMAIN, outputs, opset, VERSION)
