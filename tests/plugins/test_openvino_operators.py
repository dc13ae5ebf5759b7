"""The operator library in OpenVINO: right in every form, on any shape, from any thread, and clear when it refuses.

Models here are single nodes without a function body, so that only the library can run them, except where a test says
otherwise.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_runtimes
import openvino
import pytest
from node_models import (
    ELEMENTS,
    PACKED_CASES,
    SEPARATE_CASES,
    SMALL_MAPS,
    Arrays,
    expect_reference,
    node_model,
    normal,
    packed,
    reference,
    separate,
)

import na_deploy
from na_deploy.attention.schema import PACKED_OPERATOR, SEPARATE_OPERATOR
from na_deploy.errors import NaDeployError
from na_deploy.runtime.native_libraries import (
    OPENVINO_LIBRARY,
    OPENVINO_LIBRARY_VARIABLE,
    openvino_library,
    why_missing,
)
from na_deploy.runtime.openvino.library import BFLOAT16, FLOAT16, FLOAT32, CallKind, LibraryNode, OpenVinoLibrary

LIBRARY = openvino_library()
HAS_BFLOAT16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
PRECISIONS = ["f32", *(["bf16"] if HAS_BFLOAT16 else [])]
NAT = {"kernel_size": (7, 7), "dilation": (2, 2)}
pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(
        LIBRARY is None and os.environ.get("NA_DEPLOY_NATIVE") != "ON", reason=f"it is {why_missing(OPENVINO_LIBRARY)}"
    ),
]


@pytest.fixture
def load_node(tmp_path: Path) -> Callable[..., Any]:
    """Load :func:`node_model` of the given arguments."""

    def load(*arguments: Any, precision: str = "f32", streams: int | None = None, **options: Any) -> Any:
        path = tmp_path / "node.onnx"
        onnx.save(node_model(*arguments, **options), path)
        session = na_deploy.load(path, backend="openvino", threads=2, precision=precision, streams=streams)
        assert (session.library, session.precision) == (LIBRARY, precision)
        return session

    return load


def padded(sizes: tuple[Any, ...]) -> Arrays:
    return packed(*sizes) | {"padding": normal(3, *sizes[2:4], seed=5)}


CASES = {
    **{f"packed, {name}": (PACKED_OPERATOR, packed(*sizes), rest) for name, (sizes, rest) in PACKED_CASES.items()},
    **{
        f"separate, {name}": (SEPARATE_OPERATOR, separate(*sizes), rest)
        for name, (sizes, rest) in SEPARATE_CASES.items()
    },
    **{
        f"small map, {name}": (PACKED_OPERATOR, padded(sizes), rest)
        for name, (sizes, rest) in SMALL_MAPS.items()
        if name != "many positions"  # for seconds of float64; the copies are those that ONNX Runtime's tests make
    },
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("case", CASES)
def test_both_operators_are_right(load_node, case: str, dynamic: bool, precision: str):
    operator, arrays, attributes = CASES[case]
    with load_node(operator, arrays, dynamic, precision=precision, **attributes) as session:
        found = session.run(arrays)
    if precision == "f32":
        expect_reference(found, operator, arrays, attributes, "float32")
        return
    # OpenVINO cuts the node's float32 inputs down to bfloat16, by rounding or, where sizes are free, by truncation.
    expected = reference(operator, arrays, attributes)
    assert 1e-4 < np.abs(found["output"] - expected.output).max() / np.abs(expected.output).max() < 2e-2
    np.testing.assert_allclose(found["lse"], expected.lse, rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_models_in_half_precision_are_right(load_node, dtype: str):
    sizes, attributes = PACKED_CASES["dinat"]
    arrays = packed(*sizes, dtype=dtype)
    with load_node(PACKED_OPERATOR, arrays, dtype=dtype, **attributes) as session:
        expect_reference(session.run(arrays), PACKED_OPERATOR, arrays, attributes, dtype)


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("case", PACKED_CASES)
def test_the_library_keeps_a_float32_bias_beside_half_precision(case: str, dtype: str):
    """Straight through the C interface, where bfloat16 storage is exact."""
    assert LIBRARY is not None
    sizes, attributes = PACKED_CASES[case]
    arrays = packed(*sizes, dtype=dtype)
    if "rel_pos_bias" in arrays:
        arrays["rel_pos_bias"] = packed(*sizes)["rel_pos_bias"]
    library = OpenVinoLibrary(LIBRARY)
    axes = {name: value for name, value in attributes.items() if name != "scale"}
    node = library.make_node(True, axes, attributes.get("scale", 0.0))
    number = {"float32": FLOAT32, "float16": FLOAT16, "bfloat16": BFLOAT16}[dtype]
    for constant in (False, True):
        shapes = tuple(array.shape for array in arrays.values())
        kind = CallKind(tuple(range(len(arrays))), shapes, number, bias_is_float32=True, constant_bias=constant)
        found = {
            "output": np.empty(node.output_sizes(kind, True), ELEMENTS[dtype][0]),
            "lse": np.empty(node.output_sizes(kind, False), np.float32),
        }
        places = [array.ctypes.data for array in arrays.values()]
        node.run(node.prepare(kind), places, found["output"].ctypes.data, found["lse"].ctypes.data)
        expect_reference(found, PACKED_OPERATOR, arrays, attributes, dtype)


def test_sizes_are_free_and_an_empty_batch_gives_an_empty_output(load_node):
    with load_node(PACKED_OPERATOR, packed(2, (9, 9), 2, 16, (5, 5)), True, kernel_size=(5, 5)) as session:
        for batch, lengths in ((1, (5, 5)), (3, (17, 6)), (1, (40, 33)), (2, (9, 9))):
            arrays = packed(batch, lengths, 2, 16, (5, 5))
            expect_reference(session.run(arrays), PACKED_OPERATOR, arrays, {"kernel_size": (5, 5)}, "float32")
        empty = session.run(packed(0, (9, 8), 2, 16, (5, 5)))
        assert (empty["output"].shape, empty["lse"].shape) == ((0, 9, 8, 2, 16), (0, 9, 8, 2))


def test_sizes_that_came_before_are_not_asked_for_again(load_node, monkeypatch: pytest.MonkeyPatch):
    arrays, others = packed(2, (9, 9), 2, 16, (5, 5)), packed(1, (9, 8), 2, 16, (5, 5))
    asked: list[CallKind] = []
    infer = LibraryNode._infer_sizes
    monkeypatch.setattr(LibraryNode, "_infer_sizes", lambda node, *kind: [asked.append(kind[0]), infer(node, *kind)][1])
    with load_node(PACKED_OPERATOR, arrays, True, kernel_size=(5, 5)) as session:
        session.run(arrays)
        asked.clear()
        session.run(arrays)
        assert asked == []
        session.run(others)
        assert {kind.shapes[0] for kind in asked} == {others["qkv"].shape}
        asked.clear()
        session.run(arrays)
        assert asked == []


def test_one_value_stands_for_every_axis_and_inputs_may_be_left_out(load_node):
    arrays = separate(1, (9, 13), (2, 2), (16, 16), 3)
    single = {"dilation": (2,), "stride": (3,), "is_causal": (1,)}
    with load_node(SEPARATE_OPERATOR, arrays, kernel_size=(4, 3), **single) as session:
        found = session.run(arrays)
    full = {name: value * 2 for name, value in single.items()}
    expect_reference(found, SEPARATE_OPERATOR, arrays, {"kernel_size": (4, 3), **full}, "float32")


@pytest.mark.parametrize("operator", [PACKED_OPERATOR, SEPARATE_OPERATOR])
def test_lse_is_right_however_often_the_outputs_are_read(tmp_path: Path, operator: str):
    arrays = packed(1, (9, 8), 2, 16) if operator == PACKED_OPERATOR else separate(1, (9, 8), (2, 2), (16, 16))
    model = node_model(operator, arrays, kernel_size=(3, 3))
    for name in ("output", "lse"):
        for copy in range(2):
            model.graph.node.append(onnx.helper.make_node("Neg", [name], [f"{name}{copy}"]))
            model.graph.output.append(onnx.helper.make_tensor_value_info(f"{name}{copy}", 1, None))
    onnx.save(model, tmp_path / "node.onnx")
    with na_deploy.load(tmp_path / "node.onnx", backend="openvino", threads=1) as session:
        found = session.run(arrays)
    expect_reference(
        {"output": found["output"], "lse": found["lse"]}, operator, arrays, {"kernel_size": (3, 3)}, "float32"
    )
    for name in ("output", "lse"):
        np.testing.assert_array_equal(found[f"{name}0"], -found[name])
        np.testing.assert_array_equal(found[f"{name}1"], -found[name])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_callers_at_the_same_time_get_the_same_bits(load_node, precision: str):
    feeds = [packed(1 + index % 2, (20 + index, 28), 2, 32, (7, 7)) for index in range(4)]
    with (
        load_node(PACKED_OPERATOR, feeds[0], True, precision=precision, streams=2, **NAT) as session,
        ThreadPoolExecutor(4) as pool,
    ):
        assert session.streams == 2
        alone = [session.run(arrays) for arrays in feeds]
        for _ in range(4):
            for found, expected in zip(pool.map(session.run, feeds), alone, strict=True):
                np.testing.assert_array_equal(found["output"], expected["output"])
                np.testing.assert_array_equal(found["lse"], expected["lse"])


@pytest.mark.skipif(not HAS_BFLOAT16, reason="this processor has no bfloat16 products")
def test_between_products_in_bfloat16_nothing_is_converted_or_copied(tmp_path: Path):
    model = node_model(PACKED_OPERATOR, packed(1, (8, 9), 2, 16), lse=False, kernel_size=(3, 3))
    graph = model.graph
    graph.initializer.append(onnx.numpy_helper.from_array(normal(16, 16), "weights"))
    graph.node[0].input[0], graph.node[0].output[0] = "products", "attended"
    graph.node.insert(0, onnx.helper.make_node("MatMul", ["qkv", "weights"], ["products"]))
    graph.node.append(onnx.helper.make_node("MatMul", ["attended", "weights"], ["output"]))
    onnx.save(model, tmp_path / "node.onnx")
    with na_deploy.load(tmp_path / "node.onnx", backend="openvino", threads=1, precision="bf16") as session:
        nodes = session._compiled.model.get_runtime_model().get_ordered_ops()
        kinds = {_layer(node) for node in nodes}
        precisions = {
            str(node.get_rt_info()["outputPrecisions"].value) for node in nodes if _layer(node) == "Reference"
        }
    assert {"FullyConnected", "Reference"} <= kinds
    assert not kinds & {"Convert", "Subgraph"}, kinds
    assert precisions == {"bf16"}


def _layer(node: Any) -> str:
    """Return the kind of a node of an executed graph."""
    return str(node.get_rt_info()["layerType"].value)


def test_refusals_are_one_sentence_and_the_session_goes_on(load_node):
    with load_node(PACKED_OPERATOR, packed(1, (9, 8), 2, 16), True, kernel_size=(7, 7)) as session:
        with pytest.raises(NaDeployError, match=r"7\*1 = 7 exceeds the length 5 of spatial axis 0; use a larger map"):
            session.run(packed(1, (5, 8), 2, 16))
        arrays = packed(1, (7, 8), 2, 16)
        expect_reference(session.run(arrays), PACKED_OPERATOR, arrays, {"kernel_size": (7, 7)}, "float32")
    for wrong, words in (
        ({"stride": (9, 1)}, "stride must lie between 1 and kernel_size=7, got 9 on axis 0"),
        ({"dilation": (1, 2, 3)}, r"dilation has 3 values \(1, 2, 3\) and kernel_size has 2"),
        ({"scale": "large"}, r"node 'layer3.attn': the attribute scale must be a number \(FLOAT\)"),
    ):
        with pytest.raises(NaDeployError, match=words):
            load_node(PACKED_OPERATOR, packed(1, (9, 8), 2, 16), kernel_size=(7, 7), **wrong)
    with pytest.raises(
        NaDeployError, match=r"rel_pos_bias must be \(2, 13, 13\) for this kernel_size, got \(2, 9, 9\)"
    ):
        load_node(PACKED_OPERATOR, packed(1, (9, 8), 2, 16, (5, 5)), kernel_size=(7, 7))


def test_a_closed_session_leaves_nothing_behind(load_node):
    """Nodes keep a model's weights, and OpenVINO would keep the nodes."""
    arrays = packed(1, (9, 9), 2, 16)
    session = load_node(PACKED_OPERATOR, arrays, True, kernel_size=(3, 3))
    session.run(arrays)
    session.run(packed(2, (11, 9), 2, 16))
    nodes = session._compiled.graph.nodes
    kept = [weakref.ref(node) for node in (*nodes._lasting, *nodes._passing)]
    assert len(kept) > 2
    del nodes
    session.close()
    gc.collect()
    assert [node for node in kept if node() is not None] == []


