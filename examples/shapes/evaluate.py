"""Counts how well an exported segmenter of shapes finds them in pictures that its training did not see.

python examples/shapes/evaluate.py shapes.onnx [--pictures 200]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import numpy as np
from draw import CLASSES, draw_picture
from numpy.typing import NDArray

import na_deploy
from na_deploy.runtime.results.predict import Segmentation
from na_deploy.runtime.session import Session

UNSEEN = 1_000_000
"""Seed of the first picture that training does not see."""


def intersection_over_union(
    pairs: Iterable[tuple[NDArray[np.integer], NDArray[np.integer]]], classes: int = len(CLASSES)
) -> NDArray[np.float64]:
    """Return each class's intersection over union, over all pictures together.

    Args:
        pairs: what is there and what was found, class numbers of the same shape.
        classes: how many there are.
    """
    confusion = np.zeros((classes, classes), np.int64)
    for there, found in pairs:
        flat = there.astype(np.int64).ravel() * classes + found.ravel()
        confusion += np.bincount(flat, minlength=classes * classes).reshape(classes, classes)
    shared = np.diagonal(confusion)
    return shared / np.maximum(confusion.sum(0) + confusion.sum(1) - shared, 1)


def evaluate(session: Session, pictures: int, height: int = 128, width: int = 128) -> NDArray[np.float64]:
    """Return each class's intersection over union on unseen pictures."""

    def answers() -> Iterable[tuple[NDArray[np.integer], NDArray[np.integer]]]:
        for seed in range(UNSEEN, UNSEEN + pictures):
            picture, classes = draw_picture(seed, height, width)
            result = session.predict(picture)
            assert isinstance(result, Segmentation)
            yield classes, result.class_map()

    return intersection_over_union(answers())


def main() -> None:
    """Evaluate a file and print a line for every class."""
    parser = argparse.ArgumentParser(description="mIoU of an exported segmenter of shapes.")
    parser.add_argument("model")
    parser.add_argument("--pictures", type=int, default=200)
    options = parser.parse_args()
    with na_deploy.load(options.model) as session:
        found = evaluate(session, options.pictures)
    for name, value in zip(CLASSES, found, strict=True):
        print(f"{name:10} {value:.3f}")
    print(f"mIoU       {found.mean():.3f} on {options.pictures} pictures")


if __name__ == "__main__":
    main()
