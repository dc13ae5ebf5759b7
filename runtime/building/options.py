"""The options of a build, the task that a backend gets, and the result that it returns."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from na_deploy.errors import UsageError
from na_deploy.model_file.tensors import TensorSpec
from na_deploy.progress import Progress
from na_deploy.runtime.backend_names import BUNDLE_BACKENDS, ENGINE_BACKENDS, FASTEST, PLUGINS, PRECISIONS
from na_deploy.runtime.bundle.manifest import Profile

if TYPE_CHECKING:
    from na_deploy.runtime.tensorrt.progress import Phases

_ENGINES_ONLY = "builds no engine; remove it, or build for tensorrt"
_REFUSALS = {
    **{
        (option, backend): f"{backend} {_ENGINES_ONLY}"
        for option in ("timing_cache", "workspace", "refit")
        for backend in ("onnxruntime", "openvino", FASTEST)
    },
    ("hardware_compatible", "onnxruntime"): "onnxruntime bundles run on any hardware that ONNX Runtime runs on",
    ("version_compatible", "onnxruntime"): "onnxruntime bundles run with any version from 1.21 on",
    ("hardware_compatible", "openvino"): "openvino bundles compile their model again on another processor",
    ("version_compatible", "openvino"): "openvino bundles compile their model again with another version",
    ("precision", FASTEST): "fastest chooses the precision within --tolerance",
    **{
        ("precision", backend): f"the precision of {backend} is the model's own; export with --dtype"
        for backend in ("onnxruntime", *ENGINE_BACKENDS)
    },
    ("timing_cache", "tensorrt-rtx"): "TensorRT-RTX times nothing while building; it compiles when an engine is loaded",
    ("hardware_compatible", "tensorrt-rtx"): "TensorRT-RTX's engines run on every GPU from compute capability 8.0 on",
    ("version_compatible", "tensorrt-rtx"): "TensorRT-RTX's engines run with the version that built them only",
}
"""Reasons why an option does not apply to a backend."""


@dataclass(frozen=True)
class BuildOptions:
    """The options of a build.

    Attributes:
        backend: one of :data:`BUNDLE_BACKENDS`, or "fastest": the one that is measured to be fastest here.
        precision: arithmetic of OpenVINO, "f32" (the default) or "bf16".
        tolerance: of "fastest": the largest accepted relative difference; ``None`` takes that of the file's type.
        batch: smallest, most usual and largest batch, for a model whose batch is free.
        size: smallest, most usual and largest height and width, for a model whose size is free.
        plugins: one of :data:`PLUGINS`.
        threads: threads the build may use; ``None`` leaves the choice to the backend.
        timeout_s: seconds after which a build is given up.
        timing_cache: file of measured tactics of TensorRT, read if it exists, and written.
        workspace: bytes of GPU memory that a layer may use as scratch; ``None`` for all there are.
        refit: allow an engine's weights to be replaced later.
        hardware_compatible: an engine of TensorRT for every GPU from compute capability 8.0 on.
        version_compatible: an engine of TensorRT for later versions too. It carries code, which sessions then run.
        device: number of the GPU to build on.
        library: the backend's operator or plugin library, if another than the installed one is to be used.
        profiles: sizes of the free inputs by name, in place of ``batch`` and ``size``.
    """

    backend: str = "onnxruntime"
    precision: str | None = None
    tolerance: float | None = None
    batch: tuple[int, int, int] | None = None
    size: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None = None
    plugins: str = "beside"
    threads: int | None = None
    timeout_s: float = 3600.0
    timing_cache: Path | None = None
    workspace: int | None = None
    refit: bool = False
    hardware_compatible: bool = False
    version_compatible: bool = False
    device: int = 0
    library: Path | None = None
    profiles: Mapping[str, Profile] | None = None

    def to_json(self) -> str:
        """Return a JSON object, for the process that builds an engine."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> BuildOptions:
        """Read what :meth:`to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        for name in ("timing_cache", "library"):
            values[name] = None if values[name] is None else Path(values[name])
        for name in ("batch", "size"):
            values[name] = _as_tuple(values[name])
        if values["profiles"] is not None:
            values["profiles"] = {
                name: Profile(**{key: tuple(sizes) for key, sizes in profile.items()})
                for name, profile in values["profiles"].items()
            }
        return cls(**values)

    def __post_init__(self) -> None:
        if self.backend not in (*BUNDLE_BACKENDS, FASTEST):
            known = ", ".join((*BUNDLE_BACKENDS, FASTEST))
            raise UsageError(f"cannot build for {self.backend!r}; choose one of {known}")
        if self.tolerance is not None and self.backend != FASTEST:
            raise UsageError(f"--tolerance is for --backend {FASTEST}, which measures; remove it")
        if self.plugins not in PLUGINS:
            raise UsageError(f"plugins are {' or '.join(PLUGINS)}, got {self.plugins!r}")
        if self.precision is not None and self.precision not in PRECISIONS:
            raise UsageError(f"precision must be {' or '.join(PRECISIONS)}, got {self.precision!r}")
        if self.plugins == "embed" and self.backend == "tensorrt-rtx":
            raise UsageError(f"{self.backend} takes no operator library, so none can be embedded")
        if self.workspace is not None and self.workspace < 1:
            raise UsageError(f"workspace must be at least one byte, got {self.workspace}")
        for (name, backend), why in _REFUSALS.items():
            if backend == self.backend and getattr(self, name):
                raise UsageError(f"--{name.replace('_', '-')} does not apply: {why}")


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(each) for each in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class BuildTask:
    """A build, as a backend receives it.

    Attributes:
        model: the ONNX file.
        scratch: a folder of this build's own, removed after it.
        inputs: the model's inputs.
        profiles: each free input's sizes.
        options: the options of the build.
        progress: called with a few words as each step begins.
        watch: called with the phases of an engine's build.
    """

    model: Path
    scratch: Path
    inputs: Sequence[TensorSpec]
    profiles: Mapping[str, Profile]
    options: BuildOptions
    progress: Progress
    watch: Callable[[Phases], None] | None = None


@dataclass(frozen=True)
class Built:
    """A backend's part of a bundle.

    Attributes:
        step: name of its work in the table of times.
        files: members of the bundle: name to role and file.
        requires: needs of the bundle at run time, by name.
        figures: figures of the build, for people.
        attention_runs: the part that computes neighborhood attention, in words.
        log: warnings.
        settings: of sessions over the bundle.
    """

    step: str
    files: Mapping[str, tuple[str, Path]]
    requires: Mapping[str, str]
    figures: Mapping[str, Any]
    attention_runs: str
    log: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
