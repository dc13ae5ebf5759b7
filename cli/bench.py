"""``na-deploy bench``: models, bundles and PyTorch side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from na_deploy.cli.arguments import (
    backends_option,
    cuda_graphs_option,
    device_option,
    paths_and_candidates,
    precision_option,
    threads_option,
)
from na_deploy.cli.output import check_plot, console, print_json, table
from na_deploy.cli.progress import progress_line
from na_deploy.errors import UsageError

if TYPE_CHECKING:
    from na_deploy.runtime.bench.compare import Report, Target


@click.command()
@click.argument("targets", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="MODEL...")
@click.option("--batch", metavar="1,8,32", help="Batch sizes; each model's own by default.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="1x3x224x224",
    help="Input size, or name=size.",
)
@backends_option()
@precision_option()
@device_option()
@cuda_graphs_option("Also measure each model with CUDA graphs, kept for so many shapes.")
@threads_option()
@click.option("--duration", default=5.0, show_default=True, type=click.FloatRange(min=0.1), help="Seconds per row.")
@click.option(
    "--compare-to",
    type=click.Choice(["bodies", "torch"]),
    multiple=True,
    help="Also measure each model on its function bodies, or the --checkpoint in PyTorch.",
)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="The checkpoint for --compare-to torch.")
@click.option("--arch", help="Its architecture, where the weights do not tell.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw latencies into this .png, .svg or .pdf.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    targets: tuple[Path, ...],
    batch: str | None,
    inputs: tuple[str, ...],
    backends: str | None,
    precision: str | None,
    device: int | None,
    cuda_graphs: int | None,
    threads: int | None,
    duration: float,
    compare_to: tuple[str, ...],
    checkpoint: Path | None,
    arch: str | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Measure MODELs (.onnx files and bundles) in one run: latency, throughput, memory, cold start, difference.

    Each lives in a process of its own; they take turns of a quarter of a second in changing order, so that whatever
    else the machine does hits all alike. Compare rows of one run, not of two. The difference is the largest relative
    one of an output to ONNX Runtime on the file's function bodies.
    """
    from na_deploy.runtime.bench.compare import measure

    chosen, left_out = choose_targets(
        targets,
        compare_to,
        checkpoint,
        arch,
        backends=backends,
        precision=precision,
        device=device,
        cuda_graphs=cuda_graphs,
    )
    for sentence in left_out:
        click.echo(f"note: {sentence}", err=True)
    check_plot(plot, *targets, checkpoint)
    with progress_line("starting") as progress:
        report = measure(
            chosen, parse_batches(batch), shapes=inputs, threads=threads, duration_s=duration, progress=progress
        )
    if as_json:
        print_json(as_dict(report))
    else:
        _print(report)
    if plot is not None:
        from na_deploy.files import staged_output
        from na_deploy.runtime.pictures.bench import plot_report

        with staged_output(plot) as staged:
            plot_report(report, staged)
        if not as_json:
            click.echo(f"Drawn into {plot}")


def choose_targets(
    paths: tuple[Path, ...],
    compare_to: tuple[str, ...],
    checkpoint: Path | None,
    arch: str | None,
    *,
    backends: str | None = None,
    precision: str | None = None,
    device: int | None = None,
    cuda_graphs: int | None = None,
) -> tuple[list[Target], list[str]]:
    """Return what to measure, each with a label of its own, and sentences on backends that are left out.

    Raises:
        UsageError: a file does not exist, is given twice, or ``torch`` lacks its checkpoint.
    """
    from na_deploy.runtime.bench.compare import BODIES, Target
    from na_deploy.runtime.bundle import is_bundle
    from na_deploy.runtime.session import default_backend

    running: dict[str, Any] = {} if device is None else {"device": device}
    targets: list[Target] = []
    asked, left_out = paths_and_candidates(paths, backends, precision, kinds=".onnx files or bundles", each="target")
    for path, name, candidates in asked:
        labels = [(name, running)] if candidates is None else []
        labels += [(f"{name}, {candidate}", candidate.options | running) for candidate in candidates or ()]
        for label, options in labels:
            targets.append(Target(label, "session", path, options, path))
            if cuda_graphs and options.get("backend") != "openvino":
                graphs = options | {"cuda_graphs": cuda_graphs}
                targets.append(Target(f"{label}, CUDA graphs", "session", path, graphs, path))
        if "bodies" in compare_to:
            targets.append(Target(f"{name}, function bodies", "session", path, BODIES, path))
    if "torch" in compare_to:
        if checkpoint is None:
            raise UsageError("--compare-to torch needs the model's checkpoint; give --checkpoint model.pth")
        if not checkpoint.exists():
            raise UsageError(f"{checkpoint} does not exist; give the checkpoint that the model was exported from")
        described = next((path for path in paths if is_bundle(path) or default_backend(path) == "onnxruntime"), None)
        loading = {"arch": arch, "like": None if described is None else str(described)}
        targets.append(Target(f"{checkpoint.name}, PyTorch", "torch", checkpoint, loading))
        if len(paths) == 1:
            targets[-1] = replace(targets[-1], reference=paths[0])
    elif checkpoint is not None or arch is not None:
        raise UsageError("--checkpoint and --arch are for --compare-to torch")
    return targets, left_out


def parse_batches(text: str | None) -> list[int | None]:
    """Read ``1,8,32``.

    Raises:
        UsageError: it is not positive numbers joined by commas.
    """
    if text is None:
        return [None]
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"cannot read --batch {text!r}; write positive numbers joined by commas, such as 1,8,32")
    return [int(part) for part in parts]


def as_dict(report: Report) -> dict[str, Any]:
    """Return the report as JSON types."""
    from dataclasses import asdict

    return asdict(report)


def _print(report: Report) -> None:
    from rich.markup import escape

    from na_deploy.model_file.example_inputs import shapes_text

    out = console()
    numbers = ("batch", "p50 ms", "p90 ms", "p99 ms", "items/s", "calls", "times the first", "difference")
    listing = table("target", "input", *numbers, "runs on", right=numbers)
    first = {m.batch: m.p50_ms for m in reversed(report.measurements)}
    for m in report.measurements:
        listing.add_row(
            escape(m.label),
            shapes_text(m.shapes),
            str(m.batch),
            *(f"{ms:.2f}" for ms in (m.p50_ms, m.p90_ms, m.p99_ms)),
            f"{m.items_per_s:.1f}",
            str(m.calls),
            f"{m.p50_ms / first[m.batch]:.2f}",
            "–" if m.difference is None else f"{m.difference:.1e}",
            escape(m.runs_on),
        )
    out.print(listing)
    columns = ("import s", "load s", "first answer s", "peak MB")
    startup = table("cold start", *columns, right=columns)
    for s in report.startups:
        startup.add_row(escape(s.label), f"{s.import_s:.2f}", f"{s.load_s:.2f}", f"{s.first_s:.2f}", f"{s.peak_mb:.0f}")
    out.print(startup)
    threads = "each target's own threads" if report.threads is None else f"{report.threads} threads each"
    out.print(escape(f"{report.machine}; {threads}"))
    for remark in report.remarks:
        out.print(escape(f"note: {remark}"))
