"""The real Python modules of TensorRT 10, 11, the lean runtime and TensorRT-RTX, as far as they go without a GPU.

Everything that our code calls exists in them, the recorded descriptions that the fakes are held to are right, and with
TensorRT-RTX engines are really built. Each runs in a process of its own.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import na_deploy
from na_deploy.errors import NaDeployError
from na_deploy.runtime.building.build import build
from na_deploy.runtime.building.options import BuildOptions
from na_deploy.runtime.tensorrt.progress import Phases

HERE = Path(__file__).parent
SOURCES = sorted((HERE.parents[2] / "runtime" / "tensorrt").glob("*.py"))


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


bindings = _load("bindings")
DESCRIBED = {name: json.loads((HERE / "api" / f"{name}.json").read_text()) for name in ("tensorrt_10", "tensorrt_11")}
DESCRIBED["tensorrt_rtx_1"] = json.loads((HERE / "api" / "tensorrt_rtx_1.json").read_text())


@pytest.mark.parametrize("wheels", [bindings.TENSORRT_10, bindings.TENSORRT_11, bindings.RTX], ids=lambda w: w.api)
def test_the_recorded_descriptions_are_those_of_the_real_modules(wheels: Any):
    folder, environment = bindings.installed(wheels)
    command = [sys.executable, str(HERE / "record_api.py"), str(folder), wheels.module]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == DESCRIBED[wheels.api]


def module_attributes() -> Iterator[tuple[str, str]]:
    """Every ``module.A.B`` and ``module.a`` that runtime/tensorrt asks the TensorRT module for."""
    for source in SOURCES:
        if source.name == "cuda.py":  # its module is CUDA's
            continue
        for node in ast.walk(ast.parse(source.read_text())):
            if not isinstance(node, ast.Attribute):
                continue
            value = node.value
            if isinstance(value, ast.Attribute) and _is_module(value.value):
                yield value.attr, node.attr
            elif _is_module(value):
                yield node.attr, ""


def _is_module(node: ast.expr) -> bool:
    """Tell whether an expression is the TensorRT module: ``module`` or ``something.module``."""
    return (isinstance(node, ast.Name) and node.id == "module") or (
        isinstance(node, ast.Attribute) and node.attr == "module"
    )


METHODS = {
    "ICudaEngine": """num_io_tensors get_tensor_name get_tensor_mode get_tensor_shape get_tensor_dtype
        get_tensor_location get_tensor_format is_shape_inference_io get_tensor_profile_shape num_optimization_profiles
        device_memory_size_v2 create_execution_context create_engine_inspector""",
    "IExecutionContext": """set_device_memory set_optimization_profile_async set_input_shape infer_shapes
        get_tensor_shape set_tensor_address execute_async_v3 profiler""",
    "EngineInspector": "get_engine_information",
    "Runtime": "deserialize_cuda_engine engine_host_code_allowed",
    "Builder": "create_network max_threads",
    "OnnxParser": "parse_from_file num_errors get_error",
    "ParserError": "node_name node node_operator local_function_stack desc",
    "INetworkDefinition": "num_layers",
    "IPluginRegistry": "load_library get_creator",
    "IProgressMonitor": "phase_start step_complete phase_finish",
    "IProfiler": "report_layer_time",
    "ILogger": "log Severity",
}
"""Attributes of TensorRT's objects that runtime/tensorrt uses."""


@pytest.mark.parametrize("version", list(DESCRIBED))
def test_everything_that_is_called_exists_in_every_version(version: str):
    described = DESCRIBED[version]
    found = set(module_attributes())
    assert ("ExecutionContextAllocationStrategy", "USER_MANAGED") in found
    assert ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED") in found
    for name, member in found:
        if name in described["enumerations"]:
            assert not member or member in described["enumerations"][name], f"{name}.{member}"
        elif name in described["classes"]:
            assert not member or member in (*described["classes"][name], "__init__"), f"{name}.{member}"
        else:
            assert name == "__version__" or name in described["functions"], name
    for name, attributes in METHODS.items():
        missing = set(attributes.split()) - set(described["classes"][name])
        assert not missing, f"{name} lacks {missing}"


