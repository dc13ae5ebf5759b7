"""An exported file against the module it was exported from, some time after the export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from na_deploy.errors import NaDeployError, UsageError
from na_deploy.exporter.module_request import example_inputs
from na_deploy.exporter.module_run import run_module, tensors_of
from na_deploy.exporter.module_verify import ModuleCase, verify_module
from na_deploy.exporter.natten_api import replaced_natten
from na_deploy.exporter.rewindow import SetWindow, windowed
from na_deploy.exporter.wrappers import unwrapped, without_wrappers
from na_deploy.model_file.description import metadata_of
from na_deploy.model_file.example_inputs import example_shapes, parse_inputs
from na_deploy.model_file.graph import read_model, tensor_specs
from na_deploy.model_file.tensors import TensorSpec
from na_deploy.model_file.tolerances import TOLERANCE
from na_deploy.models.metadata import ModelMetadata

_KINDS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int64": "int64", "int32": "int32", "bool": "bool"}


@dataclass(frozen=True)
class ModuleVerification:
    """The result of a comparison.

    Attributes:
        metadata: the exporter's record in the file.
        tolerance: largest accepted relative difference.
        cases: a case for each size that was tried.
        untried: a sentence for each free axis that could not be tried at another size.
    """

    metadata: ModelMetadata
    tolerance: float
    cases: tuple[ModuleCase, ...]
    untried: tuple[str, ...]

    @property
    def worst(self) -> float:
        """The largest relative difference of all outputs and sizes."""
        return max(found.relative for case in self.cases for found in case.differences)


def verify_module_file(
    module: nn.Module,
    path: Path,
    *,
    inputs: Sequence[str] = (),
    windows: Sequence[SetWindow] = (),
    natten: str | None = None,
    tolerance: float | None = None,
) -> ModuleVerification:
    """Compare a file with the module it was exported from, on random inputs and with free axes at another size.

    Args:
        module: the module, in the precision of its weights.
        path: the ONNX file.
        inputs: sizes as users write them, ``1x5x32`` or ``name=1x5x32``; those of the export by default.
        windows: those that the file was exported with.
        natten: version whose interface the module imports when it runs.
        tolerance: largest accepted relative difference; by default that of the file's precision.

    Raises:
        UsageError: sizes do not fit, or windows are given to a file without them, or not given to one with them.
        NaDeployError: the file is no export of a module, or ONNX Runtime refuses it.
    """
    model = read_model(path)
    metadata = metadata_of(model)
    if metadata is None or metadata.task != "module":
        raise NaDeployError(f"{path.name} was not exported from a module; give the checkpoint it was exported from")
    if bool(windows) != bool(metadata.windows):
        stated = "; ".join(metadata.windows) or "none"
        raise UsageError(f"{path.name} was exported with these windows: {stated}; give the same with --set-window")
    weights = frozenset(tensor.name for tensor in model.graph.initializer)
    specs = tensor_specs(list(model.graph.input), skip=weights)
    shapes = example_shapes(specs, metadata, parse_inputs(inputs, [spec.name for spec in specs]))
    examples = _examples(specs, shapes)
    network = unwrapped(module).eval()
    with without_wrappers(network), replaced_natten(network, natten), ExitStack() as changes:
        if windows:
            changes.enter_context(windowed(network, windows))
        expected = tensors_of(run_module(network, examples))
        cases, untried = verify_module(network, examples, _free_axes(specs), path, expected)
    accepted = TOLERANCE[metadata.dtype] if tolerance is None else tolerance
    return ModuleVerification(metadata, accepted, tuple(cases), tuple(untried))


def _examples(specs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    for spec in specs:
        if spec.dtype not in _KINDS:
            raise UsageError(f"input {spec.name} is of type {spec.dtype}, which is not compared; verify from Python")
    sized = [spec for spec in specs if shapes[spec.name]]
    return example_inputs(
        [f"{spec.name}={'x'.join(map(str, shapes[spec.name]))}:{_KINDS[spec.dtype]}" for spec in sized]
    )


def _free_axes(specs: Sequence[TensorSpec]) -> dict[str, dict[int, str]]:
    return {spec.name: {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)} for spec in specs}
