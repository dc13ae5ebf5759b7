"""Writing a graph to disk, with large weights in a file of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from na_deploy.model_file.flatten import EXTERNAL_DATA_BYTES, flatten_file


def drop_stale_weights(target: Path, files: Sequence[Path]) -> None:
    """Remove the weights beside a rewritten model that its predecessor kept there and nothing reads any more.

    Args:
        target: the model as it now stands.
        files: those that this export wrote.
    """
    beside = target.with_name(f"{target.name}.data")
    if beside.name not in {path.name for path in files}:
        beside.unlink(missing_ok=True)


def weight_bytes(model: ir.Model) -> int:
    """Return the size of all weights."""
    return sum(
        math.ceil(value.const_value.nbytes)
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )


def save(
    model: ir.Model,
    path: Path,
    *,
    external_data: bool = False,
    limit: int = EXTERNAL_DATA_BYTES,
    flat: bool = False,
) -> list[Path]:
    """Write ``model`` to ``path`` and return the files written.

    Args:
        model: the graph.
        path: the ``.onnx`` file; weights go to ``path`` + ".data" when they are large.
        external_data: put weights beside the model whatever their size.
        limit: weights above this many bytes go beside the model.
        flat: inline functions and fold what does not depend on inputs.
    """
    if external_data or weight_bytes(model) > limit:
        beside = f"{path.name}.data"
        ir.save(model, path, external_data=beside)
        files = [path, path.with_name(beside)]
    else:
        ir.save(model, path)
        files = [path]
    return flatten_file(path, path) if flat else files
