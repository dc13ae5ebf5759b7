"""Planning inside a function body: the tables of ``attention/tiling.py`` in ONNX operators, axis by axis.

With static sizes all of it folds into constants when a session loads. A body is written for one rank. Where a model
mixes ranks, it is written for the highest, and lower ones are padded in front with axes of length 1 and a window of 1,
which costs nothing on this path.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import TensorProto, helper

from na_deploy.attention.tiling import TILE_LIMIT, TILE_MINIMUM
from na_deploy.attention.windows import MAX_RANK
from na_deploy.exporter.graph_builder import FunctionBuilder

NEUTRAL = {"kernel_size": 1, "dilation": 1, "stride": 1, "is_causal": 0}
"""The attributes that hold one value per axis, with their values on an axis of length 1."""


@dataclass(frozen=True)
class BodyFeatures:
    """Features that the nodes of a model use; a function cannot test for the presence of an optional input.

    Attributes:
        rank: spatial axes of the body: the highest rank among the nodes.
        mixed_ranks: some node has fewer.
        rel_pos_bias: every node carries ``rel_pos_bias``.
        additional: every node carries ``additional_key`` and ``additional_value``.
        lse: some node reads the second output.
        in_parts: some node's scores are too large to hold at once; the body then goes through a few tiles at a time.
        padding: every node carries ``padding``, and maps may be smaller than windows.
    """

    rank: int = MAX_RANK
    mixed_ranks: bool = True
    rel_pos_bias: bool = False
    additional: bool = False
    lse: bool = False
    in_parts: bool = False
    padding: bool = False


@dataclass(frozen=True)
class Axis:
    """Names of one axis's tables. c = dilation groups x tiles, t = queries per tile, w = keys per tile, n = length.

    With padding, a key behind the axis stands at the number of positions of the whole map: whatever the other axes
    add, it stays behind the map.
    """

    query: str  # (c, t) positions
    key: str  # (c, w) positions
    pair: str  # (c, t, w) index into the bias axis, or into the one after it when masked
    home: str  # (n,) which c holds the position
    place: str  # (n,) where in that tile it stands
    length: str  # []
    combos: str  # [] c
    tile: str  # [] t
    span: str  # [] w


def without_batch(body: FunctionBuilder, tensor: str) -> str:
    """Return ``tensor`` with no batch entries, to read its other dimensions from.

    ONNX Runtime folds Shape only where every dimension is known; a symbolic batch would keep all planning alive. It
    copies nothing and any batch has it, 0 included. The empty list is computed, because OpenVINO takes an empty
    constant for a scalar 0.
    """
    zero = helper.make_tensor("value", TensorProto.INT64, [1], [0])
    return body.op("Gather", tensor, body.op("ConstantOfShape", body.ints(0), value=zero), axis=0)


def pad_front(body: FunctionBuilder, per_axis: str, value: int, features: BodyFeatures) -> str:
    """Pad a one-per-axis vector in front to the body's rank."""
    if not features.mixed_ranks:
        return per_axis
    missing = body.op("Sub", body.ints(features.rank), body.op("Shape", per_axis))
    fill = helper.make_tensor("value", TensorProto.INT64, [1], [value])
    return body.op("Concat", body.op("ConstantOfShape", missing, value=fill), per_axis, axis=0)


def plan(body: FunctionBuilder, lengths: str, features: BodyFeatures) -> list[Axis]:
    """Return the axes' tables; see ``attention.tiling.plan_axis`` for the arithmetic.

    With padding, windows are laid over an axis that is at least as long as they are, and queries are cut into tiles on
    the axis itself.
    """
    one = body.ints(1)
    rank = body.op("Shape", body.attribute_ints("kernel_size"))
    kernel, dilation, stride, causal = (
        pad_front(body, body.op("Expand", body.attribute_ints(name), rank), neutral, features)
        for name, neutral in NEUTRAL.items()
    )
    lengths = pad_front(body, lengths, 1, features)
    reach = body.op("Max", lengths, body.op("Mul", kernel, dilation)) if features.padding else lengths
    longest, farthest = body.ceil_div(lengths, dilation), body.ceil_div(reach, dilation)
    tile, tiles = _tile(body, longest, kernel, stride, rank)
    span = body.op("Min", body.op("Sub", body.op("Add", kernel, tile), stride), farthest)
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
        "reach",
        "farthest",
    )
    vectors = (kernel, dilation, stride, is_causal, lengths, tile, tiles, span, ahead, left, combos, reach, farthest)
    behind = body.item(body.product_of(lengths), 0) if features.padding else None
    return [
        _plan_axis(
            body,
            {name: body.item(v, axis) for name, v in zip(names, vectors, strict=True)},
            features.rel_pos_bias,
            behind,
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


def _plan_axis(body: FunctionBuilder, at: dict[str, str], biased: bool, behind: str | None) -> Axis:
    op, one = body.op, body.int64(1)
    last, first = body.ints(-1), body.ints(1)
    combo = body.range(at["combos"])
    group = op("Div", combo, at["tiles"])
    tile_number = op("Sub", combo, op("Mul", group, at["tiles"]))
    group_size = body.ceil_div(op("Sub", at["reach"], group), at["dilation"])  # (c,)
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
    key_start = op("Min", first_start, op("Sub", at["farthest"], at["span"]))
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
    query_at = op("Add", op("Mul", element, at["dilation"]), group)
    key_at = op("Min", op("Add", op("Mul", key, at["dilation"]), group), op("Sub", at["reach"], one))
    if behind is not None:
        query_at = op("Min", query_at, op("Sub", at["length"], one))  # queries behind the axis are nobody's
        key_at = op("Where", op("Less", key_at, at["length"]), key_at, behind)
    return Axis(
        query=query_at,
        key=key_at,
        pair=pair,
        home=op("Add", op("Mul", own_group, at["tiles"]), of_tile),
        place=op("Sub", of_group, op("Mul", of_tile, at["tile"])),
        length=at["length"],
        combos=at["combos"],
        tile=at["tile"],
        span=at["span"],
    )
