"""A bundle as it was built, against its checkpoint: the engine or library in it, not only the model it holds.

Where an output differs, every attention layer is looked at: a copy of the model that also gives the layers' outputs is
built in the same way, and compared with ONNX Runtime on its own operators.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from na_deploy.attention.schema import DOMAIN, OPERATORS
from na_deploy.exporter.verify import Difference, open_session, random_image
from na_deploy.progress import Progress
from na_deploy.runtime.building.build import build
from na_deploy.runtime.building.options import BuildOptions
from na_deploy.runtime.bundle import Bundle, Manifest
from na_deploy.runtime.session import ENGINE_BACKENDS, Session, SessionOptions, load
from na_deploy.runtime.session import open_session as open_backend


@dataclass(frozen=True)
class BundleReport:
    """The comparison of a bundle with its checkpoint.

    Attributes:
        runs_on: backend and device.
        tolerance: largest accepted relative difference.
        outputs: the bundle's outputs against PyTorch.
        layers: where one of them differs: the attention layers against ONNX Runtime, in order of execution.
    """

    runs_on: str
    tolerance: float
    outputs: tuple[Difference, ...]
    layers: tuple[Difference, ...] = ()

    @property
    def worst(self) -> Difference:
        """The output that differs most."""
        return max(self.outputs, key=lambda difference: difference.relative)

    @property
    def passed(self) -> bool:
        """Tell whether every output is within tolerance."""
        return self.worst.relative <= self.tolerance


def usual_input(manifest: Manifest) -> str | None:
    """Return the input that an engine was optimized for, as ``4x3x224x224``; ``None`` where the file says it all."""
    profile = next(iter(manifest.profiles.values()), None)
    return None if profile is None else "x".join(map(str, profile.optimum))


def verify_bundle(
    bundle: Bundle,
    checkpoint: Path,
    shape: tuple[int, ...],
    tolerance: float,
    progress: Progress,
    arch: str | None = None,
    dilations: str | None = None,
) -> BundleReport:
    """Run a bundle and its checkpoint on a random image and compare.

    Args:
        bundle: the opened, verified bundle.
        checkpoint: what its model was exported from.
        shape: of the image.
        tolerance: largest accepted relative difference.
        progress: called with a few words as each step begins.
        arch: architecture of the checkpoint, where it does not progress.
        dilations: the same for its dilations.

    Raises:
        NaDeployError: the bundle does not run here, or a file cannot be read.
    """
    image = random_image(shape).numpy()
    progress("running the bundle as it was built")
    with load(bundle.path) as session:
        found = _run(session, image)
        runs_on = f"{session.backend} on {session.device}" + (", operator library" if session.library else "")
    with load(checkpoint, backend="torch", arch=arch, dilations=dilations) as reference:
        expected = reference.run(image)
    pairs = zip(found.items(), expected.values(), strict=True)  # in the network's order; files may name them otherwise
    report = BundleReport(
        runs_on, tolerance, tuple(Difference.between(name, ours, theirs) for (name, ours), theirs in pairs)
    )
    if report.passed:
        return report
    progress("comparing layer by layer")
    return replace(report, layers=tuple(_layers(bundle, image)))


def _layers(bundle: Bundle, image: Any) -> list[Difference]:
    """Compare every attention layer of a copy of the model, built as the bundle was, with ONNX Runtime's own."""
    file = bundle.file("model")
    proto = onnx.load(file)
    nodes = [node for node in proto.graph.node if node.domain == DOMAIN and node.op_type in OPERATORS]
    known = {value.name: value for value in proto.graph.value_info}
    given = {output.name for output in proto.graph.output}
    for node in nodes:
        if node.output[0] not in given:
            proto.graph.output.append(known.get(node.output[0]) or onnx.ValueInfoProto(name=node.output[0]))
    names = [node.output[0] for node in nodes]
    with tempfile.TemporaryDirectory(prefix="na-deploy-verify-") as folder:
        model = Path(folder) / "layers.onnx"
        onnx.save(proto, model)
        with _built_alike(bundle, model) as session:
            found = _run(session, image)
        reference = open_session(model)
        expected = reference.run(names, {reference.get_inputs()[0].name: image})
    return [
        Difference.between(node.name or node.output[0], found[node.output[0]], right.astype("float32"))
        for node, right in zip(nodes, expected, strict=True)
    ]


def _built_alike(bundle: Bundle, model: Path) -> Session:
    """Open another model as the bundle's own is: with its library, or as an engine with its sizes."""
    manifest = bundle.manifest
    library = None if manifest.member("library") is None else bundle.file("library")
    if manifest.backend not in ENGINE_BACKENDS:
        return open_backend(model, manifest.backend, SessionOptions(library=library))
    target = model.with_suffix(".bundle")
    options = BuildOptions(backend=manifest.backend, profiles=dict(manifest.profiles), library=library)
    build(model, target, options)
    return load(target)


def _run(session: Session, image: Any) -> dict[str, Any]:
    return {name: array.astype("float32") for name, array in session.run(image).items()}
