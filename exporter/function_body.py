"""The two operators as ONNX model-local functions over standard operators.

A runtime without our kernels runs these. The arithmetic is that of ``attention/tiling.py``, stated on tensors so that
one body serves every rank, size and attribute, static or dynamic: with static sizes a runtime folds all of it into
constants and is left with three gathers, two matrix products, an addition, a softmax and a gather back.

The data path never transposes. ``query``, ``key`` and ``value`` are seen as rows of ``head_dim`` numbers; one Gather
with a table of row numbers, laid out (tiles, heads, rows of a tile), cuts tiles, separates dilation groups, repeats
grouped-query heads and moves heads in front at once, in contiguous copies of ``head_dim`` numbers.

A body is written for one rank. Where a model mixes ranks, it is written for the highest, and lower ones are padded in
front with axes of length 1 and a window of 1, which costs nothing on this path.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from na_deploy.attention.schema import DOMAIN, PACKED_OPERATOR, SEPARATE_OPERATOR, VERSION
from na_deploy.attention.tiling import TILE_LIMIT, TILE_MINIMUM
from na_deploy.attention.windows import MAX_RANK
from na_deploy.exporter.graph_builder import FunctionBuilder

MASKED = -1e30
"""Added to the score of a pair outside the window; ``exp`` of it is exactly 0 in float32."""

NEUTRAL = {"kernel_size": 1, "dilation": 1, "stride": 1, "is_causal": 0}
"""The attributes that hold one value per axis, with their values on an axis of length 1."""


@dataclass(frozen=True)
class BodyFeatures:
    """What the nodes of a model use; a function cannot test for the presence of an optional input.

    Attributes:
        rank: spatial axes of the body: the highest rank among the nodes.
        mixed_ranks: some node has fewer.
        rel_pos_bias: every node carries ``rel_pos_bias``.
        additional: every node carries ``additional_key`` and ``additional_value``.
        lse: some node reads the second output.
    """

    rank: int = MAX_RANK
    mixed_ranks: bool = True
    rel_pos_bias: bool = False
    additional: bool = False
    lse: bool = False


@dataclass(frozen=True)
class _Axis:
    """Names of one axis's tables. c = dilation groups x tiles, t = queries per tile, w = keys per tile, n = length."""

    query: str  # (c, t) positions
    key: str  # (c, w) positions
    pair: str  # (c, t, w) index into the bias axis, or into the one after it when masked
    home: str  # (n,) which c holds the position
    place: str  # (n,) where in that tile it stands
    length: str  # []
    combos: str  # [] c
    tile: str  # [] t
    span: str  # [] w


def packed_function(features: BodyFeatures, opset: int) -> onnx.FunctionProto:
    """Return the body of ``NeighborhoodAttentionQKV`` for ONNX ``opset``."""
    inputs = ["qkv"] + (["rel_pos_bias"] if features.rel_pos_bias else [])
    body = FunctionBuilder(PACKED_OPERATOR, inputs)
    empty = _without_batch(body, "qkv")
    head_count = body.dimension(empty, -2)
    head_dim = body.dimension(empty, -1)
    axes = _plan(body, body.op("Shape", empty, start=1, end=-3), features)
    rows = _rows(body, "qkv", head_dim)

    # Row ((position * 3) + part) * heads + head.
    head = _head_axis(body, body.range(head_count), features.rank)
    three = body.int64(3)
    tokens_per_position = body.op("Mul", three, head_count)

    def table(positions: str, part: int) -> str:  # (c0, …, 1, a0, …) -> (NT, H, a)
        first = body.op("Add", head, body.op("Mul", body.int64(part), head_count))
        rows = body.op("Add", body.op("Mul", positions, tokens_per_position), first)
        return _flatten_table(body, rows, axes, "tile" if part == 0 else "span", head_count)

    keys = _grid(body, axes, [axis.key for axis in axes])
    query = body.op("Gather", rows, table(_grid(body, axes, [axis.query for axis in axes]), 0), axis=1)
    key = body.op("Gather", rows, table(keys, 1), axis=1)
    value = body.op("Gather", rows, table(keys, 2), axis=1)
    bias = _bias_table(body, axes, head_count, features)
    outputs = _attend(body, query, key, value, bias, head_dim, features.lse)
    shape = body.op("Concat", body.op("Shape", empty, start=1, end=-3), body.op("Shape", empty, start=-2), axis=0)
    return _finish(body, axes, outputs, "qkv", head_count, shape, features, opset)


