"""``na-deploy inspect``: the neighborhood attention layers of a model: table, JSON or picture."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from na_deploy.cli.bundles import manifest_as_dict, opened_bundle, print_choice, print_engine, print_manifest
from na_deploy.cli.engine_layers import print_engine_layers, read_engine_layers
from na_deploy.cli.output import check_plot, console, print_json, size_text, table
from na_deploy.models.metadata import HEADS

if TYPE_CHECKING:
    from rich.table import Table

    from na_deploy.attention.simulator import Simulation
    from na_deploy.model_file.inspection import LayerGroup, ModelSummary

NAMED = 4
"""Products of one kind that are listed by name."""

WIDE = 108
"""Columns of a screen that shows every column of the table."""


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--input", "inputs", multiple=True, metavar="1x3x224x224", help="Input size where some are free, or name=size."
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="Draw windows, tiles and work into this .png, .svg or .pdf.",
)
@click.option("--layers", "engine_layers", is_flag=True, help="Of a bundle with an engine: list the engine's layers.")
@click.option("--times", is_flag=True, help="The same with the time of each layer, which needs the GPU.")
@click.option("--bounds", is_flag=True, help="Also count what each layer can win over full attention (see simulate).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    model: Path,
    inputs: tuple[str, ...],
    plot: Path | None,
    engine_layers: bool,
    times: bool,
    bounds: bool,
    as_json: bool,
) -> None:
    """Show the neighborhood attention layers of MODEL, a file or a bundle: shapes, windows, tiles, work.

    Work is counted in multiply-adds, which papers call FLOPs.
    """
    from na_deploy.cli.simulate import describe
    from na_deploy.model_file.inspection import group_layers, inspect_model

    check_plot(plot, model)
    with opened_bundle(model) as (file, bundle):
        summary = inspect_model(file, inputs)
        manifest = None if bundle is None else bundle.manifest
        engine = read_engine_layers(model, bundle, times, inputs) if engine_layers or times else None
    if as_json:
        content = as_dict(summary) | ({} if manifest is None else {"bundle": manifest_as_dict(manifest)})
        if engine is not None:
            content["engine_layers"] = [asdict(layer) for layer in engine]
        if bounds:
            content["bounds"] = {group.label: describe(layer_bounds(group)) for group in group_layers(summary.layers)}
        print_json(content)
    else:
        if manifest is not None:
            print_manifest(manifest)
            print_choice(manifest)
            print_engine(manifest)
        if engine is not None:
            print_engine_layers(engine)
        _print(summary)
        if bounds:
            console().print(_bounds(summary))
    if plot is not None:
        from na_deploy.files import staged_output
        from na_deploy.runtime.pictures.model import plot_model

        with staged_output(plot) as staged:
            left_out = plot_model(summary, staged, _title(summary))
        if not as_json:
            note = f" ({left_out} further configurations are not drawn)" if left_out else ""
            click.echo(f"Drawn into {plot}{note}")


def as_dict(summary: ModelSummary) -> dict[str, Any]:
    """Return the summary as JSON types."""
    content = asdict(summary)
    content["path"] = str(summary.path)
    content["metadata"] = summary.metadata.to_props() if summary.metadata is not None else None
    content["attention_multiply_adds"] = summary.attention_multiply_adds
    content["attention_share"] = summary.attention_share
    return content


def _title(summary: ModelSummary) -> str:
    if summary.metadata is None:
        return summary.path.name
    head = HEADS.get(summary.metadata.head)
    return f"{head} on {summary.metadata.architecture}" if head else summary.metadata.architecture


def _print(summary: ModelSummary) -> None:
    out = console()
    facts = table("", "")
    facts.show_header = False
    if summary.metadata is not None:
        facts.add_row("architecture", _title(summary))
    facts.add_row("inputs", "; ".join(map(str, summary.inputs)))
    facts.add_row("outputs", "; ".join(map(str, summary.outputs)))
    facts.add_row("parameters", size_text(summary.parameters, ""))
    facts.add_row("size", size_text(summary.file_bytes))
    facts.add_row("graph", f"opset {summary.opset}, {summary.nodes} nodes")
    bodies = "inlined (a flat file)" if summary.flat else "none: needs the operator library or plugin to run"
    facts.add_row("function bodies", ", ".join(summary.functions) or bodies)
    facts.add_row("attention", _work(summary))
    if summary.metadata is not None and summary.metadata.quantized:
        facts.add_row("quantized", f"{summary.metadata.precision}: {summary.metadata.quantization}")
    if summary.parts:
        total = sum(summary.parts.values())
        shares = (f"{part} {size_text(work, '')} ({work / total:.1%})" for part, work in summary.parts.items())
        facts.add_row("parts", ", ".join(shares))
    out.print(facts)
    if len({product.weights for product in summary.products}) > 1 or (
        summary.metadata is not None and summary.metadata.quantized
    ):
        out.print(_products(summary))
    if summary.flat:
        out.print("Attention is inlined into standard operators; inspect the file it was made from to see its layers.")
        return
    if not summary.layers:
        out.print("No neighborhood attention layers.")
        return
    out.print(_layers(summary, wide=out.width >= WIDE))


def _products(summary: ModelSummary) -> Table:
    """Return the products with weights by the types they read; few of a kind are named."""
    from na_deploy.model_file.products import by_types

    listing = table("products with weights", "activations", "weights", "layers", "work", right=("layers", "work"))
    total = sum(product.multiply_adds for product in summary.products) or 1
    for (kind, activations, weights), group in by_types(summary.products).items():
        named = f": {', '.join(product.name for product in group)}" if len(group) <= NAMED else ""
        share = sum(product.multiply_adds for product in group) / total
        listing.add_row(kind + named, activations, weights, str(len(group)), f"{share:.1%}")
    return listing


def _layers(summary: ModelSummary, wide: bool) -> Table:
    """Return the layers, one row per configuration; less on a narrow screen."""
    from na_deploy.model_file.inspection import group_layers

    strided = any(set(layer.stride) != {1} for layer in summary.layers)
    columns = ["layers", "map", "heads", "window", "dilation"]
    columns += ["stride"] if strided else []
    columns += ["bias", "tile", "keys", "memory"] if wide else []
    columns += ["work", "share"]
    listing = table(*columns, right=("memory", "work", "share"))
    for group in group_layers(summary.layers):
        layer = group.layers[0]
        cells = {
            "layers": group.label,
            "map": "×".join(map(str, layer.lengths)),
            "heads": f"{layer.heads}×{layer.head_dim}",
            "window": _per_axis(layer.kernel_size) + (" causal" if any(layer.is_causal) else ""),
            "dilation": _per_axis(layer.dilation),
            "stride": _per_axis(layer.stride),
            "bias": "yes" if layer.has_bias else "no",
            "tile": _per_axis(layer.tile),
            "keys": _per_axis(layer.span),
            "memory": size_text(sum(each.memory_bytes for each in group.layers)),
            "work": size_text(sum(each.multiply_adds for each in group.layers), ""),
            "share": f"{group.share:.1%}",
        }
        listing.add_row(*(cells[column] for column in columns))
    return listing


def layer_bounds(group: LayerGroup) -> Simulation:
    """Count a group's layers with the tile shapes that suit their window best, 64 or 128 tokens by head_dim."""
    from na_deploy.attention.simulator import best_tiles
    from na_deploy.attention.windows import NeighborhoodSpec

    layer = group.layers[0]
    spec = NeighborhoodSpec(layer.kernel_size, layer.dilation, layer.stride, layer.is_causal)
    return best_tiles(layer.reach, spec, 64 if layer.head_dim <= 64 else 128, 128)[0]


