"""From a checkpoint with a segmentation head to the whole network, and what an exported file will say about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from na_deploy.errors import CheckpointError, UsageError
from na_deploy.models.build import build_model
from na_deploy.models.checkpoint import Checkpoint
from na_deploy.models.class_sets import CLASS_SETS, ClassSet, class_set, matching
from na_deploy.models.heads.names import HeadWeights, load_whole
from na_deploy.models.heads.oneformer import OneFormer
from na_deploy.models.heads.structure import (
    HeadConfig,
    Stated,
    build_segmenter,
    head_shapes,
    read_head,
    stated_by_hugging_face,
    stated_by_mmsegmentation,
)
from na_deploy.models.metadata import SEGMENT_TASKS, ModelMetadata
from na_deploy.models.mm_config import mm_preprocessing
from na_deploy.models.preprocessing import Preprocessing, from_hugging_face, shortest_side
from na_deploy.models.resolve_architecture import ResolvedArchitecture
from na_deploy.models.weight_checks import check_weights


@dataclass(frozen=True)
class LoadedSegmenter:
    """A whole network and what belongs into its file's metadata.

    Attributes:
        module: in evaluation mode, float32, without gradients.
        head: the head's description.
        metadata: the description for an exported file.
    """

    module: nn.Module
    head: HeadConfig
    metadata: ModelMetadata


def load_segmenter(
    checkpoint: Checkpoint,
    head: HeadWeights,
    resolved: ResolvedArchitecture,
    backbone_weights: Mapping[str, Tensor],
    task: str | None,
    warnings: list[str],
) -> LoadedSegmenter:
    """Build the network around the backbone and load it strictly.

    Args:
        checkpoint: the file.
        head: its head.
        resolved: its backbone, whose weights were checked.
        backbone_weights: in the official layout.
        task: the user's choice: "semantic", "instance" or "panoptic".
        warnings: gets a sentence for everything that was not in the file.

    Raises:
        CheckpointError: the head is incomplete, modified, or contradicts its configuration.
        UsageError: the head does not do the task.
    """
    path = checkpoint.path
    stated = _stated(checkpoint, head)
    config = read_head(head, resolved.config, stated, path)
    expected = head_shapes(config)
    _check_projections(head, expected, checkpoint)
    check_weights(head.tensors, expected, path, f"a {head.title} head")
    if head.aside:
        warnings.append(f"left aside, since only training uses it: {', '.join(head.aside)}")
    with torch.device("meta"):
        module = build_segmenter(build_model(resolved.config), config)
    load_whole(module, backbone_weights, head)
    classes = named_classes(checkpoint, config.num_classes, warnings)
    task = _task(checkpoint, head, classes, task, warnings)
    if isinstance(module, OneFormer):
        module.set_task(task)
    by_transformers = head.library == "transformers"
    thresholds = {} if by_transformers else {"score": 0.8}
    if by_transformers and head.kind == "mask2former":
        thresholds["mask_size"] = 384.0
    metadata = ModelMetadata(
        architecture=resolved.architecture,
        head=head.kind,
        task=task,
        num_classes=config.num_classes,
        dilations=resolved.config.dilations,
        source_name=checkpoint.name,
        source_sha256=checkpoint.sha256,
        preprocessing=_preprocessing(checkpoint, head, resolved, warnings),
        labels=classes.labels if classes else {},
        palette=classes.palette if classes else (),
        things=classes.things if classes else None,
        thresholds={} if head.kind == "upernet" else thresholds,
        segment_rule="transformers" if by_transformers else "detectron2",
        config=resolved.config,
    )
    return LoadedSegmenter(module, config, metadata)


def _stated(checkpoint: Checkpoint, head: HeadWeights) -> Stated:
    if head.library == "transformers" and checkpoint.whole_configuration is not None:
        return stated_by_hugging_face(checkpoint.whole_configuration, checkpoint.path)
    if head.library == "mmsegmentation":
        return stated_by_mmsegmentation(checkpoint.training.model, checkpoint.path)
    return Stated()


def _check_projections(head: HeadWeights, expected: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Say why weights are missing that transformers never writes.

    Its Mask2Former and OneFormer keep these layers in a plain list, which PyTorch does not save.
    """
    lost = [name for name in expected if ".predictor.input_proj." in name and name not in head.tensors]
    if lost and head.library == "transformers":
        raise CheckpointError(
            f"{checkpoint.path} lacks the projections of maps to queries ({lost[0]}), without which the model cannot "
            "be computed: transformers does not save them where the pixel decoder and the queries differ in width; "
            "export the checkpoint that the folder was converted from"
        )


