"""Sessions over bundles: verify, check the bundle's needs, give its files to the backend."""

from __future__ import annotations

import platform
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from na_deploy.errors import MissingDependencyError, NaDeployError, UsageError
from na_deploy.model_file.tensors import Array
from na_deploy.runtime.backend_names import ENGINE_BACKENDS, SESSION_BACKENDS
from na_deploy.runtime.bundle.archive import Bundle, open_bundle
from na_deploy.runtime.bundle.manifest import Manifest
from na_deploy.runtime.graph_figures import GraphFigures
from na_deploy.runtime.session import Session, SessionOptions, check_backend_options, open_session


def open_bundle_session(path: Path, backend: str | None, options: SessionOptions) -> Session:
    """Open a session over a bundle. See :func:`na_deploy.runtime.session.load` for the errors."""
    bundle = open_bundle(path)
    try:
        wanted = backend or bundle.manifest.backend
        if wanted not in SESSION_BACKENDS:
            runnable = ", ".join(SESSION_BACKENDS)
            raise UsageError(f"{path} was built for {wanted}; this version has sessions for {runnable}")
        if wanted == "torch":
            raise UsageError(f"{path} holds an exported model; PyTorch runs checkpoints, so give the one it is from")
        if wanted in ENGINE_BACKENDS and wanted != bundle.manifest.backend:
            raise UsageError(
                f"{path} was built for {bundle.manifest.backend} and holds no engine of {wanted}; "
                f"build one with: na-deploy build --backend {wanted}"
            )
        check_requirements(path, bundle.manifest, wanted)
        check_backend_options(wanted, options)
        own = wanted == bundle.manifest.backend  # ONNX Runtime cannot use a library for TensorRT
        if own and bundle.manifest.member("library") is not None and options.custom_operators:
            options = replace(options, library=bundle.file("library"))
        if own and options.precision is None and "precision" in bundle.manifest.settings:
            options = replace(options, precision=_possible_precision(path, bundle.manifest.settings["precision"]))
        if own and bundle.manifest.member("compiled") is not None:
            options = replace(options, compiled=bundle.file("compiled"))
        options = replace(options, manifest=bundle.manifest)
        role = "engine" if wanted in ENGINE_BACKENDS else "model"
        session = open_session(bundle.file(role), wanted, options)
        return BundleSession(bundle, session)
    except BaseException:
        bundle.close()
        raise


def _possible_precision(path: Path, remembered: str) -> str:
    """Return the precision that a bundle was built for, or float32 with a warning where this processor lacks it."""
    from na_deploy.runtime.openvino.session import check_precision, import_openvino

    try:
        return check_precision(remembered, import_openvino().Core())
    except UsageError as error:
        warnings.warn(f"{path} was built for {remembered} and runs in f32: {error}", RuntimeWarning, stacklevel=4)
        return "f32"


class BundleSession(Session):
    """A session over a bundle's model, with the bundle's name and profiles.

    Attributes:
        manifest: the bundle's manifest.
    """

    def __init__(self, bundle: Bundle, session: Session) -> None:
        self.path = bundle.path
        self.manifest = bundle.manifest
        self.inputs, self.outputs = session.inputs, session.outputs
        self.metadata, self.backend, self.device = session.metadata, session.backend, session.device
        self.library, self.batches = session.library, session.batches
        self.precision, self.cuda_graphs = session.precision, session.cuda_graphs
        self.usual_shapes = {name: profile.optimum for name, profile in bundle.manifest.profiles.items()}
        self._bundle = bundle
        self._session = session

    @property
    def graph_figures(self) -> list[GraphFigures]:
        """Counts of CUDA graphs, one for each stream."""
        return self._session.graph_figures

    def run_on_device(
        self,
        inputs: Mapping[str, Any] | Any,
        outputs: Sequence[str] | None = None,
        into: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Run once and leave the outputs on the GPU. See :meth:`Session.run_on_device`."""
        return self._session.run_on_device(inputs, outputs, into)

    def _check_inputs(self, inputs: Mapping[str, Any] | Any) -> dict[str, Any]:
        return self._session._check_inputs(inputs)

    def _run(self, inputs: dict[str, Array], outputs: list[str]) -> dict[str, Array]:
        return self._session._run(inputs, outputs)

    def close(self) -> None:
        """Release the model once calls in progress have finished, and remove unpacked files."""
        self._session.close()
        self._bundle.close()


def check_requirements(path: Path, manifest: Manifest, backend: str) -> None:
    """Refuse a bundle that this machine cannot run, naming every difference.

    Raises:
        NaDeployError: another platform.
        MissingDependencyError: a library is missing or too old.
    """
    needed = manifest.requires.get("platform")
    here = f"{platform.system().lower()}-{platform.machine()}"
    native = manifest.member("library") is not None or manifest.backend in ENGINE_BACKENDS
    if needed is not None and native and backend == manifest.backend and needed != here:
        raise NaDeployError(f"{path} was built for {needed}, this machine is {here}; build it again here")
    minimum = re.fullmatch(r">=([\d.]+)", manifest.requires.get("onnxruntime", ""))
    if backend == "onnxruntime" and minimum:
        try:
            found = metadata.version("onnxruntime")
        except metadata.PackageNotFoundError:
            return  # onnxruntime-gpu has another name; the backend reports a missing one
        if _numbers(found) < _numbers(minimum[1]):
            raise MissingDependencyError(
                f"{path} needs onnxruntime {minimum[1]} or later, {found} is installed; pip install -U onnxruntime"
            )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
