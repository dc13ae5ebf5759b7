"""The distance of a model's outputs from those they are compared with, by one rule for every command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from na_deploy.errors import NaDeployError
from na_deploy.model_file.tensors import Array


@dataclass(frozen=True)
class Difference:
    """Distance of one tensor from the expected one.

    Attributes:
        name: output or layer.
        shape: the compared tensor's.
        largest: largest absolute difference.
        relative: ``largest`` over the largest magnitude expected; infinite if anything is not finite.
    """

    name: str
    shape: tuple[int, ...]
    largest: float
    relative: float

    @classmethod
    def between(cls, name: str, found: Array, expected: Array) -> Difference:
        """Compare two arrays of one shape, in float64.

        Raises:
            NaDeployError: the shapes differ.
        """
        if found.shape != expected.shape:
            raise NaDeployError(f"{name} has shape {found.shape}, expected is {expected.shape}")
        if not found.size:
            return cls(name, found.shape, 0.0, 0.0)
        ours, theirs = found.astype(np.float64), expected.astype(np.float64)
        if not np.isfinite(ours).all() or not np.isfinite(theirs).all():
            return cls(name, found.shape, float("inf"), float("inf"))
        largest = float(np.abs(ours - theirs).max())
        magnitude = float(np.abs(theirs).max())
        return cls(name, found.shape, largest, largest / magnitude if magnitude else float(largest > 0))


def worst_difference(found: Mapping[str, Array], expected: Mapping[str, Array]) -> Difference:
    """Return the largest relative difference of all outputs.

    Args:
        found: arrays by output name.
        expected: the same names.

    Raises:
        NaDeployError: an output is missing or has another shape.
    """
    missing = [name for name in expected if name not in found]
    if missing:
        raise NaDeployError(f"there is no output {missing[0]} to compare; found are {', '.join(found)}")
    pairs = (Difference.between(name, found[name], array) for name, array in expected.items())
    return max(pairs, key=lambda difference: difference.relative)
