"""Comparing the weights of a file with those that a network has: names and shapes, strictly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from na_deploy.errors import CheckpointError


def check_weights(
    weights: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], path: Path, network: str
) -> None:
    """Compare names and shapes with the network's.

    Args:
        weights: the file's, by the network's names.
        expected: the network's shapes.
        path: for messages.
        network: the expected kind, "a nat network" for instance.

    Raises:
        CheckpointError: something is missing, unexpected or of another shape.
    """
    missing = [name for name in expected if name not in weights]
    unexpected = [name for name in weights if name not in expected]
    clashing = [name for name in expected if name in weights and tuple(weights[name].shape) != expected[name]]
    if missing:
        raise CheckpointError(f"{path} lacks {some(missing)}, which this network has; the file is incomplete")
    if unexpected:
        raise CheckpointError(
            f"{path} holds {some(unexpected)}, which {network} does not have; it is a modified model, or training left "
            "something in the file: remove those entries if they do not change the network's outputs"
        )
    if clashing:
        name = clashing[0]
        raise CheckpointError(
            f"{path}: {name} has shape {list(weights[name].shape)}, expected {list(expected[name])}; the "
            "file mixes sizes or is damaged"
        )


def some(names: Sequence[str]) -> str:
    """Return the first two of a list of names and how many more there are."""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more
