"""The components of this machine for exporting and running models, found with as few imports as possible.

Nothing is run: ``cli/self_check.py`` checks that neighborhood attention works.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata

from na_deploy import __version__
from na_deploy.errors import NaDeployError
from na_deploy.runtime.native_libraries import (
    CUDA_PROVIDER,
    OPENVINO_LIBRARY,
    gpu_capabilities,
    onnxruntime_library,
    openvino_library,
    register,
    tensorrt_library,
    why_missing,
)
from na_deploy.runtime.tensorrt.api import RTX, TENSORRT, load_module

OPERATOR_LIBRARY = "operator library"
OPENVINO = "openvino"
OPENVINO_OPERATORS = "operator library for OpenVINO"
OPENVINO_REMEDY = "pip install 'na-deploy[openvino]'"
GPU = "NVIDIA GPU"
GPU_KERNELS = "operator library's GPU kernels"


@dataclass(frozen=True)
class Component:
    """A library, compiled part or device that na-deploy can use.

    Attributes:
        name: its name in tables.
        needed_for: the features that use it.
        status: ``"works"``, ``"missing"`` or ``"broken"``.
        detail: its version or the file found; for something broken, the fault.
        remedy: advice for getting it, empty where it works.
        core: running exported models does not work without it.
    """

    name: str
    needed_for: str
    status: str
    detail: str
    remedy: str = ""
    core: bool = False


def examine() -> list[Component]:
    """Return every component, installed or not, with advice on those that are missing or broken."""
    return [
        Component(
            "na-deploy",
            "",
            "works",
            f"{__version__}, Python {platform.python_version()}, {_machine()}",
            core=True,
        ),
        _package("onnx", "reading models", "pip install onnx", core=True),
        _onnxruntime(),
        _operator_library(),
        _package(OPENVINO, "running models on processors with bfloat16", OPENVINO_REMEDY, minimum=(2025, 4)),
        _openvino_library(),
        _package("torch", "export, verify", "pip install 'na-deploy[export]'", minimum=(2, 9)),
        _package("onnxscript", "export", "pip install 'na-deploy[export]'"),
        _package("safetensors", ".safetensors checkpoints", "pip install 'na-deploy[export]'"),
        _package("matplotlib", "inspect --plot", "pip install 'na-deploy[plot]'"),
        _package("pycocotools", "eval --coco", "pip install 'na-deploy[eval]'"),
        _package("fastapi", "serve", "pip install 'na-deploy[serve]'"),
        _package("tritonclient", "serve over gRPC", "pip install 'na-deploy[serve]'"),
        _package("natten", "comparison with NATTEN in tests and benchmarks", "pip install natten==0.21.7"),
        _gpu(),
        _gpu_kernels(),
        _package("tensorrt", "TensorRT engines", TENSORRT.install),
        _tensorrt_plugin(),
        _package("polygraphy", "building engines", "pip install 'na-deploy[tensorrt]'"),
        _tensorrt_rtx(),
    ]


def core_works(components: list[Component]) -> bool:
    """Return whether exported models can be run here."""
    return all(component.status == "works" for component in components if component.core)


def _machine() -> str:
    return f"{platform.system()} {platform.machine()}"


def _package(name: str, needed_for: str, remedy: str, core: bool = False, minimum: tuple[int, ...] = ()) -> Component:
    """Look a package up by its metadata, without importing it."""
    if importlib.util.find_spec(name) is None:
        return Component(name, needed_for, "missing", "not installed", remedy, core)
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = "version unknown"
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdecimal())
    if minimum and numbers < minimum:
        wanted = ".".join(map(str, minimum))
        return Component(name, needed_for, "broken", f"{version}, {wanted} or later is needed", remedy, core)
    return Component(name, needed_for, "works", version, core=core)


def _onnxruntime() -> Component:
    name, needed_for, remedy = "onnxruntime", "running models", "pip install onnxruntime"
    if importlib.util.find_spec(name) is None:
        return Component(name, needed_for, "missing", "not installed", remedy, core=True)
    try:
        runtime = importlib.import_module(name)
        providers = [provider.removesuffix("ExecutionProvider") for provider in runtime.get_available_providers()]
    except Exception as error:
        return Component(name, needed_for, "broken", f"cannot be imported: {error}", remedy, core=True)
    return Component(name, needed_for, "works", f"{runtime.__version__}, providers: {', '.join(providers)}", core=True)


def _operator_library() -> Component:
    name, needed_for = OPERATOR_LIBRARY, "faster neighborhood attention in ONNX Runtime"
    remedy = "not needed, models run on their embedded function body"
    try:
        library = onnxruntime_library()
    except NaDeployError as error:
        return Component(name, needed_for, "broken", str(error), "correct or unset the variable")
    if library is None:
        return Component(name, needed_for, "missing", why_missing(), f"{remedy}; docs/build.md says how to have them")
    try:
        register(importlib.import_module("onnxruntime").SessionOptions(), library)
    except ImportError:
        return Component(name, needed_for, "missing", f"{library}, but no onnxruntime", "pip install onnxruntime")
    except NaDeployError as error:
        return Component(name, needed_for, "broken", str(error), f"{remedy}; install na-deploy again to compile it")
    return Component(name, needed_for, "works", str(library))


def _openvino_library() -> Component:
    name, needed_for = OPENVINO_OPERATORS, "faster neighborhood attention in OpenVINO"
    remedy = "not needed, models are flattened and run on their function bodies"
    try:
        path = openvino_library()
    except NaDeployError as error:
        return Component(name, needed_for, "broken", str(error), "correct or unset the variable")
    if path is None:
        detail = why_missing(OPENVINO_LIBRARY)
        return Component(name, needed_for, "missing", detail, f"{remedy}; docs/build.md says how to have it")
    try:
        importlib.import_module("openvino")  # brings the threading library
        library = importlib.import_module("na_deploy.runtime.openvino.library").OpenVinoLibrary(path)
    except ImportError:
        return Component(name, needed_for, "missing", f"{path}, but no openvino", OPENVINO_REMEDY)
    except NaDeployError as error:
        return Component(name, needed_for, "broken", str(error), f"{remedy}; install na-deploy again to compile it")
    tbb = f"compiled with oneTBB {library.compiled_tbb}, OpenVINO brings {library.running_tbb}"
    return Component(name, needed_for, "works", f"{path}, {tbb}")


def _gpu_kernels() -> Component:
    name, needed_for = GPU_KERNELS, "faster neighborhood attention in ONNX Runtime's CUDA provider"
    remedy = "not needed, models run on their embedded function body"
    compile_ = f"{remedy}; docs/build.md says how to have them"
    try:
        library = onnxruntime_library()
        capabilities = "" if library is None else gpu_capabilities(library)
    except NaDeployError as error:
        return Component(name, needed_for, "broken", str(error), remedy)
    if library is None:
        return Component(name, needed_for, "missing", "there is no operator library to hold them", compile_)
    if not capabilities:
        return Component(name, needed_for, "missing", f"{library} is compiled without them", compile_)
    detail = f"{library}, for compute capability {capabilities}"
    try:
        has_cuda = CUDA_PROVIDER in importlib.import_module("onnxruntime").get_available_providers()
    except Exception:  # onnxruntime has an entry of its own
        has_cuda = False
    if not has_cuda:
        detail += ", but onnxruntime has no CUDA provider"
        remedy = "pip uninstall onnxruntime, then pip install onnxruntime-gpu, which takes its place"
        return Component(name, needed_for, "missing", detail, remedy)
    return Component(name, needed_for, "works", detail)


def _gpu() -> Component:
    name, needed_for = GPU, "CUDA and TensorRT"
    tool = shutil.which("nvidia-smi")
    remedy = "needs a machine with an NVIDIA GPU and its driver; models run on the CPU without"
    if tool is None:
        return Component(name, needed_for, "missing", "no driver (nvidia-smi) found", remedy)
    query = [tool, "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Component(name, needed_for, "broken", f"nvidia-smi fails: {error}", "reinstall the NVIDIA driver")
    devices = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    if not devices:
        return Component(name, needed_for, "missing", "the driver reports no GPU", remedy)
    return Component(name, needed_for, "works", "; ".join(devices))


def _tensorrt_plugin() -> Component:
    name, needed_for = "TensorRT plugin", "faster neighborhood attention in TensorRT engines"
    try:
        library = tensorrt_library()
    except NaDeployError as error:
        return Component(name, needed_for, "broken", str(error), "correct or unset the variable")
    if library is None:
        remedy = "not needed, engines run on function bodies; docs/build.md says how to have it"
        return Component(name, needed_for, "missing", "not installed", remedy)
    return Component(name, needed_for, "works", f"{library} (found; `doctor --gpu` tries it)")


def _tensorrt_rtx() -> Component:
    name, needed_for = "TensorRT-RTX", "building TensorRT-RTX engines, also without a GPU"
    try:
        module = load_module(RTX)
    except NaDeployError as error:
        return Component(name, needed_for, "missing", str(error).partition(";")[0], RTX.install)
    return Component(name, needed_for, "works", str(module.__version__))
