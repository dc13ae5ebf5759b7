"""``na-deploy doctor``: what is installed, what runs here, what to install for the rest."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from na_deploy.cli.output import console, print_json, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from na_deploy.runtime.environment import Component

MARKS = {"works": "[green]✓[/]", "missing": "[yellow]–[/]", "broken": "[red]✗[/]"}


@click.command()
@click.option("--gpu", is_flag=True, help="Try everything that needs an NVIDIA GPU; takes minutes.")
@click.option("--device", type=click.IntRange(min=0), default=0, show_default=True, help="GPU for --gpu.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(context: click.Context, gpu: bool, device: int, as_json: bool) -> None:
    """Show what is installed, what runs here and what to install.

    Exit code 0 if exported models run on this machine, 1 if not. With --gpu: 0 if no case failed and not all were
    skipped.
    """
    if gpu:
        context.exit(0 if _try_gpu(device, as_json) else 1)
    from na_deploy.runtime.environment import core_works, examine

    components = examine()
    if core_works(components):
        from na_deploy.cli.self_check import (
            check_attention,
            check_gpu_kernels,
            check_openvino,
            check_openvino_library,
            check_operator_library,
        )
        from na_deploy.runtime.environment import GPU, GPU_KERNELS, OPENVINO, OPENVINO_OPERATORS, OPERATOR_LIBRARY

        (device_found,) = (found for found in components if found.name == GPU)
        checks: dict[str, Callable[[Component], Component]] = {
            OPERATOR_LIBRARY: check_operator_library,
            OPENVINO: check_openvino,
            OPENVINO_OPERATORS: check_openvino_library,
            GPU_KERNELS: lambda found: check_gpu_kernels(found, device_found),
        }
        components = [checks[found.name](found) if found.name in checks else found for found in components]
        components.insert(3, check_attention())
    good = core_works(components)
    if as_json:
        print_json({"works": good, "findings": [asdict(component) for component in components]})
    else:
        _print(components, good)
    if not good:
        context.exit(1)


def _try_gpu(device: int, as_json: bool) -> bool:
    """Run every case, print a table as a report; whether something ran and nothing failed."""
    from rich.markup import escape

    from na_deploy.cli.gpu_cases import CASES
    from na_deploy.cli.gpu_check import Outcome, run_cases
    from na_deploy.cli.progress import progress_line

    with progress_line("starting") as progress:
        outcomes = list(run_cases(CASES, device, progress))
    statuses = [outcome.status for outcome in outcomes]
    good = "failed" not in statuses and "passed" in statuses
    if as_json:
        print_json({"works": good, "cases": [asdict(outcome) for outcome in outcomes]})
        return good
    listing = table("", "case", "seconds", "found", right=("seconds",))
    marks = {"passed": MARKS["works"], "skipped": MARKS["missing"], "failed": MARKS["broken"]}
    alike: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        # What passed has figures of its own; what is missing is missing for many cases at once.
        alike.setdefault((outcome.status, outcome.name if outcome.status == "passed" else outcome.detail), []).append(
            outcome
        )
    for (status, _), cases in alike.items():
        name = cases[0].name if len(cases) == 1 else f"{cases[0].name} and {len(cases) - 1} more"
        seconds = sum(case.seconds for case in cases)
        listing.add_row(marks[status], escape(name), f"{seconds:.1f}", escape(cases[0].detail))
    console().print(listing)
    click.echo(", ".join(f"{statuses.count(status)} {status}" for status in marks))
    return good


def _print(components: list[Component], good: bool) -> None:
    from rich.markup import escape

    listing = table("", "", "")
    listing.show_header = False
    for component in components:
        found = escape(component.detail)
        if component.status != "works":
            found += f"\n[dim]for {escape(component.needed_for)}: {escape(component.remedy)}[/]"
        listing.add_row(MARKS[component.status], escape(component.name), found)
    out = console()
    out.print(listing)
    if good:
        out.print("Exported models run here.")
    else:
        out.print("[red]Exported models do not run here;[/] put right what is marked ✗ or – above.")
