"""Any module that calls natten to one verified ONNX file: the steps of ``na_deploy.export(module, …)``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor, nn

from na_deploy.attention.registration import register_schemas
from na_deploy.errors import NaDeployError, UsageError, VerificationError
from na_deploy.exporter import passes
from na_deploy.exporter.file_check import check_file
from na_deploy.exporter.module_run import PlainOutputs, first_run, is_traceable, tensors_of
from na_deploy.exporter.module_verify import Dynamic, ModuleCase, verify_module
from na_deploy.exporter.natten_api import replaced_natten
from na_deploy.exporter.options import DEFAULT_OPSET, ExportOptions
from na_deploy.exporter.rewindow import SetWindow, WindowErrors, window_errors, windowed
from na_deploy.exporter.saving import drop_stale_weights, save
from na_deploy.exporter.tracing import quiet, root_cause
from na_deploy.exporter.transformers_dinat import working_dinat
from na_deploy.exporter.translation import translation_table
from na_deploy.exporter.unfused_pairs import fuse_pairs, pair_translations, register_pair_schemas
from na_deploy.exporter.verify import refusal
from na_deploy.exporter.wrappers import unwrapped, without_wrappers
from na_deploy.files import check_output, staged_output
from na_deploy.model_file.differences import Difference
from na_deploy.model_file.tolerances import TOLERANCE
from na_deploy.models.metadata import ModelMetadata
from na_deploy.models.preprocessing import unprepared
from na_deploy.progress import Progress, silent

_PRECISION = {ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}


@dataclass(frozen=True)
class ModuleExportReport:
    """The written file, and its agreement with the module.

    Attributes:
        path: the ONNX file.
        files: every file written, the ONNX file first.
        nodes: operators in the graph, function bodies not counted.
        attention_layers: neighborhood attention nodes among them.
        differences: every output against PyTorch, for the example inputs and then with each free axis twice as long.
        tolerance: the largest relative difference accepted.
        notices: remarks for the user, such as calls that are exact but slow in the file, with the reason.
        window_errors: effect of windows set at export, against the original; None where none were.
    """

    path: Path
    files: tuple[Path, ...]
    nodes: int
    attention_layers: int
    differences: tuple[Difference, ...]
    tolerance: float
    notices: tuple[str, ...] = ()
    window_errors: WindowErrors | None = None

    @property
    def difference(self) -> float:
        """The largest relative difference to PyTorch."""
        return max(difference.relative for difference in self.differences)


def export_module(
    module: nn.Module,
    example_inputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
    output: str | os.PathLike[str] | None = None,
    *,
    dynamic: Dynamic | None = None,
    output_names: Sequence[str] | None = None,
    opset: int = DEFAULT_OPSET,
    external_data: bool = False,
    tolerance: float | None = None,
    windows: Sequence[SetWindow] = (),
    natten: str | None = None,
    flat: bool = False,
    origin: str = "",
    progress: Progress | None = None,
) -> ModuleExportReport:
    """Turn a module whose forward uses natten's public functions into one ONNX file, verified before it is kept.

    Args:
        module: the module; it is traced in eval mode, in the precision of its weights, and left in the mode it was in.
        example_inputs: a tensor, tensors in forward's order, or tensors by the names of forward's arguments.
        output: the file to write; by default the class's name in lower case with ``.onnx``.
        dynamic: axes left free, by input and axis, with the names they get.
        output_names: names of the outputs, in order; by default "output", or "output_0" and so on.
        opset: ONNX operator set, 20 to 23.
        external_data: write weights to a file beside the model whatever their size.
        tolerance: largest accepted relative difference; by default that of the lowest precision in the graph.
        windows: layers of full attention to turn into neighborhood attention; the file then differs from the original
            as ``window_errors`` says, and is verified against the re-windowed module.
        natten: version whose interface ``import natten`` offers where the module imports it when it runs, such as
            "0.17"; by default the installed natten's, or the latest.
        flat: write standard operators only, without functions.
        origin: the module's source, as ``package.module:factory``, recorded in the file.
        progress: called with a few words at each step.

    Raises:
        UsageError: a request or a natten call that cannot be exported; says what can.
        NaDeployError: the module cannot be traced.
        VerificationError: the file differs from PyTorch beyond the tolerance; it is not kept.
    """
    ExportOptions(opset=opset, tolerance=tolerance)  # refuses values that no export takes
    module = unwrapped(module)
    inputs = _named(module, example_inputs)
    report = progress or silent
    target = Path(output or f"{type(module).__name__.lower()}.onnx")
    check_output(target, endings=(".onnx",))
    training = module.training
    module.eval()
    try:
        with (
            staged_output(target) as staged,
            without_wrappers(module),
            working_dinat(module) as (network, remarks),
            replaced_natten(network, natten),
            ExitStack() as changes,
        ):
            errors = None
            if windows:
                report("comparing windows with the original")
                errors = window_errors(network, inputs, windows)
                changes.enter_context(windowed(network, windows))
            report("running the module")
            outputs, complex_numbers = first_run(network, inputs)
            expected = tensors_of(outputs)
            if not expected:
                raise UsageError(f"{type(module).__name__} returns no tensor, got {type(outputs).__name__}")
            if not all(bool(tensor.isfinite().all()) for tensor in expected if tensor.is_floating_point()):
                raise NaDeployError(
                    f"{type(module).__name__} itself returns NaN or infinity in PyTorch for these example inputs, so "
                    "its file cannot be verified; give inputs in its range from Python (na_deploy.export)"
                )
            traced = network if is_traceable(outputs) else PlainOutputs(network)
            report("tracing")
            model = _trace(traced, inputs, dynamic or {}, output_names, opset, complex_numbers)
            if output_names is None:
                _name_outputs(model)
            notices = fuse_pairs(model)
            passes.finish(model, type(module).__name__, opset)
            precision = _lowest_precision(model)
            accepted = TOLERANCE[precision] if tolerance is None else tolerance
            model.metadata_props.update(_metadata(module, inputs, origin, precision, errors).to_props())
            report("writing")
            files = save(model, staged, external_data=external_data, flat=flat)
            nodes, layers = len(list(model.graph)), len(passes.attention_nodes(model))
            del model
            report("verifying in ONNX Runtime")
            no_kernels = check_file(staged)
            cases, untried = verify_module(network, inputs, dynamic or {}, staged, expected)
            _check_differences(target.name, cases, accepted)
    finally:
        module.train(training)
    drop_stale_weights(target, files)
    written = tuple(target.with_name(path.name) for path in files)
    return ModuleExportReport(
        target,
        written,
        nodes,
        layers,
        tuple(difference for case in cases for difference in case.differences),
        accepted,
        (*remarks, *notices, *untried, *([no_kernels] if no_kernels else [])),
        errors,
    )


def _check_differences(name: str, cases: Sequence[ModuleCase], accepted: float) -> None:
    for case in cases:
        for found in case.differences:
            if not found.relative <= accepted:
                raise VerificationError(refusal(name, found, case.sizes, accepted))


def _metadata(
    module: nn.Module, inputs: Mapping[str, Tensor], origin: str, precision: str, errors: WindowErrors | None
) -> ModelMetadata:
    return ModelMetadata(
        architecture=type(module).__name__,
        task="module",
        source_name=origin,
        dtype=precision,
        preprocessing=unprepared((0, 0), 0),
        inputs={name: tuple(tensor.shape) for name, tensor in inputs.items()},
        windows=() if errors is None else tuple(f"{layer.layer}: {layer.spec.describe()}" for layer in errors.layers),
    )


def _named(module: nn.Module, given: Tensor | Sequence[Tensor] | Mapping[str, Tensor]) -> dict[str, Tensor]:
    import inspect

    names = list(inspect.signature(module.forward).parameters)
    if isinstance(given, Mapping):
        inputs = dict(given)
    else:
        tensors = [given] if isinstance(given, Tensor) else list(given)
        if len(tensors) > len(names):
            raise UsageError(f"{len(tensors)} inputs were given and forward takes {len(names)}: {', '.join(names)}")
        inputs = dict(zip(names, tensors, strict=False))
    for name, tensor in inputs.items():
        if name not in names:
            raise UsageError(f"forward has no input {name!r}; it takes {', '.join(names)}")
        if not isinstance(tensor, Tensor):
            raise UsageError(f"input {name!r} must be a tensor, got {type(tensor).__name__}")
    if not inputs:
        raise UsageError("no example inputs were given; give one tensor for each of " + ", ".join(names))
    return inputs


def _lowest_precision(model: ir.Model) -> str:
    """Return the tolerance of the lowest precision in the graph, which autocast may choose inside a float32 module."""
    values = [output for node in ir.traversal.RecursiveGraphIterator(model.graph) for output in node.outputs]
    types = {value.dtype for value in (*model.graph.inputs, *model.graph.initializers.values(), *values)}
    found = (name for kind, name in _PRECISION.items() if kind in types)
    return max(found, key=TOLERANCE.__getitem__, default="fp32")


def _trace(
    module: nn.Module,
    inputs: dict[str, Tensor],
    dynamic: Dynamic,
    output_names: Sequence[str] | None,
    opset: int,
    complex_numbers: str | None,
) -> ir.Model:
    shapes: dict[str, dict[int, str]] = {name: dict(dynamic.get(name, {})) for name in inputs}
    for name, axes in dynamic.items():
        if name not in inputs:
            raise UsageError(f"--dynamic names the input {name!r}; the inputs are {', '.join(inputs)}")
        if axes and max(axes) >= inputs[name].dim():
            raise UsageError(f"input {name!r} has {inputs[name].dim()} axes, numbered from 0, and no axis {max(axes)}")
    examples = dict(inputs)
    for name, axes in shapes.items():
        for axis in axes:  # a size of 1 would be fixed
            if examples[name].shape[axis] == 1:
                examples[name] = torch.cat([examples[name]] * 2, axis)
    register_schemas()
    register_pair_schemas()
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                (),
                kwargs=examples,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=shapes if any(shapes.values()) else None,
                custom_translation_table=translation_table() | pair_translations(),
                input_names=list(inputs),
                output_names=output_names,
                verbose=False,
            )
    except Exception as error:
        cause = root_cause(error)
        if isinstance(cause, NaDeployError):
            raise cause from error
        name = type(module.model if isinstance(module, PlainOutputs) else module).__name__
        if complex_numbers is not None:
            raise NaDeployError(
                f"{name} computes with complex numbers at {complex_numbers}, which ONNX has no operators for; write "
                "the rotation with cosines and sines of real numbers"
            ) from error
        reason = (str(cause).strip() or "no reason given").splitlines()[0]
        raise NaDeployError(f"{name} could not be traced: {type(cause).__name__}: {reason}") from error
    assert program is not None
    if isinstance(module, PlainOutputs):  # weights keep the module's own names
        for value in list(program.model.graph.initializers.values()):
            if value.name and value.name.startswith("model."):
                value.name = value.name.removeprefix("model.")
    for value in program.model.graph.inputs:
        for axis, axis_name in shapes.get(str(value.name), {}).items():
            if value.shape is not None and isinstance(value.shape[axis], int):
                raise UsageError(
                    f"axis {axis} ({axis_name}) of input {value.name!r} cannot be free: the model's own code fixes it "
                    f"at {value.shape[axis]}; leave it out of the dynamic axes"
                )
    return program.model


def _name_outputs(model: ir.Model) -> None:
    outputs, inputs = model.graph.outputs, {value.name for value in model.graph.inputs}
    for number, value in enumerate(outputs):
        name = "output" if len(outputs) == 1 else f"output_{number}"
        if not value.is_graph_input() and name not in inputs:
            value.name = name
