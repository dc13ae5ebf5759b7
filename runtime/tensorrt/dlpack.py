"""DLPack capsules: reading one of a GPU array, and making one. Structures of dlpack.h, version 0.x (unversioned).

NumPy and PyTorch have their own; sessions use this one, since they need neither for GPU memory.
"""

from __future__ import annotations

import ctypes
from typing import Any

CUDA, CUDA_MANAGED = 2, 13
DEFAULT_STREAM = 1
"""Number of the legacy default stream in CUDA, DLPack and ``__cuda_array_interface__``."""
_NAME, _USED = b"dltensor", b"used_dltensor"
_CODES = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 6: "bool"}
_KINDS = {"int": 0, "uint": 1, "float": 2, "bfloat": 4, "bool": 6}


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("number", ctypes.c_int32))


class _Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("rank", ctypes.c_int32),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))

_api = ctypes.pythonapi
_api.PyCapsule_GetPointer.restype = ctypes.c_void_p
_api.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_api.PyCapsule_New.restype = ctypes.py_object
_api.PyCapsule_New.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_api.PyCapsule_SetName.argtypes = (ctypes.py_object, ctypes.c_char_p)

_handed_out: dict[int, tuple[_Managed, Any, Any]] = {}
"""Structures that a consumer still holds, by address, with the owners of their memory."""


class _Borrowed:
    """A foreign structure, returned to its maker when it is garbage-collected."""

    def __init__(self, managed: Any) -> None:
        self._managed = managed

    def __del__(self) -> None:
        if self._managed.contents.deleter:
            self._managed.contents.deleter(self._managed)


def read(value: Any, stream: int) -> tuple[int, tuple[int, ...], str | None, tuple[int, ...] | None, int, object]:
    """Take an array's capsule, whose maker lets ``stream`` wait for pending writes.

    Returns:
        Address, shape, NumPy's name of the element type (``None`` for one without), strides in elements (``None`` for
        C order), number of the device, and the object that keeps the memory alive.
    """
    capsule = value.__dlpack__(stream=stream)
    pointer = _api.PyCapsule_GetPointer(capsule, _NAME)
    managed = ctypes.cast(pointer, ctypes.POINTER(_Managed))
    _api.PyCapsule_SetName(capsule, _USED)  # this process must now release the structure
    owner = _Borrowed(managed)
    tensor = managed.contents.tensor
    shape = tuple(tensor.shape[axis] for axis in range(tensor.rank))
    strides = tuple(tensor.strides[axis] for axis in range(tensor.rank)) if tensor.strides else None
    address = int(tensor.data or 0) + int(tensor.byte_offset)
    return address, shape, _name(tensor.dtype), strides, int(tensor.device.number), owner


def make_capsule(address: int, shape: tuple[int, ...], dtype: str, device: int, owner: object) -> Any:
    """Return a capsule of dense GPU memory; ``owner`` stays alive until its consumer gives it back."""
    managed = _Managed()
    sizes = (ctypes.c_int64 * max(len(shape), 1))(*shape)
    bits = 8 if dtype == "bool" else int("".join(character for character in dtype if character.isdecimal()))
    kind = _KINDS[dtype.rstrip("0123456789")]
    managed.tensor = _Tensor(
        address, _Device(CUDA, device), len(shape), _Type(kind, bits, 1), sizes, ctypes.POINTER(ctypes.c_int64)(), 0
    )
    managed.deleter = _release
    place = ctypes.addressof(managed)
    _handed_out[place] = (managed, sizes, owner)
    return _api.PyCapsule_New(place, _NAME, ctypes.cast(_forget_capsule, ctypes.c_void_p))


def _name(dtype: _Type) -> str | None:
    kind = _CODES.get(dtype.code)
    if kind is None or dtype.lanes != 1:
        return None
    return "bool" if kind == "bool" else f"{kind}{dtype.bits}"


def _give_back(managed: Any) -> None:
    _handed_out.pop(ctypes.addressof(managed.contents), None)


_release = _Deleter(_give_back)


# A capsule that is being destroyed may be used by address only, hence prototypes with plain pointers.
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))


def _forget(capsule: int) -> None:
    """Destructor of a capsule; one that was consumed has another name and belongs to its consumer."""
    if _is_valid(capsule, _NAME):
        _handed_out.pop(int(_pointer_of(capsule, _NAME)), None)


_forget_capsule = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(_forget)
