"""A model to be packaged: an ONNX file or a bundle, with what it takes and gives. Opens no runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from na_deploy.errors import NaDeployError, UsageError
from na_deploy.model_file.description import description_of
from na_deploy.model_file.graph import read_model, weight_files
from na_deploy.model_file.tensors import TensorSpec
from na_deploy.models.metadata import ModelMetadata
from na_deploy.runtime.bundle.archive import Bundle, is_bundle, open_bundle
from na_deploy.runtime.bundle.manifest import Profile


@dataclass(frozen=True)
class ModelSource:
    """A model on disk.

    Attributes:
        path: the file or bundle given.
        inputs: the model's.
        outputs: the model's.
        model: the ONNX file.
        weights: files beside it that hold its weights, by name.
        metadata: the exporter's record, ``None`` for a model from elsewhere.
        bundle: the opened bundle, if it is one.
        profiles: an engine's sizes by input.
    """

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    model: Path
    weights: Mapping[str, Path]
    metadata: ModelMetadata | None
    bundle: Bundle | None = None
    profiles: Mapping[str, Profile] = field(default_factory=dict)

    @property
    def engine_backend(self) -> str | None:
        """Return the library that a bundle's engine is for, ``None`` without an engine."""
        if self.bundle is None or self.bundle.manifest.member("engine") is None:
            return None
        return self.bundle.manifest.backend

    @property
    def runs_on_openvino(self) -> bool:
        """Tell whether it is a bundle that was built for OpenVINO."""
        return self.bundle is not None and self.bundle.manifest.backend == "openvino"

    @property
    def batch_is_free(self) -> bool:
        """Tell whether the first axis of every input and output is one and the same free size."""
        return len({spec.shape[:1] for spec in self.inputs + self.outputs}) == 1 and all(
            spec.shape and isinstance(spec.shape[0], str) for spec in self.inputs
        )

    @property
    def largest_batch(self) -> int | None:
        """Return the largest batch of the engine's profiles, ``None`` where there are none."""
        return min((profile.maximum[0] for profile in self.profiles.values() if profile.maximum), default=None)


@contextmanager
def open_source(path: Path) -> Iterator[ModelSource]:
    """Open an ONNX file or a bundle; a bundle's files are verified, and an archive's lie in a temporary folder.

    Raises:
        UsageError: the path does not exist.
        NaDeployError: it is damaged, or weights are missing.
    """
    if is_bundle(path):
        with open_bundle(path) as bundle:
            manifest = bundle.manifest
            weights = {m.name: bundle.folder / m.name for m in manifest.members if m.role == "weights"}
            yield ModelSource(
                path=path,
                inputs=manifest.inputs,
                outputs=manifest.outputs,
                model=bundle.file("model"),
                weights=weights,
                metadata=ModelMetadata.from_props(manifest.metadata),
                bundle=bundle,
                profiles=manifest.profiles,
            )
        return
    if path.is_dir():
        raise UsageError(f"{path} is a folder without manifest.json; give an .onnx file or a bundle")
    content = read_model(path)
    names = weight_files(content)
    for name in names:
        if Path(name).name != name or not (path.parent / name).is_file():
            raise NaDeployError(f"{path} keeps weights in {name!r}, which is not beside it; copy it there")
    described = description_of(content)
    yield ModelSource(
        path=path,
        inputs=described.inputs,
        outputs=described.outputs,
        model=path,
        weights={name: path.parent / name for name in names},
        metadata=described.metadata,
    )
