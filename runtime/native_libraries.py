"""The places of the compiled libraries in this installation, and the reason where one is missing. Builds nothing."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import na_deploy
from na_deploy.errors import NaDeployError, UsageError

CPU_PROVIDER, CUDA_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider"
"""The execution providers of ONNX Runtime that the operator library can have kernels for."""

ONNXRUNTIME_LIBRARY = "libna_deploy_ort.so"
ONNXRUNTIME_LIBRARY_VARIABLE = "NA_DEPLOY_ORT_LIBRARY"
TENSORRT_LIBRARY = "libna_deploy_trt.so"
TENSORRT_LIBRARY_VARIABLE = "NA_DEPLOY_TRT_LIBRARY"
OPENVINO_LIBRARY = "libna_deploy_openvino.so"
OPENVINO_LIBRARY_VARIABLE = "NA_DEPLOY_OPENVINO_LIBRARY"
BUILD_NOTE = "native_build.txt"
"""File that CMake writes instead of libraries that could not be compiled: one sentence with the reason."""
OPENVINO_BUILD_NOTE = "openvino_build.txt"
"""The same for the library for OpenVINO alone."""


def onnxruntime_library() -> Path | None:
    """Return the operator library for ONNX Runtime, or ``None`` where it is not built.

    The environment variable ``NA_DEPLOY_ORT_LIBRARY`` names another file; empty, it hides the installed one.

    Raises:
        UsageError: the variable names a file that does not exist.
    """
    return _chosen(ONNXRUNTIME_LIBRARY_VARIABLE, ONNXRUNTIME_LIBRARY)


def tensorrt_library() -> Path | None:
    """Return the plugin library for TensorRT, or ``None`` where it is not built.

    The environment variable ``NA_DEPLOY_TRT_LIBRARY`` names another file; empty, it hides the installed one.

    Raises:
        UsageError: the variable names a file that does not exist.
    """
    return _chosen(TENSORRT_LIBRARY_VARIABLE, TENSORRT_LIBRARY)


def openvino_library() -> Path | None:
    """Return the operator library for OpenVINO, or ``None`` where it is not built.

    The environment variable ``NA_DEPLOY_OPENVINO_LIBRARY`` names another file; empty, it hides the installed one.

    Raises:
        UsageError: the variable names a file that does not exist.
    """
    return _chosen(OPENVINO_LIBRARY_VARIABLE, OPENVINO_LIBRARY)


def why_missing(library: str = ONNXRUNTIME_LIBRARY) -> str:
    """Return the reason why the library for ONNX Runtime or OpenVINO is not found, in a few words."""
    variable = {OPENVINO_LIBRARY: OPENVINO_LIBRARY_VARIABLE}.get(library, ONNXRUNTIME_LIBRARY_VARIABLE)
    if os.environ.get(variable) == "":
        return f"hidden by {variable}, which is empty"
    note = _installed(BUILD_NOTE) or (_installed(OPENVINO_BUILD_NOTE) if library == OPENVINO_LIBRARY else None)
    if note is not None:
        return f"not compiled: {note.read_text(encoding='utf-8').strip()}"
    return "not compiled when na-deploy was installed; `pip install -v` of it shows why"


def gpu_capabilities(library: Path) -> str:
    """Return the compute capabilities whose GPU kernels the operator library holds, such as ``"8.0, 9.0"``.

    Empty where it was compiled without them. Needs no GPU.

    Raises:
        NaDeployError: the library does not load.
    """
    try:
        loaded = ctypes.CDLL(str(library))
    except OSError as error:
        raise NaDeployError(f"the operator library {library} does not load: {error}") from error
    try:
        capabilities = loaded.na_cuda_capabilities
    except AttributeError:
        return ""
    capabilities.restype = ctypes.c_char_p
    text: bytes = capabilities()
    return text.decode()


def try_gpu_kernels(library: Path, device: int) -> str:
    """Launch a tiny kernel of the operator library on a GPU; return an empty string, or what CUDA answers in words.

    Kernels in a file are no proof that this machine's driver and device run them. Makes a CUDA context on the device.

    Args:
        library: the operator library, compiled with GPU kernels.
        device: number of the GPU.
    """
    loaded = ctypes.CDLL(str(library))
    error = int(loaded.na_cuda_try(ctypes.c_int32(device)))
    if error == 0:
        return ""
    loaded.na_cuda_error.restype = ctypes.c_char_p
    words: bytes = loaded.na_cuda_error(ctypes.c_int32(error))
    return f"CUDA answers the trial launch with error {error}, {words.decode()}"


def register(settings: Any, library: Path) -> None:
    """Register the library in ``onnxruntime.SessionOptions``, once: ONNX Runtime refuses a second time.

    Raises:
        NaDeployError: the library does not load, or does not fit this ONNX Runtime; the options are then of no use.
    """
    try:
        settings.register_custom_ops_library(str(library))
    except Exception as error:
        reason = " ".join(str(error).split()).removeprefix("[ONNXRuntimeError] : ").split(" : ", 2)[-1]
        raise NaDeployError(f"onnxruntime refuses the operator library {library}: {reason}") from error


def _chosen(variable: str, name: str) -> Path | None:
    chosen = os.environ.get(variable)
    if chosen is None:
        return _installed(name)
    if not chosen:
        return None
    if not Path(chosen).is_file():
        raise UsageError(f"{variable} names {chosen}, which does not exist")
    return Path(chosen)


def package_folders() -> list[Path]:
    """Return the folders of the installed package, each of which may hold compiled libraries in lib/."""
    return [Path(folder) for folder in na_deploy.__path__]


def _installed(name: str) -> Path | None:
    for folder in package_folders():
        candidate = folder / "lib" / name
        if candidate.is_file():
            return candidate
    return None
