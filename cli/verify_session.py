"""A model as it is run, against its checkpoint: a bundle's engine or library, another backend, another precision.

Where an output differs, every attention layer is looked at: a copy of the model that also gives the layers' outputs is
opened, or built, in the same way, and compared with ONNX Runtime on its own operators.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from na_deploy.attention.schema import DOMAIN, OPERATORS
from na_deploy.exporter.verify import open_session, random_image, run_torch
from na_deploy.exporter.verify_checkpoint import VerificationReport
from na_deploy.model_file.differences import Difference
from na_deploy.model_file.graph import ask_for
from na_deploy.model_file.tolerances import TOLERANCE
from na_deploy.progress import Progress
from na_deploy.runtime.backend_names import ENGINE_BACKENDS
from na_deploy.runtime.building.build import build
from na_deploy.runtime.building.options import BuildOptions
from na_deploy.runtime.bundle import Bundle, Manifest
from na_deploy.runtime.session import Session, SessionOptions, load
from na_deploy.runtime.session import open_session as open_backend


@dataclass(frozen=True)
class SessionReport:
    """The comparison of a session with a checkpoint.

    Attributes:
        runs_on: backend and device.
        tolerance: largest accepted relative difference.
        outputs: the session's outputs against PyTorch.
        layers: only where an output differs: the attention layers against ONNX Runtime, in order of execution.
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


def verify_session(
    path: Path,
    file: Path,
    bundle: Bundle | None,
    compared: VerificationReport,
    options: dict[str, Any],
    tolerance: float | None,
    progress: Progress,
) -> SessionReport:
    """Run a model as ``load`` opens it, on the image that its file was compared on, and compare with PyTorch.

    Args:
        path: the ONNX file or bundle.
        file: the ONNX file, the bundle's own of a bundle.
        bundle: the opened, verified bundle.
        compared: the comparison of the file, with the checkpoint's network.
        options: arguments of ``load``: backend, precision, device, threads.
        tolerance: largest accepted relative difference; ``None`` takes that of the file's type, or of bfloat16 where
            the session computes in it.
        progress: called with a few words as each step begins.

    Raises:
        NaDeployError: the model does not run here.
    """
    image = random_image(compared.input_shape)
    progress("running it as it is loaded")
    with load(path, **options) as session:
        found = _run(session, image.numpy())
        runs_on = f"{session.backend} on {session.device}" + (", operator library" if session.library else "")
        backend = session.backend
        if tolerance is None:
            tolerance = max(compared.tolerance, TOLERANCE["bf16"] if session.precision == "bf16" else 0.0)
    pairs = zip(found.items(), run_torch(compared.network, image), strict=True)  # files may name outputs otherwise
    outputs = (Difference.between(name, ours, theirs.numpy()) for (name, ours), theirs in pairs)
    report = SessionReport(runs_on, tolerance, tuple(outputs))
    if report.passed:
        return report
    progress("comparing layer by layer")
    return replace(report, layers=tuple(_layers(file, bundle, backend, options, image.numpy())))


def _layers(file: Path, bundle: Bundle | None, backend: str, options: dict[str, Any], image: Any) -> list[Difference]:
    """Compare every attention layer of a copy of the model, opened or built alike, with ONNX Runtime's own."""
    proto = onnx.load(file)
    nodes = [node for node in proto.graph.node if node.domain == DOMAIN and node.op_type in OPERATORS]
    names = [node.output[0] for node in nodes]
    ask_for(proto, names)
    with tempfile.TemporaryDirectory(prefix="na-deploy-verify-") as folder:
        model = Path(folder) / "layers.onnx"
        onnx.save(proto, model)
        with _opened_alike(model, bundle, backend, options) as session:
            found = _run(session, image)
        reference = open_session(model)
        expected = reference.run(names, {reference.get_inputs()[0].name: image})
    return [
        Difference.between(node.name or node.output[0], found[node.output[0]], right.astype("float32"))
        for node, right in zip(nodes, expected, strict=True)
    ]


def _opened_alike(model: Path, bundle: Bundle | None, backend: str, options: dict[str, Any]) -> Session:
    """Open another model as the one in question is: with a bundle's library, or as an engine with its sizes."""
    if bundle is None:
        return load(model, **options)
    manifest = bundle.manifest
    library = bundle.file("library") if manifest.backend == backend and manifest.member("library") else None
    if backend not in ENGINE_BACKENDS:
        settings = {name: value for name, value in options.items() if name != "backend"}
        return open_backend(model, backend, SessionOptions(library=library, **settings))
    target = model.with_suffix(".bundle")
    build(model, target, BuildOptions(backend=backend, profiles=dict(manifest.profiles), library=library))
    return load(target, **options)


def _run(session: Session, image: Any) -> dict[str, Any]:
    return {name: array.astype("float32") for name, array in session.run(image).items()}
