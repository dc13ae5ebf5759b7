"""Hugging Face's Nat and Dinat: keys to the official layout, and what ``config.json`` says.

Sources: transformers 4.53.3, models/dinat and models/deprecated/nat, the last line whose Dinat forward works.
Files of Model, ForImageClassification and Backbone are read, also as the backbone of a larger model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from na_deploy.errors import CheckpointError

ANCHOR = "embeddings.patch_embeddings.projection.0.weight"

_RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^embeddings\.norm\.", "patch_embed.norm."),
        (r"^encoder\.levels\.(\d+)\.layers\.(\d+)\.", r"levels.\1.blocks.\2."),
        (r"^encoder\.levels\.", "levels."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.attention\.self\.rpb$", ".attn.rpb"),
        (r"\.attention\.output\.dense\.", ".attn.proj."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
        (r"^layernorm\.", "norm."),
        (r"^classifier\.", "head."),
    )
)
_PROJECTION = re.compile(r"^encoder\.levels\.(\d+)\.layers\.(\d+)\.attention\.self\.(query|key|value)\.(weight|bias)$")
_LAYER_SCALE = re.compile(r"^encoder\.levels\.(\d+)\.layers\.(\d+)\.layer_scale_parameters$")
_STAGE_NORM = re.compile(r"^hidden_states_norms\.(\w+?)\.(weight|bias)$")


def convert_state_dict(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Rename to the official keys: query, key and value are packed, layer scales split, stage norms numbered.

    Args:
        tensors: keys without the ``dinat.`` or ``nat.`` prefix.
        path: for messages.

    Raises:
        CheckpointError: a projection lacks its query, key or value, or the stem is one of the outputs.
    """
    result: dict[str, Tensor] = {}
    packed: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := _PROJECTION.match(name):
            level, block, part, kind = match.groups()
            packed.setdefault(f"levels.{level}.blocks.{block}.attn.qkv.{kind}", {})[part] = tensor
        elif match := _LAYER_SCALE.match(name):
            level, block = match.groups()
            (
                result[f"levels.{level}.blocks.{block}.gamma1"],
                result[f"levels.{level}.blocks.{block}.gamma2"],
            ) = tensor
        elif match := _STAGE_NORM.match(name):
            stage, kind = match.groups()
            if not stage.startswith("stage"):
                raise CheckpointError(
                    f"{path} is a backbone that also returns '{stage}', which is not supported; only stages are"
                )
            result[f"norm{int(stage.removeprefix('stage')) - 1}.{kind}"] = tensor
        else:
            for pattern, replacement in _RENAMES:
                name = pattern.sub(replacement, name)
            result[name] = tensor
    for name, parts in packed.items():
        missing = {"query", "key", "value"} - set(parts)
        if missing:
            raise CheckpointError(f"{path} lacks the {min(missing)} projection of {name}; the file is incomplete")
        result[name] = torch.cat([parts["query"], parts["key"], parts["value"]])
    return result


def backbone_configuration(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a ``config.json`` that describes the network: all, or a larger model's backbone."""
    inner = content.get("backbone_config")
    return inner if isinstance(inner, Mapping) else content


def evidence(configuration: Mapping[str, Any], path: Path) -> tuple[str | None, tuple[tuple[int, ...], ...] | None]:
    """Return the family and the dilations a configuration states.

    Raises:
        CheckpointError: another kind of model, or one with another activation than the erf GELU.
    """
    kind = configuration.get("model_type")
    if kind not in ("nat", "dinat"):
        raise CheckpointError(f"{path}: config.json describes the model type {kind!r}, expected 'nat' or 'dinat'")
    if configuration.get("hidden_act", "gelu") != "gelu":
        raise CheckpointError(
            f"{path}: config.json asks for the activation {configuration['hidden_act']!r}, expected 'gelu'"
        )
    if kind == "nat":
        return "nat", None
    dilations = configuration.get("dilations", ((1, 8, 1), (1, 4, 1, 4), (1, 2, 1, 2, 1, 2), (1, 1, 1, 1, 1)))
    return "dinat", tuple(tuple(int(d) for d in level) for level in dilations)


def labels(configuration: Mapping[str, Any]) -> dict[int, str]:
    """Return class names by number; the placeholders ``LABEL_0`` … are no names."""
    names = configuration.get("id2label") or {}
    result = {int(index): str(name) for index, name in names.items()}
    return {} if all(re.fullmatch(r"LABEL_\d+", name) for name in result.values()) else result
