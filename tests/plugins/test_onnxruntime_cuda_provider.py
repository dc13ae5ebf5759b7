"""ONNX Runtime's real CUDA provider takes our nodes, gives them its stream, and keeps their tensors in device memory.

The GPU is pretended and the kernels are emulated: device memory is closed to everything but copies and kernels, so that
code of the host that touches it ends the process.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from node_models import (
    PACKED_CASES,
    SEPARATE_CASES,
    Arrays,
    expect_reference,
    node_model,
    normal,
    packed,
    separate,
)
from onnx import numpy_helper

from na_deploy.attention.schema import PACKED_OPERATOR, SEPARATE_OPERATOR

pytestmark = pytest.mark.native
TOLERANCE = {"float32": 2e-6, "float16": 3e-3, "bfloat16": 2e-2}
LOAD = """
import sys
import onnxruntime
from na_deploy.runtime.native_libraries import onnxruntime_library

options = onnxruntime.SessionOptions()
options.register_custom_ops_library(str(onnxruntime_library()))
options.optimized_model_filepath = sys.argv[2]
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CUDAExecutionProvider"])
print(session.get_providers()[0])
"""
RUN = """
import ctypes, json, sys
import ml_dtypes
import numpy as np
import na_deploy
from na_deploy.errors import NaDeployError
from na_deploy.runtime.native_libraries import onnxruntime_library

model, feeds, results = sys.argv[1:4]
library = ctypes.CDLL(str(onnxruntime_library()))
library.na_test_last_stream.restype = ctypes.c_void_p
report = {}
try:
    with na_deploy.load(model, device=0) as session:
        report["device"], report["library"] = session.device, session.library is not None
        arrays = dict(np.load(feeds))
        if session.inputs[0].dtype == "bfloat16":  # NumPy's files do not know it
            arrays = {name: array.view(ml_dtypes.bfloat16) for name, array in arrays.items()}
        found = [session.run(arrays) for _ in range(2)][-1]
        np.savez(results, **found)
except NaDeployError as error:
    report["error"] = str(error)
report |= {"launches": library.na_test_launches(), "stream": library.na_test_last_stream()}
report |= {"tactic": library.na_test_last_tactic(), "bias": library.na_test_last_had_bias()}
print(json.dumps(report))
"""
FUNCTION_BODIES = """
import sys, warnings
import na_deploy

with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    with na_deploy.load(sys.argv[1], device=0) as session:
        print(session.device, "with the library" if session.library else "without the library")
for warning in told:
    if issubclass(warning.category, RuntimeWarning):
        print(warning.message)
