"""The portable function body against the best tiling baked by hand, in ONNX Runtime at NAT's and DiNAT's shapes.

    python benchmarks/function_body.py

The hand-baked graphs hold finished tables as constants and nothing else, for a range of tile sides, in two layouts:
``rows`` gathers rows of head_dim numbers as the function body does; ``axes`` gathers along height and width and
transposes, the way such graphs are usually written. The function body must stay within 1.1 times the best of them.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
import onnx
from machine import describe_machine, open_session, time_interleaved
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from na_deploy.attention.schema import DOMAIN, PACKED_OPERATOR
from na_deploy.attention.tiling import plan_axis
from na_deploy.exporter.function_body import MASKED, BodyFeatures, packed_function

OPSET = 22
SHAPES = [  # side, heads, dilation: NAT's four stages, then DiNAT's dilated layers
    (56, 2, 1),
    (28, 4, 1),
    (14, 8, 1),
    (7, 16, 1),
    (56, 2, 8),
    (28, 4, 4),
    (14, 8, 2),
]
HEAD_DIM, KERNEL = 32, 7
HEADINGS = (
    "map", "heads", "dilation", "function body", "its tile", "best rows (tile)", "best axes (tile)", "body / best",
)  # fmt: skip


def body_model(side: int, heads: int, dilation: int, bias: np.ndarray) -> onnx.ModelProto:
    node = helper.make_node(
        PACKED_OPERATOR, ["qkv", "bias"], ["output"], domain=DOMAIN, kernel_size=[KERNEL] * 2, dilation=[dilation] * 2
    )
    return _model([node], side, heads, {"bias": bias}, [packed_function(BodyFeatures(rel_pos_bias=True), OPSET)])


def baked_model(side: int, heads: int, dilation: int, bias: np.ndarray, tile: int, layout: str) -> onnx.ModelProto:
    axis = plan_axis(side, KERNEL, dilation, rank=2, tile=tile)
    query, key = axis.query.reshape(-1, axis.tile), axis.key.reshape(-1, axis.span)
    pair = np.where(axis.visible, axis.offset, 2 * KERNEL - 1).reshape(-1, axis.tile, axis.span)
    count = len(query)
    padded = np.pad(bias, ((0, 0), (0, 1), (0, 1)), constant_values=MASKED)
    table = padded[:, pair[:, None, :, None, :, None], pair[None, :, None, :, None, :]]  # (h, c, c, t, t, w, w)
    table = np.moveaxis(table, 0, 2).reshape(count * count, heads, axis.tile**2, axis.span**2).astype(np.float32)

    home = np.zeros(side, np.int64)
    home[axis.query.reshape(-1)[::-1]] = np.arange(axis.query.size - 1, -1, -1)
    home_tile, home_place = home // axis.tile, home % axis.tile
    tiles = home_tile[:, None] * count + home_tile[None]
    places = home_place[:, None] * axis.tile + home_place[None]
    back = (tiles[..., None] * heads + np.arange(heads)) * axis.tile**2 + places[..., None]
    constants = {"table": table, "back": back.reshape(-1), "scale": np.float32(HEAD_DIM**-0.5)}
    constants["out_rows"] = np.array([0, count**2 * heads * axis.tile**2, HEAD_DIM])
    constants["out_shape"] = np.array([0, side, side, heads, HEAD_DIM])

    if layout == "rows":
        nodes = [helper.make_node("Reshape", ["qkv", "row_shape"], ["rows"])]
        constants["row_shape"] = np.array([0, side * side * 3 * heads, HEAD_DIM])
        for part, (name, positions) in enumerate((("q", query), ("k", key), ("v", key))):
            flat = positions[:, None, :, None] * side + positions[None, :, None, :]
            flat = flat.reshape(count * count, 1, -1)
            constants[f"{name}_at"] = (flat * 3 + part) * heads + np.arange(heads)[:, None]
            nodes.append(helper.make_node("Gather", ["rows", f"{name}_at"], [name], axis=1))
    else:
        nodes = [helper.make_node("Split", ["qkv"], ["q_", "k_", "v_"], axis=3, num_outputs=3)]
        for name, positions in (("q", query), ("k", key), ("v", key)):
            constants[f"{name}_at"] = positions
            width = positions.shape[1]
            constants[f"{name}_shape"] = np.array([-1, count * count, heads, width**2, HEAD_DIM])
            nodes += [
                helper.make_node("Gather", [f"{name}_", f"{name}_at"], [f"{name}_h"], axis=1),
                helper.make_node("Gather", [f"{name}_h", f"{name}_at"], [f"{name}_hw"], axis=3),
                # (B, c, t, c, t, 1, h, d) -> (B, c, c, 1, h, t, t, d)
                helper.make_node("Transpose", [f"{name}_hw"], [f"{name}_t"], perm=[0, 1, 3, 5, 6, 2, 4, 7]),
                helper.make_node("Reshape", [f"{name}_t", f"{name}_shape"], [name]),
            ]
    nodes += [
        helper.make_node("Mul", ["q", "scale"], ["q_scaled"]),
        helper.make_node("Transpose", ["k"], ["k_transposed"], perm=[0, 1, 2, 4, 3]),
        helper.make_node("MatMul", ["q_scaled", "k_transposed"], ["raw"]),
        helper.make_node("Add", ["raw", "table"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["tiles"]),
        helper.make_node("Reshape", ["tiles", "out_rows"], ["tile_rows"]),
        helper.make_node("Gather", ["tile_rows", "back"], ["flat"], axis=1),
        helper.make_node("Reshape", ["flat", "out_shape"], ["output"]),
    ]
    return _model(nodes, side, heads, constants, [])


def _model(nodes, side, heads, constants, functions) -> onnx.ModelProto:
    shape = [1, side, side, 3, heads, HEAD_DIM]
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info("qkv", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=31)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    console = Console(width=150)
    table = Table(title="One layer, fp32, batch 1, head_dim 32, kernel_size 7, with bias (ms, medians)")
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    for side, heads, dilation in SHAPES:
        bias = rng.standard_normal((heads, 2 * KERNEL - 1, 2 * KERNEL - 1)).astype(np.float32)
        qkv = rng.standard_normal((1, side, side, 3, heads, HEAD_DIM)).astype(np.float32)
        longest = -(-side // dilation)
        own = plan_axis(side, KERNEL, dilation, rank=2).tile
        body = body_model(side, heads, dilation, bias)
        sessions = {"body": open_session(body.SerializeToString(), arguments.threads)}
        for tile in sorted({min(tile, longest) for tile in (4, 5, 6, 7, 8, 10, 14)}):
            for layout in ("rows", "axes"):
                model = baked_model(side, heads, dilation, bias, tile, layout)
                sessions[f"{layout} {tile}"] = open_session(model.SerializeToString(), arguments.threads)
        expected = sessions["body"].run(None, {"qkv": qkv})[0]
        for name, candidate in sessions.items():
            found = candidate.run(None, {"qkv": qkv})[0]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=name)
        times = time_interleaved(
            {name: partial(s.run, None, {"qkv": qkv}) for name, s in sessions.items()}, arguments.rounds
        )
        best = {
            layout: min((ms, name.split()[1]) for name, ms in times.items() if name.startswith(layout))
            for layout in ("rows", "axes")
        }
        table.add_row(
            f"{side}×{side}",
            str(heads),
            str(dilation),
            f"{times['body']:.3f}",
            str(own),
            *(f"{best[layout][0]:.3f} ({best[layout][1]})" for layout in ("rows", "axes")),
            f"{times['body'] / min(best['rows'][0], best['axes'][0]):.2f}",
        )
    console.print(describe_machine(arguments.threads))
    console.print(table)


if __name__ == "__main__":
    main()
