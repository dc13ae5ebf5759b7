"""``na-deploy simulate``: what strides and tiles can win over full attention, before anything is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from na_deploy.cli.output import check_plot, console, print_json, table
from na_deploy.errors import UsageError

if TYPE_CHECKING:
    from na_deploy.attention.simulator import Simulation, Sweep

_SHAPES_SHOWN = 5
_FRONT_SHOWN = 8


@click.command()
@click.option("--shape", required=True, metavar="30x48x80", help="Tokens along each axis.")
@click.option("--window", required=True, metavar="18x24x24", help="kernel_size along each axis; -1 is the whole axis.")
@click.option("--stride", metavar="16x8x8", help="Strides to look at beside those that are tried.")
@click.option("--dilation", metavar="1x1x1", help="Dilation along each axis.")
@click.option("--causal", metavar="1x0x0", help="Which axes are causal.")
@click.option("--tile-q", metavar="2x8x8", help="Queries of a tile; the best shape of --tile-size by default.")
@click.option("--tile-kv", metavar="2x8x8", help="Keys of a tile; the best shape of --tile-size by default.")
@click.option("--tile-size", type=click.IntRange(min=1), help="Tokens of a tile, a power of two.")
@click.option("--head-dim", default=128, show_default=True, type=click.IntRange(min=1), help="Sets the tile size.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw bounds by stride into this .png, .svg or .pdf.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    shape: str,
    window: str,
    stride: str | None,
    dilation: str | None,
    causal: str | None,
    tile_q: str | None,
    tile_kv: str | None,
    tile_size: int | None,
    head_dim: int,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Count the work of neighborhood attention against full attention, exactly.

    Upper bounds on the speedup, in arithmetic that counts and in tiles that a fused kernel computes (the model of
    Generalized Neighborhood Attention, arXiv:2504.16922); every stride, and the smallest that wins.
    """
    from na_deploy.attention.simulator import best_tiles, simulate, sweep_strides
    from na_deploy.attention.windows import NeighborhoodSpec, whole_axes

    check_plot(plot)
    lengths = parse_sizes("--shape", shape)
    rank = len(lengths)
    steps = _for_rank("--dilation", dilation, rank) or (1,) * rank
    kernel = whole_axes(parse_sizes("--window", window, rank), lengths, steps)
    flags = tuple(bool(flag) for flag in _for_rank("--causal", causal, rank, least=0) or (0,) * rank)
    own = _for_rank("--stride", stride, rank) or (1,) * rank
    spec = NeighborhoodSpec.create(rank, kernel, steps, own, flags)
    sliding = NeighborhoodSpec.create(rank, kernel, steps, 1, flags)
    q, kv = _for_rank("--tile-q", tile_q, rank), _for_rank("--tile-kv", tile_kv, rank)
    # With head_dim up to 64 NATTEN's kernels take 64 queries by 128 keys, else 128 by 128.
    size_q, size_kv = (tile_size or (64 if head_dim <= 64 else 128)), (tile_size or 128)
    ranked = [
        each
        for each in best_tiles(lengths, spec, size_q, size_kv, any_stride=stride is None)
        if (q is None or each.tile_q == q) and (kv is None or each.tile_kv == kv)
    ]
    chosen_q, chosen_kv = (q or ranked[0].tile_q, kv or ranked[0].tile_kv) if ranked else (q, kv)
    if chosen_q is None or chosen_kv is None:
        raise UsageError("--tile-q and --tile-kv of sizes other than --tile-size must both be given")
    sweep = sweep_strides(lengths, sliding, chosen_q, chosen_kv)
    asked = simulate(lengths, spec, chosen_q, chosen_kv) if stride is not None else None
    if as_json:
        print_json(as_dict(sweep, asked, ranked))
    else:
        _print(sweep, asked, ranked)
    if plot is not None:
        from na_deploy.files import staged_output
        from na_deploy.runtime.pictures.simulation import plot_sweep

        with staged_output(plot) as staged:
            plot_sweep(sweep, asked, staged)
        if not as_json:
            click.echo(f"Drawn into {plot}")


def parse_sizes(option: str, text: str, rank: int | None = None, least: int = -1) -> tuple[int, ...]:
    """Read ``30x48x80``; a single number stands for every axis of a known rank.

    Raises:
        UsageError: it is not one to three numbers joined by x, or not as many as there are axes.
    """
    parts = text.lower().replace("×", "x").split("x")
    if not all(re.fullmatch(r"-1|\d+", part) for part in parts) or len(parts) > 3:
        raise UsageError(f"cannot read {option} {text!r}; write one to three numbers joined by x, such as 30x48x80")
    sizes = tuple(int(part) for part in parts)
    if rank is not None and len(sizes) == 1:
        sizes *= rank
    if rank is not None and len(sizes) != rank:
        raise UsageError(f"{option} {text} has {len(sizes)} values, --shape has {rank}; give one per axis, or one")
    if min(sizes) < least or (rank is None and min(sizes) < 1):
        raise UsageError(f"{option} {text} has a value that is too small")
    return sizes


