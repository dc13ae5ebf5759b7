"""``na-deploy export package.module:factory``: any module that calls natten, to one verified ONNX file."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from na_deploy.cli.output import console, print_json, table
from na_deploy.cli.progress import progress_line
from na_deploy.files import check_output

if TYPE_CHECKING:
    from na_deploy.exporter import ModuleExportReport
    from na_deploy.exporter.rewindow import WindowErrors


def names_a_factory(source: Path) -> bool:
    """Tell ``package.module:factory`` from a file; a file of that name wins."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", str(source)) is not None and not source.exists()


def export_factory(
    name: str,
    output: Path | None,
    *,
    weights: Path | None,
    inputs: tuple[str, ...],
    dynamic: tuple[str, ...],
    natten: str | None,
    windows: tuple[str, ...],
    opset: int | None,
    external_data: bool,
    flat: bool,
    tolerance: float | None,
    as_json: bool,
) -> None:
    """Build the module, export it and print the report."""
    if output is not None:
        check_output(output, (weights,), (".onnx",))
    with progress_line("starting") as progress:
        # After the first word: importing PyTorch takes seconds.
        from na_deploy.exporter import export
        from na_deploy.exporter.factory import build_module
        from na_deploy.exporter.module_request import (
            dynamic_axes,
            example_inputs,
            load_weights,
            set_windows,
        )
        from na_deploy.exporter.natten_api import installed_natten, replaces_installed
        from na_deploy.exporter.options import DEFAULT_OPSET

        examples, axes, changes = example_inputs(inputs), dynamic_axes(dynamic), set_windows(windows)
        progress("building the module")
        shadowed = installed_natten() if replaces_installed(natten) else None
        module = build_module(name, natten)
        warnings = [] if weights is None else load_weights(module, weights)
        if shadowed is not None:
            warnings.append(
                f"natten {shadowed} is installed; the interface of {natten} took its place, as --natten asks"
            )
        report = export(
            module,
            examples,
            output or f"{name.rpartition(':')[2]}.onnx",
            dynamic=axes,
            opset=DEFAULT_OPSET if opset is None else opset,
            external_data=external_data,
            flat=flat,
            tolerance=tolerance,
            windows=changes,
            natten=natten,
            origin=name,
            progress=progress,
        )
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        print_json(_as_json(report) | {"warnings": warnings})
    else:
        _print(report)


def _print(report: ModuleExportReport) -> None:
    out = console()
    out.print(f"[bold]{report.path}[/bold]")
    out.print(f"{report.nodes} operators, {report.attention_layers} of them neighborhood attention")
    rows = table("output", "largest difference", "relative", right=("largest difference", "relative"))
    for found in report.differences:
        sizes = "×".join(map(str, found.shape))
        rows.add_row(f"{found.name} {sizes}", f"{found.largest:.1e}", f"{found.relative:.1e}")
    rows.title = f"ONNX Runtime against PyTorch (tolerance {report.tolerance:.0e})"
    out.print(rows)
    if report.window_errors is not None:
        _print_windows(report.window_errors)
    for notice in report.notices:
        out.print(f"[yellow]note[/yellow]: {notice}", soft_wrap=True)


def _print_windows(errors: WindowErrors) -> None:
    columns = ("layer", "grid", "window", "stride", "pairs", "error")
    rows = table(*columns, right=("pairs", "error"))
    for layer in errors.layers:
        sizes = ("×".join(map(str, axes)) for axes in (layer.grid, layer.spec.kernel_size, layer.spec.stride))
        rows.add_row(layer.layer, *sizes, f"{100 * layer.share:.1f} %", f"{layer.error:.2e}")
    for number, error in enumerate(errors.outputs):
        rows.add_row(f"[bold]output {number}[/bold]", "", "", "", "", f"{error:.2e}")
    rows.title = "Windows against full attention: pairs computed, relative error (norms)"
    console().print(rows)


def _as_json(report: ModuleExportReport) -> dict[str, object]:
    return {
        "path": str(report.path),
        "files": [str(path) for path in report.files],
        "operators": report.nodes,
        "attention_layers": report.attention_layers,
        "tolerance": report.tolerance,
        "relative_difference": report.difference,
        "notices": list(report.notices),
        "windows": None if report.window_errors is None else asdict(report.window_errors),
    }
