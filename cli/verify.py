"""``na-deploy verify``: an ONNX file against its checkpoint, end to end and layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from na_deploy.cli.bundles import opened_model
from na_deploy.cli.output import console, print_json, table
from na_deploy.cli.progress import progress_line
from na_deploy.errors import VerificationError
from na_deploy.extras import export_libraries

if TYPE_CHECKING:
    from rich.table import Table

    from na_deploy.exporter.recheck import VerificationReport
    from na_deploy.exporter.verify import Difference


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--arch", help="Architecture; by default what MODEL's metadata says.")
@click.option("--dilations", help="Dilations; by default what MODEL's metadata says.")
@click.option("--input", "shape", help="Input to try, as 1x3x224x224; by default MODEL's own size.")
@click.option("--tolerance", type=float, help="Largest accepted relative difference; by default that of MODEL's dtype.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    checkpoint: Path,
    model: Path,
    arch: str | None,
    dilations: str | None,
    shape: str | None,
    tolerance: float | None,
    as_json: bool,
) -> None:
    """Compare MODEL, an exported ONNX file or a bundle, with CHECKPOINT run in PyTorch float32.

    Every output and every neighborhood attention layer is compared on a random image. The exit code is 1 above the
    tolerance.
    """
    with progress_line("starting") as progress:
        with export_libraries("comparing with a checkpoint"):
            from na_deploy.exporter.recheck import recheck

        with opened_model(model) as (file, _):
            report = recheck(
                checkpoint, file, arch=arch, dilations=dilations, input=shape, tolerance=tolerance, progress=progress
            )
    for warning in report.warnings:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        print_json(_as_json(report))
    else:
        _print(report)
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


def _as_json(report: VerificationReport) -> dict[str, object]:
    def entry(difference: Difference) -> dict[str, object]:
        return {
            "name": difference.name,
            "shape": list(difference.shape),
            "largest": difference.largest,
            "relative": difference.relative,
        }

    return {
        "architecture": report.architecture,
        "dtype": report.dtype,
        "input": list(report.input_shape),
        "tolerance": report.tolerance,
        "passed": report.passed,
        "outputs": [entry(difference) for difference in report.outputs],
        "layers": [entry(difference) for difference in report.layers],
        "warnings": list(report.warnings),
    }
