"""The layers of a bundle's engine, as ``na-deploy inspect`` shows them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from na_deploy.cli.output import console, table
from na_deploy.errors import NaDeployError, UsageError

if TYPE_CHECKING:
    from na_deploy.runtime.bundle import Bundle
    from na_deploy.runtime.tensorrt.layers import EngineLayer

_NAME_SHOWN = 80


def read_engine_layers(path: Path, bundle: Bundle | None, times: bool, sizes: tuple[str, ...]) -> list[EngineLayer]:
    """Return the layers of a bundle's engine, with ``times`` measured on the GPU.

    Raises:
        UsageError: it is no bundle with an engine.
        NaDeployError: the bundle does not describe the layers, or the engine does not run here.
    """
    from na_deploy.runtime.backend_names import ENGINE_BACKENDS
    from na_deploy.runtime.tensorrt.layers import read_layers

    if bundle is None or bundle.manifest.backend not in ENGINE_BACKENDS:
        raise UsageError(f"{path} holds no engine; build one with: na-deploy build --backend tensorrt")
    if not times:
        if bundle.manifest.member("report") is None:
            raise NaDeployError(
                f"{path} does not describe its engine's layers: it was built without a GPU; try --times on one"
            )
        return read_layers(bundle.file("report"))

    from na_deploy.model_file.example_inputs import example_inputs, example_shapes, parse_inputs
    from na_deploy.runtime.tensorrt.profiling import profile_layers
    from na_deploy.runtime.tensorrt.session import open_bundle_engine

    usual = {name: profile.optimum for name, profile in bundle.manifest.profiles.items()}
    with open_bundle_engine(bundle) as session:
        given = parse_inputs(sizes, [spec.name for spec in session.inputs])
        shapes = example_shapes(session.inputs, session.metadata, given, usual=usual)
        return profile_layers(session, example_inputs(session.inputs, shapes))


def print_engine_layers(layers: list[EngineLayer]) -> None:
    """Print the layers in order of execution, with their times where they were measured."""
    from rich.markup import escape

    timed = any(layer.ms is not None for layer in layers)
    total = sum(layer.ms or 0.0 for layer in layers)
    columns = ["", "layer", "kind", "precision", "tactic", *(["ms", "share"] if timed else [])]
    listing = table(*columns, right=("", "ms", "share"), title="Layers of the engine")
    for index, layer in enumerate(layers):
        name = layer.name if len(layer.name) <= _NAME_SHOWN else layer.name[: _NAME_SHOWN - 1] + "…"
        cells = [str(index), escape(name), escape(layer.operator or layer.kind), layer.precision, escape(layer.tactic)]
        if timed:
            cells += ["", ""] if layer.ms is None else [f"{layer.ms:.3f}", f"{layer.ms / total if total else 0.0:.1%}"]
        listing.add_row(*cells)
    console().print(listing)
    if timed:
        console().print(f"{total:.3f} ms in all layers; the profiler slows an engine, `na-deploy bench` times it")
