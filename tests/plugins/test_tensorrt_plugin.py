"""The TensorRT plugin as TensorRT would use it: through drivers in C++, and in the real registries of 10 and 11.

Needs TensorRT's headers, which no package has: set TENSORRT_ROOT. As in the package, the plugin is one library and its
kernels another: here one without a device, or the emulated GPU. Only the last test needs a GPU.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import wheels
from cpu_library import DTYPES, Problem, aligned

from na_deploy.attention.windows import NeighborhoodSpec
from na_deploy.runtime.native_libraries import tensorrt_library

pytestmark = pytest.mark.native
ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "plugins"
KERNELS = "libna_deploy_cuda.so"
SHARED = ("-shared", "-fPIC", "-fvisibility=hidden", '-DNA_DEPLOY_KERNEL_REVISION="a test"')
CUDA = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"
NO_GPU = """
#include "na_cuda.h"
#include "onepass/plan.h"
extern "C" {
int32_t na_launch(const na_params*, int32_t, na_cuda_stream) { return 100; }  // cudaErrorNoDevice
const char* na_cuda_error(int32_t) { return "no CUDA-capable device is detected"; }
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
    include = [f"-I{PLUGINS / part}" for part in ("core", "cuda", "tensorrt", "tests")]
    system = [part for path in (Path(root) / "include", CUDA) for part in ("-isystem", str(path))]
    command = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", *options, *include, *system]
    command += [*map(str, sources), "-o", str(folder / output), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / output


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin beside kernels that find no device."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "no_gpu.cpp").write_text(NO_GPU)
    kernels = [PLUGINS / "cuda" / name for name in ("onepass/plan.cpp", "tactics.cpp")]
    compiled(folder, KERNELS, *kernels, PLUGINS / "core/check.cpp", folder / "no_gpu.cpp", options=SHARED)
    sources = [PLUGINS / "tensorrt" / name for name in ("attributes.cpp", "library.cpp", "plugin.cpp")]
    sources += [PLUGINS / "core" / name for name in ("check.cpp", "operator.cpp")]
    beside = ("-Wl,-rpath,$ORIGIN", "-Wl,--no-as-needed", f"-L{folder}", f"-l:{KERNELS}")
    return compiled(folder, "libna_deploy_trt.so", *sources, options=(*SHARED, *beside))


@pytest.fixture
def enqueue(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark that writes problems for the driver and judges its results."""
    for folder in (ROOT / "benchmarks", Path(__file__).parent):
        monkeypatch.syspath_prepend(folder)
    return importlib.import_module("tensorrt_enqueue")


@pytest.fixture(scope="module")
def enqueue_object(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver of launches, to be linked with a CUDA runtime."""
    return compiled(
        tmp_path_factory.mktemp("enqueue"), "trt_enqueue.o", PLUGINS / "tests/trt_enqueue.cpp", options=("-c",)
    )


def small_problems() -> list[tuple[Problem, NeighborhoodSpec, float]]:
    """A few problems of two images that the emulated GPU computes in little time."""
    random = np.random.default_rng(0)

    def normal(dtype: np.dtype, *shape: int) -> np.ndarray:
        array = aligned(int(np.prod(shape)), dtype).reshape(shape)
        array[...] = random.normal(size=shape)
        return array

    single, half, bfloat = DTYPES
    plane, line = NeighborhoodSpec.create(2, (3, 2), (1, 2)), NeighborhoodSpec.create(1, 5)
    maps = [normal(single, 2, 9, 1, 8) for _ in range(3)]
    extra = {name: normal(single, 2, 4, 1, 8) for name in ("additional_key", "additional_value")}
    found = [
        Problem(plane, normal(half, 2, 5, 7, 3, 1, 16), rel_pos_bias=normal(half, 1, 5, 3), scale=0.4),
        Problem(plane, normal(bfloat, 2, 2, 5, 3, 1, 8), padding=normal(bfloat, 3, 1, 8), scale=0.4, lse=False),
        Problem(line, normal(half, 2, 20, 3, 1, 64), scale=0.4),
        Problem(line, *maps, **extra, scale=0.4),
        Problem(
            line,
            *(normal(bfloat, 2, 9, 1, 8) for _ in range(3)),
            rel_pos_bias=normal(bfloat, 1, 9),
            scale=0.4,
            lse=False,
        ),
    ]
    return [(problem, plane if problem.params.rank == 2 else line, 0.4) for problem in found]


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


@pytest.mark.parametrize("tensorrt", [None, 11], ids=["its creators", "the registry of TensorRT 11"])
def test_launches_agree_with_float64_on_the_emulated_gpu(
    plugin: Path, enqueue: ModuleType, enqueue_object: Path, native_build: Path, tmp_path: Path, tensorrt: int | None
):
    registry = None
    if tensorrt is not None:
        registry = wheels.FOLDER / f"lean_{tensorrt}" / "tensorrt_lean_libs" / f"libnvinfer_lean.so.{tensorrt}"
        if not wheels.is_complete(f"lean_{tensorrt}"):
            pytest.skip(f"the lean runtime of TensorRT {tensorrt} is not installed in {wheels.FOLDER}")
    emulated = native_build / "plugins/tests"
    beside = (f"-L{emulated}", "-Wl,--no-as-needed", "-lna_deploy_cuda_emulated", f"-Wl,-rpath,{emulated}")
    compiled(tmp_path, KERNELS, PLUGINS / "tests/emulated_trt_launch.cpp", options=(*SHARED, *beside))
    library = Path(shutil.copy2(plugin, tmp_path))
    runtime = [PLUGINS / "tests" / name for name in ("pretended_cudart.cpp", "pretended_graphs.cpp")]
    driver = compiled(tmp_path, "trt_enqueue", enqueue_object, *runtime, options=("-rdynamic",))
    problems = small_problems() if tensorrt is None else small_problems()[:1]
    wrong, kinds = enqueue.check([str(driver)], library, registry, problems, tmp_path)
    assert wrong == []
    if tensorrt is None:
        assert enqueue.missing(kinds, batch=2) == ["packed, float", "separate, half"]
        assert {"tactic plain", "tactic one pass, 4 warps", "tactic 64", "tactic Hopper 128"} <= set(kinds)


def test_a_machine_without_a_device_is_told_so_or_launches_agree_with_float64(
    enqueue: ModuleType, enqueue_object: Path, tmp_path: Path
):
    runtime = CUDA.parent / "lib64" / "libcudart_static.a"
    driver = compiled(tmp_path, "trt_enqueue", enqueue_object, runtime, options=("-pthread",))
    done = subprocess.run([driver, "libna_deploy_trt.so", tmp_path], capture_output=True, text=True, check=False)
    if done.returncode == enqueue.NO_DEVICE:
        assert re.fullmatch(r"There is no CUDA device to enqueue on: .+\.\n", done.stdout)
        pytest.skip(done.stdout.strip())
    library = tensorrt_library()
    if library is None:
        pytest.skip("the TensorRT plugin is not installed: na-deploy build-kernels compiles it")
    wrong, kinds = enqueue.check([str(driver)], library, None, enqueue.random_problems(range(enqueue.SEEDS)), tmp_path)
    assert wrong == []
    assert enqueue.missing(kinds) == []
