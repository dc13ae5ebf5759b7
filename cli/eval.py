"""``na-deploy eval``: the quality of exported models on pictures with known answers, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from na_deploy.cli.arguments import (
    backends_option,
    device_option,
    paths_and_candidates,
    precision_option,
    threads_option,
)
from na_deploy.cli.output import console, print_json, table
from na_deploy.cli.progress import counted
from na_deploy.errors import UsageError
from na_deploy.models.metadata import SEGMENT_TASKS

if TYPE_CHECKING:
    from na_deploy.runtime.evaluation.compare import Report, Target
    from na_deploy.runtime.evaluation.figures import DataSet


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="MODEL...")
@click.option(
    "--images",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of pictures; for classifiers, of a folder for each class.",
)
@click.option("--maps", type=click.Path(path_type=Path), help="Folder of id maps, for semantic segmenters.")
@click.option("--ignore", default=255, show_default=True, help="Value of pixels in --maps that do not count.")
@click.option("--first-class", default=0, show_default=True, help="Value of the first class in --maps; 1 for ADE20K.")
@click.option("--coco", type=click.Path(path_type=Path), help="COCO's annotations, for detectors and instances.")
@click.option("--limit", type=click.IntRange(min=1), help="Pictures to take, spread evenly over all.")
@click.option("--labels", type=click.Path(path_type=Path), help="Class names: one per line, or a JSON list or object.")
@click.option("--batch", default=1, show_default=True, type=click.IntRange(min=1), help="Pictures in one run.")
@backends_option()
@precision_option()
@device_option()
@threads_option()
@click.option("--arch", help="Architecture of a checkpoint, where the weights do not tell.")
@click.option("--task", type=click.Choice(SEGMENT_TASKS), help="What the checkpoint of a segmenter is asked.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    models: tuple[Path, ...],
    images: Path,
    maps: Path | None,
    ignore: int,
    first_class: int,
    coco: Path | None,
    limit: int | None,
    labels: Path | None,
    batch: int,
    backends: str | None,
    precision: str | None,
    device: int | None,
    threads: int | None,
    arch: str | None,
    task: str | None,
    as_json: bool,
) -> None:
    """Measure how good MODELs are on pictures with known answers: exported files, bundles, checkpoints.

    \b
    Classifiers: top-1 and top-5, on a folder with a folder for each class.
      na-deploy eval fp32.onnx int8.onnx --images val
    Semantic segmenters: intersection over union, on pictures and id maps of the same names.
      na-deploy eval model.onnx --images pictures --maps maps
    Detectors and segmenters of objects: average precision of boxes and masks, by pycocotools.
      na-deploy eval model.onnx --coco instances.json --images pictures

    Several models are compared with the first: the checkpoint, fp32, fp16, int8, other runtimes.
    """  # noqa: D301
    from na_deploy.runtime.evaluation.compare import evaluate
    from na_deploy.runtime.results.classification import read_labels

    running = {"threads": threads, "device": device}
    targets, left_out = choose_targets(
        models, backends, precision, _given(**running), checkpoints=_given(arch=arch, task=task)
    )
    for sentence in left_out:
        click.echo(f"note: {sentence}", err=True)
    names = None if labels is None else read_labels(labels)
    report = evaluate(
        targets,
        _data(images, maps, coco, limit, first=first_class, ignored=ignore),
        batch=batch,
        labels=names,
        counted=counted,
    )
    if as_json:
        print_json(as_dict(report))
    else:
        _print(report)


def choose_targets(
    models: Sequence[Path],
    backends: str | None,
    precision: str | None,
    options: dict[str, Any],
    checkpoints: dict[str, Any] | None = None,
) -> tuple[list[Target], list[str]]:
    """Return every model on every backend, each with a label of its own, and sentences on backends that are left out.

    Args:
        models: files, bundles or checkpoints.
        backends: names as users write them; by default each model's own.
        precision: of a single backend.
        options: further arguments of :func:`na_deploy.load`.
        checkpoints: those that PyTorch alone takes; for the checkpoints among the models.

    Raises:
        UsageError: a file does not exist or is given twice, there is no such backend, or ``checkpoints`` is given and
            no model is one.
    """
    from na_deploy.runtime.evaluation.compare import Target
    from na_deploy.runtime.session import default_backend

    asked, left_out = paths_and_candidates(
        models, backends, precision, kinds=".onnx files, bundles or checkpoints", each="model"
    )
    targets: list[Target] = []
    for path, name, candidates in asked:
        if candidates is None:
            targets.append(Target(name, path, dict(options)))
            continue
        for candidate in candidates:
            label = f"{name}, {candidate}" if len(candidates) > 1 else name
            targets.append(Target(label, path, candidate.options | options))
    in_pytorch = [t for t in targets if t.options.get("backend", default_backend(t.path)) == "torch"]
    if checkpoints and not in_pytorch:
        raise UsageError(f"--{next(iter(checkpoints))} is for checkpoints, and none is given; remove it")
    targets = [replace(t, options={**t.options, **(checkpoints or {})}) if t in in_pytorch else t for t in targets]
    return targets, left_out


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _data(
    images: Path, maps: Path | None, coco: Path | None, limit: int | None, *, first: int, ignored: int
) -> DataSet:
    if maps is not None and coco is not None:
        raise UsageError("--maps is for semantic segmenters and --coco for objects; give one of them")
    if coco is not None:
        from na_deploy.runtime.evaluation.coco import CocoPictures

        return CocoPictures(coco, images, limit)
    if maps is not None:
        from na_deploy.runtime.evaluation.id_maps import IdMaps

        return IdMaps(images, maps, first=first, ignored=ignored, limit=limit)
    from na_deploy.runtime.evaluation.class_folders import ClassFolders

    return ClassFolders(images, limit)


def as_dict(report: Report) -> dict[str, Any]:
    """Return the report as JSON types."""
    return {
        "data": report.data,
        "pictures": report.pictures,
        "notes": list(report.notes),
        "models": [
            {
                "model": str(row.path),
                "label": row.label,
                "backend": row.backend,
                "dtype": row.dtype,
                "runs_on": row.runs_on,
                "run_ms": round(row.run_ms, 3),
                **({} if row.same is None else {"same": row.same}),
                **_named(row.figures.overall),
                "classes": _named(row.figures.classes),
            }
            for row in report.rows
        ],
    }


def _named(figures: Any) -> dict[str, Any]:
    """Return the figures by name; those without a name stand for themselves."""
    result: dict[str, Any] = {}
    for name, shares in figures.items():
        result.update({name: dict(shares)} if name else shares)
    return result


def _print(report: Report) -> None:
    from rich.markup import escape

    out = console()
    out.print(report.data, markup=False)
    for note in report.notes:
        out.print(f"{note}.", markup=False)
    kinds = list(dict.fromkeys(kind for row in report.rows for kind in row.figures.overall))
    several = len(report.rows) > 1
    for kind in kinds:
        rows = [row for row in report.rows if kind in row.figures.overall]
        names = list(rows[0].figures.overall[kind])
        main = names[0]
        compared = ["against the first"] if several else []
        compared += ["same class"] if several and rows[0].same is not None else []
        listing = table(kind or "model", *names, *compared, "ms", "dtype", "runs on", right=(*names, *compared, "ms"))
        first = rows[0].figures.overall[kind][main]
        for row in rows:
            shares = row.figures.overall[kind]
            cells = [_percent(shares[name]) for name in names]
            if several:
                cells.append("" if row is rows[0] else _difference(shares[main], first))
            if several and row.same is not None:
                cells.append(_percent(row.same))
            listing.add_row(escape(row.label), *cells, f"{row.run_ms:.1f}", row.dtype, escape(row.runs_on))
        out.print(listing)
    for kind in kinds:
        rows = [row for row in report.rows if kind in row.figures.classes]
        if rows and "top-1" not in rows[0].figures.overall[kind]:
            labels = [row.label for row in rows]
            heading = f"{kind}, {next(iter(rows[0].figures.overall[kind]))}" if kind else "class"
            listing = table(heading, *map(escape, labels), right=tuple(map(escape, labels)))
            for name in rows[0].figures.classes[kind]:
                listing.add_row(escape(name), *(_percent(row.figures.classes[kind].get(name)) for row in rows))
            out.print(listing)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f} %"


def _difference(share: float | None, first: float | None) -> str:
    return "–" if share is None or first is None else f"{round(100 * (share - first), 2) + 0.0:+.2f}"
