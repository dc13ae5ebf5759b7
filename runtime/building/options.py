"""What a bundle is built for, what a backend is told, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from na_deploy.errors import UsageError
from na_deploy.model_file.tensors import TensorSpec
from na_deploy.runtime.bundle.manifest import Profile

if TYPE_CHECKING:
    from na_deploy.runtime.tensorrt.progress import Phases

BACKENDS = ("onnxruntime", "tensorrt", "tensorrt-rtx")
"""What bundles can be built for."""

PLUGINS = ("beside", "embed")
"""Whether our compiled library stays with the installation or travels in the bundle."""

Say = Callable[[str], None]

_ENGINES_ONLY = "builds no engine; leave it out, or build for tensorrt"
_REFUSALS = {
    ("timing_cache", "onnxruntime"): f"onnxruntime {_ENGINES_ONLY}",
    ("workspace", "onnxruntime"): f"onnxruntime {_ENGINES_ONLY}",
    ("refit", "onnxruntime"): f"onnxruntime {_ENGINES_ONLY}",
    ("hardware_compatible", "onnxruntime"): "onnxruntime bundles run on any hardware that ONNX Runtime runs on",
    ("version_compatible", "onnxruntime"): "onnxruntime bundles run with any version from 1.21 on",
    ("timing_cache", "tensorrt-rtx"): "TensorRT-RTX times nothing while building; it compiles when an engine is loaded",
    ("hardware_compatible", "tensorrt-rtx"): "TensorRT-RTX's engines run on every GPU from compute capability 8.0 on",
    ("version_compatible", "tensorrt-rtx"): "TensorRT-RTX's engines run with the version that built them only",
}
"""Options that make no sense for a backend, and why."""


@dataclass(frozen=True)
class BuildOptions:
    """What a bundle is built for.

    Attributes:
        backend: one of :data:`BACKENDS`.
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
        library: our library for the backend, if another than the installed one is to be used.
        profiles: sizes of the free inputs by name, in place of ``batch`` and ``size``.
    """

    backend: str = "onnxruntime"
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

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise UsageError(f"cannot build for {self.backend!r}; choose one of {', '.join(BACKENDS)}")
        if self.plugins not in PLUGINS:
            raise UsageError(f"plugins are {' or '.join(PLUGINS)}, got {self.plugins!r}")
        if self.plugins == "embed" and self.backend == "tensorrt-rtx":
            raise UsageError(f"{self.backend} takes no library of ours, so none can be embedded")
        if self.workspace is not None and self.workspace < 1:
            raise UsageError(f"workspace must be at least one byte, got {self.workspace}")
        for (name, backend), why in _REFUSALS.items():
            if backend == self.backend and getattr(self, name):
                raise UsageError(f"--{name.replace('_', '-')} does not apply: {why}")


@dataclass(frozen=True)
class BuildTask:
    """What a backend is told.

    Attributes:
        model: the ONNX file.
        scratch: a folder of this build's own, removed after it.
        inputs: the model's inputs.
        profiles: each free input's sizes.
        options: what the bundle is built for.
        say: told each step as it begins.
        watch: told how far an engine is.
    """

    model: Path
    scratch: Path
    inputs: Sequence[TensorSpec]
    profiles: Mapping[str, Profile]
    options: BuildOptions
    say: Say
    watch: Callable[[Phases], None] | None = None


@dataclass(frozen=True)
class Built:
    """What a backend returns.

    Attributes:
        step: what it did, for the table of times.
        files: members of the bundle: name to role and file.
        requires: what the bundle needs to run.
        figures: of the build, for people.
        attention_runs: what computes neighborhood attention, in words.
        log: warnings.
    """

    step: str
    files: Mapping[str, tuple[str, Path]]
    requires: Mapping[str, str]
    figures: Mapping[str, Any]
    attention_runs: str
    log: tuple[str, ...] = ()
