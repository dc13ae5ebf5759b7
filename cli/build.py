"""``na-deploy build``: an exported model as a bundle for one backend."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from na_deploy.cli.arguments import precision_option
from na_deploy.cli.bundles import manifest_as_dict, print_choice, print_engine, print_manifest
from na_deploy.cli.output import console, print_json, size_text
from na_deploy.cli.progress import build_progress
from na_deploy.errors import UsageError
from na_deploy.runtime.backend_names import BUNDLE_BACKENDS, FASTEST, PLUGINS

if TYPE_CHECKING:
    from na_deploy.runtime.building.build import BuildSummary

_LOG_SHOWN = 10


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="A folder, or a .zip archive.")
@click.option(
    "--backend",
    type=click.Choice((*BUNDLE_BACKENDS, FASTEST)),
    default=BUNDLE_BACKENDS[0],
    show_default=True,
    help="What will run it; fastest: what is measured to be fastest here within --tolerance.",
)
@precision_option()
@click.option(
    "--tolerance",
    type=float,
    metavar="1e-2",
    help="For fastest: largest accepted relative difference; by default that of the file's type.",
)
@click.option("--batch", metavar="1:8:64", help="Smallest, usual and largest batch, where the model leaves it free.")
@click.option("--size", metavar="224:256:384", help="The same for height and width (224 or 224x256), where free.")
@click.option(
    "--plugins",
    type=click.Choice(PLUGINS),
    default=PLUGINS[0],
    show_default=True,
    help="Use the installed operator library, or put it into the bundle.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the build; the backend decides by default.")
@click.option(
    "--timing-cache",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of measured tactics (TensorRT): read if it exists, written at the end.",
)
@click.option("--workspace", metavar="2GiB", help="GPU memory that a layer may use as scratch; all by default.")
@click.option("--refit", is_flag=True, help="An engine whose weights can be replaced later.")
@click.option("--hardware-compatible", is_flag=True, help="An engine for every GPU from compute capability 8.0 on.")
@click.option("--version-compatible", is_flag=True, help="An engine for later versions of TensorRT too.")
@click.option("--device", type=click.IntRange(min=0), default=0, show_default=True, help="GPU to build on.")
@click.option("--timeout", default=3600.0, show_default=True, help="Give up after this many seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    model: Path,
    output: Path,
    backend: str,
    precision: str | None,
    tolerance: float | None,
    batch: str | None,
    size: str | None,
    plugins: str,
    threads: int | None,
    timing_cache: Path | None,
    workspace: str | None,
    refit: bool,
    hardware_compatible: bool,
    version_compatible: bool,
    device: int,
    timeout: float,
    as_json: bool,
) -> None:
    """Build a bundle from MODEL: verified files, an engine where the backend has one, and what they need to run.

    `na-deploy run`, `verify` and `inspect`, and na_deploy.load, take a bundle as they take an .onnx file.
    """
    from na_deploy.runtime.building.build import build
    from na_deploy.runtime.building.options import BuildOptions

    options = BuildOptions(
        backend=backend,
        precision=precision,
        tolerance=tolerance,
        batch=None if batch is None else parse_range(batch, "--batch"),
        size=None if size is None else parse_sizes(size),
        plugins=plugins,
        threads=threads,
        timeout_s=timeout,
        timing_cache=timing_cache,
        workspace=None if workspace is None else parse_bytes(workspace),
        refit=refit,
        hardware_compatible=hardware_compatible,
        version_compatible=version_compatible,
        device=device,
    )
    with build_progress("checking the model") as (progress, watch):
        summary = build(model, output, options, progress, watch)
    if as_json:
        print_json(as_dict(summary))
    else:
        _print(summary)


def parse_range(text: str, option: str) -> tuple[int, int, int]:
    """Read ``1:8:64``; one number stands for all three, two are smallest (also the usual one) and largest.

    Raises:
        UsageError: it is not one to three positive numbers joined by colons.
    """
    parts = text.split(":")
    if not 1 <= len(parts) <= 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"cannot read {option} {text!r}; write smallest:usual:largest, such as 1:8:64")
    numbers = [int(part) for part in parts]
    return (numbers[0], numbers[1 if len(numbers) == 3 else 0], numbers[-1])


def parse_sizes(text: str) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Read ``224:256:384`` or ``224x320:256x320:384x512``, by the rules of :func:`parse_range`.

    Raises:
        UsageError: it is not of that form.
    """
    pairs: list[tuple[int, int]] = []
    for part in text.lower().split(":"):
        numbers = part.split("x")
        if len(numbers) > 2 or not all(number.isdecimal() and int(number) > 0 for number in numbers):
            raise UsageError(f"cannot read --size {text!r}; write smallest:usual:largest, such as 224:256:384")
        pairs.append((int(numbers[0]), int(numbers[-1])))
    if not 1 <= len(pairs) <= 3:
        raise UsageError(f"cannot read --size {text!r}; write smallest:usual:largest, such as 224:256:384")
    return (pairs[0], pairs[1 if len(pairs) == 3 else 0], pairs[-1])


def parse_bytes(text: str) -> int:
    """Read ``512MiB``, ``2GiB`` or a number of bytes; MB and GB are powers of ten.

    Raises:
        UsageError: it is not of that form.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?b?|b?)", text.strip().lower())
    if found is None:
        raise UsageError(f"cannot read the size {text!r}; write a number with a unit, such as 512MiB or 2GiB")
    unit = found[2].rstrip("b")
    power = "kmg".index(unit[0]) + 1 if unit else 0
    return int(float(found[1]) * (1024 if unit.endswith("i") else 1000) ** power)


def as_dict(summary: BuildSummary) -> dict[str, Any]:
    """Return the summary as JSON types."""
    return {
        "bundle": str(summary.path),
        "bytes": summary.bytes,
        "attention_nodes": summary.attention_nodes,
        "attention_runs": summary.attention_runs,
        **manifest_as_dict(summary.manifest),
        "seconds": {name: round(value, 3) for name, value in summary.seconds.items()},
        "log": list(summary.log),
    }


def _print(summary: BuildSummary) -> None:
    from rich.markup import escape

    out, manifest = console(), summary.manifest
    precision = f" {manifest.settings['precision']}" if "precision" in manifest.settings else ""
    out.print(f"[bold]{escape(str(summary.path))}[/]  for {manifest.backend}{precision}, {size_text(summary.bytes)}")
    attention = f"{summary.attention_nodes} neighborhood attention nodes run on {summary.attention_runs}"
    layers = f"{manifest.build['layers']} layers; " if "layers" in manifest.build else ""
    out.print(layers + attention)
    print_choice(manifest)
    print_engine(manifest)
    print_manifest(manifest)
    out.print(", ".join(f"{name} {seconds:.1f} s" for name, seconds in summary.seconds.items()))
    for line in condense(summary.log):
        out.print(escape(line), style="dim")


def condense(log: Sequence[str]) -> list[str]:
    """Return a log with lines that differ only in a name or number told once, with their count; at most ten."""
    first: dict[str, str] = {}
    counts: dict[str, int] = {}
    for line in log:
        kind = re.sub(r"\bnamed \S+|\d+", "…", line)
        first.setdefault(kind, line)
        counts[kind] = counts.get(kind, 0) + 1
    lines = [line if counts[kind] == 1 else f"{line} ({counts[kind]} like this)" for kind, line in first.items()]
    return lines if len(lines) <= _LOG_SHOWN else [*lines[:_LOG_SHOWN], f"and {len(lines) - _LOG_SHOWN} more"]
