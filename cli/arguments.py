"""Options that more than one command takes, in the same words everywhere, and reading their values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from na_deploy.errors import UsageError
from na_deploy.runtime.backend_names import AUTO, PRECISIONS, SESSION_BACKENDS

if TYPE_CHECKING:
    from na_deploy.runtime.bench.candidates import Candidate

AnyCommand = TypeVar("AnyCommand", bound=Callable[..., Any])

RUNNING = ("backend", "precision", "device", "threads")
"""Parameters of :func:`running_options`, for headings in a command's help."""


def running_options(*, with_torch: bool = True) -> Callable[[AnyCommand], AnyCommand]:
    """Add the options of every command that runs a model: ``--backend``, ``--precision``, ``--device``, ``--threads``.

    Args:
        with_torch: also offer PyTorch, which runs checkpoints.
    """
    backends = [name for name in (*SESSION_BACKENDS, AUTO) if with_torch or name != "torch"]
    options = (
        click.option(
            "--backend",
            type=click.Choice(backends),
            help="Runtime to use; by default the model's own; auto: the fastest, measured.",
        ),
        precision_option(),
        device_option(),
        threads_option(),
    )

    def add(command: AnyCommand) -> AnyCommand:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def backends_option() -> Callable[[AnyCommand], AnyCommand]:
    """Return ``--backend`` of commands that compare several."""
    return click.option(
        "--backend",
        "--backends",
        "backends",
        metavar="all",
        help="Runtimes to compare, as onnxruntime,openvino:f32,openvino:bf16, or all there are; by default each "
        "model's.",
    )


def precision_option() -> Callable[[AnyCommand], AnyCommand]:
    """Return ``--precision``."""
    return click.option(
        "--precision", type=click.Choice(PRECISIONS), help="Arithmetic of OpenVINO: f32 by default, bf16 on request."
    )


def device_option() -> Callable[[AnyCommand], AnyCommand]:
    """Return ``--device``."""
    return click.option("--device", type=click.IntRange(min=0), help="Number of the GPU to run on.")


def cuda_graphs_option(text: str) -> Callable[[AnyCommand], AnyCommand]:
    """Return ``--cuda-graphs``, a number of shapes.

    Args:
        text: its help.
    """
    return click.option("--cuda-graphs", metavar="SHAPES", type=click.IntRange(min=0), help=text)


def threads_option() -> Callable[[AnyCommand], AnyCommand]:
    """Return ``--threads``."""
    return click.option(
        "--threads", type=click.IntRange(min=1), help="Threads per operator; the runtime decides by default."
    )


def paths_and_candidates(
    paths: Sequence[Path], backends: str | None, precision: str | None, *, kinds: str, each: str
) -> tuple[list[tuple[Path, str, list[Candidate] | None]], list[str]]:
    """Return every path with its label and the backends to run it on, and sentences on backends that are left out.

    Args:
        paths: files, bundles or checkpoints. A label is the file's name where no other has that, else the path.
        backends: names as users write them; ``None`` gives ``None``, each model's own.
        precision: that of a single backend.
        kinds: the kinds of files that are taken, for messages.
        each: the word for one of them, for messages.

    Raises:
        UsageError: a file does not exist or is given twice, there is no such backend, or the precision has no place.
    """
    from na_deploy.runtime.bench.candidates import ONE_PRECISION, choose_candidates

    if precision is not None and backends is None:
        raise UsageError(ONE_PRECISION)
    found: list[tuple[Path, str, list[Candidate] | None]] = []
    left_out: list[str] = []
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path} does not exist; give {kinds}")
        if paths.count(path) > 1:
            raise UsageError(f"{path} is given twice; give each {each} once")
        label = path.name if sum(other.name == path.name for other in paths) == 1 else str(path)
        if backends is None:
            found.append((path, label, None))
            continue
        candidates, without = choose_candidates(path, backends, precision)
        left_out += [sentence for sentence in without if sentence not in left_out]
        found.append((path, label, candidates))
    return found, left_out


class GroupedCommand(click.Command):
    """A command whose help lists options under headings.

    Attributes:
        groups: heading to the names of its options, as parameters; the rest comes last, under "Other options".
    """

    groups: Mapping[str, Sequence[str]] = {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, heading by heading."""
        left = {parameter.name: parameter for parameter in self.get_params(ctx)}
        for heading, names in {**self.groups, "Other options": list(left)}.items():
            records = [left.pop(name).get_help_record(ctx) for name in names if name in left]
            if rows := [record for record in records if record is not None]:
                with formatter.section(heading):
                    formatter.write_dl(rows)


def grouped(groups: Mapping[str, Sequence[str]]) -> type[GroupedCommand]:
    """Return a class of commands with these groups."""
    return type("Grouped", (GroupedCommand,), {"groups": groups})


def parse_indices(text: str | None) -> tuple[int, ...] | None:
    """Parse ``0,1,2,3``; ``None`` stays ``None``.

    Raises:
        UsageError: not numbers separated by commas.
    """
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"cannot read the levels {text!r}; write numbers separated by commas, as 0,1,2,3") from None
