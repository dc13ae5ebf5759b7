"""``load_model``: from a checkpoint to a network ready to run, with all that was found out on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from na_deploy.errors import CheckpointError, UsageError
from na_deploy.models.build import build_model, expected_shapes
from na_deploy.models.checkpoint import Checkpoint, read_checkpoint
from na_deploy.models.class_sets import class_set
from na_deploy.models.config import ModelConfig
from na_deploy.models.detect import read_structure
from na_deploy.models.layers import relative_position_index
from na_deploy.models.metadata import ModelMetadata, score_function
from na_deploy.models.preprocessing import (
    Preprocessing,
    dense_prediction,
    hugging_face_classification,
    official_classification,
    unprepared,
)
from na_deploy.models.resolve_architecture import ResolvedArchitecture, resolve_architecture


@dataclass(frozen=True)
class LoadedModel:
    """A network with its weights.

    Attributes:
        module: in evaluation mode, float32, without gradients.
        config: its description.
        architecture: published name, or the kind ("nat", "dinat", …) for other sizes.
        metadata: the properties that an exported file will have.
        warnings: contradictions, clues and things left aside; one sentence each.
        input_size: (H, W) of the images it was trained on, as far as known.
    """

    module: nn.Module
    config: ModelConfig
    architecture: str
    metadata: ModelMetadata
    warnings: list[str]
    input_size: tuple[int, int]


def load_model(
    path: str | Path,
    *,
    arch: str | None = None,
    dilations: str | Sequence[Sequence[int]] | None = None,
    num_classes: int | None = None,
    backbone: bool = False,
    out_indices: Sequence[int] | None = None,
) -> LoadedModel:
    """Load a NAT or DiNAT checkpoint: official, wrapped, safetensors, or Hugging Face.

    Args:
        path: a file, or a Hugging Face folder.
        arch: a published name (``na-deploy models``), or "nat", "dinat", … for other sizes; needed where
            neither the file's name nor its contents tell NAT from DiNAT.
        dilations: "none", a preset ("coco", "ade20k", …), text such as "1,8,1/1,4,1,4/…", or nested numbers.
        num_classes: the class count expected of the file; 0 drops the head and returns pooled features.
        backbone: return feature maps of every level, also from a classification checkpoint.
        out_indices: the levels to return, from 0; implies ``backbone``.

    Raises:
        CheckpointError: the file is unreadable, incomplete or no such model.
        UsageError: ``arch`` or ``dilations`` do not fit it.
        AmbiguousArchitectureError: several architectures fit, and nothing tells them apart.
    """
    checkpoint = read_checkpoint(path)
    structure = read_structure(checkpoint.state_dict, checkpoint.path)
    if checkpoint.hugging_face is not None:
        structure = replace(structure, layer_norm_eps=float(checkpoint.hugging_face.get("layer_norm_eps", 1e-5)))
    resolved = resolve_architecture(structure, checkpoint, arch, dilations)
    warnings = [*checkpoint.warnings, *resolved.warnings]
    config, weights = _outputs(resolved.config, checkpoint, num_classes, backbone, out_indices, warnings)
    _check_weights(weights, config, checkpoint.path)
    with torch.device("meta"):
        module = build_model(config)
    module.load_state_dict(weights, strict=True, assign=True)
    module.eval().requires_grad_(False)
    preprocessing = _preprocessing(checkpoint, resolved, config)
    metadata = ModelMetadata(
        architecture=resolved.architecture,
        task=_task(config, checkpoint),
        num_classes=config.num_classes,
        scores="sigmoid" if checkpoint.problem == "multi_label_classification" else score_function(config.num_classes),
        dilations=config.dilations,
        source_name=checkpoint.name,
        source_sha256=checkpoint.sha256,
        preprocessing=preprocessing,
        labels=_labels(checkpoint, resolved, config),
        config=config,
    )
    return LoadedModel(module, config, resolved.architecture, metadata, warnings, preprocessing.size)


def _task(config: ModelConfig, checkpoint: Checkpoint) -> str:
    if config.is_backbone:
        return "backbone"
    if not config.num_classes:
        return "features"
    return "regression" if checkpoint.problem == "regression" else "classification"


def _outputs(
    config: ModelConfig,
    checkpoint: Checkpoint,
    num_classes: int | None,
    backbone: bool,
    out_indices: Sequence[int] | None,
    warnings: list[str],
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Apply the wishes about the network's last layers to its description and its weights."""
    weights = dict(checkpoint.state_dict)
    if not (backbone or out_indices or config.is_backbone):
        if num_classes == 0:
            weights = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
            config = replace(config, num_classes=0)
        elif num_classes is not None and num_classes != config.num_classes:
            raise UsageError(f"{checkpoint.path} has a head of {config.num_classes} classes, not {num_classes}")
        return config, weights
    if num_classes:
        raise UsageError(f"{checkpoint.path} is loaded as a backbone, which has no classes; remove num_classes")
    present = config.out_indices
    wanted = tuple(sorted(set(out_indices))) if out_indices else present or tuple(range(len(config.depths)))
    config = replace(config, num_classes=0, out_indices=wanted)
    if present and not set(wanted) <= set(present):
        raise UsageError(
            f"{checkpoint.path} has feature norms for the levels {list(present)}, not for {list(wanted)}; ask for those"
        )
    drop = ("head.", "norm.", *(f"norm{index}." for index in present if index not in wanted))
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith(drop)}
    if not present:
        for index in wanted:
            weights[f"norm{index}.weight"] = torch.ones(config.widths[index])
            weights[f"norm{index}.bias"] = torch.zeros(config.widths[index])
        warnings.append(
            f"{checkpoint.name} is a classifier without per-level feature norms; they are set to weight 1 "
            "and bias 0, as detectors start training from it"
        )
    return config, weights


