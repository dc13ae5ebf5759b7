"""TensorRT-RTX's own parser and builder take the files that ``na_deploy.export`` writes. Needs no GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rtx_engines import Built, build_rtx_engine

from na_deploy import export
from na_deploy.models import LoadedModel, get_model, load_model, random_checkpoint

Load = Callable[..., LoadedModel]
DEPTHS = (1, 1, 1, 1)
"""Depths of the shallow networks; published widths, windows and heads otherwise."""


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Load a published model with seeded random weights, with a few of its blocks unless all are asked for.

    benchmarks/export_all.py builds engines of every published model in full.
    """
    folder = tmp_path_factory.mktemp("checkpoints")

    def load(name: str, *, full: bool = False, **more: Any) -> LoadedModel:
        path = folder / f"{name}-{full}.pth"
        config = get_model(name).config
        if not full:
            depths = DEPTHS[: len(config.depths)] if len(config.depths) > 1 else (2,)
            dilations = tuple(level[-depth:] for level, depth in zip(config.dilations, depths, strict=True))
            config = replace(config, depths=depths, dilations=dilations)
        if not path.exists():
            random_checkpoint(config, seed=0, path=path)
        if full:
            return load_model(path, arch=name, **more)
        text = "/".join(",".join(map(str, level)) for level in config.dilations)
        return load_model(path, arch=KINDS.get(name, "dinat"), **({"dilations": text} | more))

    return load


CODE = 16e6
"""Bytes of an engine that are not weights."""

KINDS = {"dinat_s_tiny": "dinat_s", "dinat_isotropic_small": "dinat_isotropic"}
"""Options for networks of other depths; dilations of 1 make a NAT of a DiNAT."""


def build(loaded: LoadedModel, folder: Path, profiles: Any = None, **options: Any) -> tuple[Built, int]:
    """Export and build; return the engine and the file's size."""
    exported = export(loaded, folder / "model.onnx", **options)
    return build_rtx_engine(exported.path, profiles), exported.size


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("nat_mini", "fp32"),
        pytest.param("dinat_mini", "fp16", marks=pytest.mark.slow),
        ("dinat_s_tiny", "fp16"),
        pytest.param("nat_mini", "fp16", marks=pytest.mark.slow),
        pytest.param("dinat_mini", "fp32", marks=pytest.mark.slow),
        pytest.param("dinat_s_tiny", "fp32", marks=pytest.mark.slow),
    ],
)
def test_an_engine_is_built_from_the_file_as_it_is(name: str, dtype: str, load: Load, tmp_path: Path):
    engine, size = build(load(name), tmp_path, dtype=dtype)
    # The engine holds the weights in the file's own precision.
    assert 0.9 * size < engine.engine_bytes < 2 * size + CODE
    assert engine.report.layers > 80


@pytest.mark.slow
def test_an_engine_of_a_published_size_is_built(load: Load, tmp_path: Path):
    engine, size = build(load("dinat_mini", full=True), tmp_path, dtype="fp16")
    assert 0.9 * size < engine.engine_bytes < 2 * size + CODE
    assert engine.report.layers > 300


def test_bfloat16_is_taken(load: Load, tmp_path: Path):
    engine, size = build(load("nat_mini"), tmp_path, dtype="bf16")
    assert engine.engine_bytes > 0.9 * size


def test_isotropic_models_are_taken(load: Load, tmp_path: Path):
    engine, size = build(load("dinat_isotropic_small"), tmp_path)
    assert engine.engine_bytes > 0.9 * size


def test_a_free_batch_is_taken(load: Load, tmp_path: Path):
    profiles = {"image": ((1, 3, 224, 224), (8, 3, 224, 224), (16, 3, 224, 224))}
    engine, size = build(load("nat_mini"), tmp_path, profiles, dynamic="batch", dtype="fp16")
    assert engine.engine_bytes > 0.9 * size


@pytest.mark.slow
def test_free_sizes_of_a_backbone_are_taken(load: Load, tmp_path: Path):
    loaded = load("dinat_mini", out_indices=(0, 1, 2, 3))
    profiles = {"image": ((1, 3, 128, 128), (1, 3, 224, 224), (2, 3, 320, 352))}
    engine, size = build(loaded, tmp_path, profiles, dynamic="batch,spatial")
    assert engine.engine_bytes > 0.9 * size


@pytest.mark.parametrize("dtype", ["fp16", pytest.param("fp32", marks=pytest.mark.slow)])
def test_maps_smaller_than_windows_are_taken(dtype: str, load: Load, tmp_path: Path):
    engine, size = build(load("dinat_mini"), tmp_path, dtype=dtype, input="1x3x128x160")
    assert 0.9 * size < engine.engine_bytes < 2 * size + CODE
