"""The written file itself, types as they are: valid ONNX, and a file that ONNX Runtime opens or lacks kernels for."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

from na_deploy.errors import NaDeployError, one_line


def check_file(path: Path) -> str | None:
    """Check a file that is about to be kept.

    Returns:
        A sentence where ONNX Runtime has no kernels for a type in it on this machine's CPU.

    Raises:
        NaDeployError: the file is not valid ONNX, or ONNX Runtime takes it for wrong.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise NaDeployError(f"the exported graph is not valid ONNX, so it was not kept: {one_line(error)}") from error
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except NoKernel as error:
        found = re.search(r"implementation for (\w+)", str(error))
        what = f" ({found.group(1)} is the first it lacks)" if found else ""
        return (
            f"ONNX Runtime {ort.__version__} has no bfloat16 kernels on CPUs{what}, so {path.name} needs a runtime "
            "that has them, such as TensorRT; it was verified in float32 with every result rounded to bfloat16"
        )
    except Exception as error:
        raise NaDeployError(f"ONNX Runtime {ort.__version__} refuses {path.name}: {one_line(error)}") from error
    return None
