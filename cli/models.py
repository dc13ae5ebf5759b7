"""``na-deploy models``: the architectures na-deploy knows."""

from __future__ import annotations

import click

from na_deploy.cli.output import console, print_json, table
from na_deploy.errors import UsageError


@click.command()
@click.argument("text", required=False)
@click.option("--dilations", is_flag=True, help="List the dilation presets of `na-deploy export --dilations` instead.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(text: str | None, dilations: bool, as_json: bool) -> None:
    """List the architectures na-deploy knows, or those whose name contains TEXT.

    The names are the values of `na-deploy export --arch`.
    """
    if dilations:
        _print_presets(text, as_json)
        return
    from na_deploy.models.registry import list_models

    entries = [
        entry for entry in list_models() if text is None or text.lower() in f"{entry.name} {entry.title}".lower()
    ]
    if not entries:
        raise UsageError(f"no architecture has {text!r} in its name; `na-deploy models` lists them all")
    if as_json:
        print_json(
            [
                {
                    "name": entry.name,
                    "title": entry.title,
                    "parameters": entry.parameters,
                    "gflops": entry.gflops,
                    "published_gflops": entry.published_gflops,
                    "top1": entry.top1,
                    "image_size": entry.image_size,
                    "kernel_size": entry.config.kernel_size,
                    "dilations": entry.config.dilations,
                    "num_classes": entry.config.num_classes,
                    "aliases": entry.aliases,
                }
                for entry in entries
            ]
        )
        return
    numbers = ("parameters", "GFLOPs", "top-1", "image", "window")
    listing = table("--arch", *numbers, "dilations", right=numbers)
    for entry in entries:
        listing.add_row(
            entry.name,
            f"{entry.parameters / 1e6:.1f} M",
            f"{entry.gflops:.1f}",
            "" if entry.top1 is None else f"{entry.top1:.1f}",
            str(entry.image_size),
            str(entry.config.kernel_size),
            " / ".join(_shorten(level) for level in entry.config.dilations),
        )
    out = console()
    out.print(listing)
    out.print(
        "GFLOPs are multiply-adds of one image, counted here; top-1 is the published ImageNet-1K accuracy in percent."
    )


def _print_presets(text: str | None, as_json: bool) -> None:
    from na_deploy.models.dilations import PRESETS

    presets = [preset for preset in PRESETS.values() if text is None or text.lower() in preset.name]
    if not presets:
        raise UsageError(f"no dilation preset has {text!r} in its name; `na-deploy models --dilations` lists them all")
    if as_json:
        print_json(
            [
                {"name": preset.name, "note": preset.note, "image_size": preset.image_size, "nat": preset.nat}
                for preset in presets
            ]
        )
        return
    listing = table("--dilations", "trained at", "dilations (levels repeat their pattern)", "for")
    for preset in presets:
        levels = " / ".join(_shorten(level) for level in preset.nat)
        listing.add_row(preset.name, "×".join(map(str, preset.image_size)), levels, preset.note)
    console().print(listing)


def _shorten(level: tuple[int, ...]) -> str:
    """Write a level's dilations, a repeated pattern once: ``1``, ``1,8,1``, ``(1,2)×9``."""
    for period in range(1, len(level) // 2 + 1):
        if len(level) % period == 0 and level == level[:period] * (len(level) // period):
            pattern = ",".join(map(str, level[:period]))
            return pattern if period == 1 else f"({pattern})×{len(level) // period}"
    return ",".join(map(str, level))
