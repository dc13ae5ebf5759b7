"""``na-deploy verify``: an ONNX file against its checkpoint, end to end and layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from na_deploy.cli.arguments import running_options
from na_deploy.cli.bundles import opened_bundle
from na_deploy.cli.export_module import names_a_factory
from na_deploy.cli.output import console, print_json, table
from na_deploy.cli.progress import progress_line
from na_deploy.cli.verify_module import verify_factory
from na_deploy.cli.verify_quantized import quantized_kind, verify_quantized
from na_deploy.errors import UsageError, VerificationError
from na_deploy.optional_dependencies import export_libraries

if TYPE_CHECKING:
    from rich.table import Table

    from na_deploy.cli.verify_session import SessionReport
    from na_deploy.exporter.verify_checkpoint import VerificationReport
    from na_deploy.model_file.differences import Difference


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--arch", metavar="dinat_tiny", help="Architecture; by default what MODEL's metadata says.")
@click.option("--dilations", metavar="coco", help="Dilations; by default what MODEL's metadata says.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="1x3x224x224",
    help="Input to try; MODEL's own size by default; name=sizes for package.module:factory.",
)
@click.option("--weights", type=click.Path(path_type=Path), help="State dict for package.module:factory.")
@click.option("--natten", metavar="0.17", help="Interface that package.module:factory needs, as for export.")
@click.option(
    "--set-window",
    "windows",
    multiple=True,
    metavar="layer=…,kernel=…",
    help="Windows that package.module:factory was exported with.",
)
@click.option(
    "--tolerance",
    type=float,
    metavar="1e-4",
    help="Largest accepted relative difference; by default that of MODEL's dtype.",
)
@click.option("--images", type=click.Path(path_type=Path), help="Pictures for a quantized MODEL.")
@click.option("--data", type=click.Path(path_type=Path), help="Arrays for a quantized MODEL: .npz, or .npy.")
@running_options(with_torch=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    checkpoint: Path,
    model: Path,
    arch: str | None,
    dilations: str | None,
    inputs: tuple[str, ...],
    weights: Path | None,
    natten: str | None,
    windows: tuple[str, ...],
    tolerance: float | None,
    images: Path | None,
    data: Path | None,
    as_json: bool,
    **running: Any,
) -> None:
    """Compare MODEL, an exported ONNX file or a bundle, with CHECKPOINT run in PyTorch float32.

    Written package.module:factory, CHECKPOINT is a function that returns the module MODEL was exported from; this
    imports and runs that Python.

    Every output and every neighborhood attention layer is compared on a random image, in ONNX Runtime. A bundle is also
    run as it was built, with its engine or library, and with --backend, --precision, --device or --threads MODEL is run
    so too; where that differs, its attention layers are compared one by one. The exit code is 1 above the tolerance.

    A quantized MODEL is compared on --images or --data, with a tolerance of its own and the share of equal classes.
    """
    kind = quantized_kind(model)
    if kind:
        verify_quantized(
            checkpoint, model, kind, images, data, tolerance, arch=arch, dilations=dilations, as_json=as_json
        )
        return
    if images is not None or data is not None:
        raise UsageError(f"--images and --data are for quantized models; {model.name} is compared on random numbers")
    if names_a_factory(checkpoint):
        if arch is not None or dilations is not None:
            raise UsageError(f"--arch and --dilations are for checkpoints; {checkpoint} builds its own module")
        for option, given in running.items():
            if given is not None:
                raise UsageError(f"--{option} is for checkpoints; a module's file is compared in ONNX Runtime alone")
        verify_factory(str(checkpoint), model, inputs, weights, natten, windows, tolerance, as_json=as_json)
        return
    for option, given in (("--weights", weights), ("--natten", natten), ("--set-window", windows or None)):
        if given is not None:
            raise UsageError(f"{option} goes with package.module:factory; a checkpoint is a model by itself")
    if len(inputs) > 1:
        raise UsageError(f"a checkpoint takes one --input, got {len(inputs)}")
    shape = inputs[0] if inputs else None
    with progress_line("starting") as progress:
        with export_libraries("comparing with a checkpoint"):
            from na_deploy.cli.verify_session import usual_input, verify_session
            from na_deploy.exporter.verify_checkpoint import verify_checkpoint

        with opened_bundle(model) as (file, bundle):
            if bundle is not None and shape is None:
                shape = usual_input(bundle.manifest)
            report = verify_checkpoint(
                checkpoint, file, arch=arch, dilations=dilations, input=shape, tolerance=tolerance, progress=progress
            )
            built = None
            options = {name: value for name, value in running.items() if value is not None}
            if bundle is not None or options:
                built = verify_session(model, file, bundle, report, options, tolerance, progress)
    for warning in report.warnings:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        print_json(_as_json(report) | ({} if built is None else {"session": _session_as_json(built)}))
    else:
        _print(report)
        if built is not None:
            _print_session(built)
    if built is not None and report.passed and not built.passed:
        raise VerificationError(
            f"{model.name} is right in ONNX Runtime, but run on {built.runs_on} its output {built.worst.name} "
            f"differs by {built.worst.relative:.1e} (relative), above the tolerance of {built.tolerance:.0e}"
        )
    if not report.passed:
        raise VerificationError(
            f"{model.name} differs from {checkpoint.name} by {report.worst.relative:.1e} (relative) at "
            f"{report.worst.name}, above the tolerance of {report.tolerance:.0e}"
        )


def _print(report: VerificationReport) -> None:
    out = console()
    rows = table("", "shape", "largest difference", "relative", "", right=("largest difference", "relative"))
    for difference in report.layers:
        _add(rows, difference, report.tolerance)
    rows.add_section()
    for difference in report.outputs:
        _add(rows, difference, report.tolerance)
    size = "×".join(map(str, report.input_shape))
    rows.title = f"{report.architecture} ({report.dtype}) against PyTorch float32, input {size}"
    out.print(rows)
    if report.passed:
        worst = report.worst.relative
        out.print(f"same model: largest relative difference {worst:.1e}, tolerance {report.tolerance:.0e}")


def _add(rows: Table, difference: Difference, tolerance: float) -> None:
    rows.add_row(
        difference.name,
        "×".join(map(str, difference.shape)),
        f"{difference.largest:.1e}",
        f"{difference.relative:.1e}",
        "" if difference.relative <= tolerance else "[bold red]differs[/bold red]",
    )


def _print_session(report: SessionReport) -> None:
    out = console()
    rows = table("", "shape", "largest difference", "relative", "", right=("largest difference", "relative"))
    rows.title = f"on {report.runs_on} against PyTorch float32, tolerance {report.tolerance:.0e}"
    for difference in report.outputs:
        _add(rows, difference, report.tolerance)
    if report.layers:
        rows.add_section()
        for difference in report.layers:
            _add(rows, difference, report.tolerance)
    out.print(rows)
    if report.layers:
        first = next((layer.name for layer in report.layers if layer.relative > report.tolerance), None)
        text = f"the first layer that differs is {first}" if first else "no attention layer differs; look at the others"
        out.print(f"{text} (layers are compared with ONNX Runtime on the function bodies)")


def _entry(difference: Difference) -> dict[str, object]:
    return {
        "name": difference.name,
        "shape": list(difference.shape),
        "largest": difference.largest,
        "relative": difference.relative,
    }


def _session_as_json(report: SessionReport) -> dict[str, object]:
    return {
        "runs_on": report.runs_on,
        "passed": report.passed,
        "outputs": [_entry(difference) for difference in report.outputs],
        "layers": [_entry(difference) for difference in report.layers],
    }


def _as_json(report: VerificationReport) -> dict[str, object]:
    return {
        "architecture": report.architecture,
        "dtype": report.dtype,
        "input": list(report.input_shape),
        "tolerance": report.tolerance,
        "passed": report.passed,
        "outputs": [_entry(difference) for difference in report.outputs],
        "layers": [_entry(difference) for difference in report.layers],
        "warnings": list(report.warnings),
    }
