"""A server's description of itself and its models: metadata, configuration, statistics, index; as JSON types.

The gRPC messages are made from the same objects, so that both protocols say the same.
"""

from __future__ import annotations

from typing import Any

from na_deploy import __version__
from na_deploy.model_file.tensors import TensorSpec
from na_deploy.serving.batcher import Batching
from na_deploy.serving.datatypes import PROTOCOL_NAMES
from na_deploy.serving.repository import Repository
from na_deploy.serving.served_model import ServedModel

SERVER = "na-deploy"
EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")


def server_metadata() -> dict[str, Any]:
    """Return the server's name, version and the extensions it speaks."""
    return {"name": SERVER, "version": __version__, "extensions": list(EXTENSIONS)}


def model_metadata(served: ServedModel, versions: list[ServedModel]) -> dict[str, Any]:
    """Return a model's inputs and outputs; free sizes are -1."""
    session = served.opened.session
    return {
        "name": served.name,
        "versions": [each.version for each in versions],
        "platform": _platform(served),
        "inputs": [_tensor(spec) for spec in session.inputs],
        "outputs": [_tensor(spec) for spec in session.outputs],
    }


def model_config(served: ServedModel, batching: Batching, versions: int) -> dict[str, Any]:
    """Return a model's configuration in the form of Triton's ``ModelConfig``."""
    session, opened = served.opened.session, served.opened
    config: dict[str, Any] = {
        "name": served.name,
        "platform": _platform(served),
        "backend": session.backend,
        "version_policy": {"latest": {"num_versions": versions}},
        "max_batch_size": opened.max_batch,
        "input": [_config_tensor(spec, opened.max_batch) for spec in session.inputs],
        "output": [_config_tensor(spec, opened.max_batch) for spec in session.outputs],
        "instance_group": [{"name": served.name, "kind": "KIND_CPU", "count": batching.instances}],
        "default_model_filename": served.source.path.name,
        "parameters": {
            "device": {"string_value": session.device},
            "attention": {"string_value": session.attention},
        },
    }
    if session.device != "CPU":
        config["instance_group"][0]["kind"] = "KIND_GPU"
    if opened.max_batch:
        delay = round(batching.delay * 1e6)
        config["dynamic_batching"] = {
            "preferred_batch_size": [],
            "max_queue_delay_microseconds": delay,
            "default_queue_policy": {"max_queue_size": batching.queue_limit},
        }
    return config


def statistics(served: list[ServedModel]) -> dict[str, Any]:
    """Return the statistics of models."""
    return {"model_stats": [each.statistics.as_dict(each.name, each.version) for each in served]}


def repository_index(repository: Repository, ready_only: bool) -> list[dict[str, str]]:
    """Return every version of every model with its state."""
    return [
        {"name": entry.name, "version": entry.version, "state": entry.state, "reason": entry.reason}
        for entry in repository.index()
        if entry.state == "READY" or not ready_only
    ]


def _platform(served: ServedModel) -> str:
    return "onnxruntime_onnx" if served.opened.session.backend == "onnxruntime" else served.opened.session.backend


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": PROTOCOL_NAMES[spec.dtype], "shape": _shape(spec.shape)}


def _config_tensor(spec: TensorSpec, max_batch: int) -> dict[str, Any]:
    return {
        "name": spec.name,
        "data_type": f"TYPE_{PROTOCOL_NAMES[spec.dtype]}",
        "dims": _shape(spec.shape[1:] if max_batch else spec.shape),
    }


def _shape(shape: tuple[int | str, ...]) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in shape]
