"""Building a bundle: an exported model, a backend's files for it, and a manifest of its needs.

Backends build; :mod:`na_deploy.runtime.bundle.archive` writes. A bundle is written only after it has been tried as far
as the machine allows.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import onnx

from na_deploy.errors import NaDeployError, UsageError
from na_deploy.files import check_output
from na_deploy.model_file.description import description_of
from na_deploy.model_file.graph import read_model, weight_files
from na_deploy.model_file.tensors import TensorSpec
from na_deploy.models.metadata import PREFIX
from na_deploy.progress import Progress, silent
from na_deploy.runtime.backend_names import FASTEST
from na_deploy.runtime.bench.choice import MEASURED_ON, Choice, choose
from na_deploy.runtime.bench.compare import machine
from na_deploy.runtime.building.lint import lint
from na_deploy.runtime.building.options import BuildOptions, BuildTask, Built
from na_deploy.runtime.bundle.archive import check_target, read_manifest, write_bundle
from na_deploy.runtime.bundle.manifest import Manifest, Member, Profile
from na_deploy.runtime.native_libraries import onnxruntime_library, openvino_library, tensorrt_library

if TYPE_CHECKING:
    from na_deploy.runtime.tensorrt.progress import Phases

_NODES_SHOWN = 8


@dataclass(frozen=True)
class BuildSummary:
    """The bundle that was built, and figures of the build.

    Attributes:
        path: the bundle.
        bytes: size of all members.
        seconds: time the build took, by step.
        manifest: the bundle's manifest.
        attention_nodes: number of neighborhood attention nodes in the model.
        attention_runs: the part that computes them, in words.
        log: warnings of the backend.
    """

    path: Path
    bytes: int
    seconds: Mapping[str, float]
    manifest: Manifest
    attention_nodes: int
    attention_runs: str
    log: tuple[str, ...] = field(default=())


def build(
    model: str | Path,
    output: str | Path,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
    watch: Callable[[Phases], None] | None = None,
) -> BuildSummary:
    """Build a bundle.

    Args:
        model: an exported ONNX file.
        output: the bundle to write: a ``.zip`` archive if it ends so, else a folder. An older bundle is replaced.
        options: backend and sizes to build for; ONNX Runtime by default.
        progress: called with a few words as each step begins.
        watch: called with the phases of an engine's build, where the backend reports them.

    Raises:
        UsageError: the files or options do not fit.
        NaDeployError: the model is damaged or the backend refuses it; the nodes are named.
        MissingDependencyError: the backend is not installed.
    """
    model, output, options = Path(model), Path(output), options or BuildOptions()
    progress = progress or silent
    check_output(output, (model,), ("", ".bundle", ".zip"))
    if options.timing_cache is not None:
        check_output(options.timing_cache, (model, output))
    check_target(output)
    progress("checking the model")
    content = read_model(model)
    described = description_of(content)
    profiles = choose_profiles(described.inputs, options)
    seconds: dict[str, float] = {}
    choice: Choice | None = None
    if options.backend == FASTEST:
        started = perf_counter()
        choice = _fastest(model, options, profiles, progress)
        options = replace(
            options, backend=choice.candidate.backend, precision=choice.candidate.precision, tolerance=None
        )
        seconds["measure"] = perf_counter() - started
    _check_nodes(model, options)
    with tempfile.TemporaryDirectory(prefix="na-deploy-build-") as scratch:
        files: dict[str, tuple[str, Path]] = {"model.onnx": ("model", model)}
        files |= {name: ("weights", model.parent / name) for name in _external_files(model, content)}
        started = perf_counter()
        builder = import_module(_BUILDERS[options.backend])
        built: Built = builder.build_files(
            BuildTask(model, Path(scratch), described.inputs, profiles, options, progress, watch)
        )
        seconds[built.step] = perf_counter() - started
        files |= built.files
        progress("hashing and writing the bundle")
        started = perf_counter()

        def describe(members: tuple[Member, ...]) -> Manifest:
            return Manifest(
                backend=options.backend,
                members=members,
                inputs=described.inputs,
                outputs=described.outputs,
                requires={"platform": _platform(), **built.requires},
                profiles=profiles,
                metadata={p.key: p.value for p in content.metadata_props if p.key.startswith(PREFIX)},
                settings=built.settings if choice is None else {**built.settings, MEASURED_ON: machine()},
                build=built.figures if choice is None else {**built.figures, "choice": choice.as_dict()},
            )

        write_bundle(output, files, describe)
        seconds["write"] = perf_counter() - started
    manifest = read_manifest(output)
    return BuildSummary(
        path=output,
        bytes=sum(member.bytes for member in manifest.members),
        seconds=seconds,
        manifest=manifest,
        attention_nodes=sum(node.op_type.startswith("NeighborhoodAttention") for node in content.graph.node),
        attention_runs=built.attention_runs,
        log=built.log if choice is None else (*choice.remarks, *built.log),
    )


def _fastest(model: Path, options: BuildOptions, profiles: Mapping[str, Profile], progress: Progress) -> Choice:
    shapes = [f"{name}={'x'.join(map(str, profile.optimum))}" for name, profile in profiles.items()]
    return choose(model, tolerance=options.tolerance, threads=options.threads, shapes=shapes, progress=progress)


def choose_profiles(inputs: Sequence[TensorSpec], options: BuildOptions) -> dict[str, Profile]:
    """Return each free input's smallest, usual and largest shape.

    Raises:
        UsageError: the options name sizes that the model fixes, leave free ones open, or do not grow.
    """
    if options.profiles is not None:
        return dict(options.profiles)
    profiles: dict[str, Profile] = {}
    used = {"batch": False, "size": False}
    for spec in inputs:
        shapes: list[list[int]] = [[], [], []]
        for axis, dimension in enumerate(spec.shape):
            if isinstance(dimension, int):
                sizes = (dimension,) * 3
            elif axis == 0:
                sizes = _given("batch", spec, options.batch)
                used["batch"] = True
            elif len(spec.shape) == 4 and axis in (2, 3):
                height_width = _given("size", spec, options.size)
                sizes = tuple(pair[axis - 2] for pair in height_width)
                used["size"] = True
            else:
                raise UsageError(f"axis {axis} of input {spec} is free; only batch, height and width can be")
            for shape, size in zip(shapes, sizes, strict=True):
                shape.append(size)
            if not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
                shown = ":".join(map(str, sizes))
                raise UsageError(f"sizes must grow from smallest to largest and begin at 1 or above, got {shown}")
        if not all(isinstance(dimension, int) for dimension in spec.shape):
            profiles[spec.name] = Profile(*(tuple(shape) for shape in shapes))
    for name, given in (("batch", options.batch), ("size", options.size)):
        if given is not None and not used[name]:
            raise UsageError(f"--{name} was given, but the model's {name} is fixed; export with --dynamic to free it")
    return profiles if options.backend != "onnxruntime" or profiles else {}


def _given(name: str, spec: TensorSpec, value: Any) -> Any:
    if value is None:
        raise UsageError(
            f"input {spec} has a free {name}; give --{name} smallest:usual:largest, such as "
            f"{'1:8:64' if name == 'batch' else '224:256:384'}"
        )
    return value


_BUILDERS: dict[str, str] = {
    "onnxruntime": "na_deploy.runtime.building.onnxruntime",
    "openvino": "na_deploy.runtime.openvino.bundling",
    "tensorrt": "na_deploy.runtime.tensorrt.bundling",
    "tensorrt-rtx": "na_deploy.runtime.tensorrt.bundling",
}
"""Module of each backend's ``build_files(task) -> Built``."""


def _check_nodes(model: Path, options: BuildOptions) -> None:
    libraries = {"onnxruntime": onnxruntime_library, "openvino": openvino_library, "tensorrt": tensorrt_library}
    library = libraries.get(options.backend)
    plugins = library is not None and library() is not None
    refused = lint(model, options.backend, plugins)
    if refused:
        shown = [str(node) for node in refused[:_NODES_SHOWN]]
        if len(refused) > _NODES_SHOWN:
            shown.append(f"and {len(refused) - _NODES_SHOWN} more")
        raise NaDeployError(f"{options.backend} cannot take {model}: " + "; ".join(shown))


def _external_files(model: Path, content: onnx.ModelProto) -> list[str]:
    """Return the names of the files beside the model that hold its weights."""
    names = weight_files(content)
    for name in names:
        if Path(name).name != name or name in ("model.onnx", "manifest.json"):
            raise NaDeployError(f"{model} keeps weights in {name!r}, which cannot go into a bundle; export it again")
        if not (model.parent / name).is_file():
            raise NaDeployError(f"{model} keeps weights in {name}, which is not beside it; copy it there")
    return names


def _platform() -> str:
    return f"{platform.system().lower()}-{platform.machine()}"
