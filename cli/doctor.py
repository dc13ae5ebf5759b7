"""``na-deploy doctor``: what is installed, what runs here, what to install for the rest."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from na_deploy.cli.output import console, print_json, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from na_deploy.runtime.environment import Finding

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

    findings = examine()
    if core_works(findings):
        from na_deploy.cli.self_check import check_attention, check_gpu_kernels, check_native_kernels
        from na_deploy.runtime.environment import GPU, GPU_KERNELS, NATIVE_KERNELS

        (device_found,) = (found for found in findings if found.name == GPU)
        checks: dict[str, Callable[[Finding], Finding]] = {
            NATIVE_KERNELS: check_native_kernels,
            GPU_KERNELS: lambda found: check_gpu_kernels(found, device_found),
        }
        findings = [checks[found.name](found) if found.name in checks else found for found in findings]
        findings.insert(3, check_attention())
    good = core_works(findings)
    if as_json:
        print_json({"works": good, "findings": [asdict(finding) for finding in findings]})
    else:
        _print(findings, good)
    if not good:
        context.exit(1)


def _try_gpu(device: int, as_json: bool) -> bool:
    """Run every case, print a table as a report; whether something ran and nothing failed."""
    from rich.markup import escape

    from na_deploy.cli.gpu_cases import CASES
    from na_deploy.cli.gpu_check import run_cases
    from na_deploy.cli.progress import progress_line

    with progress_line("starting") as say:
        outcomes = list(run_cases(CASES, device, say))
    statuses = [outcome.status for outcome in outcomes]
    good = "failed" not in statuses and "passed" in statuses
    if as_json:
        print_json({"works": good, "cases": [asdict(outcome) for outcome in outcomes]})
        return good
    listing = table("", "case", "seconds", "found", right=("seconds",))
    marks = {"passed": MARKS["works"], "skipped": MARKS["missing"], "failed": MARKS["broken"]}
    for outcome in outcomes:
        listing.add_row(marks[outcome.status], escape(outcome.name), f"{outcome.seconds:.1f}", escape(outcome.detail))
    console().print(listing)
    click.echo(", ".join(f"{statuses.count(status)} {status}" for status in marks))
    return good


def _print(findings: list[Finding], good: bool) -> None:
    from rich.markup import escape

    listing = table("", "", "")
    listing.show_header = False
    for finding in findings:
        found = escape(finding.detail)
        if finding.status != "works":
            found += f"\n[dim]for {escape(finding.needed_for)}: {escape(finding.remedy)}[/]"
        listing.add_row(MARKS[finding.status], escape(finding.name), found)
    out = console()
    out.print(listing)
    if good:
        out.print("Exported models run here.")
    else:
        out.print("[red]Exported models do not run here;[/] put right what is marked ✗ or – above.")
