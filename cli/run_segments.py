"""``na-deploy run`` on segmenters and detectors: a table, the picture with what was found on it, or COCO's results."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from na_deploy.cli.output import console, print_json, table
from na_deploy.cli.progress import counted
from na_deploy.errors import UsageError

if TYPE_CHECKING:
    from na_deploy.runtime.results.predict import ResultOptions
    from na_deploy.runtime.results.segments import Segmentation
    from na_deploy.runtime.session import Session

DRAWINGS = (".png", ".jpg", ".jpeg", ".webp")
MOST_ROWS = 40
"""Rows of a table; the smaller segments are counted."""


@dataclass(frozen=True)
class _Answer:
    """The segments of one picture and the milliseconds that each step took."""

    path: Path
    result: Segmentation
    times: dict[str, float]
    drawn: Path | None


def is_drawing(output: Path) -> bool:
    """Tell whether ``-o`` asks for a picture: by its ending, or because it is a folder."""
    return output.is_dir() or output.suffix.lower() in DRAWINGS


def segments_asked(session: Session, inputs: Sequence[Path], output: Path | None) -> bool:
    """Tell whether a run gives segments: a segmenter or detector on images, unless raw outputs are wanted."""
    from na_deploy.model_file.answers import answer_of
    from na_deploy.runtime.images.arrays import ARRAYS

    segmenter = answer_of(session.outputs, session.metadata).has_segments
    images = not any(path.suffix in ARRAYS for path in inputs)
    return segmenter and images and (output is None or is_drawing(output))


def run_segmenter(
    session: Session,
    inputs: Sequence[Path],
    labels: Path | None,
    threshold: float | None,
    task: str | None,
    output: Path | None,
    load_seconds: float,
    *,
    as_json: bool,
) -> None:
    """Segment pictures one by one, draw them, and print what was found.

    Raises:
        UsageError: a picture cannot be read, or one drawing is to hold several pictures.
    """
    from na_deploy.runtime.results.classification import read_labels
    from na_deploy.runtime.results.predict import ResultOptions

    assert session.metadata is not None
    if output is not None and len(inputs) > 1 and not output.is_dir():
        raise UsageError(f"{output} is one picture and {len(inputs)} were given; give a folder that exists")
    names = read_labels(labels, session.metadata.num_classes or None) if labels is not None else None
    thresholds = {} if threshold is None else {"score": threshold}
    options = ResultOptions(thresholds=thresholds, task=task, labels=names)
    pictures: list[dict[str, Any]] = []
    totals: dict[str, float] = {}
    for path in counted(inputs, "pictures"):
        answer = _answer(session, path, options, output)
        for step, milliseconds in answer.times.items():
            totals[step] = totals.get(step, 0.0) + milliseconds
        if as_json:
            pictures.append(_as_dict(answer, session.metadata.labels if names is None else names))
        else:
            _print_segments(answer)
    if as_json:
        about = {"model": str(session.path), "backend": session.backend, "device": session.device}
        library = None if session.library is None else str(session.library)
        print_json({**about, "library": library, "load_ms": round(load_seconds * 1e3, 3), "pictures": pictures})
        return
    console().print(
        f"{session.path.name} on {session.device}, {session.attention}: run {totals['run_ms']:.1f} ms"
        f"{f' for {len(inputs)} pictures' if len(inputs) > 1 else ''}, prepare {totals['prepare_ms']:.1f} ms, "
        f"segments {totals['segments_ms']:.1f} ms, load {1e3 * load_seconds:.0f} ms",
        markup=False,
    )


def _answer(session: Session, path: Path, options: ResultOptions, output: Path | None) -> _Answer:
    from na_deploy.files import staged_output
    from na_deploy.runtime.images.prepare import read_image
    from na_deploy.runtime.pictures.segments import draw_segments
    from na_deploy.runtime.results.predict import image_preprocessing, prepare_picture, read_result, run_picture

    moments = [perf_counter()]
    image = read_image(path)
    preprocessing = image_preprocessing(session)
    pixels = prepare_picture(session, image, preprocessing)
    moments.append(perf_counter())
    outputs = run_picture(session, pixels)
    moments.append(perf_counter())
    result: Any = read_result(session.metadata, outputs, preprocessing, (image.height, image.width), options)
    moments.append(perf_counter())
    target = None
    if output is not None:
        target = output / f"{path.stem}_segments.png" if output.is_dir() else output
        with staged_output(target) as staged:
            draw_segments(image, result).save(staged)
    steps = [1e3 * (after - before) for before, after in itertools.pairwise(moments)]
    return _Answer(path, result, dict(zip(("prepare_ms", "run_ms", "segments_ms"), steps, strict=True)), target)


def _as_dict(answer: _Answer, labels: Mapping[int, str]) -> dict[str, Any]:
    height, width = answer.result.size
    return {
        "input": str(answer.path),
        "task": answer.result.task,
        "height": height,
        "width": width,
        **({} if answer.drawn is None else {"drawing": str(answer.drawn)}),
        **{name: round(value, 3) for name, value in answer.times.items()},
        "segments": answer.result.to_coco(labels),
    }


def _print_segments(answer: _Answer) -> None:
    from rich.markup import escape

    from na_deploy.runtime.pictures.segments import segment_colours

    out, result = console(), answer.result
    height, width = result.size
    title = escape(f"{answer.path.name}, {width}×{height}: {_counted(result)}")
    boxed = ("left", "top", "wide", "tall") if result.task == "detection" else ()
    listing = table("", "class", "score", *boxed, "area", "share", right=("score", *boxed, "area"), title=title)
    colours = segment_colours(result)
    for segment in result.segments[:MOST_ROWS]:
        share = segment.area / (height * width)
        colour = "#{:02x}{:02x}{:02x}".format(*colours[segment.id])
        bar = f"[{colour}]{'█' * round(20 * share)}[/] {share:.1%}"
        sides = [f"{side:.1f}" for side in segment.box] if boxed else []
        listing.add_row(
            f"[{colour}]■[/]", escape(segment.label), f"{segment.score:.1%}", *sides, f"{segment.area:,}", bar
        )
    out.print(listing if result.segments else title)
    if len(result.segments) > MOST_ROWS:
        out.print(f"and {len(result.segments) - MOST_ROWS} smaller ones")
    if answer.drawn is not None:
        out.print(f"Drawn into {answer.drawn}", markup=False)


def _counted(result: Segmentation) -> str:
    kind = {"semantic": "class", "panoptic": "segment"}.get(result.task, "object")
    plural = "classes" if kind == "class" else f"{kind}s"
    count = len(result.segments)
    return f"{count or 'no'} {kind if count == 1 else plural}"
