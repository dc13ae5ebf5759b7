"""``na-deploy doctor``: what is installed, what runs here, what to install for the rest."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from na_deploy.cli.output import console, print_json, table

if TYPE_CHECKING:
    from na_deploy.runtime.environment import Finding

MARKS = {"works": "[green]✓[/]", "missing": "[yellow]–[/]", "broken": "[red]✗[/]"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Show what is installed, what runs here and what to install.

    Exit code 0 if exported models run on this machine, 1 if not.
    """
    from na_deploy.runtime.environment import core_works, examine

    findings = examine()
    if core_works(findings):
        from na_deploy.cli.self_check import check_attention, check_native_kernels
        from na_deploy.runtime.environment import NATIVE_KERNELS

        findings = [check_native_kernels(found) if found.name == NATIVE_KERNELS else found for found in findings]
        findings.insert(3, check_attention())
    good = core_works(findings)
    if as_json:
        print_json({"works": good, "findings": [asdict(finding) for finding in findings]})
    else:
        _print(findings, good)
    if not good:
        context.exit(1)


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
