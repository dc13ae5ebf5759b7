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
from na_deploy.models.detectors.loading import load_detector
from na_deploy.models.detectors.rcnn import DetectorConfig
from na_deploy.models.detectors.stated import SUPPORTED
from na_deploy.models.heads.structure import HeadConfig
from na_deploy.models.hub import local_path
from na_deploy.models.layers import relative_position_index
from na_deploy.models.metadata import HEAD_OUTPUTS, HEADS, ModelMetadata, score_function
from na_deploy.models.mm_config import mm_classification
from na_deploy.models.preprocessing import (
    Preprocessing,
    dense_prediction,
    hugging_face_classification,
    official_classification,
    unprepared,
)
from na_deploy.models.resolve_architecture import ResolvedArchitecture, resolve_architecture
from na_deploy.models.segmenters import load_segmenter
from na_deploy.models.weight_checks import check_weights


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
        head: a segmenter's or a detector's head; the module is then the whole network, and ``config`` its backbone's.
    """

    module: nn.Module
    config: ModelConfig
    architecture: str
    metadata: ModelMetadata
    warnings: list[str]
    input_size: tuple[int, int]
    head: HeadConfig | DetectorConfig | None = None

    @property
    def title(self) -> str:
        """The model in a few words, "Mask2Former on dinat_large" for instance."""
        head = HEADS.get(self.metadata.head)
        return f"{head} on {self.architecture}" if head else self.architecture

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs in exported files."""
        head = self.metadata.head
        return HEAD_OUTPUTS[head] if head else self.config.output_names


def load_model(
    path: str | Path,
    *,
    arch: str | None = None,
    dilations: str | Sequence[Sequence[int]] | None = None,
    num_classes: int | None = None,
    backbone: bool = False,
    out_indices: Sequence[int] | None = None,
    task: str | None = None,
    detections: int | None = None,
) -> LoadedModel:
    """Load a NAT or DiNAT checkpoint: official, wrapped, safetensors, or Hugging Face; segmenters and detectors whole.

    Args:
        path: a file, a Hugging Face folder, or ``hf://owner/name`` for one on the hub.
        arch: a published name (``na-deploy models``), or "nat", "dinat", … for other sizes; needed where
            neither the file's name nor its contents tell NAT from DiNAT.
        dilations: "none", a preset ("coco", "ade20k", …), text such as "1,8,1/1,4,1,4/…", or nested numbers.
        num_classes: the class count expected of the file; 0 drops the head and returns pooled features.
        backbone: return feature maps of every level, also from the checkpoint of a classifier, segmenter or detector.
        out_indices: the levels to return, from 0; implies ``backbone``.
        task: "semantic", "instance" or "panoptic": how a segmenter's answers are read, and what OneFormer is asked.
        detections: rows of a detector's outputs; by default as many as its configuration says, 100 for most.

    Raises:
        CheckpointError: the file is unreadable, incomplete or no such model, or has parts that are not supported and
            were not left away with ``backbone``.
        UsageError: ``arch`` or ``dilations`` do not fit it.
        AmbiguousArchitectureError: several architectures fit, and nothing tells them apart.
    """
    checkpoint = read_checkpoint(local_path(path))
    structure = read_structure(checkpoint.state_dict, checkpoint.path)
    if checkpoint.hugging_face is not None:
        structure = replace(structure, layer_norm_eps=float(checkpoint.hugging_face.get("layer_norm_eps", 1e-5)))
    resolved = resolve_architecture(structure, checkpoint, arch, dilations)
    warnings = [*checkpoint.warnings, *resolved.warnings]
    backbone = backbone or bool(out_indices)
    whole = checkpoint.head is not None and not backbone
    _check_parts(checkpoint, backbone, warnings)
    detector = whole and checkpoint.head is not None and checkpoint.head.is_detector
    if task is not None and (not whole or detector) and not (detector and task == "detection"):
        raise UsageError(f"a task was given ({task}), and what is loaded of {checkpoint.path} is no segmenter")
    if detections is not None and not detector:
        raise UsageError(
            f"a number of detections was given ({detections}), and what is loaded of {checkpoint.path} is no detector"
        )
    config, weights = _outputs(resolved.config, checkpoint, num_classes, backbone, out_indices, warnings)
    _check_weights(weights, config, checkpoint.path)
    if checkpoint.head is not None and not backbone:
        if num_classes not in (None, checkpoint.head.num_classes):
            raise UsageError(
                f"{checkpoint.path} has a head of {checkpoint.head.num_classes} classes, not {num_classes}"
            )
        settled = replace(resolved, config=config)
        if checkpoint.head.is_detector:
            found = load_detector(checkpoint, checkpoint.head, settled, weights, detections, warnings)
            return LoadedModel(
                found.module, config, resolved.architecture, found.metadata, warnings, found.input_size, found.head
            )
        network = load_segmenter(checkpoint, checkpoint.head, settled, weights, task, warnings)
        size = network.metadata.preprocessing.size
        return LoadedModel(
            network.module, config, resolved.architecture, network.metadata, warnings, size, network.head
        )
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


def _check_parts(checkpoint: Checkpoint, backbone: bool, warnings: list[str]) -> None:
    """Say which parts of a checkpoint are not loaded; they must have been left away on purpose.

    Raises:
        CheckpointError: the file has parts beside the backbone that are not supported, and it was not asked for alone.
    """
    if checkpoint.head is not None:
        if backbone:
            warnings.append(
                f"only the backbone of {checkpoint.name} is loaded; its {checkpoint.head.title} head is not"
            )
        return
    if not checkpoint.others:
        return
    parts = ", ".join(checkpoint.others[:6]) + (", …" if len(checkpoint.others) > 6 else "")
    if not backbone:
        kind = checkpoint.training.model.get("type")
        what = f" (a {kind})" if isinstance(kind, str) else ""
        raise CheckpointError(
            f"only the backbone of {checkpoint.path}{what} can be exported; its other parts ({parts}) are not "
            "supported: ask for the backbone alone with --part backbone; whole networks are UPerNet, MaskFormer, "
            f"Mask2Former, OneFormer, {SUPPORTED}"
        )
    warnings.append(f"only the backbone of {checkpoint.name} is loaded; left aside: {parts}")


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
    if num_classes and checkpoint.head is None:
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
    check_weights(weights, expected_shapes(config), path, f"a {config.family} network")
    for name, tensor in weights.items():
        if not tensor.is_floating_point() and not name.endswith("relative_position_index"):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(f"{path}: {name} holds {kind} numbers, expected floats; give the original weights")
        if name.endswith("relative_position_index") and not torch.equal(
            tensor, relative_position_index(config.kernel_size)
        ):
            raise CheckpointError(f"{path}: {name} orders positions differently from ViT-rpb; it is a modified model")


def _labels(checkpoint: Checkpoint, resolved: ResolvedArchitecture, config: ModelConfig) -> Mapping[int, str]:
    """Return the file's own class names, or ImageNet's for a published network with its 1,000 classes."""
    own = checkpoint.labels or dict(enumerate(checkpoint.training.classes))
    if own:
        return own if len(own) == config.num_classes else {}
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
    if own is None and not config.is_backbone:
        own = mm_classification(checkpoint.training)
    if own is not None and len(own.mean) == len(own.std) == config.in_channels:
        return own
    if config.in_channels != 3:
        return unprepared(size if own is None else own.size, config.in_channels)
    if config.is_backbone:
        return dense_prediction(size)
    return hugging_face_classification(side) if checkpoint.hugging_face is not None else official_classification(side)
