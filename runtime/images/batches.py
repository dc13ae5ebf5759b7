"""Reading files for a model's input, and running any number of items in batches of any size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from na_deploy.errors import UsageError
from na_deploy.model_file.tensors import Array, numpy_type
from na_deploy.runtime.images.arrays import read_array
from na_deploy.runtime.session import Session

LARGEST_BATCH = 16
"""Items per run of a model with a dynamic batch axis, which bounds memory."""


def read_inputs(session: Session, paths: Sequence[Path]) -> Array:
    """Read images, or one ``.npy`` array, for a model's single input.

    Raises:
        UsageError: arrays and images are mixed, or the model is not one for images.
        NaDeployError: a file is damaged.
    """
    spec = session.inputs[0]
    arrays = [path for path in paths if path.suffix == ".npy"]
    if arrays:
        if len(paths) > 1:
            raise UsageError(f"give one .npy array or images, not both and not several: {arrays[0]} is an array")
        return read_array(arrays[0])
    if session.metadata is None:
        raise UsageError(f"{session.path.name} does not say how images are prepared; give a .npy array for {spec}")
    from na_deploy.runtime.images.prepare import prepare_files

    preprocessing = session.metadata.preprocessing
    if len(spec.shape) == 4:
        preprocessing = preprocessing.for_input(spec.shape)
    return prepare_files(paths, preprocessing).astype(numpy_type(spec.dtype))


def run_in_batches(session: Session, items: Array) -> dict[str, Array]:
    """Run ``items`` through a model with one input and join the outputs along their first axis.

    A model with a fixed batch size runs as often as needed, the last time with the last item repeated; a
    dynamic one takes up to :data:`LARGEST_BATCH` at a time, or what its engine was built for.

    Raises:
        UsageError: an item does not fit the model.
        NaDeployError: the runtime failed.
    """
    spec = session.inputs[0]
    batch = spec.shape[0] if spec.shape else 1
    if items.ndim != len(spec.shape) or items.ndim == 0 or len(items) == 0:
        return session.run(items)  # raises with the expected shape
    least, most = session.batches or (1, LARGEST_BATCH)
    if isinstance(batch, int):
        least = most = batch
    size = min(most, max(least, LARGEST_BATCH))
    if size < 1:
        return session.run(items)
    parts = []
    for start in range(0, len(items), size):
        part = items[start : start + size]
        count = len(part)
        if count < least:
            part = np.concatenate([part, np.repeat(part[-1:], least - count, axis=0)])
        parts.append({name: output[:count] for name, output in session.run(part).items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
