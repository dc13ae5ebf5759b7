"""Names of backends and their choices. Imports nothing, so that the command line can offer them at once."""

from __future__ import annotations

SESSION_BACKENDS = {
    "onnxruntime": "na_deploy.runtime.backends.onnxruntime:open_session",
    "openvino": "na_deploy.runtime.openvino:open_session",
    "tensorrt": "na_deploy.runtime.tensorrt.session:open_session",
    "tensorrt-rtx": "na_deploy.runtime.tensorrt.session:open_rtx_session",
    "torch": "na_deploy.runtime.backends.torch:open_session",
}
"""Module and function ``(path, options) -> Session`` of each backend."""

ENGINE_BACKENDS = ("tensorrt", "tensorrt-rtx")
"""Backends that run an engine, not a model."""

BUNDLE_BACKENDS = ("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")
"""Backends that bundles can be built for."""

AUTO, FASTEST = "auto", "fastest"
"""Words in the place of a backend: the one that is measured to be fastest, when a model is loaded or a bundle built."""

PLUGINS = ("beside", "embed")
"""Our compiled library stays with the installation, or travels in the bundle."""

PRECISIONS = ("f32", "bf16")
"""Arithmetic of OpenVINO: products, convolutions and what lies between them. Inputs and outputs keep their types."""
