"""Small networks of every family, with random weights in the official key layout, loaded as a user would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from na_deploy import export
from na_deploy.exporter import ExportReport
from na_deploy.models import LoadedModel, ModelConfig, load_model, random_checkpoint

HIERARCHICAL = ModelConfig(
    family="nat",
    embed_dim=32,
    depths=(1, 2),
    heads=(1, 2),
    kernel_size=5,
    dilations=((1,), (1, 2)),
    mlp_ratio=2.0,
    num_classes=10,
)
CONFIGS = {
    "nat": replace(HIERARCHICAL, dilations=((1,), (1, 1))),
    "dinat": HIERARCHICAL,
    "dinat_base": replace(HIERARCHICAL, layer_scale=True),
    "dinat_s": replace(HIERARCHICAL, family="dinat_s"),
    "isotropic": replace(HIERARCHICAL, family="isotropic", depths=(2,), heads=(1,), dilations=((1, 2),), patch_size=8),
    "backbone": replace(HIERARCHICAL, num_classes=0, out_indices=(0, 1)),
    "features": replace(HIERARCHICAL, num_classes=0),
}
ARCHITECTURES = {"dinat_s": "dinat_s", "isotropic": "dinat_isotropic", "nat": "nat"}
SIZE = 64


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint file of every small network."""
    folder = tmp_path_factory.mktemp("checkpoints")
    paths = {}
    for name, config in CONFIGS.items():
        paths[name] = folder / f"{name}.pth"
        random_checkpoint(config, seed=len(name), path=paths[name])
    return paths


@pytest.fixture(scope="session")
def load_small(checkpoints: dict[str, Path]) -> Callable[[str], LoadedModel]:
    """Load one of the small networks by name."""

    def load(name: str) -> LoadedModel:
        config = CONFIGS[name]
        dilations = "/".join(",".join(map(str, level)) for level in config.dilations)
        arch = ARCHITECTURES.get(name, "dinat")
        return load_model(checkpoints[name], arch=arch, dilations=dilations)

    return load


@pytest.fixture(scope="session")
def exported(
    load_small: Callable[[str], LoadedModel], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., ExportReport]:
    """Export a small network at 64x64, once for every set of options; the files are for reading only."""
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def once(name: str, **options: str) -> ExportReport:
        options = {key: value for key, value in options.items() if value}
        label = "-".join((name, *options.values())).replace(",", "-")
        return export(load_small(name), folder / f"{label}.onnx", input=f"1x3x{SIZE}x{SIZE}", **options)  # type: ignore[arg-type]

    return once
