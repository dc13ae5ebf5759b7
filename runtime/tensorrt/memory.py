"""Growing buffers: device memory, and page-locked host memory for copies to and from a GPU."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from na_deploy.closeable import Closeable
from na_deploy.model_file.tensors import Array, numpy_type
from na_deploy.runtime.tensorrt.cuda import Cuda

_STEP = 256
"""Multiple that sizes are rounded up to, as CUDA does."""


def bytes_of(shape: Sequence[int], dtype: str) -> int:
    """Return the size of a dense array."""
    return math.prod(shape) * int(numpy_type(dtype).itemsize)


class DeviceBuffer(Closeable):
    """Device memory of at least the size last asked for. Its address changes only when it grows."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.address = 0
        self.size = 0

    def ensure(self, size: int) -> int:
        """Return the address of at least ``size`` bytes (never 0); content is lost when the buffer grows.

        Raises:
            OutOfDeviceMemoryError: there is not enough free memory; the buffer is then empty.
        """
        if size > self.size or not self.address:
            self.close()
            wanted = max(_STEP, -(-size // _STEP) * _STEP)
            self.address = self._allocate(wanted)
            self.size = wanted
        return self.address

    def close(self) -> None:
        """Free the memory."""
        address, self.address, self.size = self.address, 0, 0
        if address:
            self._release(address)

    def _allocate(self, size: int) -> int:
        return self._cuda.allocate(size)

    def _release(self, address: int) -> None:
        self._cuda.free(address)


class PinnedBuffer(DeviceBuffer):
    """Page-locked host memory of at least the size last asked for."""

    def view(self, shape: Sequence[int], dtype: str) -> Array:
        """Return the beginning of the buffer as an array, which must not outlive it."""
        size = bytes_of(shape, dtype)
        raw: Any = (ctypes.c_char * max(size, 1)).from_address(self.ensure(size))
        array: Array = np.frombuffer(raw, np.uint8, size).view(numpy_type(dtype)).reshape(tuple(shape))
        return array

    def _allocate(self, size: int) -> int:
        return self._cuda.allocate_pinned(size)

    def _release(self, address: int) -> None:
        self._cuda.free_pinned(address)
