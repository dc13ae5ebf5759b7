"""Global memory and blocks' shared memory as arrays of bytes, and what accesses cost there.

A warp's access to shared memory takes as many *wavefronts* as the bank that has to give most: 32 banks of 4 bytes, and
8 or 16 lanes at a time where each reads 16 or 8 bytes (NVIDIA's description of shared memory since Volta, and of
Nsight Compute's metric). Global memory is moved in *sectors* of 32 bytes: those that a warp touches, each once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

SECTOR = 32
FIRST_ADDRESS = 1 << 32
GAP = 4096
"""Bytes that nobody may touch between arrays."""


class MemoryAccessError(RuntimeError):
    """An access that the device would refuse, or that reads what is nobody's."""


@dataclass
class Array:
    """One array in global memory. Its address is known once it is placed."""

    values: np.ndarray
    address: int = 0
    touched: np.ndarray = field(init=False)
    """Sectors that were read or written."""
    content: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        if not self.values.flags.c_contiguous:
            raise ValueError("an array in global memory must lie in one piece")
        self.content = self.values.reshape(-1).view(np.uint8)
        self.touched = np.zeros(self.content.size // SECTOR + 1, bool)


class GlobalMemory:
    """Named arrays, each at an address of its own that is a multiple of 4096."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays: dict[str, Array] = {}
        at = FIRST_ADDRESS
        for name, values in arrays.items():
            self.arrays[name] = Array(values, at)
            at += (values.nbytes + 2 * GAP - 1) // GAP * GAP
        self._starts = np.array([array.address for array in self.arrays.values()], np.int64)
        self._list = list(self.arrays.values())

    def address(self, name: str) -> int:
        """Return where an array begins."""
        return self.arrays[name].address

    def _pieces(self, addresses: np.ndarray, size: int) -> list[tuple[Array, np.ndarray, np.ndarray]]:
        """Return, for each array that is touched, which accesses are in it and at which elements of ``size`` bytes."""
        if (addresses % size).any():
            raise MemoryAccessError(
                f"an access to {size} bytes at {int(addresses[addresses % size != 0][0]):#x} is not aligned"
            )
        owner = np.searchsorted(self._starts, addresses, "right") - 1
        found = []
        for number in np.unique(owner):
            which = owner == number
            array = self._list[number]
            offsets = addresses[which] - array.address
            if number < 0 or (offsets + size > array.content.size).any():
                raise MemoryAccessError(f"global memory at {int(addresses[which].max()):#x} belongs to no array")
            array.touched[offsets // SECTOR] = True
            found.append((array, which, offsets // size))
        return found

    def read(self, addresses: np.ndarray, size: int) -> np.ndarray:
        """Return the bytes at each address, as (accesses, size)."""
        result = np.empty((len(addresses), size), np.uint8)
        for array, which, at in self._pieces(addresses, size):
            whole = array.content[: array.content.size // size * size].reshape(-1, size)
            result[which] = whole[at]
        return result

    def write(self, addresses: np.ndarray, values: np.ndarray) -> None:
        """Write the bytes (accesses, size) to each address."""
        size = values.shape[1]
        for array, which, at in self._pieces(addresses, size):
            array.content[: array.content.size // size * size].reshape(-1, size)[at] = values[which]

    def touched_bytes(self) -> dict[str, int]:
        """Return how many bytes of each array were touched, by sectors."""
        return {name: int(array.touched.sum()) * SECTOR for name, array in self.arrays.items()}


class SharedMemory:
    """The shared memory of several blocks, each from address ``base`` on. Fresh memory is bytes 0xFF: NaN."""

    def __init__(self, blocks: int, size: int, base: int) -> None:
        self.base = base
        self.size = (size + 1023) // 1024 * 1024
        self._used = size
        self.bytes = np.full(blocks * self.size, 0xFF, np.uint8)

    def _at(self, slots: np.ndarray, addresses: np.ndarray, size: int) -> np.ndarray:
        offsets = addresses - self.base
        if (offsets < 0).any() or (offsets + size > self._used).any():
            wrong = addresses[(offsets < 0) | (offsets + size > self._used)][0]
            raise MemoryAccessError(f"shared memory at {int(wrong):#x} is outside the block's {self._used} bytes")
        if (offsets % size).any():
            raise MemoryAccessError(
                f"an access to {size} bytes of shared memory at {int(addresses.max()):#x} is not aligned"
            )
        return (slots * self.size + offsets) // size

    def read(self, slots: np.ndarray, addresses: np.ndarray, size: int) -> np.ndarray:
        """Return the bytes at each address of each block, as (accesses, size)."""
        return self.bytes.reshape(-1, size)[self._at(slots, addresses, size)]

    def write(self, slots: np.ndarray, addresses: np.ndarray, values: np.ndarray) -> None:
        """Write the bytes (accesses, size) to each address."""
        size = values.shape[1]
        self.bytes.reshape(-1, size)[self._at(slots, addresses, size)] = values


def wavefronts(addresses: np.ndarray, mask: np.ndarray, size: int) -> tuple[int, int]:
    """Return the wavefronts of accesses of ``size`` bytes, (warps, 32), and how many there were without conflicts."""
    lanes = {16: 8, 8: 16}.get(size, 32)
    taken = mask.reshape(-1, lanes)
    used = taken.any(1)
    if not used.any():
        return 0, 0
    taken = taken[used]
    first = np.broadcast_to(addresses, mask.shape).reshape(-1, lanes)[used] // 4
    words = first[:, :, None] + np.arange(max(1, size // 4))
    words = np.where(taken[:, :, None], words, -1).reshape(len(taken), -1)
    words.sort(axis=1)
    fresh = words >= 0
    fresh[:, 1:] &= words[:, 1:] != words[:, :-1]
    rows, columns = np.nonzero(fresh)
    banks = np.bincount(rows * 32 + words[rows, columns] % 32, minlength=len(taken) * 32).reshape(-1, 32)
    return int(banks.max(1).sum()), len(taken)


def sectors(addresses: np.ndarray, mask: np.ndarray, size: int) -> int:
    """Return how many sectors the warps' accesses touch, each warp's counted once."""
    used = mask.any(1)
    if not used.any():
        return 0
    touched = np.broadcast_to(addresses, mask.shape)[used]
    first, last = touched // SECTOR, (touched + size - 1) // SECTOR
    both = np.concatenate([np.where(mask[used], first, -1), np.where(mask[used], last, -1)], axis=1)
    both.sort(axis=1)
    fresh = both >= 0
    fresh[:, 1:] &= both[:, 1:] != both[:, :-1]
    return int(fresh.sum())