def _bounds(summary: ModelSummary) -> Table:
    from na_deploy.model_file.inspection import group_layers

    columns = ("by FLOPs", "by tiles", "unmasked tiles", "useful scores")
    title = "Upper bounds on the speedup over full attention"
    listing = table("layers", "tile", *columns, right=columns, title=title)
    for group in group_layers(summary.layers):
        found = layer_bounds(group)
        tile = f"{_per_axis(found.tile_q)} by {_per_axis(found.tile_kv)}"
        shares = (f"{found.unmasked_share:.0%}", f"{found.useful_share:.0%}")
        listing.add_row(group.label, tile, f"{found.flop_bound:.2f}×", f"{found.tile_bound:.2f}×", *shares)
    return listing


def _work(summary: ModelSummary) -> str:
    sizes = ", ".join("×".join(map(str, size)) for size in summary.input_sizes.values())
    total = summary.attention_multiply_adds + summary.other_multiply_adds
    text = (
        f"{len(summary.layers)} layers, "
        f"{size_text(summary.attention_multiply_adds, '')} of {size_text(total, '')} "
        f"multiply-adds ({summary.attention_share:.1%}) at input {sizes}"
    )
    if summary.counted_once:
        products = "product" if summary.counted_once == 1 else "products"
        text += (
            f"; {size_text(summary.once_multiply_adds, '')} of them are one turn of loops whose length the data decide "
            f"({summary.counted_once} {products}), more turns are not counted"
        )
    if summary.uncounted:
        text += f"; {summary.uncounted} matrix products of unknown shape are not counted"
    return text


def _per_axis(values: tuple[int, ...]) -> str:
    """Write one number per axis, a single one if they are equal."""
    return str(values[0]) if len(set(values)) == 1 else "×".join(map(str, values))
