"""``na-deploy verify package.module:factory model.onnx``: a file against the module it was exported from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from na_deploy.cli.output import console, print_json, table
from na_deploy.cli.progress import progress_line
from na_deploy.errors import VerificationError
from na_deploy.optional_dependencies import export_libraries

if TYPE_CHECKING:
    from na_deploy.exporter.module_recheck import ModuleVerification


def verify_factory(
    name: str,
    model: Path,
    inputs: tuple[str, ...],
    weights: Path | None,
    natten: str | None,
    windows: tuple[str, ...],
    tolerance: float | None,
    *,
    as_json: bool,
) -> None:
    """Build the module, compare, and print a table.

    Raises:
        VerificationError: a difference is above the tolerance.
    """
    with progress_line("starting") as progress:
        with export_libraries("comparing with a module"):
            from na_deploy.exporter.factory import build_module
            from na_deploy.exporter.module_recheck import verify_module_file
            from na_deploy.exporter.module_request import load_weights, set_windows

        progress("building the module")
        module = build_module(name, natten)
        warnings = [] if weights is None else load_weights(module, weights)
        progress("running both")
        report = verify_module_file(
            module, model, inputs=inputs, windows=set_windows(windows), natten=natten, tolerance=tolerance
        )
    if report.metadata.source_name not in ("", name):
        warnings.append(f"{model.name} was exported from {report.metadata.source_name}, not from {name}")
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        print_json(_as_json(report) | {"warnings": warnings})
    else:
        _print(report, model)
    if not report.worst <= report.tolerance:
        raise VerificationError(
            f"{model.name} differs from {name} by {report.worst:.1e} (relative), above the tolerance of "
            f"{report.tolerance:.0e}"
        )


def _as_json(report: ModuleVerification) -> dict[str, Any]:
    return {
        "architecture": report.metadata.architecture,
        "dtype": report.metadata.dtype,
        "tolerance": report.tolerance,
        "relative_difference": report.worst,
        "passed": report.worst <= report.tolerance,
        "cases": [
            {
                "inputs": {name: list(sizes) for name, sizes in case.inputs.items()},
                "outputs": {found.name: found.relative for found in case.differences},
            }
            for case in report.cases
        ],
        "untried": list(report.untried),
    }


def _print(report: ModuleVerification, model: Path) -> None:
    out = console()
    rows = table("inputs", "output", "largest difference", "relative", right=("largest difference", "relative"))
    for case in report.cases:
        for found in case.differences:
            sizes = "×".join(map(str, found.shape))
            rows.add_row(case.sizes, f"{found.name} {sizes}", f"{found.largest:.1e}", f"{found.relative:.1e}")
    rows.title = f"{model.name} ({report.metadata.architecture}) against PyTorch (tolerance {report.tolerance:.0e})"
    out.print(rows)
    for sentence in report.untried:
        out.print(f"[yellow]note[/yellow]: {sentence}", soft_wrap=True)
