"""The one rule for what a model answers: class scores, features, feature maps, segments.

Everything that shows, serves or packages outputs asks :func:`answer_of`; a new task is taught here, once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from na_deploy.model_file.tensors import TensorSpec
from na_deploy.models.metadata import BOX_OUTPUTS, SEGMENT_TASKS, ModelMetadata

LOGITS = "logits"
"""Name of an exported classifier's class scores; an output of this name makes a file without metadata a classifier."""

CLASS_QUERIES, MASK_QUERIES = "class_logits", "mask_logits"
"""Outputs of a segmenter with queries: (N, queries, classes + 1) and (N, queries, H, W)."""

BOXES, MASKS = BOX_OUTPUTS, "masks"
"""Outputs of a detector for N objects at most: boxes (B, N, 4) as left, top, right and bottom in pixels of the input,
scores (B, N), classes (B, N) and counts (B,); and, where it has them, masks (B, N, h, w), probabilities in the box."""


@dataclass(frozen=True)
class Answer:
    """The meaning of a model's outputs.

    Attributes:
        task: one of ``models.metadata.TASKS``.
        scores: the output with one score per class and image, (N, classes); only of classifiers.
        has_queries: true where a segmenter answers with queries, which can be read as any of ``SEGMENT_TASKS``.
        has_boxes: true where a detector answers with the outputs in :data:`BOXES`.
    """

    task: str
    scores: TensorSpec | None = None
    has_queries: bool = False
    has_boxes: bool = False

    @property
    def has_segments(self) -> bool:
        """Tell whether the answer is segments of a picture: regions, or objects."""
        return self.task in SEGMENT_TASKS or self.has_boxes

    @property
    def class_count(self) -> int | None:
        """Number of class scores per image; ``None`` where there are none, or the file does not say."""
        count = None if self.scores is None else self.scores.shape[1]
        return count if isinstance(count, int) else None


def answer_of(outputs: Iterable[TensorSpec], metadata: ModelMetadata | None, *, labelled: bool = False) -> Answer:
    """Return what a model answers.

    Args:
        outputs: the model's.
        metadata: the exporter's record; it decides where it is there. A classifier recorded without classes and
            class names has no head, so it gives features.
        labelled: the user gives class names, and so says that a file without metadata is a classifier.
    """
    specs = {spec.name: spec for spec in outputs}
    only = next(iter(specs.values())) if len(specs) == 1 else None
    if metadata is not None and metadata.task != "classification":
        has_queries = metadata.task in SEGMENT_TASKS and {CLASS_QUERIES, MASK_QUERIES} <= specs.keys()
        has_boxes = metadata.task == "detection" and specs.keys() >= set(BOXES)
        return Answer(metadata.task, has_queries=has_queries, has_boxes=has_boxes)
    if only is None or len(only.shape) != 2:
        return Answer("features")
    known = metadata is not None and bool(metadata.num_classes or metadata.labels)
    believed = metadata is None and (labelled or only.name == LOGITS)
    return Answer("classification", only) if known or believed else Answer("features")
