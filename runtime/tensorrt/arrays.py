"""Arrays in GPU memory: recognising those of other libraries and giving out a session's own, without copies.

Through ``__cuda_array_interface__`` (torch, CuPy, PyCUDA, Numba) and DLPack (those and JAX).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from na_deploy.errors import UsageError
from na_deploy.model_file.tensors import format_shape, numpy_type
from na_deploy.runtime.tensorrt import dlpack
from na_deploy.runtime.tensorrt.cuda import Cuda
from na_deploy.runtime.tensorrt.memory import bytes_of


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """A dense array in GPU memory.

    Attributes:
        address: address of its first element.
        shape: its sizes.
        dtype: NumPy's type of an element; ml_dtypes' for bfloat16.
        device: number of the GPU.
        owner: the object that keeps the memory alive.
        stream: the stream that may still write its content; ``None`` where it is finished.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: int
    owner: object = field(repr=False)
    stream: int | None = None

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return bytes_of(self.shape, self.dtype.name)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of Numba's interface. bfloat16, which it has no name for, is given as ``uint16``."""
        kind = "<u2" if self.dtype.name == "bfloat16" else self.dtype.str
        return {
            "shape": self.shape,
            "typestr": kind,
            "data": (self.address, False),
            "version": 3,
            "strides": None,
            "stream": self.stream,
        }

    def __dlpack__(self, stream: int | None = None, **_: Any) -> Any:
        """Return a DLPack capsule. The content is finished, so ``stream`` has nothing to wait for."""
        return dlpack.make_capsule(self.address, self.shape, self.dtype.name, self.device, self)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return DLPack's kind and number of the device."""
        return dlpack.CUDA, self.device


def is_device_array(value: Any) -> bool:
    """Tell whether ``value`` says that it lies in GPU memory. Reads attributes only."""
    if isinstance(value, np.ndarray):
        return False
    if isinstance(value, DeviceArray):
        return True
    try:
        if _interface(value) is not None:
            return True
        place = getattr(value, "__dlpack_device__", None)
        return place is not None and int(place()[0]) in (dlpack.CUDA, dlpack.CUDA_MANAGED)
    except Exception:  # torch raises for arrays that it cannot describe
        return False


def as_device_array(value: Any, name: str, cuda: Cuda) -> DeviceArray:
    """Describe an array of another library. The user's stream must wait for the array's ``stream``.

    Args:
        value: the array.
        name: its name in errors.
        cuda: the runtime.

    Raises:
        UsageError: it is not dense in C order, or of a type that engines do not have.
    """
    if isinstance(value, DeviceArray):
        return value
    described = _interface(value)
    # Before its third version the interface did not name the stream; DLPack always synchronises.
    if described is not None and ("stream" in described or not hasattr(value, "__dlpack__")):
        return _from_interface(value, described, name, cuda)
    # The maker lets the default stream wait for its own; see `stream` of the result.
    address, shape, dtype, strides, device, owner = dlpack.read(value, dlpack.DEFAULT_STREAM)
    if not _dense(shape, strides):
        raise _not_dense(name, shape)
    return DeviceArray(address, shape, _known(dtype, name), device, owner, dlpack.DEFAULT_STREAM)


def _interface(value: Any) -> dict[str, Any] | None:
    try:
        described = value.__cuda_array_interface__
    except Exception:  # torch raises for types that the interface has no name for
        return None
    return described if isinstance(described, dict) else None


def _from_interface(value: Any, described: dict[str, Any], name: str, cuda: Cuda) -> DeviceArray:
    if described.get("mask") is not None:
        raise UsageError(f"{name} is a masked array; pass a plain one")
    shape = tuple(int(size) for size in described["shape"])
    try:
        dtype = np.dtype(described["typestr"])
    except TypeError:
        raise UsageError(f"{name} has elements of type {described['typestr']}, which engines do not have") from None
    if "bfloat16" in str(getattr(value, "dtype", "")):
        dtype = numpy_type("bfloat16")
    strides = described.get("strides")
    if strides is not None and not _dense(shape, tuple(step // dtype.itemsize for step in strides)):
        raise _not_dense(name, shape)
    address = int(described["data"][0])
    device = cuda.pointer_device(address) if address else 0
    if device is None:
        raise UsageError(f"{name} says that it lies in GPU memory, and CUDA knows it as host memory")
    return DeviceArray(address, shape, dtype, device, value, described.get("stream", dlpack.DEFAULT_STREAM))


def _dense(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> bool:
    """Tell whether strides, counted in elements, are those of C order; axes of one element do not count."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides or ()), strict=False):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _not_dense(name: str, shape: tuple[int, ...]) -> UsageError:
    return UsageError(
        f"{name} of shape {format_shape(shape)} is not contiguous in GPU memory; pass a contiguous copy "
        "(torch: x.contiguous(), CuPy: cupy.ascontiguousarray(x))"
    )


def _known(dtype: str | None, name: str) -> np.dtype[Any]:
    try:
        if dtype is not None:
            found: np.dtype[Any] = np.dtype(numpy_type(dtype))
            return found
    except TypeError:
        pass
    raise UsageError(f"{name} has elements of a type that engines do not have ({dtype})")
