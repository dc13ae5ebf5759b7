"""The function bodies in stock ONNX Runtime: right for every attribute and size, and folded where sizes are known."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from na_deploy.attention import NeighborhoodSpec, reference_attention, reference_attention_qkv
from na_deploy.attention.schema import DOMAIN, PACKED_OPERATOR, SEPARATE_OPERATOR
from na_deploy.attention.tiling import TILE_LIMIT, TILE_MINIMUM, plan_axis, plan_tiles, tile_size, tiled_pairs
from na_deploy.exporter import function_parts
from na_deploy.exporter.bfloat16_emulation import widen_bfloat16
from na_deploy.exporter.function_body import BodyFeatures, packed_function, separate_function
from na_deploy.exporter.options import OPSETS

OPSET = 22
KINDS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
LIMIT = {"float32": 2e-6, "float16": 1e-3}
LONGEST = {1: 60, 2: 19, 3: 9}
FREE = ("fixed", "batch", "everything")


@dataclass(frozen=True)
class Problem:
    """One node and its inputs."""

    spec: NeighborhoodSpec
    inputs: dict[str, np.ndarray]
    scale: float | None = None
    features: BodyFeatures = field(default_factory=BodyFeatures)

    @property
    def operator(self) -> str:
        return PACKED_OPERATOR if "qkv" in self.inputs else SEPARATE_OPERATOR

    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        named = {name: array.astype(np.float64) for name, array in self.inputs.items()}
        if "qkv" in named:
            return reference_attention_qkv(named.pop("qkv"), self.spec, scale=self.scale, **named)
        return reference_attention(
            named.pop("query"), named.pop("key"), named.pop("value"), self.spec, scale=self.scale, **named
        )

    def attributes(self) -> dict[str, Any]:
        given: dict[str, Any] = {
            "kernel_size": self.spec.kernel_size,
            "dilation": self.spec.dilation,
            "stride": self.spec.stride,
            "is_causal": [int(causal) for causal in self.spec.is_causal],
        }
        # What has its default may be left away.
        defaults = {"dilation": {1}, "stride": {1}, "is_causal": {0}}
        given = {name: value for name, value in given.items() if set(value) != defaults.get(name)}
        return given if self.scale is None else {**given, "scale": self.scale}


def random_problem(seed: int, packed: bool, dtype: str = "float32", batch: int = 2) -> Problem:
    random = np.random.default_rng(seed)
    rank = seed % 3 + 1
    lengths, kernels, dilations, strides, causal = [], [], [], [], []
    for _ in range(rank):
        length = int(random.integers(3, LONGEST[rank] + 1))
        kernel = int(random.integers(1, min(length, 9) + 1))
        lengths.append(length)
        kernels.append(kernel)
        dilations.append(int(random.integers(1, length // kernel + 1)))
        strides.append(int(random.integers(1, kernel + 1)) if random.random() < 0.6 else 1)
        causal.append(bool(random.random() < 0.3))
    spec = NeighborhoodSpec.create(rank, kernels, dilations, strides, causal)
    key_heads = int(random.integers(1, 3))
    heads = key_heads * (1 if packed else int(random.integers(1, 4)))
    head_dim, value_dim, additional = (int(random.choice(sizes)) for sizes in ([4, 8, 24], [4, 12], [0, 1, 5]))

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(dtype)

    if packed:
        inputs = {"qkv": normal(batch, *lengths, 3, heads, head_dim)}
        additional = 0
    else:
        inputs = {
            "query": normal(batch, *lengths, heads, head_dim),
            "key": normal(batch, *lengths, key_heads, head_dim),
            "value": normal(batch, *lengths, key_heads, value_dim),
        }
    # Additional keys stand behind rel_pos_bias, so a node with them has one.
    if additional or random.random() < 0.5:
        inputs["rel_pos_bias"] = normal(heads, *(2 * kernel - 1 for kernel in kernels))
    if additional:
        inputs["additional_key"] = normal(batch, additional, key_heads, head_dim)
        inputs["additional_value"] = normal(batch, additional, key_heads, value_dim)
    scale = None if random.random() < 0.5 else float(np.float32(random.uniform(0.1, 1)))
    features = BodyFeatures(
        rank=rank,
        mixed_ranks=False,
        rel_pos_bias="rel_pos_bias" in inputs,
        additional=bool(additional),
        lse=bool(random.random() < 0.5),
    )
    return Problem(spec, inputs, scale, features)


def build(problem: Problem, free: str = "fixed", kind: int = TensorProto.FLOAT, opset: int = OPSET) -> onnx.ModelProto:
    """A model of one node and its body; ``free`` says which sizes the file leaves open."""
    function = {PACKED_OPERATOR: packed_function, SEPARATE_OPERATOR: separate_function}[problem.operator]
    rank = problem.spec.rank

    def shape(name: str, array: np.ndarray) -> list[int | str]:
        sizes: list[int | str] = list(array.shape)
        if name in ("rel_pos_bias", "padding") or free == "fixed":
            return sizes
        sizes[0] = "batch"
        if free == "everything":
            spatial = ["tokens"] if name.startswith("additional") else [f"x{axis}" for axis in range(rank)]
            sizes[1 : 1 + len(spatial)] = spatial
        return sizes

    outputs = ["output", "lse"] if problem.features.lse else ["output"]
    node = helper.make_node(problem.operator, list(problem.inputs), outputs, domain=DOMAIN, **problem.attributes())
    graph = helper.make_graph(
        [node],
        "one_node",
        [helper.make_tensor_value_info(name, kind, shape(name, array)) for name, array in problem.inputs.items()],
        [helper.make_tensor_value_info("output", kind, None)]
        + [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs[1:]],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    body = function(problem.features, opset)
    return helper.make_model(graph, functions=[body], opset_imports=opsets, ir_version=10)


def session(model: onnx.ModelProto, optimized: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected))


def check(problem: Problem, free: str = "fixed", dtype: str = "float32") -> None:
    found = session(build(problem, free, KINDS[dtype])).run(None, problem.inputs)
    output, lse = problem.expected()
    assert found[0].dtype == np.dtype(dtype)
    assert relative(found[0], output) < LIMIT[dtype], problem
    if problem.features.lse:
        assert found[1].dtype == np.float32
        assert relative(found[1], lse) < 2e-6, problem


@pytest.mark.parametrize("seed", range(45))
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "separate"])
def test_random_problems(packed: bool, seed: int):
    check(random_problem(seed, packed), FREE[seed // 3 % 3])


def small_map(seed: int, dtype: str = "float32", batch: int = 2) -> Problem:
    """A packed problem with padding, most axes of which are too short for their window, down to one position."""
    problem = random_problem(seed, True, dtype, batch)
    random = np.random.default_rng(1000 + seed)
    qkv, spec = problem.inputs["qkv"], problem.spec
    reach = [kernel * step for kernel, step in zip(spec.kernel_size, spec.dilation, strict=True)]
    lengths = [int(random.integers(1, size + 1)) if random.random() < 0.8 else size for size in reach]
    qkv = np.ascontiguousarray(qkv[(slice(None), *map(slice, lengths))])
    padding = random.standard_normal(qkv.shape[-3:]).astype(dtype)
    bias = problem.inputs.get("rel_pos_bias")
    features = replace(problem.features, padding=True)
    if bias is None:  # padding stands behind rel_pos_bias, so a node with it has one, which a body need not read
        bias = np.zeros((qkv.shape[-2], *(2 * kernel - 1 for kernel in spec.kernel_size)), dtype)
    return replace(problem, inputs={"qkv": qkv, "rel_pos_bias": bias, "padding": padding}, features=features)


@pytest.mark.parametrize("free", FREE)
@pytest.mark.parametrize("seed", range(600, 636))
def test_windows_reach_behind_small_maps_onto_padding(seed: int, free: str):
    problem = small_map(seed)
    if seed % 4 == 3:
        problem = replace(problem, features=replace(problem.features, rank=3, mixed_ranks=True))
    check(problem, free)


@pytest.mark.parametrize("part_scores", [1, 200])
@pytest.mark.parametrize("seed", range(700, 712))
def test_small_maps_a_few_tiles_at_a_time_give_the_same(seed: int, part_scores: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(function_parts, "PART_SCORES", part_scores)
    problem = small_map(seed)
    check(replace(problem, features=replace(problem.features, in_parts=True)), FREE[seed % 3])


@pytest.mark.parametrize("free", FREE)
def test_padding_in_float16_and_of_no_image(free: str):
    check(small_map(800, "float16"), free, "float16")
    problem = small_map(801, batch=0)
    (output, *_) = session(build(problem, free)).run(None, problem.inputs)
    assert output.shape == (*problem.inputs["qkv"].shape[:-3], *problem.inputs["qkv"].shape[-2:])


def test_one_session_takes_maps_smaller_and_larger_than_windows():
    spec = NeighborhoodSpec.create(2, (5, 4), (2, 3), (2, 1), (False, True))
    random = np.random.default_rng(0)
    bias, padding = (random.standard_normal(shape).astype(np.float32) for shape in ((2, 9, 7), (3, 2, 8)))
    features = BodyFeatures(rank=2, mixed_ranks=False, rel_pos_bias=True, padding=True)
    runtime: ort.InferenceSession | None = None
    for lengths in ((10, 12), (9, 13), (1, 1), (40, 2), (23, 57), (3, 11)):
        qkv = random.standard_normal((1, *lengths, 3, 2, 8)).astype(np.float32)
        problem = Problem(spec, {"qkv": qkv, "rel_pos_bias": bias, "padding": padding}, features=features)
        runtime = runtime or session(build(problem, "everything"))
        assert relative(runtime.run(None, problem.inputs)[0], problem.expected()[0]) < 2e-6, lengths


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "separate"])
def test_float16_is_float32_inside(packed: bool, seed: int):
    check(random_problem(100 + seed, packed, "float16"), FREE[seed % 3], "float16")


def test_scores_may_pass_the_range_of_float16():
    # Products of 300 with 300 over 8 numbers reach 720,000, eleven times the largest float16.
    qkv = np.random.default_rng(0).choice([-300.0, 300.0], (1, 12, 3, 1, 8)).astype(np.float16)
    features = BodyFeatures(rank=1, mixed_ranks=False, lse=True)
    check(Problem(NeighborhoodSpec.create(1, 5), {"qkv": qkv}, 1.0, features), dtype="float16")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "separate"])
def test_bfloat16_nodes_agree_when_widened(packed: bool, seed: int):
    # ONNX Runtime's CPU provider has no bfloat16 kernels but Cast, so the same nodes run in float32.
    problem = random_problem(200 + seed, packed)
    model = build(problem, kind=TensorProto.BFLOAT16)
    narrow = {name: _to_bfloat16(array) for name, array in problem.inputs.items()}
    found = session(widen_bfloat16(model)).run(None, narrow)[0]
    rounded = Problem(problem.spec, narrow, problem.scale, problem.features)
    assert relative(found, rounded.expected()[0]) < 4e-3


def _to_bfloat16(array: np.ndarray) -> np.ndarray:
    return (array.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


@pytest.mark.parametrize("free", FREE)
@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "separate"])
def test_no_image_and_one_image(packed: bool, batch: int, free: str):
    problem = random_problem(4, packed, batch=batch)
    problem = replace(problem, features=replace(problem.features, lse=True))
    output, lse = session(build(problem, free)).run(None, problem.inputs)
    sizes = (batch, *problem.inputs["qkv" if packed else "query"].shape[1 : 1 + problem.spec.rank])
    assert output.shape[:-2] == lse.shape[:-1] == sizes
    if batch:
        expected = problem.expected()
        assert relative(output, expected[0]) < 2e-6
        assert relative(lse, expected[1]) < 2e-6


def test_one_session_takes_maps_of_any_size():
    spec = NeighborhoodSpec.create(2, (5, 4), (2, 3), (2, 1), (False, True))
    runtime: ort.InferenceSession | None = None
    random = np.random.default_rng(0)
    for lengths in ((10, 12), (11, 13), (40, 12), (23, 57), (10, 100)):
        qkv = random.standard_normal((1, *lengths, 3, 2, 8)).astype(np.float32)
        problem = Problem(spec, {"qkv": qkv}, features=BodyFeatures(rank=2, mixed_ranks=False))
        runtime = runtime or session(build(problem, "everything"))
        assert relative(runtime.run(None, problem.inputs)[0], problem.expected()[0]) < 2e-6, lengths


def test_nodes_of_all_ranks_and_attributes_share_one_body():
    random = np.random.default_rng(0)
    problems = [
        Problem(NeighborhoodSpec.create(rank, **attributes), {"qkv": random.standard_normal(shape).astype(np.float32)})
        for rank, attributes, shape in (
            (1, {"kernel_size": 9, "dilation": 3, "stride": 4}, (2, 41, 3, 2, 8)),
            (2, {"kernel_size": (3, 7), "is_causal": (True, False)}, (2, 12, 15, 3, 1, 16)),
            (3, {"kernel_size": 3, "dilation": (1, 2, 3)}, (1, 5, 8, 10, 3, 2, 4)),
            (2, {"kernel_size": 7}, (1, 7, 7, 3, 4, 8)),
        )
    ]
    nodes, inputs, feeds = [], [], {}
    for number, problem in enumerate(problems):
        nodes.append(
            helper.make_node(
                PACKED_OPERATOR, [f"qkv{number}"], [f"output{number}"], domain=DOMAIN, **problem.attributes()
            )
        )
        feeds[f"qkv{number}"] = problem.inputs["qkv"]
        inputs.append(helper.make_tensor_value_info(f"qkv{number}", TensorProto.FLOAT, problem.inputs["qkv"].shape))
    outputs = [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None) for node in nodes]
    model = helper.make_model(
        helper.make_graph(nodes, "four_nodes", inputs, outputs),
        functions=[packed_function(BodyFeatures(rank=3, mixed_ranks=True), OPSET)],
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        ir_version=10,
    )
    for problem, found in zip(problems, session(model).run(None, feeds), strict=True):
        assert relative(found, problem.expected()[0]) < 2e-6


@pytest.mark.parametrize("seed", range(18))
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "separate"])
def test_a_body_for_three_axes_serves_fewer(packed: bool, seed: int):
    # With all that a node may carry: bias, additional keys, lse, free sizes.
    problem = random_problem(300 + seed, packed)
    features = replace(problem.features, rank=3, mixed_ranks=True, lse=True)
    check(replace(problem, features=features), FREE[seed // 3 % 3])


@pytest.mark.parametrize("part_scores", [1, 5000])  # tiles one by one, and several with a part that is not full
@pytest.mark.parametrize("seed", range(18))
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "separate"])
def test_a_few_tiles_at_a_time_give_the_same(
    packed: bool, seed: int, part_scores: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(function_parts, "PART_SCORES", part_scores)
    problem = random_problem(500 + seed, packed)
    rank = 3 if seed % 4 == 3 else problem.features.rank
    features = replace(problem.features, rank=rank, mixed_ranks=rank > problem.features.rank, in_parts=True)
    check(replace(problem, features=features), FREE[seed // 3 % 3])


def test_in_parts_nothing_the_size_of_the_scores_is_kept(tmp_path: Path):
    qkv = np.random.default_rng(0).standard_normal((1, 64, 64, 3, 1, 8)).astype(np.float32)
    features = BodyFeatures(rank=2, mixed_ranks=False, in_parts=True)
    problem = Problem(NeighborhoodSpec.create(2, 16), {"qkv": qkv}, features=features)
    found = session(build(problem), tmp_path / "optimized.onnx").run(None, problem.inputs)[0]
    assert relative(found, problem.expected()[0]) < 2e-6
    optimized = onnx.load(tmp_path / "optimized.onnx")
    assert [node.op_type for node in optimized.graph.node].count("Loop") == 1
    assert max(np.prod(tensor.dims) for tensor in optimized.graph.initializer) <= 64 * 64


@pytest.mark.parametrize("free", FREE)
def test_additional_keys_need_no_bias(free: str):
    problem = random_problem(2, packed=False)
    assert problem.features.additional
    inputs = {name: array for name, array in problem.inputs.items() if name != "rel_pos_bias"}
    problem = replace(problem, inputs=inputs, features=replace(problem.features, rel_pos_bias=False, lse=True))
    model = build(problem, free)
    model.graph.node[0].input.insert(3, "")
    output, lse = session(model).run(None, problem.inputs)
    assert relative(output, problem.expected()[0]) < 2e-6
    assert relative(lse, problem.expected()[1]) < 2e-6


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "separate"])
def test_a_scale_of_zero_and_none_at_all_are_the_inverse_root_of_head_dim(packed: bool):
    problem = replace(random_problem(7, packed), scale=None)
    head_dim = next(iter(problem.inputs.values())).shape[-1]
    outputs = []
    for scale in (None, 0.0, head_dim**-0.5, 0.7):
        scaled = replace(problem, scale=scale)
        outputs.append(session(build(scaled)).run(None, scaled.inputs)[0])
    standard = problem.expected()[0]
    assert all(relative(output, standard) < 2e-6 for output in outputs[:3])
    assert relative(outputs[3], standard) > 1e-2


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "separate"])
def test_far_apart_scores_stay_finite(packed: bool):
    problem = replace(random_problem(10, packed), scale=40.0)
    check(replace(problem, features=replace(problem.features, lse=True)))


@pytest.mark.parametrize("free", ["fixed", "batch"])
@pytest.mark.parametrize(("side", "dilation"), [(56, 1), (28, 4), (7, 1)])
def test_planning_folds_into_constants(side: int, dilation: int, free: str, tmp_path: Path):
    random = np.random.default_rng(0)
    spec = NeighborhoodSpec.create(2, 7, dilation)
    qkv = random.standard_normal((1, side, side, 3, 2, 32)).astype(np.float32)
    features = BodyFeatures(rank=2, mixed_ranks=False, rel_pos_bias=True)
    model = build(Problem(spec, {"qkv": qkv, "rel_pos_bias": np.zeros((2, 13, 13))}, features=features), free)
    bias = random.standard_normal((2, 13, 13)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(bias, "rel_pos_bias"))
    del model.graph.input[1:]
    session(model, tmp_path / "optimized.onnx")
    optimized = onnx.load(tmp_path / "optimized.onnx")
    assert Counter(node.op_type for node in optimized.graph.node) == {
        "Reshape": 3,
        "Gather": 4,
        "FusedMatMul": 1,
        "Add": 1,
        "Softmax": 1,
        "MatMul": 1,
    }
    # And the tables are those that attention/tiling.py plans.
    plan = plan_tiles((side, side), spec)
    tables = {tuple(tensor.dims) for tensor in optimized.graph.initializer}
    tiles, queries, keys = plan.visible.shape
    assert {(tiles, 2, queries), (tiles, 2, keys), (tiles, 2, queries, keys)} <= tables


@pytest.mark.parametrize("free", ["fixed", "batch"])
@pytest.mark.parametrize("seed", range(9))
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "separate"])
def test_planning_folds_for_every_rank_and_attribute(packed: bool, seed: int, free: str, tmp_path: Path):
    problem = random_problem(400 + seed, packed)
    if seed % 2:
        problem = replace(problem, features=replace(problem.features, rank=3, mixed_ranks=True))
    session(build(problem, free), tmp_path / "optimized.onnx")
    found = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    attention = {"Reshape", "Gather", "FusedMatMul", "Add", "Softmax", "MatMul"}
    if problem.features.rel_pos_bias:
        attention |= {"Pad"}  # the bias is an input here, so its table is looked up at run time
    if problem.features.additional:
        attention |= {"Concat", "Pad"}
    if problem.features.lse:
        attention |= {"ReduceMax", "Sub", "Exp", "ReduceSum", "Log", "ReduceLogSumExp", "Squeeze"}
    assert found <= attention


@pytest.mark.parametrize(("lengths", "dilation"), [((9, 30), 4), ((3, 2), 4), ((30, 29), 4), ((5, 40), 1)])
def test_only_real_queries_are_attended_for(lengths: tuple[int, int], dilation: int, tmp_path: Path):
    random = np.random.default_rng(0)
    spec = NeighborhoodSpec.create(2, 7, dilation)
    qkv = random.standard_normal((1, *lengths, 3, 2, 8)).astype(np.float32)
    model = build(
        Problem(
            spec,
            {"qkv": qkv, "rel_pos_bias": np.zeros((2, 13, 13)), "padding": np.zeros((3, 2, 8))},
            features=BodyFeatures(rank=2, mixed_ranks=False, rel_pos_bias=True, padding=True),
        )
    )
    for name, shape in (("rel_pos_bias", (2, 13, 13)), ("padding", (3, 2, 8))):
        model.graph.initializer.append(numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name))
    del model.graph.input[1:]
    session(model, tmp_path / "optimized.onnx")
    optimized = onnx.load(tmp_path / "optimized.onnx").graph
    assert Counter(node.op_type for node in optimized.node) == {
        "Concat": 1,  # the padding's rows behind the map's
        "Reshape": 3,
        "Gather": 4,
        "FusedMatMul": 1,
        "Add": 1,
        "Softmax": 1,
        "MatMul": 1,
    }
    (scores,) = (tensor.dims for tensor in optimized.initializer if len(tensor.dims) == 4)
    assert math.prod(scores) == 2 * tiled_pairs(lengths, spec)


def axes_to_tile(rank: int) -> list[tuple[int, int, int, int]]:
    """Length, kernel, dilation and stride: small kernels around the sizes that become one tile, and any others."""
    axes = []
    for kernel in (2, 3, 4, 6, 9):
        aim = min(max((kernel + 1) // 2, TILE_MINIMUM[rank]), TILE_LIMIT[rank])
        axes += [(length, kernel, 1, 1) for length in range(2 * aim - 1, 2 * aim + 2) if length >= kernel]
    random = np.random.default_rng(rank)
    for number in range(25):
        kernel, dilation = int(random.integers(2, 40)), int(random.integers(1, 4))
        stride = int(random.integers(1, kernel + 1)) if number % 2 else 1
        axes.append((kernel * dilation + int(random.integers(0, 60)), kernel, dilation, stride))
    return axes


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_tiles_are_those_of_the_numpy_plan(rank: int, tmp_path: Path):
    # One long axis, so that the folded tables show its tile and span; the others hold one position.
    random = np.random.default_rng(rank)
    for length, kernel, dilation, stride in axes_to_tile(rank):
        short = [1] * (rank - 1)
        spec = NeighborhoodSpec.create(rank, [*short, kernel], [*short, dilation], [*short, stride])
        qkv = random.standard_normal((1, *short, length, 3, 5, 4)).astype(np.float32)
        problem = Problem(spec, {"qkv": qkv}, features=BodyFeatures(rank=rank, mixed_ranks=False))
        session(build(problem), tmp_path / "optimized.onnx")
        optimized = onnx.load(tmp_path / "optimized.onnx").graph
        tables = {tuple(tensor.dims) for tensor in optimized.initializer if len(tensor.dims) >= 3}
        plan = plan_axis(length, kernel, dilation, stride, rank=rank)
        assert plan.tile == tile_size(-(-length // dilation), kernel, stride, rank)
        tiles = plan.tiles * dilation
        expected = {(tiles, 5, plan.tile), (tiles, 5, plan.span), (tiles, 1, plan.tile, plan.span)}
        assert tables == expected, (length, kernel, dilation, stride)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "separate"])
def test_bodies_run_at_every_opset_of_an_export(packed: bool, opset: int):
    problem = random_problem(11, packed)
    problem = replace(problem, features=replace(problem.features, lse=True))
    found = session(build(problem, "batch", opset=opset)).run(None, problem.inputs)
    for array, expected in zip(found, problem.expected(), strict=True):
        assert relative(array, expected) < 2e-6


def test_every_node_of_a_body_is_needed():
    choices = itertools.product((packed_function, separate_function), (1, 2, 3), *[(False, True)] * 5)
    for function, rank, *flags, padding in choices:
        features = BodyFeatures(rank, *flags, padding=padding)
        if features.additional if function is packed_function else features.padding:
            continue
        body = function(features, OPSET)
        used = set(body.output)
        for node in reversed(body.node):
            assert used & set(node.output), (body.name, features, node)
            used.update(node.input)
        # Inputs are positional: without a bias, its place before what comes behind it is there and not read.
        behind = features.additional or features.padding
        unread = {"rel_pos_bias"} if behind and not features.rel_pos_bias else set()
        assert set(body.input) - used == unread


@pytest.mark.parametrize("mixed", [False, True], ids=["one rank", "mixed ranks"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "separate"])
def test_no_tensor_of_a_body_has_more_than_eight_axes(packed: bool, mixed: bool):
    # TensorRT's limit. Shapes are those of one run, by inference over the body with known sizes.
    problem = random_problem(5, packed)
    assert problem.spec.rank == 3
    problem = replace(problem, features=replace(problem.features, mixed_ranks=mixed, lse=True))
    model = onnx.inliner.inline_local_functions(build(problem))
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    ranks = [len(value.type.tensor_type.shape.dim) for value in inferred.graph.value_info]
    assert len(ranks) > 200
    assert max(ranks) <= 8
