"""A quantized file against its float model on samples: distance of outputs, equal classes, right classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from na_deploy.errors import NaDeployError, UsageError, VerificationError, one_line
from na_deploy.model_file.answers import LOGITS, answer_of
from na_deploy.model_file.differences import Difference, worst_difference
from na_deploy.model_file.tensors import Array
from na_deploy.progress import Counted
from na_deploy.runtime.quantization.samples import Samples
from na_deploy.runtime.session import Session, load

MEASURED = 8
"""Samples whose outputs are compared number by number."""


@dataclass(frozen=True)
class Measured:
    """The comparison.

    Attributes:
        worst: the output with the largest relative difference on the first samples.
        agreement: share of samples (of pixels, for segmenters) with the float model's class; ``None`` without classes.
        accuracy: shares of right classes of the float and the quantized model, where folders name them.
    """

    worst: Difference
    agreement: float | None
    accuracy: tuple[float, float] | None

    @property
    def drop(self) -> float:
        """The loss in percentage points: of accuracy, else of equal classes."""
        if self.accuracy is not None:
            return 100 * (self.accuracy[0] - self.accuracy[1])
        return 100 * (1 - (self.agreement or 0.0))


class Trial:
    """A float model's answers on every sample, to compare others with.

    Args:
        session: the float model.
        samples: inputs that both take.
        counted: shows how far a loop is.
    """

    def __init__(self, session: Session, samples: Samples, counted: Counted) -> None:
        self.samples, self.counted = samples, counted
        self.classes = class_output(session)
        self.expected: list[Array] = []
        self.first: list[Mapping[str, Array]] = []
        feeds = iter(samples)
        for _ in counted(range(len(samples)), "running the float model"):
            outputs = session.run(_fitting(session, next(feeds)))
            if len(self.first) < MEASURED:
                self.first.append(outputs)
            if self.classes is not None:
                self.expected.append(outputs[self.classes].argmax(1).astype(np.int32))

    def compare(self, path: Path) -> Measured:
        """Run a quantized file with our operators, and once on its function bodies.

        Raises:
            VerificationError: a runtime refuses it, or its answers are not finite.
        """
        worst, same, right = Difference("", (), 0.0, 0.0), list[float](), list[tuple[bool, bool]]()
        try:
            with load(path, custom_operators=False) as stock:
                stock.run(next(iter(self.samples)))
            with load(path) as session:
                feeds = iter(self.samples)
                count = len(self.samples) if self.classes is not None else len(self.first)
                for index in self.counted(range(count), "running the quantized model"):
                    outputs = session.run(next(feeds))
                    if index < len(self.first):
                        found = worst_difference(outputs, self.first[index])
                        worst = max(worst, found, key=lambda each: each.relative)
                    if self.classes is not None:
                        answer = outputs[self.classes].argmax(1)
                        same.append(float(np.mean(answer == self.expected[index])))
                        if self.samples.wanted:
                            wanted = self.samples.wanted[index]
                            right.append((bool(self.expected[index][0] == wanted), bool(answer[0] == wanted)))
        except UsageError:
            raise
        except NaDeployError as error:
            raise VerificationError(f"the quantized file does not run: {one_line(error)}") from error
        if not np.isfinite(worst.relative):
            raise VerificationError(f"the quantized file's output {worst.name} holds numbers that are not finite")
        before, after = (float(np.mean([pair[place] for pair in right])) if right else 0.0 for place in (0, 1))
        return Measured(worst, float(np.mean(same)) if same else None, (before, after) if right else None)


def finds_objects(session: Session) -> bool:
    """Tell whether the model answers with objects, whose order changes with the smallest difference of a score."""
    answer = answer_of(session.outputs, session.metadata)
    return answer.has_boxes or answer.has_queries


def class_output(session: Session) -> str | None:
    """Return the name of the class scores (B, classes, …) of a classifier or a semantic segmenter."""
    task = session.metadata.task if session.metadata is not None else ""
    named = (spec.name for spec in session.outputs if spec.name == LOGITS)
    return next(named, None) if task in ("classification", "semantic") else None


def _fitting(session: Session, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Return the samples in the session's own types: those of PyTorch are float32, whatever the file's are."""
    kinds = {spec.name: spec.dtype for spec in session.inputs}
    return {name: array.astype(kinds.get(name, array.dtype.name), copy=False) for name, array in feeds.items()}
