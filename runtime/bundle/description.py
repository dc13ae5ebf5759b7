"""The description of a model that is read without loading it, of a file or a bundle."""

from __future__ import annotations

from pathlib import Path

from na_deploy.model_file.description import Description, description_of
from na_deploy.model_file.graph import read_model
from na_deploy.models.metadata import ModelMetadata
from na_deploy.runtime.bundle.archive import is_bundle, read_manifest
from na_deploy.runtime.bundle.manifest import Manifest


def describe(path: Path) -> Description:
    """Read the description of an ONNX file or of a bundle, whose members are not verified.

    Raises:
        NaDeployError: the file or the manifest is missing or damaged.
    """
    return description_in(read_manifest(path)) if is_bundle(path) else description_of(read_model(path))


def description_in(manifest: Manifest) -> Description:
    """Return the description of a bundle's model."""
    return Description(manifest.inputs, manifest.outputs, ModelMetadata.from_props(manifest.metadata))