def separate_function(features: BodyFeatures, opset: int) -> onnx.FunctionProto:
    """Return the body of ``NeighborhoodAttention`` for ONNX ``opset``."""
    # Inputs are positional: additional keys stand behind rel_pos_bias whether or not the body reads that one.
    inputs = ["query", "key", "value"]
    if features.rel_pos_bias or features.additional:
        inputs.append("rel_pos_bias")
    if features.additional:
        inputs += ["additional_key", "additional_value"]
    body = FunctionBuilder(SEPARATE_OPERATOR, inputs)
    empty_query, empty_key, empty_value = (_without_batch(body, name) for name in ("query", "key", "value"))
    head_count = body.dimension(empty_query, -2)
    key_heads = body.dimension(empty_key, -2)
    head_dim = body.dimension(empty_query, -1)
    value_dim = body.dimension(empty_value, -1)
    axes = _plan(body, body.op("Shape", empty_query, start=1, end=-2), features)

    heads = body.range(head_count)
    query_head = _head_axis(body, heads, features.rank)
    key_head = body.op("Div", heads, body.op("Div", head_count, key_heads))  # grouped-query
    key_head = _head_axis(body, key_head, features.rank)

    def table(positions: str, per_position: str, head: str, inner: str) -> str:
        rows = body.op("Add", body.op("Mul", positions, per_position), head)
        return _flatten_table(body, rows, axes, inner, head_count)

    key_rows, value_rows = _rows(body, "key", head_dim), _rows(body, "value", value_dim)
    key_table = table(_grid(body, axes, [axis.key for axis in axes]), key_heads, key_head, "span")
    bias = _bias_table(body, axes, head_count, features)
    if features.additional:
        # Additional keys are rows after the map's own; every tile reads all of them, unmasked and unbiased.
        extra = body.dimension(_without_batch(body, "additional_key"), 1)
        window_rows = body.product(*[axis.length for axis in axes], key_heads)
        numbers = body.op("Mul", body.range(extra), key_heads)  # (M,)
        flat_head = body.op("Unsqueeze", body.op("Div", heads, body.op("Div", head_count, key_heads)), body.ints(1))
        extra_table = body.op("Add", body.op("Add", flat_head, numbers), window_rows)  # (H, M)
        tiles = body.product(*[axis.combos for axis in axes])
        extra_table = body.op("Expand", extra_table, body.vector(tiles, head_count, extra))
        key_table = body.op("Concat", key_table, extra_table, axis=-1)
        key_rows = body.op("Concat", key_rows, _rows(body, "additional_key", head_dim), axis=1)
        value_rows = body.op("Concat", value_rows, _rows(body, "additional_value", value_dim), axis=1)
        margin = body.op("Concat", body.ints(0, 0, 0, 0, 0, 0, 0), body.op("Unsqueeze", extra, body.ints(0)), axis=0)
        bias = body.op("Pad", bias, margin, body.float32(0.0), mode="constant")
    query_table = table(_grid(body, axes, [axis.query for axis in axes]), head_count, query_head, "tile")
    query = body.op("Gather", _rows(body, "query", head_dim), query_table, axis=1)
    key = body.op("Gather", key_rows, key_table, axis=1)
    value = body.op("Gather", value_rows, key_table, axis=1)
    outputs = _attend(body, query, key, value, bias, head_dim, features.lse)
    shape = body.op(
        "Concat", body.op("Shape", empty_query, start=1, end=-1), body.op("Shape", empty_value, start=-1), axis=0
    )
    return _finish(body, axes, outputs, "query", head_count, shape, features, opset)


# --------------------------------------------------------------------------- planning (folds away with static sizes)


def _without_batch(body: FunctionBuilder, tensor: str) -> str:
    """Return ``tensor`` with no batch entries, to read its other dimensions from.

    ONNX Runtime folds Shape only where every dimension is known; a symbolic batch would keep all planning alive. It
    copies nothing and any batch has it, 0 included.
    """
    return body.op("Gather", tensor, body.constant(np.zeros(0, np.int64)), axis=0)


def _pad_front(body: FunctionBuilder, per_axis: str, value: int, features: BodyFeatures) -> str:
    """Pad a one-per-axis vector in front to the body's rank."""
    if not features.mixed_ranks:
        return per_axis
    missing = body.op("Sub", body.ints(features.rank), body.op("Shape", per_axis))
    fill = helper.make_tensor("value", TensorProto.INT64, [1], [value])
    return body.op("Concat", body.op("ConstantOfShape", missing, value=fill), per_axis, axis=0)


