"""Sessions with CUDA graphs on ONNX Runtime's real CUDA provider: captures, replays with new inputs, and refusals.

The GPU is pretended, as in test_onnxruntime_cuda_provider.py: a captured stream keeps launches and copies, a graph
repeats them, and calls that CUDA forbids during a capture fail.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import Any

import cuda_graph_calls
import ml_dtypes
import numpy as np
import onnx
import pytest
from cuda_graph_calls import CALLS, SHARED, given
from node_models import expect_reference, node_model
from onnx import TensorProto, helper

from na_deploy.attention.schema import PACKED_OPERATOR
from na_deploy.errors import MissingDependencyError
from na_deploy.runtime.backends.onnxruntime_graphs import check_version
from na_deploy.runtime.gpu_calls import GpuCalls

pytestmark = pytest.mark.native
WINDOW = {"kernel_size": (3, 3)}
TOLERANCE = {"float32": 2e-6, "bfloat16": 2e-2}
USUAL, CAPTURED, REPLAYED = ([0, 0, 0], 1), ([1, 1, 0], 3), ([0, 1, 0], 0)
"""Graphs made, launched and destroyed by a call, and launches of kernels outside of graphs.

ONNX Runtime runs twice before it captures, and launches what it captured once.
"""


def refused_models() -> dict[str, onnx.ModelProto]:
    """Return models that a graph would not hold as a whole."""
    value, real, whole = helper.make_tensor_value_info, TensorProto.FLOAT, TensorProto.INT64
    relu, x, y = helper.make_node("Relu", ["x"], ["r"]), value("x", real, ["n", 3]), value("y", real, ["n", 3])
    branch = helper.make_graph([helper.make_node("Relu", ["x"], ["b"])], "branch", [], [value("b", real, ["n", 3])])
    graphs = {
        "input": ([helper.make_node("Reshape", ["x", "s"], ["y"])], [x, value("s", whole, [2])], [y]),
        "output": ([helper.make_node("Shape", ["x"], ["y"])], [x], [value("y", whole, [2])]),
        "node": ([relu, helper.make_node("Unique", ["r"], ["y"])], [x], [value("y", real, ["m"])]),
        "control": (
            [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)],
            [x, value("c", TensorProto.BOOL, [1])],
            [y],
        ),
    }
    opset = [helper.make_opsetid("", 20)]
    return {
        name: helper.make_model(helper.make_graph(*parts[:1], name, *parts[1:]), opset_imports=opset, ir_version=10)
        for name, parts in graphs.items()
    }


@pytest.fixture(scope="module")
def called(gpu: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """The report of all calls, and their answers."""
    folder = tmp_path_factory.mktemp("graphs")
    for dtype in CALLS:
        model = node_model(PACKED_OPERATOR, {"qkv": given(1, 0, dtype)}, True, dtype=dtype, **WINDOW)
        onnx.save(model, folder / f"{dtype}.onnx")
    (folder / "refused").mkdir()
    for name, model in refused_models().items():
        onnx.save(model, folder / "refused" / f"{name}.onnx")
    command = [sys.executable, cuda_graph_calls.__file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=gpu, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "[W:onnxruntime" not in done.stderr
    answers = dict(np.load(folder / "answers.npz"))
    stored = {name: array.view(ml_dtypes.bfloat16) for name, array in answers.items() if array.dtype.kind == "V"}
    return json.loads((folder / "report.json").read_text()), answers | stored


@pytest.mark.parametrize("dtype", CALLS)
def test_every_call_answers_its_own_inputs_and_no_later_one_writes_into_it(called, dtype: str):
    _, answers = called
    for call, batch in enumerate(CALLS[dtype]):
        found = answers[f"{dtype} {call}"]
        assert found.shape == (batch, 5, 4, 2, 8)
        arrays = {"qkv": given(batch, call, dtype)}
        if batch:
            expect_reference({"output": found}, PACKED_OPERATOR, arrays, WINDOW, dtype, TOLERANCE[dtype])


def test_the_second_call_of_a_shape_is_captured_and_later_ones_launch_no_kernel_themselves(called):
    report, _ = called
    found = list(zip(report["graphs"]["bfloat16"], report["launches"]["bfloat16"], strict=True))
    assert found == [USUAL, CAPTURED, REPLAYED, REPLAYED]


def test_as_many_shapes_as_asked_for_have_graphs_and_others_run_without(called):
    report, _ = called
    found = list(zip(report["graphs"]["float32"], report["launches"]["float32"], strict=True))
    third, empty = USUAL, ([0, 0, 0], 0)
    assert found[:3] == [USUAL, USUAL, USUAL]
    assert found[3:6] == [CAPTURED, CAPTURED, third]
    assert found[6:9] == [REPLAYED, REPLAYED, third]
    assert found[9:] == [empty, empty, empty]


def test_threads_share_the_graphs_of_a_session(called):
    report, answers = called
    assert report["made by threads"] == 0
    for place, batch in enumerate(SHARED):
        arrays = {"qkv": given(batch, 100 + place)}
        expect_reference({"output": answers[f"shared {place}"]}, PACKED_OPERATOR, arrays, WINDOW, "float32", 2e-6)
    replayed = 2 + sum(batch < 3 for batch in SHARED) + 1
    assert report["figures"] == {"captured": 2, "launched": replayed, "dropped": 0, "refusal": None}
    assert report["outputs"] == ["lse", "output"]


def test_a_closed_session_says_so(called):
    report, _ = called
    assert report["closed"] == "the session of bfloat16.onnx is closed; load the model again"


def test_other_sessions_wait_for_the_end_of_a_capture(called):
    report, _ = called
    assert not report["ran during a capture"]
    assert report["ran after it"]


def test_a_capture_beside_a_call_that_takes_long_is_left_to_a_later_run(called):
    report, _ = called
    assert report["captured beside another call"] == 0


def test_a_capture_that_fails_is_one_sentence_and_the_session_goes_on(called):
    report, answers = called
    found = report["not captured"]
    assert found.startswith("float32.onnx could not be captured as a CUDA graph for qkv 2×5×4×3×2×8: ")
    assert found.endswith("with error 900, an emulated error; load it without cuda_graphs")
    arrays, answer = {"qkv": given(2, 50)}, {"output": answers["after a failure"]}
    expect_reference(answer, PACKED_OPERATOR, arrays, WINDOW, "float32", 2e-6)
    assert report["captured after a failure"] == 1


def test_models_that_a_graph_would_not_hold_are_refused(called):
    report, _ = called
    for name, words in {
        "input": "input s lies in the CPU's memory",
        "output": "output y lies in the CPU's memory",
        "node": "because it has nodes that run on the CPU",
        "control": "because it has control flow (If, Loop or Scan)",
    }.items():
        assert report["refused"][name].startswith(f"{name}.onnx cannot run as CUDA graphs"), report["refused"][name]
        assert words in report["refused"][name]
        assert report["refused"][name].endswith("load it without cuda_graphs")


def test_versions_whose_graphs_were_not_tried_are_refused():
    for version in ("1.31.0", "1.40.1", "2.0.0"):
        check_version(version)
    with pytest.raises(MissingDependencyError, match=r"needs onnxruntime-gpu 1.31 or later, 1.30.2 is installed"):
        check_version("1.30.2")


def test_a_capture_waits_for_calls_and_holds_later_ones_back():
    calls, order, started = GpuCalls(), [], threading.Event()

    def capture() -> None:
        started.set()
        with calls.alone(10.0) as is_alone:
            order.append("capture" if is_alone else "given up")

    with calls.shared():
        with calls.shared():
            thread = threading.Thread(target=capture)
        thread.start()
        started.wait()
        order.append("call")
    thread.join()
    with calls.shared():
        order.append("later call")
    assert order == ["call", "capture", "later call"]


def test_a_capture_that_is_given_up_holds_nobody_back():
    calls = GpuCalls()
    with calls.shared():
        with calls.alone(0.001) as is_alone:
            assert not is_alone
        with calls.shared():
            pass
    with calls.alone(0.001) as is_alone:
        assert is_alone
