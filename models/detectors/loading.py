"""From a checkpoint of mmdetection to the whole detector, and what an exported file will say about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from na_deploy.errors import UsageError
from na_deploy.models.build import build_model
from na_deploy.models.checkpoint import Checkpoint
from na_deploy.models.detectors.rcnn import RCNN, DetectorConfig
from na_deploy.models.detectors.stated import read_detector
from na_deploy.models.heads.names import HeadWeights, load_whole
from na_deploy.models.metadata import ModelMetadata
from na_deploy.models.mm_config import mm_preprocessing
from na_deploy.models.preprocessing import Preprocessing, shortest_side
from na_deploy.models.resolve_architecture import ResolvedArchitecture
from na_deploy.models.segmenters import named_classes
from na_deploy.models.weight_checks import check_weights

INPUT_SIZE = (800, 1344)
"""Height and width of the largest image after mmdetection's usual preprocessing, in multiples of 32."""

REPORTED = 0.3
"""Score from which detections are reported by default, as mmdetection's tools do; evaluation takes all."""


@dataclass(frozen=True)
class LoadedDetector:
    """A whole network and what belongs into its file's metadata.

    Attributes:
        module: in evaluation mode, float32, without gradients.
        head: the detector's description.
        metadata: the description for an exported file.
        input_size: (H, W) of the largest image that its preprocessing gives.
    """

    module: nn.Module
    head: DetectorConfig
    metadata: ModelMetadata
    input_size: tuple[int, int]


def load_detector(
    checkpoint: Checkpoint,
    head: HeadWeights,
    resolved: ResolvedArchitecture,
    backbone_weights: Mapping[str, Tensor],
    detections: int | None,
    warnings: list[str],
) -> LoadedDetector:
    """Build the network around the backbone and load it strictly.

    Args:
        checkpoint: the file.
        head: all that it holds beside the backbone.
        resolved: its backbone, whose weights were checked.
        backbone_weights: in the official layout.
        detections: rows of the outputs, ``None`` for as many as the configuration says.
        warnings: gets a sentence for everything that was not in the file.

    Raises:
        CheckpointError: the detector is incomplete, modified, contradicts its configuration, or is of another kind.
        UsageError: fewer than one detection.
    """
    training = checkpoint.training
    config = read_detector(head, resolved.config, training, checkpoint.path)
    if detections is not None:
        if detections < 1:
            raise UsageError(f"--detections must be at least 1, got {detections}")
        config = replace(config, detections=detections)
    if not training.model:
        warnings.append(
            f"{checkpoint.name} comes without its training configuration; strides, anchors, units of deltas, "
            f"thresholds and counts are those of the official {head.title}"
        )
    preprocessing = _preprocessing(checkpoint, warnings)
    config = replace(config, padded=_tells_padding(preprocessing))
    with torch.device("meta"):
        expected = RCNN(nn.Identity(), config).state_dict()
        module = RCNN(build_model(resolved.config), config)
    shapes = {name: tuple(x.shape) for name, x in expected.items() if not name.endswith(".num_batches_tracked")}
    check_weights(head.tensors, shapes, checkpoint.path, f"a {head.title}")
    load_whole(module, backbone_weights, head)
    classes = named_classes(checkpoint, config.num_classes, warnings)
    metadata = ModelMetadata(
        architecture=resolved.architecture,
        head=head.kind,
        task="detection",
        num_classes=config.num_classes,
        dilations=resolved.config.dilations,
        source_name=checkpoint.name,
        source_sha256=checkpoint.sha256,
        preprocessing=preprocessing,
        labels=classes.labels if classes else {},
        palette=classes.palette if classes else (),
        thresholds={"score": REPORTED, "mask": config.mask_threshold},
        config=resolved.config,
    )
    return LoadedDetector(module, config, metadata, _largest_input(preprocessing))


def _preprocessing(checkpoint: Checkpoint, warnings: list[str]) -> Preprocessing:
    """Return what the file says, else mmdetection's usual, which the user is told."""
    own = mm_preprocessing(checkpoint.training)
    if own is not None:
        return own
    warnings.append(
        f"{checkpoint.name} comes without preprocessing; pictures are scaled to a shorter side of 800 and a longer one "
        "of at most 1333"
    )
    return shortest_side(800, 1333, 32)


def _tells_padding(preprocessing: Preprocessing) -> bool:
    """Say whether no pixel of a picture becomes zero in all channels, so that zeros are padding.

    Pixels are whole numbers of 0 to 255, so a mean that is none keeps its channel from zero.
    """
    means = (mean / preprocessing.scale for mean in preprocessing.mean)
    return any(abs(mean - round(mean)) > 1e-3 for mean in means)


def _largest_input(preprocessing: Preprocessing) -> tuple[int, int]:
    """Return height and width of a wide picture that fills both limits."""
    if preprocessing.mode != "shortest-side" or preprocessing.longest is None:
        return preprocessing.size
    divisor = preprocessing.divisor
    sides = (preprocessing.resize or min(preprocessing.size), preprocessing.longest)
    height, width = (-(-side // divisor) * divisor for side in sides)
    return height, width
