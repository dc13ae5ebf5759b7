"""Bundles in commands that take a model: opening one, showing its manifest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from na_deploy.cli.output import console, size_text, table

if TYPE_CHECKING:
    from na_deploy.runtime.bundle import Bundle, Manifest


@contextmanager
def opened_bundle(path: Path) -> Iterator[tuple[Path, Bundle | None]]:
    """Yield the ONNX file of a model or of a verified bundle, and the bundle."""
    from na_deploy.runtime.bundle import is_bundle, open_bundle

    if not is_bundle(path):
        yield path, None
        return
    with open_bundle(path) as bundle:
        yield bundle.file("model"), bundle


@contextmanager
def opened_model(path: Path) -> Iterator[tuple[Path, Manifest | None]]:
    """Yield the ONNX file of a model or of a verified bundle, and the bundle's manifest."""
    with opened_bundle(path) as (file, bundle):
        yield file, None if bundle is None else bundle.manifest


def manifest_as_dict(manifest: Manifest) -> dict[str, Any]:
    """Return what a person or program wants to know of a manifest, as JSON types."""
    return {
        "backend": manifest.backend,
        "members": {m.name: {"role": m.role, "bytes": m.bytes, "sha256": m.sha256} for m in manifest.members},
        "requires": dict(manifest.requires),
        "profiles": {
            name: {"minimum": p.minimum, "optimum": p.optimum, "maximum": p.maximum}
            for name, p in manifest.profiles.items()
        },
        "settings": dict(manifest.settings),
        "build": dict(manifest.build),
        "tool_version": manifest.tool_version,
    }


def print_choice(manifest: Manifest) -> None:
    """Print what was measured where a bundle was built for the fastest backend, and the difference that was found."""
    from rich.markup import escape

    out, choice = console(), manifest.build.get("choice")
    if isinstance(choice, dict):
        chosen = f"{manifest.backend} {manifest.settings.get('precision', '')}".strip()
        rows = table("backend", "p50 ms", "difference", "", right=("p50 ms", "difference"))
        for each in choice["candidates"]:
            found = "–" if each["difference"] is None else f"{each['difference']:.1e}"
            mark = "chosen" if each["backend"] == chosen else ""
            rows.add_row(escape(each["backend"]), f"{each['p50_ms']:.2f}", found, mark)
        rows.title = escape(f"measured on {choice['machine']}, tolerance {choice['tolerance']:.0e}")
        out.print(rows)
    if isinstance(difference := manifest.build.get("difference"), float):
        out.print(f"largest relative difference to ONNX Runtime's function bodies: {difference:.1e}")


def print_engine(manifest: Manifest) -> None:
    """Print the engine inspector's account of the build: layers by precision, plugins and their tactics."""
    from rich.markup import escape

    figures = manifest.build
    if "engine_layers" not in figures:
        return
    precisions = ", ".join(f"{count} {name}" for name, count in dict(figures.get("precisions", {})).items())
    console().print(f"engine of {figures['engine_layers']} layers: {escape(precisions)}")
    plugins = ", ".join(f"{count} {name}" for name, count in dict(figures.get("plugins", {})).items())
    tactics = ", ".join(f"{name} ({count})" for name, count in dict(figures.get("plugin_tactics", {})).items())
    if plugins:
        console().print(f"plugins: {escape(plugins)}; tactics: {escape(tactics)}")


def print_manifest(manifest: Manifest) -> None:
    """Print members, sizes an engine is built for, and what is needed to run it."""
    from rich.markup import escape

    from na_deploy.model_file.tensors import format_shape

    out = console()
    listing = table("member", "what", "size", "SHA-256", right=("size",))
    for member in manifest.members:
        listing.add_row(escape(member.name), member.role, size_text(member.bytes), f"{member.sha256[:16]}…")
    out.print(listing)
    for name, profile in manifest.profiles.items():
        low, usual, high = (format_shape(shape) for shape in (profile.minimum, profile.optimum, profile.maximum))
        out.print(f"{escape(name)}: from {low} to {high}, usually {usual}")
    # Where those do not fit, the model is compiled again.
    compiled = {name: value for name, value in manifest.requires.items() if name.endswith("_compiled")}
    needs = ", ".join(f"{name} {value}" for name, value in manifest.requires.items() if name not in compiled)
    out.print(
        escape(
            f"for {manifest.backend}; needs {needs or 'nothing stated'}; written by na-deploy {manifest.tool_version}"
        )
    )
    if compiled:
        out.print(escape(f"compiled for {', '.join(compiled.values())}; elsewhere when it is loaded"))