def test_the_list_of_methods_is_that_of_the_code():
    text = "\n".join(source.read_text() for source in SOURCES)
    for attributes in METHODS.values():
        for attribute in attributes.split():
            assert f".{attribute}" in text or f"def {attribute}" in text, f"{attribute} is not used any more"


def test_flags_of_networks_have_other_numbers_in_11_so_they_are_asked_for_by_name():
    flags = {version: DESCRIBED[version]["enumerations"]["NetworkDefinitionCreationFlag"] for version in DESCRIBED}
    assert flags["tensorrt_10"]["STRONGLY_TYPED"] != flags["tensorrt_11"]["STRONGLY_TYPED"]
    for source in SOURCES:
        assert "1 << 0" not in source.read_text()


def test_cuda_functions_exist_in_the_real_bindings():
    real = pytest.importorskip("cuda.bindings.runtime")
    source = (HERE.parents[2] / "runtime" / "tensorrt" / "cuda.py").read_text()
    names = {
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("cuda")
    } - {"cuda.bindings.runtime"}
    names = {name for name in names if name.isalnum()}
    assert {"cudaMalloc", "cudaGraphLaunch", "cudaStreamBeginCapture"} <= names
    errors = {name for name in names if name.startswith("cudaError")}
    for name in names - errors:
        assert hasattr(real, name), name
    for name in errors:
        assert name in real.cudaError_t.__members__
    fake = ast.parse((HERE / "fakes" / "cuda" / "bindings" / "runtime.py").read_text())
    for node in fake.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("cuda"):
            assert hasattr(real, node.name), node.name
        if isinstance(node, ast.ClassDef) and node.name.startswith("cuda"):
            for line in node.body:
                if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant):
                    member = getattr(getattr(real, node.name), line.targets[0].id)
                    assert int(member) == line.value.value, f"{node.name}.{line.targets[0].id}"


LEAN = """
import json, sys
import tensorrt_lean_bindings as module
from na_deploy.errors import NaDeployError
from na_deploy.runtime.tensorrt.api import Messages, make_logger, version_of
from na_deploy.runtime.tensorrt.plugins import register_plugins, registered
from pathlib import Path
answer = {"version": version_of(module)[0], "before": registered(module)}
messages = Messages()
logger = make_logger(module, messages)
for file in sys.argv[1:]:
    try:
        register_plugins(module, Path(file), messages)
        answer[Path(file).name] = registered(module)
    except NaDeployError as error:
        answer[Path(file).name] = str(error)
print(json.dumps(answer), flush=True)
import os
os._exit(0)
"""


