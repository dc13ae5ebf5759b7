"""Loads, stores and asynchronous copies of threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .listing import Instruction
from .memory import sectors, wavefronts
from .registry import Execute, UnknownInstructionError, expect_modifiers, instruction
from .warps import Mask

if TYPE_CHECKING:
    from .machine import Machine

_SIZES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
_HINTS = ("E", "CONSTANT", "SYS", "GPU", "STRONG", "EF", "EL", "LTC64B", "LTC128B", "LTC256B", "NA")
"""Modifiers of global accesses that change no result: address width, caching."""


def _size(own: Instruction, *hints: str) -> int:
    modifiers = expect_modifiers(own, *_SIZES, *hints)
    return next((_SIZES[name] for name in modifiers if name in _SIZES), 4)


def _widen(own: Instruction, values: np.ndarray) -> np.ndarray:
    """Return (accesses, size) bytes as (accesses, registers) words."""
    if values.shape[1] >= 4:
        return np.ascontiguousarray(values).view(np.uint32)
    kind = np.dtype(f"i{values.shape[1]}" if {"S8", "S16"} & set(own.modifiers) else f"u{values.shape[1]}")
    whole = np.ascontiguousarray(values).view(kind)
    return whole.astype(np.int32).view(np.uint32) if kind.kind == "i" else whole.astype(np.uint32)


def _spread(machine: Machine, own: Instruction, name: str, size: int) -> Callable[[np.ndarray, Mask], None]:
    """Return a function that puts (accesses, words) into the registers from ``name`` on, for the lanes of a mask."""
    count = max(1, size // 4)
    writes = [machine.operands.write(name, more) for more in range(count)] if name != "RZ" else []

    def put(values: np.ndarray, mask: Mask) -> None:
        words = _widen(own, values)
        whole = np.zeros(mask.shape, np.uint32)
        for number, write in enumerate(writes):
            whole[mask] = words[:, number]
            write(whole, mask)

    return put


def _gather(machine: Machine, name: str, size: int) -> Callable[[Mask], np.ndarray]:
    """Return a function that takes (accesses, size) bytes from the registers from ``name`` on."""
    count = max(1, size // 4)
    reads = [machine.operands.register(name, more) for more in range(count)]

    def take(mask: Mask) -> np.ndarray:
        words = np.stack([np.broadcast_to(read(), mask.shape)[mask] for read in reads], axis=1)
        return np.ascontiguousarray(words).view(np.uint8).reshape(len(words), -1)[:, :size]

    return take


def lanes_of(value: np.ndarray, mask: Mask) -> np.ndarray:
    """Return the numbers of the lanes of a mask, one after the other."""
    return np.broadcast_to(value, mask.shape)[mask]


@instruction("LDS")
def load_shared(machine: Machine, own: Instruction) -> Execute:
    """d = shared memory; RZ swallows it."""
    size, address = _size(own), machine.operands.address(own.operands[1])
    put, warps = _spread(machine, own, own.operands[0], size), machine.warps

    def execute(mask: Mask) -> None:
        if not mask.any():
            return
        at = address()
        machine.note_shared(*wavefronts(at, mask, size))
        put(machine.shared.read(lanes_of(warps.slot, mask), lanes_of(at, mask), size), mask)

    return execute


@instruction("STS")
def store_shared(machine: Machine, own: Instruction) -> Execute:
    """Shared memory = a."""
    size, address = _size(own), machine.operands.address(own.operands[0])
    take, warps = _gather(machine, own.operands[1], size), machine.warps

    def execute(mask: Mask) -> None:
        if not mask.any():
            return
        at = address()
        machine.note_shared(*wavefronts(at, mask, size))
        machine.shared.write(lanes_of(warps.slot, mask), lanes_of(at, mask), take(mask))

    return execute


@instruction("LDG")
def load_global(machine: Machine, own: Instruction) -> Execute:
    """d = global memory."""
    size, address = _size(own, *_HINTS), machine.operands.address(own.operands[1])
    put = _spread(machine, own, own.operands[0], size)

    def execute(mask: Mask) -> None:
        if not mask.any():
            return
        at = address()
        machine.note_global(sectors(at, mask, size))
        put(machine.memory.read(lanes_of(at, mask), size), mask)

    return execute


@instruction("STG")
def store_global(machine: Machine, own: Instruction) -> Execute:
    """Global memory = a."""
    size, address = _size(own, *_HINTS), machine.operands.address(own.operands[0])
    take = _gather(machine, own.operands[1], size)

    def execute(mask: Mask) -> None:
        if not mask.any():
            return
        at = address()
        machine.note_global(sectors(at, mask, size))
        machine.memory.write(lanes_of(at, mask), take(mask))

    return execute


@dataclass
class Copies:
    """Asynchronous copies of one instruction: each one's warp, that warp's group of copies, place and bytes."""

    group: np.ndarray
    warps: np.ndarray
    slots: np.ndarray
    addresses: np.ndarray
    values: np.ndarray


class CopyQueue:
    """Copies under way. They arrive no sooner than they are waited for; until then their places hold 0xFF."""

    def __init__(self, warps: int) -> None:
        self._groups = np.zeros(warps, np.int64)
        self._copies: list[Copies] = []

    def begin(self, machine: Machine, mask: Mask, addresses: np.ndarray, values: np.ndarray) -> None:
        """Begin copying (accesses, 16) bytes."""
        slots = lanes_of(machine.warps.slot, mask)
        machine.shared.write(slots, addresses, np.full_like(values, 0xFF))
        group = np.broadcast_to(self._groups[:, None], mask.shape)[mask]
        self._copies.append(Copies(group, np.nonzero(mask)[0], slots, addresses, values))

    def commit(self, mask: Mask) -> None:
        """End a group of each warp's copies."""
        self._groups += mask.any(1)

    def wait(self, machine: Machine, mask: Mask, pending: int) -> None:
        """Let all but the last ``pending`` groups of these warps arrive."""
        warps = mask.any(1)
        left = []
        for copies in self._copies:
            done = warps[copies.warps] & (copies.group < (self._groups - pending)[copies.warps])
            if done.any():
                machine.shared.write(copies.slots[done], copies.addresses[done], copies.values[done])
            if not done.all():
                keep = ~done
                left.append(Copies(*(part[keep] for part in vars(copies).values())))
        self._copies = left