"""
TOUCH = """
import ctypes, sys
import numpy as np
import onnxruntime
value = onnxruntime.OrtValue.ortvalue_from_numpy(np.ones(4, np.float32), "cuda", 0)
assert value.device_name() == "cuda" and (value.numpy() == 1).all()
print("copied", flush=True)
ctypes.string_at(value.data_ptr(), 4)
"""


def run(gpu: dict[str, str], folder: Path, model: onnx.ModelProto, feeds: Arrays) -> tuple[dict[str, Any], Arrays]:
    """Run a model in a process of its own; return what it reports, and outputs unless there was an error."""
    onnx.save(model, folder / "model.onnx")
    np.savez(folder / "feeds.npz", **feeds)
    command = [sys.executable, "-c", RUN, *(str(folder / name) for name in ("model.onnx", "feeds.npz", "found.npz"))]
    done = subprocess.run(command, capture_output=True, text=True, env=gpu, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    found = {} if "error" in report else dict(np.load(folder / "found.npz"))
    stored = {name: array for name, array in found.items() if array.dtype.kind == "V"}
    return report, found | {name: array.view(ml_dtypes.bfloat16) for name, array in stored.items()}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("operator", [PACKED_OPERATOR, SEPARATE_OPERATOR])
def test_the_cuda_provider_runs_the_node(gpu: dict[str, str], tmp_path: Path, operator: str, dtype: str):
    if operator == PACKED_OPERATOR:
        sizes, attributes = PACKED_CASES["nat"]
        arrays = packed(*sizes, dtype=dtype)
    else:
        sizes, attributes = SEPARATE_CASES["additional keys"]
        arrays = separate(*sizes, dtype=dtype)
    report, found = run(gpu, tmp_path, node_model(operator, arrays, True, dtype=dtype, **attributes), arrays)
    assert report == {
        "device": "CUDA",
        "library": True,
        "launches": 2,
        "stream": report["stream"],
        "tactic": report["tactic"],
        "bias": int("rel_pos_bias" in arrays),
    }
    assert report["stream"] > 0x5000  # one that the provider made
    assert report["tactic"] > 0  # the default one, found once for both runs
    expect_reference(found, operator, arrays, attributes, dtype, TOLERANCE[dtype])


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_constant_bias_lies_on_the_gpu(gpu: dict[str, str], tmp_path: Path, value: float):
    arrays = packed(2, (9, 8), 2, 16)
    bias = np.full((2, 5, 5), value, np.float32)
    model = node_model(PACKED_OPERATOR, arrays | {"rel_pos_bias": bias}, kernel_size=(3, 3))
    model.graph.initializer.append(numpy_helper.from_array(bias, "rel_pos_bias"))
    del model.graph.input[1]
    report, found = run(gpu, tmp_path, model, arrays)
    assert (report["device"], report["launches"], report["bias"]) == ("CUDA", 2, 1)
    expect_reference(found, PACKED_OPERATOR, arrays | {"rel_pos_bias": bias}, {"kernel_size": (3, 3)}, "float32", 2e-6)


def test_it_takes_the_nodes_of_models_that_embed_function_bodies(gpu: dict[str, str], write_model, tmp_path: Path):
    optimized = tmp_path / "optimized.onnx"
    command = [sys.executable, "-c", LOAD, str(write_model(batch="batch")), str(optimized)]
    done = subprocess.run(command, capture_output=True, text=True, env=gpu, check=False)
    assert done.stdout == "CUDAExecutionProvider\n", done.stderr[-2000:]
    graph = onnx.load(optimized).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count(PACKED_OPERATOR) == 2
    assert "Softmax" not in kinds
    assert "MemcpyToHost" not in kinds
    assert "MemcpyFromHost" not in kinds


def test_a_gpu_that_refuses_the_trial_launch_gives_one_warning_and_function_bodies(
    gpu: dict[str, str], write_model, tmp_path: Path
):
    """The case of CUDA 13's runtime on an older driver, for example."""
    command = [sys.executable, "-c", FUNCTION_BODIES, str(write_model())]
    refusing = gpu | {"NA_TEST_TRY": "35"}
    done = subprocess.run(command, capture_output=True, text=True, env=refusing, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = done.stdout.splitlines()
    assert told[0] == "CUDA without the library"
    assert len(told) == 2
    assert "do not run on GPU 0: CUDA answers the trial launch with error 35, an emulated error" in told[1]
    assert told[1].endswith("the model runs on its embedded function bodies")


def test_other_programs_are_told_of_a_failing_trial_launch_when_they_load_a_model(
    gpu: dict[str, str], write_model, tmp_path
):
    command = [sys.executable, "-c", LOAD, str(write_model()), str(tmp_path / "optimized.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, env=gpu | {"NA_TEST_TRY": "209"}, check=False)
    assert done.returncode != 0
    assert "CUDA answers the trial launch of the GPU kernels with error 209, no kernel image" in done.stderr


def test_an_empty_batch_runs_and_launches_nothing(gpu: dict[str, str], tmp_path: Path):
    arrays = packed(0, (9, 8), 2, 16)
    report, found = run(gpu, tmp_path, node_model(PACKED_OPERATOR, arrays, True, kernel_size=(3, 3)), arrays)
    assert (report["device"], report["launches"]) == ("CUDA", 0)
    assert found["output"].shape == (0, 9, 8, 2, 16)


def test_refusals_reach_the_caller(gpu: dict[str, str], tmp_path: Path):
    arrays = {"qkv": normal(1, 5, 5, 3, 1, 300)}
    report, _ = run(gpu, tmp_path, node_model(PACKED_OPERATOR, arrays, kernel_size=(3, 3)), arrays)
    assert "node 'layer3.attn': heads have at most 256 channels on a GPU, got 300" in report["error"]
    assert report["launches"] == 0


def test_device_memory_is_closed_to_the_host(gpu: dict[str, str]):
    done = subprocess.run([sys.executable, "-c", TOUCH], capture_output=True, text=True, env=gpu, check=False)
    assert done.stdout == "copied\n", done.stderr[-2000:]
    assert done.returncode == -signal.SIGSEGV