@pytest.mark.parametrize("wheels", [bindings.LEAN_10, bindings.LEAN_11], ids=lambda w: w.api)
def test_the_real_plugin_registry_is_asked_and_refuses_what_is_no_plugin_library(wheels: Any, tmp_path: Path):
    from na_deploy.runtime.native_libraries import tensorrt_library

    _, environment = bindings.installed(wheels)
    nothing = tmp_path / "nothing.so"
    nothing.write_bytes(b"not a library")
    ours = tensorrt_library()
    command = [sys.executable, "-c", LEAN, str(nothing), *([str(ours)] if ours else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["version"] == int(wheels.api.split("_")[1])
    assert answer["before"] == []
    assert f"the plugin library {nothing}" in answer["nothing.so"]
    if ours:
        assert "NeighborhoodAttentionQKV" in answer[ours.name]


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> Path:
    """TensorRT-RTX's real module in processes that the test starts, and found from this one."""
    folder, environment = bindings.installed(bindings.RTX)
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_tensorrt_rtx_really_builds_and_reports_its_progress(rtx, write_model: Callable[..., Path], tmp_path: Path):
    seen: list[Phases] = []
    fractions: list[float] = []
    deepest: set[int] = set()

    def watch(phases: Phases) -> None:
        seen.append(phases)
        fractions.append(phases.fraction)
        deepest.add(len(phases.open))

    options = BuildOptions(backend="tensorrt-rtx", batch=(1, 2, 8), workspace=1 << 28)
    summary = build(write_model(batch="batch"), tmp_path / "b.bundle", options, watch=watch)
    assert summary.manifest.requires["tensorrt_rtx"] == "1.7.1.116"
    assert summary.manifest.build["layers"] > 100
    assert summary.manifest.build["engine_bytes"] > 1000
    assert summary.attention_runs == "function bodies (TensorRT-RTX takes no plugins)"
    assert fractions == sorted(fractions)
    assert fractions[-1] > 0.8
    assert max(deepest) >= 3


def test_tensorrt_rtx_names_the_node_that_it_refuses(rtx, write_model: Callable[..., Path], tmp_path: Path):
    import onnx

    model = write_model()
    proto = onnx.load(model)
    (flat,) = (tensor for tensor in proto.graph.initializer if tensor.name == "flat_shape")
    flat.CopyFrom(onnx.numpy_helper.from_array(np.array([0, 8, 8, 17], np.int64), flat.name))
    onnx.save(proto, model)
    with pytest.raises(NaDeployError, match="ONNX parser refused the model: node"):
        build(model, tmp_path / "b.bundle", BuildOptions(backend="tensorrt-rtx"))


def test_without_a_gpu_an_engine_is_refused_in_one_sentence(rtx, write_model: Callable[..., Path], tmp_path: Path):
    target = tmp_path / "b.bundle"
    build(write_model(), target, BuildOptions(backend="tensorrt-rtx"))
    code = (
        "import sys, na_deploy\n"
        "try: na_deploy.load(sys.argv[1])\n"
        "except na_deploy.errors.NaDeployError as error: print(error)\n"
        "else: print('loaded')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("engines run on an NVIDIA GPU", "loaded")), done.stdout
    array = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)
    with na_deploy.load(target, backend="onnxruntime") as session:
        assert session.run(array)["logits"].shape == (1, 10)


def test_the_real_cuda_bindings_take_our_arguments():
    """Every call gets as far as the driver, or works; a wrong type of argument would be a TypeError."""
    real = pytest.importorskip("cuda.bindings.runtime")
    from na_deploy.runtime.tensorrt.cuda import Cuda, CudaError

    cuda = Cuda(real)
    calls: dict[str, tuple[Any, ...]] = {
        "use_device": (0,),
        "device_name": (0,),
        "compute_capability": (0,),
        "driver_version": (),
        "memory": (),
        "allocate": (256,),
        "allocate_pinned": (256,),
        "create_stream": (),
        "pointer_device": (np.zeros(4).ctypes.data,),
    }
    refused = []
    for name, arguments in calls.items():
        try:
            getattr(cuda, name)(*arguments)
        except CudaError as error:
            refused.append(error.status)
    assert all(status.startswith("cudaError") or status == "noDriver" for status in refused)
    if len(refused) < 3:
        pytest.skip("a GPU is here: `na-deploy doctor --gpu` tries the rest on real objects")
    others: dict[str, tuple[Any, ...]] = {
        "free": (0x10000,),
        "free_pinned": (0x10000,),
        "to_device": (0x10000, 0x20000, 4, 0x30000),
        "to_host": (0x10000, 0x20000, 4, 0x30000),
        "synchronize": (0x30000,),
        "destroy_stream": (0x30000,),
        "begin_capture": (0x30000,),
        "end_capture": (0x30000,),
        "instantiate": (0x40000,),
        "discard_graph": (0x40000,),
        "launch": (0x50000, 0x30000),
        "destroy_graph": (0x50000,),
        "wait_for": (0x30000, 1),
    }
    for name, arguments in others.items():
        with pytest.raises(CudaError):
            getattr(cuda, name)(*arguments)
    with pytest.raises(NaDeployError, match="engines run on an NVIDIA GPU"):
        cuda.device_count()