@instruction("LDGSTS")
def copy_to_shared(machine: Machine, own: Instruction) -> Execute:
    """Begin copying from global to shared memory; where the last predicate does not hold, zeros."""
    size = _size(own, *_HINTS, "BYPASS", "ACCESS", "ZFILL")
    to, start = (machine.operands.address(name) for name in own.operands[:2])
    inside = machine.operands.predicate(own.operands[2] if len(own.operands) > 2 else "PT")

    def execute(mask: Mask) -> None:
        if not mask.any():
            return
        target, source, real = to(), start(), mask & inside()
        machine.note_shared(*wavefronts(target, mask, size))
        machine.note_global(sectors(source, real, size))
        values = np.zeros((*mask.shape, size), np.uint8)
        values[real] = machine.memory.read(lanes_of(source, real), size)
        machine.copies.begin(machine, mask, lanes_of(target, mask), values[mask])

    return execute


@instruction("LDGDEPBAR")
def end_group_of_copies(machine: Machine, own: Instruction) -> Execute:
    """End a group of copies."""
    expect_modifiers(own)
    return machine.copies.commit


@instruction("DEPBAR")
def wait_for_copies(machine: Machine, own: Instruction) -> Execute:
    """Wait until at most so many groups of copies are under way."""
    expect_modifiers(own, "LE")
    if own.operands[0] != "SB0":
        raise UnknownInstructionError(f"{own.text}: copies are waited for at SB0")
    pending = int(own.operands[1], 16)
    return lambda mask: machine.copies.wait(machine, mask, pending)