def _for_rank(option: str, text: str | None, rank: int, least: int = 1) -> tuple[int, ...] | None:
    return None if text is None else parse_sizes(option, text, rank, least)


def describe(simulation: Simulation) -> dict[str, Any]:
    """Return one combination as JSON types."""
    return {
        "stride": list(simulation.spec.stride),
        "tile_q": list(simulation.tile_q),
        "tile_kv": list(simulation.tile_kv),
        "attended_pairs": simulation.attended_pairs,
        "visited_tiles": simulation.visited_tiles,
        "unmasked_tiles": simulation.unmasked_tiles,
        "full_tiles": simulation.full_tiles,
        "flop_bound": simulation.flop_bound,
        "tile_bound": simulation.tile_bound,
        "unmasked_share": simulation.unmasked_share,
        "useful_share": simulation.useful_share,
        "block_sparse": simulation.block_sparse,
    }


def as_dict(sweep: Sweep, asked: Simulation | None, ranked: list[Simulation]) -> dict[str, Any]:
    """Return all results as JSON types."""
    spec = sweep.base.spec
    return {
        "lengths": list(sweep.base.lengths),
        "kernel_size": list(spec.kernel_size),
        "dilation": list(spec.dilation),
        "is_causal": list(spec.is_causal),
        "sliding": describe(sweep.at((1,) * spec.rank)),
        "asked": None if asked is None else describe(asked),
        "recommended": describe(sweep.recommended()),
        "front": [describe(each) for each in sweep.front()],
        "combinations": sweep.combinations,
        "tile_shapes": [describe(each) for each in ranked[:_SHAPES_SHOWN]],
    }


def advice(sweep: Sweep) -> str:
    """Return the recommendation in words."""
    sliding, best = sweep.at((1,) * sweep.base.spec.rank), sweep.recommended()
    if best.spec.stride == sliding.spec.stride:
        return "Stride 1 is as good as any: larger strides save no tiles."
    gain = best.tile_bound / sliding.tile_bound
    text = (
        f"Stride {_times(best.spec.stride)} computes {gain:.2f} times fewer tiles than stride 1 "
        f"(at most {best.tile_bound:.2f} instead of {sliding.tile_bound:.2f} times faster than full attention)"
    )
    if best.block_sparse:
        return f"{text}; no tile needs a mask."
    return f"{text}; {best.unmasked_share:.0%} of the tiles need no mask."


def _print(sweep: Sweep, asked: Simulation | None, ranked: list[Simulation]) -> None:
    out, spec = console(), sweep.base.spec
    sliding, best = sweep.at((1,) * spec.rank), sweep.recommended()
    tokens = f"{_times(sweep.base.lengths)} tokens, window {_times(spec.kernel_size)}"
    dilated = f", dilation {_times(spec.dilation)}" if set(spec.dilation) != {1} else ""
    tiles = f"tiles of {_times(sweep.base.tile_q)} queries by {_times(sweep.base.tile_kv)} keys"
    out.print(f"{tokens}{dilated}; {tiles}")
    columns = ("stride", "by FLOPs", "by tiles", "unmasked tiles", "useful scores")
    listing = table("", *columns, right=columns, title="Upper bounds on the speedup over full attention")
    rows = {"sliding": sliding, "asked": asked, "recommended": best}
    for name, row in rows.items():
        if row is not None:
            listing.add_row(name, *_cells(row))
    front = [each for each in sweep.front() if each not in rows.values()]
    listing.add_section()
    for row in front[-_FRONT_SHOWN:]:
        listing.add_row("", *_cells(row))
    out.print(listing)
    if len(ranked) > 1:
        columns = ("queries", "keys", "stride", "by tiles", "unmasked tiles")
        shapes = table(*columns, right=columns[3:], title="Tile shapes, each with the stride asked for or its best")
        for each in ranked[:_SHAPES_SHOWN]:
            cells = (f"{each.tile_bound:.2f}×", f"{each.unmasked_share:.0%}")
            shapes.add_row(_times(each.tile_q), _times(each.tile_kv), _times(each.spec.stride), *cells)
        out.print(shapes)
    out.print(f"{sweep.combinations:,} combinations of strides counted. {advice(sweep)}")


def _cells(row: Simulation) -> tuple[str, ...]:
    shares = (f"{row.unmasked_share:.0%}", f"{row.useful_share:.0%}")
    return (_times(row.spec.stride), f"{row.flop_bound:.2f}×", f"{row.tile_bound:.2f}×", *shares)


def _times(numbers: tuple[int, ...]) -> str:
    return "×".join(map(str, numbers))
