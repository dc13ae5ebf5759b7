"""``na-deploy run``: an exported model on images or arrays."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from na_deploy.cli.arguments import running_options
from na_deploy.cli.output import console, print_json, table
from na_deploy.errors import UsageError
from na_deploy.files import check_output
from na_deploy.models.metadata import SEGMENT_TASKS

if TYPE_CHECKING:
    from na_deploy.model_file.tensors import Array
    from na_deploy.runtime.results.classification import Prediction
    from na_deploy.runtime.session import Session


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top", default=5, show_default=True, type=click.IntRange(min=1), help="How many classes to show.")
@click.option("--labels", type=click.Path(path_type=Path), help="Class names: one per line, or a JSON list or object.")
@click.option("--threshold", type=click.FloatRange(0, 1), help="Smallest score of segments and objects that are shown.")
@click.option("--task", type=click.Choice(SEGMENT_TASKS), help="What a segmenter with queries is to answer.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Write a picture of the segments (.png, .jpg, or a folder for several), or the raw outputs (.npy, .npz).",
)
@running_options()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    model: Path,
    inputs: tuple[Path, ...],
    top: int,
    labels: Path | None,
    threshold: float | None,
    task: str | None,
    output: Path | None,
    backend: str | None,
    precision: str | None,
    device: int | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Run MODEL on INPUTS: images, or arrays that are passed as they are.

    Arrays are one .npy file, or name=array.npy for each input of the model, or an .npz archive that holds all by name.

    Images are prepared as the model was trained, which its file records. Classifiers list classes; segmenters and
    detectors list what they find, draw it over the image (-o out.png) and give it as COCO's results (--json).
    """
    from na_deploy.cli.run_segments import is_drawing, run_segmenter, segments_asked
    from na_deploy.model_file.answers import answer_of
    from na_deploy.runtime.images.arrays import gives_arrays, read_named_arrays
    from na_deploy.runtime.images.batches import read_inputs, run_in_batches
    from na_deploy.runtime.results.classification import read_labels
    from na_deploy.runtime.session import default_backend, load

    if output is not None and not output.is_dir():
        named = [Path(str(path).partition("=")[2]) for path in inputs if "=" in str(path)]
        check_output(output, (model, *inputs, *named, labels))
    drawing = output is not None and is_drawing(output)
    if output is not None and not drawing and output.suffix not in (".npy", ".npz"):
        raise UsageError(
            f"cannot write outputs to {output}; end the name in .npy (one output), .npz, or .png for a picture of "
            "segments"
        )
    started = perf_counter()
    asked = task if (backend or default_backend(model)) == "torch" else None
    with load(model, backend, precision=precision, threads=threads, device=device, task=asked) as session:
        loading = perf_counter() - started
        _tell_precision(session, threads)
        started = perf_counter() - loading
        if segments_asked(session, inputs, output):
            loaded = perf_counter()
            run_segmenter(session, inputs, labels, threshold, task, output, loaded - started, as_json=as_json)
            return
        for option, given in (("--threshold", threshold), ("--task", task), ("-o with a picture", drawing or None)):
            if given is not None:
                raise UsageError(f"{model.name} gives no segments of these inputs; remove {option}")
        if output is not None and output.suffix == ".npy" and len(session.outputs) > 1:
            raise UsageError(f"{model.name} has {len(session.outputs)} outputs; write them to a .npz file")
        answer = answer_of(session.outputs, session.metadata, labelled=labels is not None)
        logits = None if answer.scores is None else answer.scores.name
        if labels is not None and logits is None:
            raise UsageError(f"{model.name} returns features or maps, not classes; remove --labels")
        names = read_labels(labels, answer.class_count) if labels is not None else None
        loaded = perf_counter()
        by_name = gives_arrays(session, inputs)
        feeds: Any = read_named_arrays(session, inputs) if by_name else read_inputs(session, inputs)
        prepared = perf_counter()
        results = session.run(feeds) if by_name else run_in_batches(session, feeds)
        finished = perf_counter()
    if output is not None:
        _write(output, results)

    from na_deploy.runtime.results.classification import score_function_of, top_classes

    if names is None and session.metadata is not None and session.metadata.labels:
        names = dict(session.metadata.labels)
    ranked = None
    if logits is not None:
        ranked = top_classes(results[logits], top, names, score_function_of(session.metadata, results[logits]))
    times = {
        "load_ms": (loaded - started) * 1e3,
        "prepare_ms": (prepared - loaded) * 1e3,
        "run_ms": (finished - prepared) * 1e3,
    }
    if as_json:
        print_json(_as_dict(model, session, inputs, results, ranked, times))
    else:
        _print(model, session, inputs, results, ranked, times, output)