def _check_weights(weights: Mapping[str, Tensor], config: ModelConfig, path: Path) -> None:
    """Compare names and shapes with the network's.

    Raises:
        CheckpointError: something is missing, unexpected or of another shape.
    """
    expected = expected_shapes(config)
    missing = [name for name in expected if name not in weights]
    unexpected = [name for name in weights if name not in expected]
    clashing = [name for name in expected if name in weights and tuple(weights[name].shape) != expected[name]]
    if missing:
        raise CheckpointError(f"{path} lacks {_some(missing)}, which this network has; the file is incomplete")
    if unexpected:
        raise CheckpointError(
            f"{path} holds {_some(unexpected)}, which a {config.family} network does not have; it is a "
            "modified model, or training left something in the file: remove those entries if they do not "
            "change the network's outputs"
        )
    if clashing:
        name = clashing[0]
        raise CheckpointError(
            f"{path}: {name} has shape {list(weights[name].shape)}, expected {list(expected[name])}; the "
            "file mixes sizes or is damaged"
        )
    for name, tensor in weights.items():
        if not tensor.is_floating_point() and not name.endswith("relative_position_index"):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(f"{path}: {name} holds {kind} numbers, expected floats; give the original weights")
        if name.endswith("relative_position_index") and not torch.equal(
            tensor, relative_position_index(config.kernel_size)
        ):
            raise CheckpointError(f"{path}: {name} orders positions differently from ViT-rpb; it is a modified model")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


def _labels(checkpoint: Checkpoint, resolved: ResolvedArchitecture, config: ModelConfig) -> Mapping[int, str]:
    """Return the file's own class names, or ImageNet's for a published network with its 1,000 classes."""
    if checkpoint.labels:
        return checkpoint.labels if len(checkpoint.labels) == config.num_classes else {}
    imagenet = class_set("imagenet").labels
    return imagenet if resolved.entry is not None and config.num_classes == len(imagenet) else {}


def _preprocessing(checkpoint: Checkpoint, resolved: ResolvedArchitecture, config: ModelConfig) -> Preprocessing:
    """Choose what the file says, else what its origin does; for other inputs than RGB the file must say."""
    side = resolved.entry.image_size if resolved.entry else 224
    if config.fixed_map:
        side = config.kernel_size * config.patch_size
    dense = resolved.preset.image_size if resolved.preset else (512, 512)
    size = dense if config.is_backbone else (side, side)
    own = checkpoint.preprocessing
    if own is not None and len(own.mean) == len(own.std) == config.in_channels:
        return own
    if config.in_channels != 3:
        return unprepared(size if own is None else own.size, config.in_channels)
    if config.is_backbone:
        return dense_prediction(size)
    return hugging_face_classification(side) if checkpoint.hugging_face is not None else official_classification(side)
