"""Reading a network's structure from the shapes of its weights.

Family, widths, depths, heads, window, MLP ratio, layer scale, classes and feature norms follow from names and
shapes, for published and other sizes alike. Dilations do not; ``resolve_architecture.py`` decides those.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from na_deploy.errors import CheckpointError
from na_deploy.models.config import ModelConfig, ones
from na_deploy.models.registry import DINAT_S_LARGE_OLD_HEADS, ModelEntry, list_models

_BLOCK = {
    "nat": re.compile(r"^levels\.(\d+)\.blocks\.(\d+)\."),
    "dinat_s": re.compile(r"^layers\.(\d+)\.blocks\.(\d+)\."),
    "isotropic": re.compile(r"^layers()\.(\d+)\.(?:attn|mlp|norm)"),
}


def read_structure(tensors: Mapping[str, Tensor], path: Path) -> ModelConfig:
    """Describe the network whose weights these are; every dilation is 1, for lack of evidence.

    Args:
        tensors: a state_dict in the official key layout.
        path: for messages.

    Raises:
        CheckpointError: no known layout, or weights that are missing or have an impossible shape.
    """
    family, depths = _family_and_depths(tensors, path)

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in tensors:
            raise CheckpointError(
                f"{path} lacks {name}, from which the network's size is read; the file is incomplete, or "
                "made by another kind of model"
            )
        found = tuple(tensors[name].shape)
        if len(found) != rank or min(found) < 1:
            raise CheckpointError(f"{path}: {name} has shape {list(found)}, expected {rank} dimensions")
        return found

    def block(level: int, name: str) -> str:
        return f"layers.0.{name}" if family == "isotropic" else f"{_root(family)}.{level}.blocks.0.{name}"

    projection = "patch_embed.proj.1.weight" if family == "nat" else "patch_embed.proj.weight"
    embed_dim, _, patch, _ = shape(projection, 4)
    in_channels = shape("patch_embed.proj.0.weight" if family == "nat" else projection, 4)[1]
    if not any(name.endswith("attn.rpb") for name in tensors):
        raise CheckpointError(
            f"{path} has attention without relative position bias (no attn.rpb), so windows and heads are not in its "
            "weights; export the module itself with package.module:factory"
        )
    tables = [shape(block(level, "attn.rpb"), 3) for level in range(len(depths))]
    windows = {tuple(table[1:]) for table in tables}
    if len(windows) > 1:
        sizes = ", ".join("×".join(str((side + 1) // 2) for side in table[1:]) for table in tables)
        raise CheckpointError(
            f"{path} has windows of {sizes} in its levels; networks with one window for all are known, so export the "
            "module itself with package.module:factory"
        )
    if tables[0][1] % 2 == 0:
        raise CheckpointError(
            f"{path}: {block(0, 'attn.rpb')} has shape {list(tables[0])}, expected (heads, 2K-1, 2K-1)"
        )
    hidden, width = shape(block(0, "mlp.fc1.weight"), 2)
    features = tuple(sorted(int(m.group(1)) for name in tensors if (m := re.match(r"^norm(\d+)\.weight$", name))))
    classes = shape("head.weight", 2)[0] if "head.weight" in tensors else 0
    return ModelConfig(
        family=family,  # type: ignore[arg-type]
        embed_dim=embed_dim,
        depths=depths,
        heads=tuple(table[0] for table in tables),
        kernel_size=(tables[0][1] + 1) // 2,
        dilations=ones(depths),
        mlp_ratio=hidden / width,
        layer_scale=block(0, "gamma1") in tensors,
        num_classes=0 if features else classes,
        out_indices=features,
        patch_size=4 if family == "nat" else patch,
        in_channels=in_channels,
        qkv_bias=block(0, "attn.qkv.bias") in tensors,
        fixed_map=block(0, "attn.relative_position_index") in tensors,
    )


def _root(family: str) -> str:
    return "levels" if family == "nat" else "layers"


def _family_and_depths(tensors: Mapping[str, Tensor], path: Path) -> tuple[str, tuple[int, ...]]:
    for family, pattern in _BLOCK.items():
        blocks = {(int(m.group(1) or 0), int(m.group(2))) for name in tensors if (m := pattern.match(name))}
        if not blocks:
            continue
        levels = sorted({level for level, _ in blocks})
        depths = tuple(1 + max(block for at, block in blocks if at == level) for level in levels)
        expected = {(level, block) for level, depth in enumerate(depths) for block in range(depth)}
        if expected != blocks:
            raise CheckpointError(
                f"{path} lacks blocks: level and block {min(expected ^ blocks)}; the file is incomplete"
            )
        return family, depths
    shown = ", ".join(list(tensors)[:3])
    raise CheckpointError(
        f"{path} holds no NAT or DiNAT blocks (its weights start with {shown}); expected "
        "levels.0.blocks.0.…, layers.0.blocks.0.… or layers.0.attn.…"
    )


def fitting_models(structure: ModelConfig) -> list[ModelEntry]:
    """Return the published models whose weights have these shapes, whatever the head."""
    return [entry for entry in list_models() if fits(entry, structure)]


def fits(entry: ModelEntry, structure: ModelConfig) -> bool:
    """Say whether a published model's blocks have the shapes of ``structure``."""
    return not differences(entry, structure)


def differences(entry: ModelEntry, structure: ModelConfig) -> list[str]:
    """Name what keeps a published model from having these shapes, "depths 3,4,18,5 (found 3,4,6,5)"."""
    wanted = entry.config
    if wanted.family == "dinat_s" and wanted.embed_dim == 192 and structure.heads == DINAT_S_LARGE_OLD_HEADS:
        wanted = replace(wanted, heads=DINAT_S_LARGE_OLD_HEADS)
    plain = ("embed_dim", "depths", "heads", "kernel_size", "mlp_ratio", "patch_size")
    labels = {"family": "layout", **{name: name for name in plain}}
    labels |= {"layer_scale": "layer scale", "fixed_map": "attention over the whole map"}
    result = []
    for name, label in labels.items():
        expected, found = getattr(wanted, name), getattr(structure, name)
        if expected != found:
            result.append(f"{label} {_text(expected)} (found {_text(found)})")
    return result


def describe(structure: ModelConfig) -> str:
    """Return a structure in a few words, for messages."""
    scale = ", layer scale" if structure.layer_scale else ""
    return (
        f"{structure.family} layout, embed_dim {structure.embed_dim}, depths {_text(structure.depths)}, "
        f"heads {_text(structure.heads)}, kernel_size {structure.kernel_size}, mlp_ratio "
        f"{structure.mlp_ratio:g}{scale}"
    )


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