def _plan(body: FunctionBuilder, lengths: str, features: BodyFeatures) -> list[_Axis]:
    """Return the axes' tables; see ``attention.tiling.plan_axis`` for the arithmetic."""
    one = body.ints(1)
    rank = body.op("Shape", body.attribute_ints("kernel_size"))
    kernel, dilation, stride, causal = (
        _pad_front(body, body.op("Expand", body.attribute_ints(name), rank), neutral, features)
        for name, neutral in NEUTRAL.items()
    )
    lengths = _pad_front(body, lengths, 1, features)
    longest = body.ceil_div(lengths, dilation)
    tile, tiles = _tile(body, longest, kernel, stride, rank)
    span = body.op("Min", body.op("Sub", body.op("Add", kernel, tile), stride), longest)
    is_causal = body.op("Greater", causal, body.ints(0))
    ahead = body.op("Where", is_causal, body.op("Sub", stride, one), body.op("Div", stride, body.ints(2)))
    left = body.op("Where", is_causal, body.op("Sub", kernel, one), body.op("Div", kernel, body.ints(2)))
    combos = body.op("Mul", dilation, tiles)
    names = (
        "kernel",
        "dilation",
        "stride",
        "causal",
        "length",
        "tile",
        "tiles",
        "span",
        "ahead",
        "left",
        "combos",
        "longest",
    )
    vectors = (kernel, dilation, stride, is_causal, lengths, tile, tiles, span, ahead, left, combos, longest)
    return [
        _plan_axis(
            body, {name: body.item(v, axis) for name, v in zip(names, vectors, strict=True)}, features.rel_pos_bias
        )
        for axis in range(features.rank)
    ]


def _tile(body: FunctionBuilder, longest: str, kernel: str, stride: str, rank: str) -> tuple[str, str]:
    """Return tile side and count on each axis; see ``attention.tiling.tile_size``.

    The two last Min change no value. They tell TensorRT, which plans memory for free sizes by interval arithmetic, that
    neither can be larger than before balancing; without them it reserves a hundred times the memory.
    """
    one, two = body.ints(1), body.ints(2)
    least, limit = (
        body.op("Gather", body.ints(*(table[r] for r in (1, 2, 3))), body.op("Sub", rank, one))
        for table in (TILE_MINIMUM, TILE_LIMIT)
    )
    aim = body.op("Min", body.op("Max", body.op("Div", body.op("Add", kernel, one), two), least), limit)
    double = body.op("Mul", aim, two)
    whole = body.op("Min", body.op("Add", kernel, one), double)
    count = body.op("Max", body.op("Div", longest, aim), one)
    count = body.op("Where", body.op("LessOrEqual", longest, whole), one, count)
    balanced = body.ceil_div(longest, count)

    def up(size: str) -> str:
        return body.op("Mul", body.ceil_div(size, stride), stride)

    tile = body.op("Min", up(balanced), up(double))
    return tile, body.op("Min", body.ceil_div(longest, tile), body.ceil_div(longest, aim))


def _plan_axis(body: FunctionBuilder, at: dict[str, str], biased: bool) -> _Axis:
    op, one = body.op, body.int64(1)
    last, first = body.ints(-1), body.ints(1)
    combo = body.range(at["combos"])
    group = op("Div", combo, at["tiles"])
    tile_number = op("Sub", combo, op("Mul", group, at["tiles"]))
    group_size = body.ceil_div(op("Sub", at["length"], group), at["dilation"])  # (c,)
    group, group_size = op("Unsqueeze", group, last), op("Unsqueeze", group_size, last)  # (c, 1)
    final = op("Sub", group_size, one)

    element = op("Add", op("Unsqueeze", op("Mul", tile_number, at["tile"]), last), body.range(at["tile"]))
    element = op("Min", element, final)  # (c, t)
    leader = op("Mul", op("Div", element, at["stride"]), at["stride"])
    leader = op("Min", op("Add", leader, at["ahead"]), final)
    start = op("Min", op("Sub", leader, at["left"]), op("Sub", group_size, at["kernel"]))
    start = op("Max", start, body.int64(0))  # (c, t)
    end = op("Where", at["causal"], op("Add", element, one), op("Add", start, at["kernel"]))

    first_start = op("Slice", start, body.ints(0), body.ints(1), body.ints(1))
    key_start = op("Min", first_start, op("Sub", at["longest"], at["span"]))
    key = op("Add", key_start, body.range(at["span"]))  # (c, w)
    key_pair, start, end = op("Unsqueeze", key, first), op("Unsqueeze", start, last), op("Unsqueeze", end, last)
    visible = op("And", op("GreaterOrEqual", key_pair, start), op("Less", key_pair, end))  # (c, t, w)
    if biased:
        reach = op("Sub", at["kernel"], one)
        pair = op("Add", op("Sub", key_pair, op("Unsqueeze", element, last)), reach)
        pair = op("Where", visible, pair, op("Add", op("Add", reach, reach), one))
    else:
        pair = op("Where", visible, body.int64(0), one)

    position = body.range(at["length"])
    of_group = op("Div", position, at["dilation"])
    own_group = op("Sub", position, op("Mul", of_group, at["dilation"]))
    of_tile = op("Div", of_group, at["tile"])
    return _Axis(
        query=op("Add", op("Mul", element, at["dilation"]), group),
        key=op("Min", op("Add", op("Mul", key, at["dilation"]), group), op("Sub", at["length"], one)),
        pair=pair,
        home=op("Add", op("Mul", own_group, at["tiles"]), of_tile),
        place=op("Sub", of_group, op("Mul", of_tile, at["tile"])),
        length=at["length"],
        combos=at["combos"],
        tile=at["tile"],
        span=at["span"],
    )


