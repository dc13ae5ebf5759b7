"""Tables inside a function body that cut a whole layer into tiles at once, and what is added to its scores.

``query``, ``key`` and ``value`` are seen as rows of ``head_dim`` numbers; a table of row numbers, laid out (tiles,
heads, rows of a tile), cuts tiles, separates dilation groups, repeats grouped-query heads and moves heads in front.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from na_deploy.exporter.function_planning import Axis, BodyFeatures, pad_front, without_batch
from na_deploy.exporter.graph_builder import FunctionBuilder

MASKED = -1e30
"""Added to the score of a pair outside the window; ``exp`` of it is exactly 0 in float32."""


@dataclass(frozen=True)
class Source:
    """Places of the rows of query, key or value: row ``position * per_position + head[h]``."""

    rows: str  # (B, N, width) float32
    per_position: str  # []
    head: str  # (H,)


@dataclass(frozen=True)
class Layer:
    """One layer, planned: what both ways of going through it work from."""

    axes: list[Axis]
    heads: str  # []
    query: Source
    key: Source
    value: Source
    additional: str | None  # (H, M) rows of additional keys, in key's and value's rows alike
    scale: str  # []
    behind: str | None = None  # [] the position behind the map's last, where the rows of the padding are

    def positions(self, body: FunctionBuilder, flat: str) -> str:
        """Return flat positions, those behind the map all at the padding's."""
        return flat if self.behind is None else body.op("Min", flat, self.behind)


@dataclass(frozen=True)
class Attended:
    """The results, tile by tile."""

    output: str  # (B, tiles, H, queries, Dv)
    lse: str | None  # (B, tiles, H, queries, 1)
    tiles: str  # []


def rows_of(body: FunctionBuilder, tensor: str, width: str) -> str:
    """Return ``tensor`` (B, …, width) as float32 rows (B, N, width)."""
    middle = body.product_of(body.op("Shape", without_batch(body, tensor), start=1, end=-1))
    shape = body.op("Concat", body.ints(0), middle, body.op("Unsqueeze", width, body.ints(0)), axis=0)
    return body.op("Cast", body.op("Reshape", tensor, shape), to=TensorProto.FLOAT)


def _grid(body: FunctionBuilder, axes: list[Axis], tables: list[str]) -> str:
    """Combine per-axis positions (c, a) into flat positions (c0, …, 1, a0, …)."""
    rank = len(axes)
    total = ""
    for number, (axis, table) in enumerate(zip(axes, tables, strict=True)):
        unit = [position for position in range(2 * rank + 1) if position not in (number, number + rank + 1)]
        spread = body.op("Unsqueeze", table, body.ints(*unit))
        total = spread if not total else body.op("Add", body.op("Mul", total, axis.length), spread)
    return total


def tile_rows(body: FunctionBuilder, layer: Layer, source: Source, table: str, inner: str) -> str:
    """Return the row numbers (tiles, H, rows of a tile) of the positions in each axis's ``table``, (c, ``inner``)."""
    axes, rank = layer.axes, len(layer.axes)
    positions = _grid(body, axes, [getattr(axis, table) for axis in axes])  # (c0, …, 1, a0, …)
    positions = layer.positions(body, positions)
    head = body.op("Reshape", source.head, body.ints(*[1] * rank, -1, *[1] * rank))
    rows = body.op("Add", body.op("Mul", positions, source.per_position), head)
    tiles, size = (body.product(*[getattr(axis, name) for axis in axes]) for name in ("combos", inner))
    return body.op("Reshape", rows, body.vector(tiles, layer.heads, size))


def with_additional(body: FunctionBuilder, layer: Layer, tiles: str, keys: str, bias: str) -> tuple[str, str]:
    """Let every tile read all additional keys too, unmasked and unbiased."""
    if layer.additional is None:
        return keys, bias
    extra = body.dimension(layer.additional, 1)
    table = body.op("Expand", layer.additional, body.vector(tiles, layer.heads, extra))
    margin = body.op("Concat", body.ints(0, 0, 0, 0, 0, 0, 0), body.op("Unsqueeze", extra, body.ints(0)), axis=0)
    padded = body.op("Pad", bias, margin, body.float32(0.0), mode="constant")
    return body.op("Concat", keys, table, axis=-1), padded


