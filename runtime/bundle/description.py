"""The description of a model that is read without loading it: inputs, outputs and metadata of a file or a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from na_deploy.model_file.graph import read_model, tensor_specs
from na_deploy.model_file.tensors import TensorSpec
from na_deploy.models.metadata import ModelMetadata
from na_deploy.runtime.bundle.archive import is_bundle, read_manifest


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


def describe(path: Path) -> Description:
    """Read the description of an ONNX file or of a bundle, whose members are not verified.

    Raises:
        NaDeployError: the file or the manifest is missing or damaged.
    """
    if is_bundle(path):
        manifest = read_manifest(path)
        return Description(manifest.inputs, manifest.outputs, ModelMetadata.from_props(manifest.metadata))
    content = read_model(path)
    given = frozenset(tensor.name for tensor in content.graph.initializer)
    return Description(
        tensor_specs(list(content.graph.input), given),
        tensor_specs(list(content.graph.output)),
        ModelMetadata.from_props({entry.key: entry.value for entry in content.metadata_props}),
    )
