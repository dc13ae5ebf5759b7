"""Element types by the protocol's names, and text tensors (``BYTES``) as bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import numpy as np

from na_deploy.model_file.tensors import Array, numpy_type
from na_deploy.serving.errors import InvalidRequestError

NUMPY_NAMES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "BF16": "bfloat16",
    "FP32": "float32",
    "FP64": "float64",
}
"""Protocol name to NumPy's (ml_dtypes' for ``BF16``), for every type but ``BYTES``."""

PROTOCOL_NAMES = {numpy: name for name, numpy in NUMPY_NAMES.items()} | {"object": "BYTES"}

_LENGTH = struct.Struct("<I")

MOST_TEXTS = 100_000
"""Texts of one tensor; each becomes an object of its own, however short it is."""


def element_type(name: str, datatype: str) -> np.dtype[np.generic]:
    """Return NumPy's type of a tensor's ``datatype``; ``object`` for ``BYTES``.

    Raises:
        InvalidRequestError: there is no such type.
    """
    if datatype == "BYTES":
        return np.dtype(object)
    if datatype not in NUMPY_NAMES:
        known = ", ".join([*NUMPY_NAMES, "BYTES"])
        raise InvalidRequestError(f"tensor {name!r} has the datatype {str(datatype)[:40]!r}; expected one of {known}")
    dtype: np.dtype[np.generic] = numpy_type(NUMPY_NAMES[datatype])
    return dtype


def array_from_raw(name: str, datatype: str, shape: tuple[int, ...], raw: memoryview | bytes) -> Array:
    """Return a tensor from its bytes, without copying them where their place in memory allows.

    Args:
        name: the tensor's, for messages.
        datatype: by the protocol's name.
        shape: as stated.
        raw: little-endian elements in row-major order; for ``BYTES`` each preceded by its length in four bytes.

    Raises:
        InvalidRequestError: the bytes do not fit type and shape.
    """
    dtype = element_type(name, datatype)
    count = element_count(shape)
    if datatype == "BYTES":
        if count > MOST_TEXTS:
            raise InvalidRequestError(f"tensor {name!r} has {count} texts; at most {MOST_TEXTS} are read")
        return bytes_array(_split(name, raw, count), shape)
    if len(raw) != count * dtype.itemsize:
        raise InvalidRequestError(
            f"tensor {name!r} has {len(raw)} bytes; {datatype} of shape {list(shape)} needs {count * dtype.itemsize}"
        )
    if datatype == "BOOL":
        array: Array = np.frombuffer(raw, np.uint8)
        if count and array.max() > 1:
            raise InvalidRequestError(f"tensor {name!r} is BOOL and holds a byte that is neither 0 nor 1")
        return array.view(np.bool_).reshape(shape)
    array = np.frombuffer(raw, dtype)
    return (array if array.flags.aligned else array.copy()).reshape(shape)


def raw_from_array(array: Array) -> memoryview | bytes:
    """Return a tensor's bytes as :func:`array_from_raw` reads them; a view where it can be one."""
    if array.dtype == object:
        parts = []
        for item in array.reshape(-1):
            parts += [_LENGTH.pack(len(item)), item]
        return b"".join(parts)
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.uint8).data


def bytes_array(items: Iterable[bytes], shape: tuple[int, ...]) -> Array:
    """Return an array of ``bytes`` objects."""
    listed = list(items)
    array = np.empty(len(listed), object)
    array[:] = listed
    return array.reshape(shape)


def element_count(shape: Iterable[int]) -> int:
    """Return the product of the sizes, as an unbounded integer."""
    count = 1
    for size in shape:
        count *= size
    return count


def _split(name: str, raw: memoryview | bytes, count: int) -> list[bytes]:
    items: list[bytes] = []
    place = 0
    while place < len(raw):
        if place + 4 > len(raw):
            raise InvalidRequestError(f"tensor {name!r} ends inside the length of element {len(items)}")
        (length,) = _LENGTH.unpack_from(raw, place)
        place += 4
        if place + length > len(raw):
            raise InvalidRequestError(f"tensor {name!r} ends inside element {len(items)}, which has {length} bytes")
        items.append(bytes(raw[place : place + length]))
        place += length
        if len(items) > count:
            break
    if len(items) != count:
        held = f"more than {count}" if len(items) > count else str(len(items))
        raise InvalidRequestError(f"tensor {name!r} holds {held} elements; its shape needs {count}")
    return items