def whole_layer(body: FunctionBuilder, layer: Layer, features: BodyFeatures) -> Attended:
    """Attend on all tiles at once."""
    tiles = body.product(*[axis.combos for axis in layer.axes])
    queries = tile_rows(body, layer, layer.query, "query", "tile")
    keys, values = (tile_rows(body, layer, source, "key", "span") for source in (layer.key, layer.value))
    bias = _bias_table(body, layer.axes, layer.heads, features)
    if layer.additional is not None:  # key's and value's rows are then numbered alike
        keys, bias = with_additional(body, layer, tiles, keys, bias)
        values = keys
    query = body.op("Gather", layer.query.rows, queries, axis=1)
    key = body.op("Gather", layer.key.rows, keys, axis=1)
    value = body.op("Gather", layer.value.rows, values, axis=1)
    return Attended(*attend(body, query, key, value, bias, layer.scale, features.lse), tiles)


def attend(
    body: FunctionBuilder, query: str, key: str, value: str, bias: str, scale: str, with_lse: bool
) -> tuple[str, str | None]:
    """Return (B, tiles, H, queries, Dv) and, if asked for, (B, tiles, H, queries, 1): plain attention on the tiles."""
    scores = body.op("MatMul", body.op("Mul", query, scale), body.op("Transpose", key, perm=[0, 1, 2, 4, 3]))
    scores = body.op("Add", scores, bias)
    lse = None
    if with_lse:
        last = body.ints(-1)
        peak = body.op("ReduceMax", scores, last, keepdims=1)
        total = body.op("ReduceSum", body.op("Exp", body.op("Sub", scores, peak)), last, keepdims=1)
        lse = body.op("Add", peak, body.op("Log", total))
    return body.op("MatMul", body.op("Softmax", scores, axis=-1), value), lse


def _bias_table(body: FunctionBuilder, axes: list[Axis], heads: str, features: BodyFeatures) -> str:
    """Return what is added to the scores: (tiles, H or 1, queries of a tile, keys of a tile) in float32.

    The bias gets one more, masked, entry per axis, so that looking a pair up masks it too. The last axis is looked up
    number by number, which is a small table; the others then copy whole rows of it.
    """
    rank = features.rank
    bias = padded_bias(body, features)
    if not features.rel_pos_bias:
        heads = body.int64(1)

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


def _upper_pair(body: FunctionBuilder, bias: str, upper: list[Axis]) -> str:
    """Return (c, t, w) bias rows of all axes but the last, combined."""
    if len(upper) == 1:
        return upper[0].pair
    z, y = upper
    first = body.op("Unsqueeze", z.pair, body.ints(1, 3, 5))  # (c0, 1, t0, 1, w0, 1)
    second = body.op("Unsqueeze", y.pair, body.ints(0, 2, 4))  # (1, c1, 1, t1, 1, w1)
    pair = body.op("Add", body.op("Mul", first, body.dimension(bias, 2)), second)
    merged = [body.product(getattr(z, name), getattr(y, name)) for name in ("combos", "tile", "span")]
    return body.op("Reshape", pair, body.vector(*merged))


def padded_bias(body: FunctionBuilder, features: BodyFeatures) -> str:
    """Return the bias, or 0, in float32 and the body's rank, with one more, masked, entry per axis."""
    if features.rel_pos_bias:
        edges = pad_front(body, body.op("Shape", "rel_pos_bias", start=1), 1, features)
        shape = body.op("Concat", body.op("Shape", "rel_pos_bias", start=0, end=1), edges, axis=0)
        bias = body.op("Cast", body.op("Reshape", "rel_pos_bias", shape), to=TensorProto.FLOAT)
    else:
        bias = body.constant(np.zeros([1] * (features.rank + 1), np.float32))
    margin = body.ints(*[0] * (features.rank + 2), *[1] * features.rank)
    return body.op("Pad", bias, margin, body.float32(MASKED), mode="constant")
