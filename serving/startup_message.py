"""Text that a server prints when it is ready: addresses, a ``curl`` line and Python lines that work as they stand."""

from __future__ import annotations

import json

from na_deploy.model_file.tensors import TensorSpec
from na_deploy.serving.datatypes import PROTOCOL_NAMES
from na_deploy.serving.http_guard import is_loopback
from na_deploy.serving.served_model import ServedModel

_SHORT = 16
"""Numbers that a curl line may hold."""


def startup_message(served: list[ServedModel], host: str, port: int, grpc_port: int | None) -> str:
    """Return the lines.

    Args:
        served: the newest version of every model.
        host: the address the server listens on.
        port: of HTTP.
        grpc_port: of gRPC, ``None`` without.
    """
    address = f"{connectable(host)}:{port}"
    lines = [f"Serving {_listed(served)}"]
    lines.append(f"  page     http://{address}/")
    lines.append(f"  HTTP     http://{address}/v2   (Open Inference Protocol v2; /metrics for Prometheus)")
    if grpc_port is not None:
        lines.append(f"  gRPC     {connectable(host)}:{grpc_port}")
    model = next((each for each in served if each.opened.preprocessing and each.opened.logits), served[0])
    lines += ["", *curl_lines(model, address), "", *python_lines(model, address)]
    if not is_loopback(host):
        lines += ["", f"Warning: everyone who reaches {host} can use this server: it has neither passwords nor TLS."]
        lines.append("Put a proxy with both in front, or serve on 127.0.0.1 (docs/serving.md).")
    return "\n".join(lines)


def curl_lines(model: ServedModel, address: str) -> list[str]:
    """Return a call with curl."""
    base = f"http://{address}/v2/models/{model.name}"
    if model.opened.preprocessing is not None and model.opened.logits is not None:
        return [f"curl --data-binary @photo.jpg '{base}/classify?top=5'"]
    specs = model.opened.session.inputs
    if all(_numbers(spec) <= _SHORT for spec in specs):
        inputs = [
            {
                "name": spec.name,
                "datatype": PROTOCOL_NAMES[spec.dtype],
                "shape": _shape(spec),
                "data": [False if spec.dtype == "bool" else 1] * _numbers(spec),
            }
            for spec in specs
        ]
        return [f"curl -d '{json.dumps({'inputs': inputs})}' '{base}/infer'"]
    return [f"curl '{base}'"]


def python_lines(model: ServedModel, address: str) -> list[str]:
    """Return a call with tritonclient."""
    lines = ["import numpy as np", "import tritonclient.http as client", ""]
    lines += [f"server = client.InferenceServerClient({address!r})", "inputs = []"]
    for spec in model.opened.session.inputs:
        datatype = PROTOCOL_NAMES[spec.dtype]
        lines.append(f"tensor = client.InferInput({spec.name!r}, {_shape(spec)}, {datatype!r})")
        value = f"np.ones({_shape(spec)}, {_numpy(spec)})"
        lines.append(f"inputs.append(tensor.set_data_from_numpy({value}))")
    output = model.opened.session.outputs[0].name
    lines.append(f"print(server.infer({model.name!r}, inputs).as_numpy({output!r}).shape)")
    return lines


def _listed(served: list[ServedModel]) -> str:
    return ", ".join(f"{each.name} (version {each.version})" for each in served)


def connectable(host: str) -> str:
    """Return the name by which a client on this machine calls a server that listens on ``host``."""
    if host in ("0.0.0.0", "::", ""):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _shape(spec: TensorSpec) -> list[int]:
    """Return sizes to call a model with: 1 for a batch, 224 for other free sizes."""
    return [size if isinstance(size, int) else (1 if axis == 0 else 224) for axis, size in enumerate(spec.shape)]


def _numbers(spec: TensorSpec) -> int:
    count = 1
    for size in _shape(spec):
        count *= size
    return count


def _numpy(spec: TensorSpec) -> str:
    if spec.dtype == "bfloat16":
        return "__import__('ml_dtypes').bfloat16"
    return f"np.{'bool_' if spec.dtype == 'bool' else spec.dtype}"
