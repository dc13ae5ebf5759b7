"""``na-deploy export``: a checkpoint to one verified ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from na_deploy.cli.export_module import export_factory, names_a_factory
from na_deploy.cli.output import console, print_json, size_text, table
from na_deploy.cli.progress import progress_line
from na_deploy.errors import UsageError
from na_deploy.exporter.options import DTYPES, PARTS
from na_deploy.models.metadata import SEGMENT_TASKS

if TYPE_CHECKING:
    from na_deploy.exporter import ExportReport


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="ONNX file; by default CHECKPOINT's name.")
@click.option(
    "--arch",
    metavar="dinat_tiny",
    help="Architecture (see `na-deploy models`), where the weights alone do not settle it.",
)
@click.option(
    "--dilations",
    metavar="coco",
    help="Dilations: a preset of `na-deploy models --dilations`, or text as 1,8,1/1,4,1,4/…",
)
@click.option("--out-indices", metavar="0,1,2,3", help="Levels whose feature maps a backbone returns.")
@click.option(
    "--part",
    type=click.Choice(PARTS),
    default=PARTS[0],
    show_default=True,
    help="All of a segmenter or detector, or the feature maps of its backbone.",
)
@click.option(
    "--task",
    type=click.Choice(SEGMENT_TASKS),
    help="What OneFormer is asked, and how the answers of a segmenter are read.",
)
@click.option("--detections", type=int, help="Rows of a detector's outputs; by default as its configuration says.")
@click.option("--weights", type=click.Path(path_type=Path), help="State dict for package.module:factory.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="1x3x224x224",
    help="Example input; for package.module:factory name=1x3x256x256:fp16, one for each argument.",
)
@click.option(
    "--dynamic",
    multiple=True,
    metavar="batch,spatial",
    help="Leave 'batch', 'spatial' (height and width) or both free; for package.module:factory name=0:batch,2:height.",
)
@click.option(
    "--natten",
    metavar="0.17",
    help="Interface that package.module:factory needs where natten is not installed: 0.14, 0.15, 0.17 or 0.21.",
)
@click.option(
    "--set-window",
    "windows",
    multiple=True,
    metavar="layer=…,kernel=…",
    help="Turn full attention of package.module:factory into a window: "
    "layer=blocks.*.attn,grid=16x64x64,kernel=8x16x16,stride=1x4x8,text=first.",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default=DTYPES[0],
    show_default=True,
    help="Type of the arithmetic; inputs and outputs stay fp32.",
)
@click.option("--opset", type=int, metavar="22", help="ONNX operator set, 20 to 23; 22 by default.")
@click.option("--external-data", is_flag=True, help="Write weights beside the model (always done above 2 GB).")
@click.option(
    "--flat", is_flag=True, help="Standard operators only, for runtimes that know no ONNX functions (docs/runtimes.md)."
)
@click.option(
    "--tolerance", type=float, metavar="1e-4", help="Largest accepted relative difference to PyTorch float32."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    checkpoint: Path,
    output: Path | None,
    arch: str | None,
    dilations: str | None,
    out_indices: str | None,
    part: str,
    task: str | None,
    detections: int | None,
    weights: Path | None,
    inputs: tuple[str, ...],
    dynamic: tuple[str, ...],
    natten: str | None,
    windows: tuple[str, ...],
    dtype: str,
    opset: int | None,
    external_data: bool,
    flat: bool,
    tolerance: float | None,
    as_json: bool,
) -> None:
    """Export CHECKPOINT to one ONNX file that runs on any ONNX runtime.

    CHECKPOINT is a .pth, .pt, .pkl, .bin or .safetensors file, a Hugging Face folder, or hf://owner/name: a classifier,
    or, exported whole, a segmenter (UPerNet, MaskFormer, Mask2Former, OneFormer) or detector (Faster, Mask and Cascade
    R-CNN). The file is run in ONNX Runtime and compared with PyTorch before it is kept. Written
    package.module:factory, CHECKPOINT is a function without arguments that returns a torch.nn.Module calling natten;
    this imports and runs that Python.
    """
    if names_a_factory(checkpoint):
        for option, given in _given(arch, dilations, out_indices, part, task, detections):
            if given is not None:
                raise UsageError(f"{option} is for checkpoints; {checkpoint} builds its own module")
        if dtype != "fp32":
            raise UsageError(
                "--dtype is for checkpoints; let the factory return the module in its type and give the "
                "inputs theirs, as --input x=1x8x8x64:fp16"
            )
        export_factory(
            str(checkpoint),
            output,
            weights=weights,
            inputs=inputs,
            dynamic=dynamic,
            natten=natten,
            windows=windows,
            opset=opset,
            external_data=external_data,
            flat=flat,
            tolerance=tolerance,
            as_json=as_json,
        )
        return
    for option, stated in (("--weights", weights), ("--natten", natten), ("--set-window", windows or None)):
        if stated is not None:
            raise UsageError(f"{option} goes with package.module:factory; a checkpoint is a model by itself")
    if len(inputs) > 1:
        raise UsageError(f"a checkpoint takes one --input, got {len(inputs)}")
    with progress_line("starting") as progress:
        # After the first word: importing PyTorch takes seconds.
        from na_deploy.cli.arguments import parse_indices
        from na_deploy.exporter import export

        report = export(
            checkpoint,
            output,
            arch=arch,
            dilations=dilations,
            out_indices=parse_indices(out_indices),
            part=part,
            task=task,
            detections=detections,
            input=inputs[0] if inputs else None,
            dynamic=dynamic,
            dtype=dtype,
            opset=opset,
            external_data=external_data,
            flat=flat,
            tolerance=tolerance,
            progress=progress,
        )
    for warning in report.warnings:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        print_json(_as_json(report))
        return
    _print(report)


def _given(
    arch: str | None,
    dilations: str | None,
    out_indices: str | None,
    part: str,
    task: str | None,
    detections: int | None,
) -> tuple[tuple[str, str | int | None], ...]:
    """Return the options that belong to checkpoints, ``None`` for those left away."""
    return (
        ("--arch", arch),
        ("--dilations", dilations),
        ("--out-indices", out_indices),
        ("--part", None if part == "whole" else part),
        ("--task", task),
        ("--detections", detections),
    )


def _print(report: ExportReport) -> None:
    out = console()
    options = report.options
    free = f", free: {' and '.join(options.dynamic)}" if options.dynamic else ""
    out.print(
        f"[bold]{report.path}[/bold]  {report.architecture}, {options.dtype}, opset {options.opset}, "
        f"{size_text(report.size)}{free}"
    )
    for path in report.files[1:]:
        out.print(f"weights in {path}; keep both files together")
    out.print(f"{report.nodes} operators, {report.attention_layers} of them neighborhood attention")
    rows = table("input", "output", "largest difference", "relative", right=("largest difference", "relative"))
    for case in report.cases:
        for difference in case.differences:
            rows.add_row(
                "×".join(map(str, case.input_shape)),
                f"{difference.name} {'×'.join(map(str, difference.shape))}",
                f"{difference.largest:.1e}",
                f"{difference.relative:.1e}",
            )
    rows.title = f"ONNX Runtime against PyTorch float32 (tolerance {options.accepted_difference:.0e})"
    if options.dtype == "bf16":  # ONNX Runtime has no bfloat16 kernels on CPUs
        rows.title += ", run in float32 with every result rounded to bfloat16"
    out.print(rows)
    for case in report.cases:
        if case.remark:
            out.print(f"{'×'.join(map(str, case.input_shape))} {case.remark}")
    out.print("  ".join(f"{name} {seconds:.1f} s" for name, seconds in report.seconds.items()))


def _as_json(report: ExportReport) -> dict[str, object]:
    return {
        "path": str(report.path),
        "files": [str(path) for path in report.files],
        "bytes": report.size,
        "architecture": report.architecture,
        "dtype": report.options.dtype,
        "opset": report.options.opset,
        "input": list(report.options.shape or ()),
        "dynamic": list(report.options.dynamic),
        "operators": report.nodes,
        "attention_layers": report.attention_layers,
        "tolerance": report.options.accepted_difference,
        "relative_difference": report.difference,
        "remarks": [case.remark for case in report.cases if case.remark],
        "seconds": report.seconds,
        "warnings": list(report.warnings),
    }
