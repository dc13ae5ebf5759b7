"""The ``na-deploy`` command: finds the subcommand, turns every failure into one sentence and an exit code.

Subcommands live in one file each and are imported when used, so that ``na-deploy --help`` answers at once.
Nothing of what they do belongs here.
"""

from __future__ import annotations

import codecs
import difflib
import errno
import io
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import NoReturn, TextIO

import click

from na_deploy import __version__
from na_deploy.errors import NaDeployError

COMMANDS = {
    "export": "Turn a checkpoint into one portable, verified ONNX file.",
    "flatten": "Inline an exported model's functions, for runtimes that know standard operators alone.",
    "quantize": "Quantize an exported model to int8 or fp8, and measure what that costs.",
    "build": "Build a bundle from an exported model: verified files, an engine, what they need.",
    "build-kernels": "Compile the GPU kernels for this machine into the installed package.",
    "run": "Run an exported model on images or arrays.",
    "serve": "Serve models over HTTP and gRPC (Open Inference Protocol v2), with a page to try them.",
    "package": "Write models into a repository for NVIDIA Triton, or check one.",
    "bench": "Compare models, bundles and PyTorch: latency, throughput, memory, cold start.",
    "eval": "Measure models on pictures with known answers: accuracy, overlap, precision.",
    "verify": "Compare an exported model with its checkpoint, layer by layer.",
    "inspect": "Show an exported model's neighborhood attention layers.",
    "simulate": "Count what windows, strides and tiles can win over full attention.",
    "models": "List the architectures na-deploy knows.",
    "doctor": "Show what is installed, what runs here and what to install.",
}
"""Name and one-line help; the command is ``command`` in ``na_deploy.cli.<name>``."""

INTERRUPTED = 130

_PLAIN = "na_deploy.plain"
_SPELLED = str.maketrans(
    {
        "×": "x",
        "µ": "u",
        "–": "-",
        "—": "-",
        "…": "...",
        "·": ".",
        "─": "-",
        "█": "#",
        "✗": "x",
        "✓": "+",
        "→": "->",
        "°": "",
    }
)


def _spelled(error: UnicodeError) -> tuple[str, int]:
    """Replace what an encoding lacks by what is nearest to it; for ``codecs.register_error``."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].translate(_SPELLED)
    return text.encode("ascii", "replace").decode(), error.end


codecs.register_error(_PLAIN, _spelled)


@dataclass
class _State:
    debug: bool = False


class _Commands(click.Group):
    """A group that knows its commands by name and imports the one that is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = import_module(f"na_deploy.cli.{cmd_name.replace('-', '_')}").command
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is asked for; a wrong name is answered with those that are near."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, 2)
            meant = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(COMMANDS)}"
            raise click.UsageError(f"there is no command {args[0]!r}; {meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--debug", is_flag=True, help="Show the traceback of a failure.")
@click.version_option(__version__, prog_name="na-deploy")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Neighborhood attention models (NAT, DiNAT), from a PyTorch checkpoint to production inference.

    \b
      na-deploy export dinat_tiny_in1k_224.pth -o dinat_tiny.onnx
      na-deploy run dinat_tiny.onnx photo.jpg
    """  # noqa: D301
    context.obj.debug = debug
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave the process.

    Exit codes: 0 done; 1 the work failed; 2 the request cannot be carried out as given; 130 interrupted.
    """
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Failures are printed to stderr."""
    state = _State()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_PLAIN)  # terminals and pipes that take ASCII only
    warnings.showwarning = _warn
    try:
        code = cli.main(args=arguments, prog_name="na-deploy", standalone_mode=False, obj=state)
        sys.stdout.flush()  # here rather than at exit, where a closed pipe could not be handled
        return code if isinstance(code, int) else 0
    except click.Abort:  # click's name for Ctrl-C
        _say("interrupted")
        return INTERRUPTED
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader, `head` for instance, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if state.debug:
            traceback.print_exc()
        code, sentence = _explain(error)
        _say(f"error: {sentence}")
        return code


def _explain(error: Exception) -> tuple[int, str]:
    if isinstance(error, NaDeployError):
        return error.exit_code, str(error)
    if isinstance(error, click.ClickException):
        sentence = error.format_message().rstrip(".")
        if isinstance(error, click.UsageError) and error.ctx is not None:
            sentence += f"; see '{error.ctx.command_path} --help'"
        return error.exit_code, sentence
    if isinstance(error, MemoryError):
        return 1, "there is not enough memory; close other programs or use a smaller input"
    if isinstance(error, OSError) and error.errno is not None:
        where = "" if error.filename is None else f"{error.filename}: "
        remedy = "; free space there and try again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return 1, f"{where}{error.strerror}{remedy}"
    text = " ".join(str(error).split())
    return (
        1,
        f"{type(error).__name__}: {text[:500]} (this is a defect; run with `na-deploy --debug` to see where)",
    )


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as a line; replaces ``warnings.showwarning``, which also shows source code."""
    _say(f"warning: {message}")


def _say(line: str) -> None:
    print(line, file=sys.stderr)
