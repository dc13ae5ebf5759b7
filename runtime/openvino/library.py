"""The library for OpenVINO, ``libna_deploy_openvino.so``, through its C interface (plugins/openvino/na_openvino.h).

It needs the threading library ``libtbb.so.12``, which OpenVINO brings into the process: import openvino first.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from na_deploy.errors import NaDeployError

INTERFACE = 2
"""Version of the C interface that this module is written for."""

AXES = ("kernel_size", "dilation", "stride", "is_causal")
"""Attributes with one value per spatial axis."""

MOST_INPUTS = 6
FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2
_MOST_SIZES = 8
_MESSAGE_BYTES = 512
_KEPT_SIZES = 64
"""Kinds of calls whose output sizes a node remembers."""

Shape = tuple[int, ...]


class _List(ctypes.Structure):
    _fields_ = (("values", ctypes.POINTER(ctypes.c_int64)), ("count", ctypes.c_size_t))


class _Attributes(ctypes.Structure):
    _fields_ = (("packed", ctypes.c_int32), ("scale", ctypes.c_float), *((name, _List) for name in AXES))


class _Input(ctypes.Structure):
    _fields_ = (("rank", ctypes.c_int32), ("size", ctypes.c_int64 * _MOST_SIZES))


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("dtype", "bias_is_float32", "constant_bias")),
        ("inputs", _Input * MOST_INPUTS),
    )


@dataclass(frozen=True)
class CallKind:
    """The properties that calls of one node share.

    Attributes:
        slots: the operator's input that each given tensor is, in order.
        shapes: their shapes.
        dtype: FLOAT32, FLOAT16 or BFLOAT16, of every tensor but lse.
        bias_is_float32: the bias is float32 whatever ``dtype`` is.
        constant_bias: the bias is a constant of the model.
    """

    slots: tuple[int, ...]
    shapes: tuple[Shape, ...]
    dtype: int = FLOAT32
    bias_is_float32: bool = False
    constant_bias: bool = False


class PreparedCall(NamedTuple):
    """The library's form of a :class:`CallKind`.

    Attributes:
        kind: the same as the caller gave it.
        call: for C.
        address: that of ``call``.
        places: addresses of the operator's inputs, ``None`` for those that differ from call to call or are left out.
        slots: the inputs that differ from call to call, in order.
    """

    kind: CallKind
    call: _Call
    address: int
    places: list[int | None]
    slots: tuple[int, ...]


class OpenVinoLibrary:
    """The loaded library.

    Attributes:
        path: its file.
        target: the instruction set in use, such as "AVX3_ZEN4".
        compiled_tbb: version of the oneTBB that it was compiled with, such as "2021.13".
        running_tbb: version of the oneTBB in this process.

    Raises:
        NaDeployError: the file does not load, or does not fit this package or the oneTBB in this process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            loaded = ctypes.CDLL(str(path))
            interface = int(loaded.na_openvino_interface())
        except (OSError, AttributeError) as error:
            raise NaDeployError(f"the library for OpenVINO {path} does not load: {error}") from error
        if interface != INTERFACE:
            raise NaDeployError(
                f"the library for OpenVINO {path} has interface {interface}, this na-deploy needs {INTERFACE}; "
                "install na-deploy again"
            )
        for function in (loaded.na_openvino_target, loaded.na_openvino_compiled_tbb, loaded.na_openvino_running_tbb):
            function.restype = ctypes.c_char_p
        self.target = loaded.na_openvino_target().decode()
        self.compiled_tbb = loaded.na_openvino_compiled_tbb().decode()
        self.running_tbb = loaded.na_openvino_running_tbb().decode()
        if _numbers(self.running_tbb) < _numbers(self.compiled_tbb):
            raise NaDeployError(
                f"the library for OpenVINO {path} is compiled with oneTBB {self.compiled_tbb}, and OpenVINO brings "
                f"{self.running_tbb}; install a later openvino, or na-deploy again beside this one"
            )
        loaded.na_openvino_run.argtypes = [ctypes.c_void_p] * (5 + MOST_INPUTS) + [ctypes.c_size_t]
        self.loaded = loaded

    def make_node(self, packed: bool, attributes: Mapping[str, Sequence[int]], scale: float) -> LibraryNode:
        """Return a node of the given attributes.

        Args:
            packed: whether it is NeighborhoodAttentionQKV.
            attributes: values of :data:`AXES`; a list may be empty or hold one value for all axes.
            scale: factor of the scores; 0 is ``head_dim ** -0.5``.

        Raises:
            NaDeployError: an attribute is missing or out of range.
        """
        given = _Attributes(packed=int(packed), scale=scale)
        for name in AXES:
            values = tuple(attributes.get(name, ()))
            setattr(given, name, _List((ctypes.c_int64 * len(values))(*values), len(values)))
        handle = ctypes.c_void_p()
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        if self.loaded.na_openvino_make(ctypes.byref(given), ctypes.byref(handle), message, _size(message)):
            raise NaDeployError(message.value.decode())
        return LibraryNode(self, handle)