# --------------------------------------------------------------------------- row tables


def _rows(body: FunctionBuilder, tensor: str, width: str) -> str:
    """Return ``tensor`` (B, …, width) as float32 rows (B, N, width)."""
    middle = body.product_of(body.op("Shape", _without_batch(body, tensor), start=1, end=-1))
    shape = body.op("Concat", body.ints(0), middle, body.op("Unsqueeze", width, body.ints(0)), axis=0)
    return body.op("Cast", body.op("Reshape", tensor, shape), to=TensorProto.FLOAT)


def _head_axis(body: FunctionBuilder, heads: str, rank: int) -> str:
    return body.op("Reshape", heads, body.ints(*[1] * rank, -1, *[1] * rank))


def _grid(body: FunctionBuilder, axes: list[_Axis], tables: list[str]) -> str:
    """Combine per-axis positions (c, a) into flat positions (c0, …, 1, a0, …)."""
    rank = len(axes)
    total = ""
    for number, (axis, table) in enumerate(zip(axes, tables, strict=True)):
        unit = [position for position in range(2 * rank + 1) if position not in (number, number + rank + 1)]
        spread = body.op("Unsqueeze", table, body.ints(*unit))
        total = spread if not total else body.op("Add", body.op("Mul", total, axis.length), spread)
    return total


def _flatten_table(body: FunctionBuilder, table: str, axes: list[_Axis], inner: str, heads: str) -> str:
    """Return (c0, …, H, a0, …) as (tiles, H, rows of a tile); ``inner`` is "tile" or "span"."""
    tiles = body.product(*[axis.combos for axis in axes])
    return body.op("Reshape", table, body.vector(tiles, heads, body.product(*[getattr(axis, inner) for axis in axes])))


def _bias_table(body: FunctionBuilder, axes: list[_Axis], heads: str, features: BodyFeatures) -> str:
    """Return what is added to the scores: (tiles, H or 1, queries of a tile, keys of a tile) in float32.

    The bias gets one more, masked, entry per axis, so that looking a pair up masks it too. The last axis is looked up
    number by number, which is a small table; the others then copy whole rows of it.
    """
    rank = features.rank
    if features.rel_pos_bias:
        edges = _pad_front(body, body.op("Shape", "rel_pos_bias", start=1), 1, features)
        shape = body.op("Concat", body.op("Shape", "rel_pos_bias", start=0, end=1), edges, axis=0)
        bias = body.op("Cast", body.op("Reshape", "rel_pos_bias", shape), to=TensorProto.FLOAT)
    else:
        bias = body.constant(np.zeros([1] * (rank + 1), np.float32))
        heads = body.int64(1)
    bias = body.op("Pad", bias, body.ints(*[0] * (rank + 2), *[1] * rank), body.float32(MASKED), mode="constant")

    *upper, x = axes
    rows = body.op("Gather", bias, x.pair, axis=rank)  # (H, r0, …, c, t, w)
    row_shape = body.op("Concat", body.ints(-1), body.op("Unsqueeze", x.span, body.ints(0)), axis=0)
    rows = body.op("Reshape", rows, row_shape)

    # The row's number: ((head, bias rows of the upper axes), c, t), laid out (upper c, c, H, upper t, t, upper w).
    number = body.op("Reshape", body.range(heads), body.ints(1, 1, -1, 1, 1, 1))
    if upper:
        edge = body.product(*[body.dimension(bias, axis + 1) for axis in range(len(upper))])
        pair = body.op("Unsqueeze", _upper_pair(body, bias, upper), body.ints(1, 2, 4))
        number = body.op("Add", body.op("Mul", number, edge), pair)
    combo = body.op("Reshape", body.range(x.combos), body.ints(1, -1, 1, 1, 1, 1))
    query = body.op("Reshape", body.range(x.tile), body.ints(1, 1, 1, 1, -1, 1))
    number = body.op("Add", body.op("Mul", number, x.combos), combo)
    number = body.op("Add", body.op("Mul", number, x.tile), query)

    table = body.op("Gather", rows, number, axis=0)
    tiles, queries, keys = (
        body.product(*[getattr(axis, name) for axis in axes]) for name in ("combos", "tile", "span")
    )
    return body.op("Reshape", table, body.vector(tiles, heads, queries, keys))


