"""The TensorRT plugin as a builder would use it: through a driver in C++, and in the real registries of 10 and 11.

Needs TensorRT's headers, which no package has: set TENSORRT_ROOT. Nothing here launches a kernel, which needs a GPU.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import wheels

pytestmark = pytest.mark.native
PLUGINS = Path(__file__).parents[2] / "plugins"
CUDA = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"
NO_GPU = """
#include "onepass/plan.h"
extern "C" {
int na_launch(const void*, int, void*) { return 100; }  // cudaErrorNoDevice
const char* na_cuda_error(int) { return "no CUDA-capable device is detected"; }
}
namespace na_deploy::cuda {
bool device_is_hopper() { return false; }
onepass::Device present_device() { return {108, 163 * 1024, 164 * 1024}; }
}
"""
REGISTRY = """
import os, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import tensorrt_lean_bindings as trt
registry = trt.get_plugin_registry()
if sys.argv[3] == "dlopen":
    import ctypes
    ctypes.CDLL(sys.argv[2])
else:
    assert registry.load_library(sys.argv[2]) is not None
for name in ("NeighborhoodAttention", "NeighborhoodAttentionQKV"):
    creator = registry.get_creator(name, "1", "na_deploy")
    fields = [trt.PluginField("kernel_size", np.array([7, 7], np.int32), trt.PluginFieldType.INT32)]
    assert creator.create_plugin("node", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD) is not None
    none = trt.PluginFieldCollection([])
    assert creator.create_plugin("node", none, trt.TensorRTPhase.BUILD) is None
print("registered in", trt.__version__)
sys.stdout.flush()
os._exit(0)  # without a GPU the module's own end crashes
"""


def compiled(folder: Path, output: str, *sources: Path, options: tuple[str, ...] = ()) -> Path:
    root = os.environ.get("TENSORRT_ROOT")
    if root is None:
        pytest.skip("TENSORRT_ROOT is not set: TensorRT's headers are needed to compile the plugin")
    if not (CUDA / "cuda_runtime_api.h").exists():
        pytest.skip("CUDA's headers are needed to compile the plugin; set CUDA_HOME")
    include = [f"-I{PLUGINS / part}" for part in ("core", "cuda", "tensorrt")]
    system = [part for path in (Path(root) / "include", CUDA) for part in ("-isystem", str(path))]
    command = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", *options, *include, *system]
    command += [*map(str, sources), "-o", str(folder / output), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / output


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "no_gpu.cpp").write_text(NO_GPU)
    sources = [PLUGINS / "tensorrt" / name for name in ("attributes.cpp", "library.cpp", "plugin.cpp")]
    sources += [
        PLUGINS / "cuda/onepass/plan.cpp",
        PLUGINS / "cuda/tactics.cpp",
        PLUGINS / "core/check.cpp",
        PLUGINS / "core/operator.cpp",
        folder / "no_gpu.cpp",
    ]
    return compiled(
        folder,
        "libna_deploy_trt.so",
        *sources,
        options=("-shared", "-fPIC", "-fvisibility=hidden", '-DNA_DEPLOY_KERNEL_REVISION="a test"'),
    )


def test_creators_fields_shapes_types_formats_tactics_and_copies(plugin: Path, tmp_path: Path):
    driver = compiled(tmp_path, "driver", PLUGINS / "tests/trt_driver.cpp")
    done = subprocess.run([str(driver), str(plugin)], capture_output=True, text=True, check=False)
    assert done.stdout == "ok\n"
    told = done.stderr.splitlines()  # every refusal names its operator and says why
    parts = {line[:-1]: told[place + 1] for place, line in enumerate(told) if line.endswith(":")}
    refusals = [line for line in told if not line.endswith(":")]
    assert all(line.startswith("na_deploy: NeighborhoodAttention") for line in refusals)
    name = "na_deploy: NeighborhoodAttentionQKV: "
    window = "kernel_size*dilation = 7*2 = 14 exceeds the length"
    assert parts["smallest"].startswith(f"{name}at the profile's smallest shape: {window} 13 of spatial axis 0")
    assert parts["usual"].startswith(f"{name}at the profile's usual shape: {window} 9 of spatial axis 0")
    assert parts["largest"].startswith(f"{name}at the profile's largest shape: a map has at most")
    assert parts["enqueue"].startswith(f"{name}qkv must begin at an address that is a multiple of 16 on a GPU, got")
    answer = f"{name}CUDA answers the launch with error 100, no CUDA-capable device is detected"
    assert refusals.count(answer) == 1
    assert any("there is no tactic 77 in this library" in line for line in refusals)
    assert any("built with tactic 77, which this library does not have" in line for line in refusals)


@pytest.mark.parametrize("how", ["load_library", "dlopen"])
@pytest.mark.parametrize("major", [10, 11])
def test_the_real_registry_takes_it(plugin: Path, major: int, how: str):
    version = (Path(os.environ["TENSORRT_ROOT"]) / "include" / "NvInferVersion.h").read_text()
    if how == "dlopen" and not re.search(rf"MAJOR(_ENTERPRISE)? {major}\b", version):
        pytest.skip(f"the headers are not those of TensorRT {major}: only load_library serves another major version")
    wheel = wheels.FOLDER / f"lean_{major}"
    if not wheels.is_complete(wheel.name):
        pytest.skip(f"the lean runtime of TensorRT {major} is not installed in {wheel}")
    command = [sys.executable, "-c", REGISTRY, str(wheel), str(plugin), how]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(f"registered in {major}."), done.stdout + done.stderr
