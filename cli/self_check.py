"""Check that neighborhood attention runs here, in the function body and in the operator library, against float64."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from na_deploy.attention.reference import reference_attention_qkv
from na_deploy.attention.schema import DOMAIN, PACKED_OPERATOR, VERSION
from na_deploy.attention.windows import NeighborhoodSpec
from na_deploy.errors import UsageError
from na_deploy.exporter.function_body import BodyFeatures, packed_function
from na_deploy.runtime.backend_names import PRECISIONS
from na_deploy.runtime.environment import Component
from na_deploy.runtime.native_libraries import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    ONNXRUNTIME_LIBRARY_VARIABLE,
    OPENVINO_LIBRARY_VARIABLE,
)
from na_deploy.runtime.session import load

OPSET = 20
REMEDY = "report this; setting {} to nothing leaves the operator library unused"
TOLERANCE = 1e-5


def check_attention() -> Component:
    """Return whether an exported model's embedded function body runs here and is right."""
    name, needed_for = "embedded function body", "neighborhood attention in any ONNX runtime"
    remedy = "install onnxruntime 1.20 or later; if it is installed, report this"
    try:
        difference = attention_difference(custom_operators=False, providers=[CPU_PROVIDER])
    except Exception as error:
        return Component(name, needed_for, "broken", str(error).splitlines()[0], remedy, core=True)
    detail = f"runs on this CPU; largest relative difference to float64: {difference:.1e}"
    if not difference < TOLERANCE:
        return Component(name, needed_for, "broken", detail, remedy, core=True)
    return Component(name, needed_for, "works", detail, core=True)


def check_operator_library(component: Component) -> Component:
    """Return what was found about the operator library, with whether they are right where they are installed."""
    if component.status != "works":
        return component
    return _tried(component, ONNXRUNTIME_LIBRARY_VARIABLE, custom_operators=True, providers=[CPU_PROVIDER])


def check_openvino(component: Component) -> Component:
    """Return what was found about OpenVINO, with whether attention is right in it and the precisions it has here."""
    if component.status != "works":
        return component
    tried = _tried(component, OPENVINO_LIBRARY_VARIABLE, custom_operators=False, backend="openvino")
    if tried.status != "works":
        return replace(tried, remedy=component.remedy or "install another version: pip install 'openvino>=2025.4'")
    from na_deploy.runtime.openvino.session import check_precision, import_openvino

    core = import_openvino().Core()
    possible = []
    for precision in PRECISIONS:
        with contextlib.suppress(UsageError):
            possible.append(check_precision(precision, core))
    return replace(tried, detail=f"{tried.detail}; computes in {' and '.join(possible)} here")


def check_openvino_library(component: Component) -> Component:
    """Return what was found about the operator library for OpenVINO, with whether it is right in this OpenVINO."""
    if component.status != "works":
        return component
    return _tried(component, OPENVINO_LIBRARY_VARIABLE, custom_operators=True, backend="openvino")


def check_gpu_kernels(component: Component, gpu: Component) -> Component:
    """Return what was found about the GPU kernels, with whether they are right where there is a GPU to run them on."""
    if component.status != "works":
        return component
    if gpu.status != "works":
        return replace(component, status="missing", detail=f"{component.detail}, but {gpu.detail}", remedy=gpu.remedy)
    return _tried(component, ONNXRUNTIME_LIBRARY_VARIABLE, custom_operators=True, providers=[CUDA_PROVIDER])


def _tried(component: Component, variable: str, **options: Any) -> Component:
    remedy = REMEDY.format(variable)
    try:
        difference = attention_difference(**options)
    except Exception as error:
        return replace(component, status="broken", detail=str(error).splitlines()[0], remedy=remedy)
    detail = f"{component.detail}; largest relative difference to float64: {difference:.1e}"
    if not difference < TOLERANCE:
        return replace(component, status="broken", detail=detail, remedy=remedy)
    return replace(component, detail=detail)


def attention_difference(**options: Any) -> float:
    """Run a small neighborhood attention; return its largest relative difference to float64.

    Args:
        **options: of :func:`na_deploy.load`: backend, providers, and custom_operators to run the operator library and
            not the embedded function body.

    Raises:
        NaDeployError: the model cannot be loaded or run.
    """
    random = np.random.default_rng(0)
    qkv = random.normal(size=(1, 11, 13, 3, 2, 8)).astype(np.float32)
    bias = random.normal(size=(2, 5, 5)).astype(np.float32)
    scale = 8**-0.5
    node = helper.make_node(
        PACKED_OPERATOR,
        ["qkv", "rel_pos_bias"],
        ["output"],
        domain=DOMAIN,
        kernel_size=[3, 3],
        dilation=[1, 2],
        stride=[1, 1],
        is_causal=[0, 0],
        scale=scale,
    )
    graph = helper.make_graph(
        [node],
        "check",
        [
            helper.make_tensor_value_info("qkv", TensorProto.FLOAT, qkv.shape),
            helper.make_tensor_value_info("rel_pos_bias", TensorProto.FLOAT, bias.shape),
        ],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, (*qkv.shape[:-3], *qkv.shape[-2:]))],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)],
        functions=[packed_function(BodyFeatures(rel_pos_bias=True), OPSET)],
        ir_version=10,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "check.onnx"
        onnx.save(model, path)
        with load(path, threads=1, **options) as session:
            found = session.run({"qkv": qkv, "rel_pos_bias": bias})["output"]
    spec = NeighborhoodSpec.create(2, (3, 3), (1, 2))
    expected = reference_attention_qkv(qkv, spec, scale=scale, rel_pos_bias=bias).output
    return float(np.abs(found - expected).max() / np.abs(expected).max())
