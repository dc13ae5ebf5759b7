"""``na-deploy quantize``: an exported model with int8 or fp8 products, and what they cost, layer by layer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from na_deploy.cli.output import console, print_json, size_text, table
from na_deploy.cli.progress import step_progress
from na_deploy.runtime.quantization.choices import FORMATS, METHODS, TARGETS

if TYPE_CHECKING:
    from na_deploy.runtime.quantization.quantize import QuantizationReport

_SHOWN = 12


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--images", type=click.Path(path_type=Path), help="Folder of pictures to calibrate on.")
@click.option("--data", type=click.Path(path_type=Path), help="Arrays in their place: .npz by input name, or .npy.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="ONNX file; by default MODEL's name with _int8.")
@click.option("--format", "kind", type=click.Choice(FORMATS), default=FORMATS[0], show_default=True, help="Type.")
@click.option(
    "--target",
    type=click.Choice(TARGETS),
    default=TARGETS[0],
    show_default=True,
    help="Form of the file.",
)
@click.option(
    "--calibration",
    type=click.Choice(METHODS),
    default=METHODS[0],
    show_default=True,
    help="Rule for the range of an activation.",
)
@click.option("--percentile", default=99.99, show_default=True, help="Share of values that percentile keeps.")
@click.option("--limit", default=128, show_default=True, help="Most samples, spread evenly over all.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Layers to keep in float, as levels.0.*; repeatable.")
@click.option("--max-drop", type=float, help="Keep the most sensitive layers in float until no more points are lost.")
@click.option("--smooth/--no-smooth", default=True, help="Move outliers of LayerNorm into weights where that helps.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every layer.")
def command(
    model: Path,
    images: Path | None,
    data: Path | None,
    output: Path | None,
    kind: str,
    target: str,
    calibration: str,
    percentile: float,
    limit: int,
    exclude: tuple[str, ...],
    max_drop: float | None,
    smooth: bool,
    as_json: bool,
) -> None:
    """Write MODEL with its products and convolutions in int8 or fp8, calibrated on samples.

    \b
      na-deploy quantize model.onnx --images val --limit 256
      na-deploy quantize model.onnx --images val --format fp8 --target tensorrt

    Attention, normalisation and softmax stay in float. The table lists each layer's own error (signal to noise; 20 dB
    is an error of a tenth) and its share of the time. --max-drop is in points of accuracy where --images holds a
    folder for each class, else of answers equal to the float model's.
    """  # noqa: D301
    from na_deploy.runtime.quantization.quantize import QuantizationOptions, quantize

    options = QuantizationOptions(kind, target, calibration, percentile, limit, exclude, max_drop, smooth)
    written = output or model.with_name(f"{model.stem}_{kind}.onnx")
    with step_progress("reading the model") as (progress, counted):
        report = quantize(model, written, options, images=images, data=data, progress=progress, counted=counted)
    for warning in report.warnings:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        print_json(as_dict(report))
    else:
        _print(report)


def as_dict(report: QuantizationReport) -> dict[str, Any]:
    """Return the report as JSON types."""
    return {
        "path": str(report.path),
        "format": report.options.kind,
        "target": report.options.target,
        "calibration": report.options.calibration,
        "samples": report.samples,
        "bytes_before": report.bytes_before,
        "bytes_after": report.bytes_after,
        "layers": [
            {
                "layer": each.layer,
                "kind": each.kind,
                "decibels": each.decibels,
                "time": each.time,
                "quantized": each.layer not in report.kept,
            }
            for each in report.layers
        ],
        "kept": list(report.kept),
        "smoothed": list(report.smoothed),
        "relative_difference": report.difference,
        "agreement": report.agreement,
        "accuracy": None
        if report.accuracy is None
        else dict(zip(("float", "quantized"), report.accuracy, strict=True)),
        "seconds": {name: round(value, 2) for name, value in report.seconds.items()},
        "warnings": list(report.warnings),
    }


def _print(report: QuantizationReport) -> None:
    from rich.markup import escape

    out = console()
    before, after = size_text(report.bytes_before), size_text(report.bytes_after)
    done = [each for each in report.layers if each.layer not in report.kept]
    out.print(f"[bold]{escape(str(report.path))}[/]  {report.options.kind}, {after} ({before} before)")
    share = sum(each.time for each in done)
    kept = f", {len(report.kept)} kept in float" if report.kept else ""
    moved = f"; outliers moved into the weights of {len(report.smoothed)}" if report.smoothed else ""
    out.print(f"{len(done)} layers quantized, {share:.0%} of the float model's time{kept}{moved}")
    rows = table("most sensitive layers", "", "signal to noise", "time", "", right=("signal to noise", "time"))
    for each in report.layers[:_SHOWN]:
        noise = f"{each.decibels:.1f} dB" if math.isfinite(each.decibels) else "no error"
        rows.add_row(
            escape(each.layer), each.kind, noise, f"{each.time:.1%}", "float" if each.layer in report.kept else ""
        )
    if len(report.layers) > _SHOWN:
        best = report.layers[-1].decibels
        rows.add_row(f"… {len(report.layers) - _SHOWN} more, up to", "", f"{best:.1f} dB", "", "")
    out.print(rows)
    if report.difference is None:
        out.print(f"runs on {report.samples}; measure the objects that it finds with: na-deploy eval", markup=False)
        line = ""
    else:
        line = f"against the float model on {report.samples}: largest relative difference {report.difference:.1e}"
    if report.agreement is not None:
        line += f", same class {report.agreement:.2%}"
    if line:
        out.print(line, markup=False)
    if report.accuracy is not None:
        float_share, own = report.accuracy
        out.print(f"accuracy {float_share:.2%} in float, {own:.2%} quantized ({100 * (own - float_share):+.2f} points)")
    out.print(", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.seconds.items()))
