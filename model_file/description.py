"""The description of a model that its graph gives without being run: inputs, outputs and metadata."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from na_deploy.model_file.graph import tensor_specs
from na_deploy.model_file.tensors import TensorSpec
from na_deploy.models.metadata import ModelMetadata


@dataclass(frozen=True)
class Description:
    """A model's interface.

    Attributes:
        inputs: specs of the arrays it takes.
        outputs: specs of the arrays it gives.
        metadata: the exporter's record, ``None`` for a model from elsewhere.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: ModelMetadata | None


def description_of(model: onnx.ModelProto) -> Description:
    """Return the description of a model that was read. Inputs with an initializer are weights, so they are left out."""
    weights = frozenset(tensor.name for tensor in model.graph.initializer)
    inputs = tensor_specs(list(model.graph.input), skip=weights)
    return Description(inputs, tensor_specs(list(model.graph.output)), metadata_of(model))


def metadata_of(model: onnx.ModelProto) -> ModelMetadata | None:
    """Return the exporter's record, ``None`` for a model from elsewhere."""
    return ModelMetadata.from_props({entry.key: entry.value for entry in model.metadata_props})
