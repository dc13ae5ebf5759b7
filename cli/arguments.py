"""Reading option values that more than one command takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from na_deploy.errors import UsageError


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
