"""From logits to named classes. Knows nothing of images or sessions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from na_deploy.errors import NaDeployError, UsageError
from na_deploy.model_file.tensors import Array
from na_deploy.models.metadata import ModelMetadata, score_function

Labels = Mapping[int, str]


@dataclass(frozen=True)
class Prediction:
    """One class of one image, with its probability."""

    index: int
    label: str
    probability: float


def softmax(logits: Array) -> NDArray[np.float64]:
    """Return the softmax over the last axis, in float64."""
    shifted = logits.astype(np.float64)
    shifted = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def score_function_of(metadata: ModelMetadata | None, logits: Array) -> str:
    """Return the function that turns a model's class scores into probabilities, one of :data:`SCORES`."""
    return score_function(logits.shape[-1]) if metadata is None else metadata.scores


def probabilities(logits: Array, scores: str) -> NDArray[np.float64]:
    """Return probabilities of class scores (N, classes): softmax over all of them, or the sigmoid of each."""
    if scores == "softmax":
        return softmax(logits)
    halves: NDArray[np.float64] = np.tanh(logits.astype(np.float64) / 2)
    return (halves + 1) / 2


def top_classes(
    logits: Array, count: int = 5, labels: Labels | None = None, scores: str = "softmax"
) -> list[list[Prediction]]:
    """Return the most probable classes of every image, most probable first, and the lower number first among equals.

    Args:
        logits: (N, classes).
        count: number of classes; all of them if there are fewer.
        labels: names by class number; a class without one is called ``class 123``.
        scores: one of :data:`SCORES`, as :func:`score_function_of` says.

    Raises:
        UsageError: ``logits`` has another rank, or ``count`` is not positive.
        NaDeployError: a value is NaN or positive infinity, so that there is no most probable class.
    """
    if logits.ndim != 2:
        raise UsageError(f"logits must have shape images×classes, got shape {'×'.join(map(str, logits.shape))}")
    if count < 1:
        raise UsageError(f"at least one class must be asked for, got {count}")
    bad = np.isnan(logits) | np.isposinf(logits)
    if bad.any():
        raise NaDeployError(
            f"the model answers with NaN or infinity ({int(bad.sum())} of {logits.size} numbers), so there are no "
            "classes; check its input, or export it with --dtype fp32 if it overflows"
        )
    names = labels or {}
    result = []
    for row in probabilities(logits, scores):
        best = np.argsort(-row, kind="stable")[:count]
        result.append([Prediction(int(k), names.get(int(k), f"class {k}"), float(row[k])) for k in best])
    return result


def read_labels(path: Path, class_count: int | None = None) -> dict[int, str]:
    """Read class names: a text file with one name per line, or JSON with a list or an object.

    A JSON object maps class numbers to names; a value may also be a list whose last entry is the name, as in
    ImageNet's ``{"0": ["n01440764", "tench"]}``.

    Args:
        path: the file.
        class_count: number of the model's classes, if known; the file must then name exactly that many.

    Raises:
        UsageError: the file cannot be read, has another form, or names another number of classes.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read the labels {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"the labels {path} are not UTF-8 text; give a .txt or .json file") from None
    names = _from_json(path, text) if path.suffix.lower() == ".json" else _from_lines(text)
    if not names:
        raise UsageError(f"the labels {path} name no class; write one name per line")
    if class_count is not None and (len(names) != class_count or max(names) >= class_count):
        raise UsageError(f"the labels {path} name {len(names)} classes, the model has {class_count}")
    return names


def _from_lines(text: str) -> dict[int, str]:
    lines = text.rstrip().splitlines() if text.strip() else []
    return {index: line.strip() for index, line in enumerate(lines)}


def _from_json(path: Path, text: str) -> dict[int, str]:
    expected = "expected a list of names or an object from class number to name"
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UsageError(f"the labels {path} are not valid JSON ({error})") from None
    items: Sequence[tuple[object, object]]
    if isinstance(content, list):
        items = list(enumerate(content))
    elif isinstance(content, dict):
        items = list(content.items())
    else:
        raise UsageError(f"the labels {path} hold a single value; {expected}")
    names = {}
    for key, value in items:
        name = value[-1] if isinstance(value, list) and value else value
        if not str(key).isdecimal() or not isinstance(name, str):
            raise UsageError(f"the labels {path} hold {json.dumps(key)}: {json.dumps(value)[:60]}; {expected}")
        names[int(str(key))] = name
    return names