def test_compiled_models_with_the_operators_come_from_the_cache(write_model, tmp_path: Path):
    image = np.random.default_rng(3).standard_normal((1, 3, 32, 32), dtype=np.float32)
    model, cache = write_model(), tmp_path / "cache"
    answers = []
    for _ in range(2):
        with na_deploy.load(model, backend="openvino", threads=1, cache=cache) as session:
            answers.append(session.run(image)["logits"])
            from_cache = session._compiled.model.get_property("LOADED_FROM_CACHE")
            assert session.library == LIBRARY
    assert from_cache
    np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_model_agrees_with_its_function_bodies(write_model, precision: str):
    image = np.random.default_rng(3).standard_normal((2, 3, 32, 32), dtype=np.float32)
    options = {"backend": "openvino", "threads": 2, "precision": precision}
    model = write_model(batch="batch")
    with na_deploy.load(model, **options) as one, na_deploy.load(model, **options, custom_operators=False) as other:
        assert (one.attention, other.attention) == ("operator library", "function bodies")
        found, expected = one.run(image)["logits"], other.run(image)["logits"]
    gap = np.abs(found - expected).max() / np.abs(expected).max()
    assert gap < (1e-5 if precision == "f32" else 3e-2)


def test_without_a_library_that_loads_the_model_runs_on_its_function_bodies(
    write_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = write_model()
    monkeypatch.setenv(OPENVINO_LIBRARY_VARIABLE, "")
    with warnings.catch_warnings(), na_deploy.load(model, backend="openvino") as session:
        warnings.simplefilter("error")
        assert session.library is None
    assert why_missing(OPENVINO_LIBRARY) == f"hidden by {OPENVINO_LIBRARY_VARIABLE}, which is empty"
    broken = tmp_path / "libbroken.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setenv(OPENVINO_LIBRARY_VARIABLE, str(broken))
    with pytest.warns(RuntimeWarning, match=r"libbroken\.so does not load: .*; the model runs on its function bodies"):
        session = na_deploy.load(model, backend="openvino")
    with session:
        assert session.library is None
        assert session.run(np.ones((1, 3, 32, 32), np.float32))["logits"].shape == (1, 10)


def test_functions_of_others_are_inlined_around_the_operators(write_model, tmp_path: Path):
    model = onnx.load(write_model())
    twice = onnx.helper.make_function(
        "com.example", "Twice", ["x"], ["y"], [onnx.helper.make_node("Add", ["x", "x"], ["y"])], model.opset_import[:1]
    )
    model.functions.append(twice)
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    last = model.graph.node[-1]
    last.output[0] = "half"
    model.graph.node.append(onnx.helper.make_node("Twice", ["half"], ["logits"], domain="com.example"))
    onnx.save(model, tmp_path / "twice.onnx")
    image = np.ones((1, 3, 32, 32), np.float32)
    with (
        na_deploy.load(tmp_path / "twice.onnx", backend="openvino") as one,
        na_deploy.load(tmp_path / "twice.onnx") as other,
    ):
        assert one.library == LIBRARY
        np.testing.assert_allclose(one.run(image)["logits"], other.run(image)["logits"], rtol=1e-4, atol=1e-6)


def test_the_same_file_serves_openvino_2025(tmp_path: Path):
    folder = onnx_runtimes.prepare("openvino-2025")
    arrays = packed(1, (14, 15), 2, 32, (7, 7))
    onnx.save(node_model(PACKED_OPERATOR, arrays, True, **NAT), tmp_path / "node.onnx")
    np.savez(tmp_path / "in.npz", **arrays)
    script = (
        "import sys, numpy, openvino, na_deploy\n"
        "with na_deploy.load(sys.argv[1], backend='openvino', threads=2) as session:\n"
        "    numpy.savez(sys.argv[3], **session.run(dict(numpy.load(sys.argv[2]))))\n"
        "    print(openvino.__version__, session.library)\n"
    )
    source = Path(na_deploy.__file__).parents[1]
    command = [sys.executable, "-c", script, *(str(tmp_path / name) for name in ("node.onnx", "in.npz", "out.npz"))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(source)])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2025.4")
    assert str(LIBRARY) in done.stdout
    expect_reference(dict(np.load(tmp_path / "out.npz")), PACKED_OPERATOR, arrays, NAT, "float32")


