"""A reader of pickles that builds tensors, arrays and plain data, and nothing else.

A name that is not in the table below becomes an :class:`Unread` object, which keeps what the file says of it and runs
nothing: no constructor, no ``__setstate__``, no ``__reduce__`` of any library is called. Modules saved whole are read
for their parameters and buffers alone.

:class:`InertPickle` is a ``pickle_module`` for ``torch.load``, and reads plain pickles by itself.
"""

from __future__ import annotations

import argparse
import collections
import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch

UnpicklingError = pickle.UnpicklingError


class Unread(dict[Any, Any]):
    """An object of a class that is not built: its items, and its state as the file has it.

    Attributes:
        class_name: the class's module and name.
        state: the attributes that the object would have had.
    """

    def __init__(self, class_name: str) -> None:
        super().__init__()
        self.class_name = class_name
        self.state: Mapping[Any, Any] = {}

    def append(self, _: Any) -> None:
        """Drop the item of a list."""

    extend = add = append

    def describe(self, state: Any) -> None:
        """Take an object's state; a module's tensors become items with dotted names, a configuration's values too."""
        parts = state if isinstance(state, tuple) else (state,)  # with __slots__ a pair
        merged = {key: value for part in parts if isinstance(part, Mapping) for key, value in part.items()}
        self.state = merged
        if isinstance(merged.get("_parameters"), Mapping) and isinstance(merged.get("_modules"), Mapping):
            left = merged.get("_non_persistent_buffers_set") or ()
            tensors = {**merged["_parameters"], **(merged.get("_buffers") or {})}
            self.update({name: tensor for name, tensor in tensors.items() if tensor is not None and name not in left})
            for name, child in merged["_modules"].items():
                if isinstance(child, Unread):
                    self.update({f"{name}.{inner}": tensor for inner, tensor in child.items()})
        elif isinstance(merged.get("_content"), Mapping):  # OmegaConf's DictConfig
            self.update({key: _node_value(value) for key, value in merged["_content"].items()})


def _node_value(node: Any) -> Any:
    return node.state["_val"] if isinstance(node, Unread) and "_val" in node.state else node


class _UnknownName:
    """A class or function that the table does not hold."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *_: Any, **__: Any) -> Unread:
        return Unread(self.name)


def _bytes(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise UnpicklingError(f"bytes are written as {encoding!r}")
    return text.encode("latin1")


def _storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _plain_dict(*_: Any) -> dict[Any, Any]:
    return {}


def _empty_array(*_: Any) -> np.ndarray[Any, Any]:
    return np.ndarray(0)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _buffer_array(data: Any, dtype: Any, shape: Any, order: str, *_: Any) -> np.ndarray[Any, Any]:
    """Return an array of protocol 5."""
    array: np.ndarray[Any, Any] = np.frombuffer(data, dtype).reshape(shape, order=order)  # type: ignore[call-overload]
    return array


def _typed(function: Any, _: Any, arguments: Any, *__: Any) -> Any:
    """Return a tensor whose Python class or attributes are left out."""
    return _called(function, arguments)


def _object(kind: Any, *_: Any) -> Any:
    """Return an empty object, as protocol 1 asks for one."""
    return kind() if isinstance(kind, _UnknownName) or kind is argparse.Namespace else Unread(str(kind))


_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")  # before NumPy 2, and since
_SCALAR: Any = np.float64(0).__reduce__()[0]
_CALLABLE: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": collections.OrderedDict,
    "collections.defaultdict": _plain_dict,
    "collections.Counter": _plain_dict,
    "argparse.Namespace": argparse.Namespace,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.complex": complex,
    "builtins.bytearray": bytearray,
    "builtins.list": list,
    "builtins.tuple": tuple,
    "builtins.dict": dict,
    **{f"{module}.PosixPath": PurePosixPath for module in ("pathlib", "pathlib._local")},
    **{f"{module}.WindowsPath": PureWindowsPath for module in ("pathlib", "pathlib._local")},
    "_codecs.encode": _bytes,
    "copyreg._reconstructor": _object,
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    "torch.storage._load_from_bytes": _storage,
    **{f"torch._utils.{name}": getattr(torch._utils, name) for name in ("_rebuild_tensor", "_rebuild_tensor_v2")},
    **{f"torch._utils.{name}": _parameter for name in ("_rebuild_parameter", "_rebuild_parameter_with_state")},
    "torch.nn.parameter.Parameter": _parameter,
    "torch._tensor._rebuild_from_type_v2": _typed,
    "numpy.dtype": np.dtype,
    **{f"numpy.{package}.numeric._frombuffer": _buffer_array for package in ("core", "_core")},
    **{f"{module}._reconstruct": _empty_array for module in _NUMPY},
    **{f"{module}.scalar": _SCALAR for module in _NUMPY},
}
"""Names that may be called with whatever a file holds; the values stand in for what the file names."""

_CONSTANTS: dict[str, Any] = {
    "numpy.ndarray": np.ndarray,
    "builtins.object": object,
    "torch.Tensor": torch.Tensor,
    "torch.storage.UntypedStorage": torch.UntypedStorage,
    **{f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
}
"""Names that are handed on and never called."""

_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # Python 2's
_DTYPES = tuple({type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdgFDGSUVOMm"})


def _called(function: Any, arguments: Any) -> Any:
    if isinstance(function, _UnknownName):
        return function()
    if isinstance(function, Unread):  # a method of an unknown class
        return Unread(function.class_name)
    if not any(function is known for known in _CALLABLE.values()):
        raise UnpicklingError(f"the file calls {getattr(function, '__name__', type(function).__name__)}")
    return function(*arguments)


_Base: Any = pickle._Unpickler  # in Python, so that single steps can be replaced


class _Unpickler(_Base):  # type: ignore[misc]
    """The standard library's reader, with calls and states confined to the tables."""

    unread: ClassVar[set[str]]

    def find_class(self, module: str, name: str) -> Any:
        """Return the object that stands for a name."""
        full = f"{_RENAMED.get(module, module)}.{name}"
        if full in _CALLABLE:
            return _CALLABLE[full]
        if full in _CONSTANTS:
            return _CONSTANTS[full]
        self.unread.add(full)
        return _UnknownName(full)

    def _instantiate(self, klass: Any, args: Any) -> None:
        self.append(_called(klass, args))

    def load_reduce(self) -> None:
        """Call a known function."""
        arguments = self.stack.pop()
        self.stack[-1] = _called(self.stack[-1], arguments)

    def load_newobj(self) -> None:
        """Make an object of a known class."""
        arguments = self.stack.pop()
        self.stack[-1] = _called(self.stack[-1], arguments)

    def load_newobj_ex(self) -> None:
        """Make an object of a known class; keywords are left out."""
        self.stack.pop()
        self.load_newobj()

    def load_build(self) -> None:
        """Give an object its state: arrays theirs, unread ones a note of it, all others none."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Unread):
            target.describe(state)
        elif isinstance(target, argparse.Namespace) and isinstance(state, Mapping):
            vars(target).update(state)
        elif type(target) in (np.ndarray, *_DTYPES):
            target.__setstate__(state)

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **_Base.dispatch,
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: load_build,
    }


class InertPickle:
    """A reader for one file.

    Attributes:
        unread: names in the file whose objects were not built.
    """

    __name__ = "inert_pickle"

    def __init__(self) -> None:
        self.unread: set[str] = set()
        self.Unpickler: type[Any] = type("Unpickler", (_Unpickler,), {"unread": self.unread})

    def load(self, file: BinaryIO, **options: Any) -> Any:
        """Read one pickle from where ``file`` stands."""
        return self.Unpickler(file, **options).load()
