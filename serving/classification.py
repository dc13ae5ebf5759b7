"""The classification extension: the best classes of an output as text, ``value:number:label``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from na_deploy.model_file.tensors import Array
from na_deploy.serving.datatypes import bytes_array
from na_deploy.serving.errors import InvalidRequestError


def classify(name: str, array: Array, count: int, labels: Mapping[int, str], batched: bool) -> Array:
    """Return the ``count`` largest values of every item, largest first, as ``bytes`` objects.

    Args:
        name: the output's, for messages.
        array: (items, …) where ``batched``, else one item; all other axes count as classes.
        count: classes per item; all of them if there are fewer.
        labels: names by class number.
        batched: whether the first axis counts items.

    Raises:
        InvalidRequestError: the output holds no numbers.
    """
    if array.dtype == object or array.dtype.kind == "b":
        raise InvalidRequestError(f"output {name} holds no numbers, so it has no classes")
    rows = array.reshape(len(array), -1) if batched and array.ndim else array.reshape(1, -1)
    listed = []
    for row in rows.astype(np.float64):
        for index in np.argsort(-row, kind="stable")[:count]:
            label = f":{labels[int(index)]}" if int(index) in labels else ""
            listed.append(f"{row[index]:f}:{index}{label}".encode())
    best = min(count, rows.shape[1])
    return bytes_array(listed, (len(rows), best) if batched and array.ndim else (best,))
