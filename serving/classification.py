"""The classification extension: the best classes of an output as text, ``value:number:label``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from na_deploy.model_file.tensors import Array
from na_deploy.serving.datatypes import bytes_array
from na_deploy.serving.errors import InvalidRequestError

MOST_LISTED = 100_000
"""Classes in one answer; each is a text to format."""


def classify(name: str, array: Array, count: int, labels: Mapping[int, str], batched: bool) -> Array:
    """Return the ``count`` largest values of every item, largest first, as ``bytes`` objects.

    Args:
        name: the output's, for messages.
        array: (items, …) where ``batched``, else one item; all other axes count as classes.
        count: classes per item; all of them if there are fewer.
        labels: names by class number.
        batched: true where the first axis counts items.

    Raises:
        InvalidRequestError: the output holds no numbers, or so many classes are asked for that listing them is no
            answer any more.
    """
    if array.dtype == object or array.dtype.kind == "b":
        raise InvalidRequestError(f"output {name} holds no numbers, so it has no classes")
    rows = array.reshape(len(array), -1) if batched and array.ndim else array.reshape(1, -1)
    best = min(count, rows.shape[1])
    if len(rows) * best > MOST_LISTED:
        raise InvalidRequestError(
            f"{best} classes of each of {len(rows)} items of output {name} are asked for; at most {MOST_LISTED} are "
            "listed in one answer; ask for the numbers themselves"
        )
    listed = []
    for row in rows.astype(np.float64):
        for index in np.argsort(-row, kind="stable")[:best]:
            label = f":{labels[int(index)]}" if int(index) in labels else ""
            listed.append(f"{row[index]:f}:{index}{label}".encode())
    return bytes_array(listed, (len(rows), best) if batched and array.ndim else (best,))
