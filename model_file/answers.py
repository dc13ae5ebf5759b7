"""The one rule for what a model answers: class scores, features or maps."""

from __future__ import annotations

from collections.abc import Sequence

from na_deploy.model_file.tensors import TensorSpec
from na_deploy.models.metadata import ModelMetadata

LOGITS = "logits"
"""The name exported classifiers give their class scores; a file without metadata is believed by it."""


def class_scores(
    outputs: Sequence[TensorSpec], metadata: ModelMetadata | None, *, labelled: bool = False
) -> TensorSpec | None:
    """Return the output that holds one score per class and image, (N, classes), if the model is a classifier.

    Args:
        outputs: the model's.
        metadata: what the exporter recorded; it decides where it is there.
        labelled: the user gives class names, and so says that a file without metadata is a classifier.
    """
    if len(outputs) != 1 or len(outputs[0].shape) != 2:
        return None
    (output,) = outputs
    classifies = labelled or output.name == LOGITS if metadata is None else metadata.task == "classification"
    return output if classifies else None


def class_count(scores: TensorSpec | None) -> int | None:
    """Return how many classes the output of :func:`class_scores` has, where the file says."""
    return scores.shape[1] if scores is not None and isinstance(scores.shape[1], int) else None
