"""A layer inside a function body a few tiles at a time, for windows whose scores would not fit into memory.

One ONNX Loop: each turn looks up its tiles in the axes' tables, cuts them, masks and attends; nothing the size of
(queries, keys) outlives a turn, nor does any table of that size exist.
"""

from __future__ import annotations

from onnx import TensorProto

from na_deploy.exporter.function_planning import Axis, BodyFeatures
from na_deploy.exporter.function_tables import MASKED, Attended, Layer, Source, attend, padded_bias, with_additional
from na_deploy.exporter.graph_builder import FunctionBuilder

PART_SCORES = 1 << 22
"""Scores of one image computed in a turn, at most, unless one tile has more: 16 MiB of them."""

LARGE_SCORES = 1 << 23
"""Scores of one image, from which on a layer is done in parts: 32 MiB of them, and as much again for what is added."""


def layer_in_parts(body: FunctionBuilder, layer: Layer, features: BodyFeatures) -> Attended:
    """Attend a few tiles at a time; the last part repeats the last tile."""
    axes, one = layer.axes, body.int64(1)
    tiles = body.product(*[axis.combos for axis in axes])
    queries, keys = (body.product(*[getattr(axis, name) for axis in axes]) for name in ("tile", "span"))
    of_a_tile = body.product(layer.heads, queries, keys)
    part = body.op("Max", body.op("Div", body.int64(PART_SCORES), of_a_tile), one)
    parts = body.ceil_div(tiles, part)
    part = body.ceil_div(tiles, parts)  # equal parts
    masks = _masks(body, axes) if not features.rel_pos_bias else []
    bias = padded_bias(body, features) if features.rel_pos_bias else ""

    turn = body.inner("turn")
    first = turn.op("Mul", "turn_number", part)
    number = turn.op("Min", turn.op("Add", first, turn.range(part)), turn.op("Sub", tiles, turn.int64(1)))
    combos = _combos(turn, axes, number)
    query_rows, key_rows, value_rows = (
        _rows(turn, layer, source, [getattr(axis, name) for axis in axes], combos, size)
        for source, name, size in (
            (layer.query, "query", queries),
            (layer.key, "key", keys),
            (layer.value, "key", keys),
        )
    )
    if features.rel_pos_bias:
        added = _bias(turn, axes, combos, bias, part, queries, keys)
    else:
        added = _mask(turn, masks, combos, part, queries, keys)
    if layer.additional is not None:
        key_rows, added = with_additional(turn, layer, part, key_rows, added)
        value_rows = key_rows
    query, key, value = (
        turn.op("Gather", source.rows, rows, axis=1)
        for source, rows in ((layer.query, query_rows), (layer.key, key_rows), (layer.value, value_rows))
    )
    outputs = [value for value in attend(turn, query, key, value, added, layer.scale, features.lse) if value]
    stacked = body.loop(parts, turn, outputs)
    total = body.op("Mul", parts, part)
    joined = [_join(body, value, total) for value in stacked]  # (parts, B, part, …) to (B, parts * part, …)
    return Attended(joined[0], joined[1] if features.lse else None, total)


def _combos(turn: FunctionBuilder, axes: list[Axis], number: str) -> list[str]:
    """Return each axis's share of the tiles' flat numbers, all (part,)."""
    found: list[str] = []
    for axis in reversed(axes[1:]):
        rest = turn.op("Div", number, axis.combos)
        found.insert(0, turn.op("Sub", number, turn.op("Mul", rest, axis.combos)))
        number = rest
    return [number, *found]


def _rows(turn: FunctionBuilder, layer: Layer, source: Source, tables: list[str], combos: list[str], size: str) -> str:
    """Return the row numbers (part, H, rows of a tile) for the axes' position tables (c, a)."""
    rank, total = len(tables), ""
    for at, (axis, table, combo) in enumerate(zip(layer.axes, tables, combos, strict=True)):
        others = [other + 1 for other in range(rank) if other != at]
        own = turn.op("Gather", table, combo, axis=0)
        own = turn.op("Unsqueeze", own, turn.ints(*others)) if others else own
        total = own if not total else turn.op("Add", turn.op("Mul", total, axis.length), own)
    total = layer.positions(turn, total)
    flat = turn.op("Reshape", total, turn.op("Concat", turn.ints(-1, 1), turn.vector(size), axis=0))
    head = turn.op("Unsqueeze", source.head, turn.ints(0, 2))
    return turn.op("Add", turn.op("Mul", flat, source.per_position), head)


def _masks(body: FunctionBuilder, axes: list[Axis]) -> list[str]:
    """Return what each axis adds to a score, (c, t, w): 0, or MASKED."""
    return [body.op("Mul", body.op("Cast", axis.pair, to=TensorProto.FLOAT), body.float32(MASKED)) for axis in axes]


def _combined(turn: FunctionBuilder, tables: list[str], combos: list[str], edges: list[str]) -> str:
    """Add the axes' (c, t, w) tables up, the running total times ``edges`` before each: (part, t0, …, w0, …)."""
    rank, total = len(tables), ""
    for at, (table, combo) in enumerate(zip(tables, combos, strict=True)):
        others = [1 + other + half for half in (0, rank) for other in range(rank) if other != at]
        own = turn.op("Gather", table, combo, axis=0)
        own = turn.op("Unsqueeze", own, turn.ints(*others)) if others else own
        if total:
            own = turn.op("Add", turn.op("Mul", total, edges[at]) if edges else total, own)
        total = own
    return total


def _mask(turn: FunctionBuilder, masks: list[str], combos: list[str], part: str, queries: str, keys: str) -> str:
    shape = turn.vector(part, turn.int64(1), queries, keys)
    return turn.op("Reshape", _combined(turn, masks, combos, []), shape)


def _bias(
    turn: FunctionBuilder, axes: list[Axis], combos: list[str], bias: str, part: str, queries: str, keys: str
) -> str:
    """Return the biases (part, H, queries, keys), looked up in ``bias`` (H, r0, …)."""
    edges = [turn.dimension(bias, at + 1) for at in range(len(axes))]
    index = _combined(turn, [axis.pair for axis in axes], combos, edges)
    index = turn.op("Reshape", index, turn.vector(part, queries, keys))
    flat = turn.op("Reshape", bias, turn.ints(0, -1))
    return turn.op("Transpose", turn.op("Gather", flat, index, axis=1), perm=[1, 0, 2, 3])


def _join(body: FunctionBuilder, stacked: str, total: str) -> str:
    turned = body.op("Transpose", stacked, perm=[1, 0, 2, 3, 4, 5])
    ends = body.op("Shape", turned, start=3)
    shape = body.op("Concat", body.ints(0), body.op("Unsqueeze", total, body.ints(0)), ends, axis=0)
    return body.op("Reshape", turned, shape)