class LibraryNode:
    """A node in the library: its attributes and the plans it keeps for shapes. Calls may come from several threads."""

    def __init__(self, library: OpenVinoLibrary, handle: ctypes.c_void_p) -> None:
        self._library = library
        self._handle = handle
        self._run = library.loaded.na_openvino_run
        self._sizes: dict[tuple[CallKind, bool], Shape] = {}

    def __del__(self) -> None:
        self._library.loaded.na_openvino_release(self._handle)

    def output_sizes(self, kind: CallKind, with_channels: bool) -> Shape:
        """Return the sizes of the output, or without channels those of lse; sizes not known yet are -1.

        Raises:
            NaDeployError: the inputs' shapes do not fit the node.
        """
        found = self._sizes.get((kind, with_channels))
        if found is None:
            found = self._infer_sizes(kind, with_channels)
            if len(self._sizes) >= _KEPT_SIZES:
                self._sizes = {}
            self._sizes[kind, with_channels] = found
        return found

    def _infer_sizes(self, kind: CallKind, with_channels: bool) -> Shape:
        sizes = (ctypes.c_int64 * _MOST_SIZES)()
        rank = ctypes.c_int32()
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        if self._library.loaded.na_openvino_output_sizes(
            self._handle,
            _call(kind).inputs,
            ctypes.c_int(with_channels),
            sizes,
            ctypes.byref(rank),
            message,
            _size(message),
        ):
            raise NaDeployError(message.value.decode())
        return tuple(sizes[: rank.value])

    def prepare(self, kind: CallKind, constant: Mapping[int, int] | None = None) -> PreparedCall:
        """Return what :meth:`run` takes, for any number of calls of one kind.

        Args:
            kind: shapes and types.
            constant: addresses of inputs that stay where they are, by slot.
        """
        call = _call(kind)
        constant = constant or {}
        places = [constant.get(slot) for slot in range(MOST_INPUTS)]
        changing = tuple(slot for slot in kind.slots if slot not in constant)
        return PreparedCall(kind, call, ctypes.addressof(call), places, changing)

    def run(self, call: PreparedCall, inputs: list[int], output: int, lse: int | None) -> None:
        """Compute one call on the threads of the calling thread's TBB arena, without Python's lock.

        Args:
            call: shapes, types and constant inputs.
            inputs: addresses of the other given tensors, in order of their slots.
            output: address for (B, *X, H, Dv).
            lse: address for (B, *X, H), or ``None``.

        Raises:
            NaDeployError: the inputs do not fit the node, or there is no memory.
        """
        places = call.places.copy()
        for slot, address in zip(call.slots, inputs, strict=True):
            places[slot] = address
        if self._run(self._handle, call.address, *places, output, lse, None, 0):
            message = ctypes.create_string_buffer(_MESSAGE_BYTES)
            if self._run(self._handle, call.address, *places, output, lse, message, _MESSAGE_BYTES):
                raise NaDeployError(message.value.decode())


def _call(kind: CallKind) -> _Call:
    """Return a call without addresses."""
    call = _Call(dtype=kind.dtype, bias_is_float32=int(kind.bias_is_float32), constant_bias=int(kind.constant_bias))
    for place in call.inputs:
        place.rank = -1
    for slot, shape in zip(kind.slots, kind.shapes, strict=True):
        call.inputs[slot].rank = len(shape)
        for axis, size in enumerate(shape[:_MOST_SIZES]):
            call.inputs[slot].size[axis] = size
    return call


def _size(message: Any) -> ctypes.c_size_t:
    return ctypes.c_size_t(len(message))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