# --------------------------------------------------------------------------- classes and task


def named_classes(checkpoint: Checkpoint, count: int, warnings: list[str]) -> ClassSet | None:
    """Return names, colours and things: the file's, else those of the data set with that many classes."""
    names: Mapping[int, str] = checkpoint.labels or dict(enumerate(checkpoint.training.classes))
    if names and len(names) == count:
        known = matching(names)
        ordered = tuple(names[number] for number in sorted(names))
        own = known or ClassSet("", "the file's own classes", ordered)
        palette = checkpoint.training.palette
        return replace(own, palette=palette) if len(palette) == count else own
    for name in CLASS_SETS:
        known = class_set(name)
        if len(known.names) == count and known.palette:
            warnings.append(
                f"{checkpoint.name} does not name its {count} classes; the names and colours are those of {known.title}"
            )
            return known
    warnings.append(f"{checkpoint.name} does not name its {count} classes; give names with --labels when running it")
    return None


def _task(
    checkpoint: Checkpoint, head: HeadWeights, classes: ClassSet | None, asked: str | None, warnings: list[str]
) -> str:
    """Decide how a model's answers are read: as the user says, as its name says, or as its classes suggest."""
    if asked is not None and asked not in SEGMENT_TASKS:
        raise UsageError(f"unknown task {asked!r}; choose one of {', '.join(SEGMENT_TASKS)}")
    if head.kind == "upernet":
        if asked not in (None, "semantic"):
            raise UsageError(f"{checkpoint.path} is a UPerNet, which does semantic segmentation only, not {asked}")
        return "semantic"
    if asked is not None:
        return asked
    words = f"{checkpoint.path.absolute().parent.name}/{checkpoint.name}".lower()
    named = [task for task in SEGMENT_TASKS if re.search(task, words)]
    if len(named) == 1 and head.kind != "oneformer":
        return named[0]
    mixed = classes is not None and classes.things is not None and 0 < len(classes.things) < len(classes.names)
    only_things = classes is not None and classes.things is not None and len(classes.things) == len(classes.names)
    task = "panoptic" if mixed or head.kind == "oneformer" else "instance" if only_things else "semantic"
    others = ", ".join(other for other in SEGMENT_TASKS if other != task)
    warnings.append(f"the task is {task}, since nothing says another; --task takes {others} too")
    return task


# --------------------------------------------------------------------------- preprocessing


def _preprocessing(
    checkpoint: Checkpoint, head: HeadWeights, resolved: ResolvedArchitecture, warnings: list[str]
) -> Preprocessing:
    """Return what the file says, else the library's default, which the user is told."""
    own = checkpoint.preprocessing or mm_preprocessing(checkpoint.training)
    if own is not None:
        return own
    size = resolved.preset.image_size if resolved.preset else (512, 512)
    if head.library == "transformers":
        processor = {"upernet": "Segformer", "maskformer": "MaskFormer", "mask2former": "Mask2Former"}
        kind = processor.get(head.kind, "OneFormer")
        result = from_hugging_face({"image_processor_type": f"{kind}ImageProcessor", "resample": 2, "size": 512})
        missing = "preprocessor_config.json"
    else:
        longest = 1333 if size == (800, 1344) else size[1] if size[0] != size[1] else 4 * size[0]
        result = shortest_side(size[0], longest, 1 if head.library == "mmsegmentation" else 32)
        missing = "preprocessing"
    warnings.append(
        f"{checkpoint.name} comes without {missing}; pictures are scaled to a shorter side of {result.size[0]}"
        if result.mode == "shortest-side"
        else f"{checkpoint.name} comes without {missing}; pictures are scaled to {result.size[0]}x{result.size[1]}"
    )
    return result