def _upper_pair(body: FunctionBuilder, bias: str, upper: list[_Axis]) -> str:
    """Return (c, t, w) bias rows of all axes but the last, combined."""
    if len(upper) == 1:
        return upper[0].pair
    z, y = upper
    first = body.op("Unsqueeze", z.pair, body.ints(1, 3, 5))  # (c0, 1, t0, 1, w0, 1)
    second = body.op("Unsqueeze", y.pair, body.ints(0, 2, 4))  # (1, c1, 1, t1, 1, w1)
    pair = body.op("Add", body.op("Mul", first, body.dimension(bias, 2)), second)
    merged = [body.product(getattr(z, name), getattr(y, name)) for name in ("combos", "tile", "span")]
    return body.op("Reshape", pair, body.vector(*merged))


# --------------------------------------------------------------------------- attention itself


def _attend(
    body: FunctionBuilder, query: str, key: str, value: str, bias: str, head_dim: str, with_lse: bool
) -> tuple[str, str | None]:
    """Return (B, tiles, H, queries, Dv) and, if asked for, (B, tiles, H, queries, 1): plain attention on the tiles."""
    given = body.attribute_float("scale")
    standard = body.op("Pow", body.op("Cast", head_dim, to=TensorProto.FLOAT), body.float32(-0.5))
    scale = body.op("Where", body.op("Equal", given, body.float32(0.0)), standard, given)
    scores = body.op("MatMul", body.op("Mul", query, scale), body.op("Transpose", key, perm=[0, 1, 2, 4, 3]))
    scores = body.op("Add", scores, bias)
    lse = None
    if with_lse:
        last = body.ints(-1)
        peak = body.op("ReduceMax", scores, last, keepdims=1)
        total = body.op("ReduceSum", body.op("Exp", body.op("Sub", scores, peak)), last, keepdims=1)
        lse = body.op("Add", peak, body.op("Log", total))
    return body.op("MatMul", body.op("Softmax", scores, axis=-1), value), lse


def _finish(
    body: FunctionBuilder,
    axes: list[_Axis],
    attended: tuple[str, str | None],
    like: str,
    heads: str,
    shape: str,  # of the output, less the batch
    features: BodyFeatures,
    opset: int,
) -> onnx.FunctionProto:
    """Put tiles back in place, give the result the input's type, and close the function."""
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
    total = body.product(*[axis.combos for axis in axes], heads, queries)

    def restore(tensor: str, shape: str) -> str:  # (B, tiles, H, queries, e) -> (B, *X, H, e)
        width = body.op("Slice", shape, body.ints(-1), body.ints(2**31 - 1))
        flat = body.op("Concat", body.ints(0), body.op("Unsqueeze", total, body.ints(0)), width, axis=0)
        home = body.op("Concat", body.ints(0), shape, axis=0)  # 0 keeps the batch as it is
        return body.op("Reshape", body.op("Gather", body.op("Reshape", tensor, flat), row, axis=1), home)

    output, lse = attended
    body.rename(body.op("CastLike", restore(output, shape), like), "output")
    outputs = ["output"]
    if features.lse:
        assert lse is not None
        one = body.ints(1)
        lse_shape = body.op("Concat", body.op("Slice", shape, body.ints(0), body.ints(-1)), one, axis=0)
        body.rename(body.op("Squeeze", restore(lse, lse_shape), body.ints(-1)), "lse")
        outputs.append("lse")
    return body.function(DOMAIN, outputs, opset, VERSION)