EXTENSION_CASES = ["packed, dinat", "separate, additional keys", "small map, three axes"]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("lse", [False, True])
@pytest.mark.parametrize("case", EXTENSION_CASES)
def test_the_extension_in_cpp_is_right_and_comes_from_the_cache(
    native_build: Path, tmp_path: Path, case: str, lse: bool, dynamic: bool
):
    operator, arrays, attributes = CASES[case]
    onnx.save(node_model(operator, arrays, dynamic, lse, **attributes), tmp_path / "node.onnx")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2, "CACHE_DIR": str(tmp_path / "cache")}
    for from_cache in (False, True):
        core = openvino.Core()
        core.add_extension(str(native_build / "plugins/openvino/extension/libna_deploy_openvino_extension.so"))
        compiled = core.compile_model(str(tmp_path / "node.onnx"), "CPU", settings)
        assert compiled.get_property("LOADED_FROM_CACHE") == from_cache
        results = compiled(list(arrays.values()))
        found = {"output": results[0]} | ({"lse": results[1]} if lse else {})
        expect_reference(found, operator, arrays, attributes, "float32")


def test_the_extension_in_cpp_refuses_in_one_sentence(native_build: Path, tmp_path: Path):
    onnx.save(node_model(PACKED_OPERATOR, packed(1, (9, 8), 2, 16), True, kernel_size=(7, 7)), tmp_path / "node.onnx")
    core = openvino.Core()
    core.add_extension(str(native_build / "plugins/openvino/extension/libna_deploy_openvino_extension.so"))
    compiled = core.compile_model(str(tmp_path / "node.onnx"), "CPU")
    with pytest.raises(RuntimeError, match=r"7\*1 = 7 exceeds the length 5 of spatial axis 0; use a larger map"):
        compiled([packed(1, (5, 8), 2, 16)["qkv"]])