def _tell_precision(session: Session, threads: int | None) -> None:
    """Say what bfloat16 does to the outputs, on stderr."""
    from na_deploy.runtime.precision_difference import precision_note

    note = precision_note(session, threads)
    if note is not None:
        click.echo(f"note: {session.path.name} {note}", err=True)


def _write(target: Path, results: dict[str, Array]) -> None:
    import numpy as np

    from na_deploy.files import staged_output

    with staged_output(target) as staged:
        if target.suffix == ".npy":
            (array,) = results.values()
            np.save(staged, array)
        else:
            np.savez(staged, **results)  # type: ignore[arg-type]  # the stub takes the names for its own options


def _rows(inputs: tuple[Path, ...], ranked: list[list[Prediction]]) -> list[str]:
    """Name each classified item: its file, with a number where one array held several."""
    if len(ranked) == len(inputs):
        return [path.name for path in inputs]
    return [f"{inputs[0].name}[{index}]" for index in range(len(ranked))]


def _as_dict(
    model: Path,
    session: Session,
    inputs: tuple[Path, ...],
    results: dict[str, Array],
    ranked: list[list[Prediction]] | None,
    times: dict[str, float],
) -> dict[str, Any]:
    content: dict[str, Any] = {
        "model": str(model),
        "backend": session.backend,
        "device": session.device,
        "library": None if session.library is None else str(session.library),
        "inputs": [str(path) for path in inputs],
        "outputs": {name: {"shape": list(array.shape), "dtype": array.dtype.name} for name, array in results.items()},
        **{name: round(value, 3) for name, value in times.items()},
    }
    if ranked is not None:
        content["predictions"] = [
            {
                "input": name,
                "top": [{"class": p.index, "label": p.label, "probability": p.probability} for p in predictions],
            }
            for name, predictions in zip(_rows(inputs, ranked), ranked, strict=True)
        ]
    return content


def _print(
    model: Path,
    session: Session,
    inputs: tuple[Path, ...],
    results: dict[str, Array],
    ranked: list[list[Prediction]] | None,
    times: dict[str, float],
    output: Path | None,
) -> None:
    from rich.markup import escape

    out = console()
    if ranked is not None:
        for name, predictions in zip(_rows(inputs, ranked), ranked, strict=True):
            listing = table("class", "label", "probability", "", right=("class", "probability"), title=escape(name))
            for prediction in predictions:
                bar = "█" * round(20 * prediction.probability)
                listing.add_row(
                    str(prediction.index),
                    escape(prediction.label),
                    f"{prediction.probability:.2%}",
                    f"[blue]{bar}[/]",
                )
            out.print(listing)
    else:
        import numpy as np

        listing = table("output", "shape", "type", "mean", "std", "min", "max", right=("mean", "std", "min", "max"))
        for name, array in results.items():
            values = array.astype(np.float64)
            figures = (f"{figure:.4g}" for figure in (values.mean(), values.std(), values.min(), values.max()))
            listing.add_row(escape(name), "×".join(map(str, array.shape)), array.dtype.name, *figures)
        out.print(listing)
    count = len(next(iter(results.values())))
    out.print(
        f"{escape(model.name)} on {session.device}, {session.attention}: run {times['run_ms']:.1f} ms"
        f"{f' for {count} items' if count > 1 else ''}, prepare {times['prepare_ms']:.1f} ms, "
        f"load {times['load_ms']:.0f} ms"
    )
    if output is not None:
        out.print(f"Outputs written to {escape(str(output))}")
