"""Matrices of a warp: loads and stores of 8x8 pieces, products on tensor cores, laid out as the PTX manual says."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from .listing import Instruction
from .memory import wavefronts
from .registry import Execute, UnknownInstructionError, expect_modifiers, instruction
from .warps import LANES, Mask

if TYPE_CHECKING:
    from .machine import Machine

GROUP = np.arange(LANES) // 4
IN_GROUP = np.arange(LANES) % 4


def _whole_warps(machine: Machine, own: Instruction, mask: Mask) -> np.ndarray:
    """Return the warps that take part, all lanes of each."""
    rows = mask.any(1)
    if not mask[rows].all():
        raise machine.fault(own, "some lanes of a warp do not take part")
    return np.nonzero(rows)[0]


def _matrices(own: Instruction) -> tuple[int, bool]:
    """Return how many matrices a load or store moves, and whether they are transposed."""
    modifiers = expect_modifiers(own, "16", "M88", "MT88", "2", "4")
    return next((int(name) for name in modifiers if name in ("2", "4")), 1), "MT88" in modifiers


@instruction("LDSM")
def load_matrices(machine: Machine, own: Instruction) -> Execute:
    """d = 8x8 matrices of 16-bit numbers; lane l gives the address of row l % 8 of matrix l / 8."""
    count, transposed = _matrices(own)
    address = machine.operands.address(own.operands[1])
    first = int(own.operands[0][1:])
    warps = machine.warps

    def execute(mask: Mask) -> None:
        rows = _whole_warps(machine, own, mask)
        at = np.broadcast_to(address(), mask.shape)
        asked = mask & (np.arange(LANES) < 8 * count)
        machine.note_shared(*wavefronts(at, asked, 16))
        slots = np.broadcast_to(warps.slot, mask.shape)[asked]
        values = machine.shared.read(slots, at[asked], 16).view(np.uint16).reshape(len(rows), count, 8, 8)
        if transposed:
            values = values.swapaxes(2, 3)
        words = np.ascontiguousarray(values).view(np.uint32).reshape(len(rows), count, LANES)
        for number in range(count):
            warps.registers[first + number][rows] = words[:, number]

    return execute


@instruction("STSM")
def store_matrices(machine: Machine, own: Instruction) -> Execute:
    """Shared memory = 8x8 matrices, addressed as loads are."""
    count, transposed = _matrices(own)
    address = machine.operands.address(own.operands[0])
    first = int(own.operands[1][1:])
    warps = machine.warps

    def execute(mask: Mask) -> None:
        rows = _whole_warps(machine, own, mask)
        at = np.broadcast_to(address(), mask.shape)
        asked = mask & (np.arange(LANES) < 8 * count)
        machine.note_shared(*wavefronts(at, asked, 16))
        words = np.stack([warps.registers[first + number][rows] for number in range(count)], axis=1)
        values = np.ascontiguousarray(words).view(np.uint16).reshape(len(rows), count, 8, 8)
        if transposed:
            values = np.ascontiguousarray(values.swapaxes(2, 3))
        slots = np.broadcast_to(warps.slot, mask.shape)[asked]
        machine.shared.write(slots, at[asked], values.reshape(-1, 8).view(np.uint8))

    return execute


def halves(words: np.ndarray, kind: np.dtype) -> np.ndarray:
    """Return (…, 32) words as (…, 32, 2) numbers of 16 bits, in float64."""
    return np.ascontiguousarray(words).view(np.uint16).reshape(*words.shape, 2).view(kind).astype(np.float64)


def tf32(words: np.ndarray) -> np.ndarray:
    """Return words as TF32, whose low 13 bits are not looked at, in float64."""
    return (words & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)


def accumulator_places(registers: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return rows and columns of each register of a 16 x (2 registers) accumulator."""
    return [(GROUP + 8 * (r // 2 % 2), 2 * IN_GROUP + r % 2 + 8 * (r // 4)) for r in range(registers)]


def left_16(registers: np.ndarray, kind: np.dtype) -> np.ndarray:
    """Return a 16x16 left operand, (warps, 16, 16), from its four registers (4, warps, 32)."""
    left = np.zeros((registers.shape[1], 16, 16))
    for number in range(4):
        value = halves(registers[number], kind)
        rows, columns = GROUP + 8 * (number % 2), 2 * IN_GROUP + 8 * (number // 2)
        left[:, rows, columns], left[:, rows, columns + 1] = value[..., 0], value[..., 1]
    return left


def _products_16816(bank: np.ndarray, kind: np.dtype, a: int, b: int, rows: np.ndarray) -> np.ndarray:
    right = np.zeros((len(rows), 16, 8))
    for number in range(2):
        value = halves(bank[b + number][rows], kind)
        at = 2 * IN_GROUP + 8 * number
        right[:, at, GROUP], right[:, at + 1, GROUP] = value[..., 0], value[..., 1]
    return left_16(bank[a : a + 4][:, rows], kind) @ right


def _products_1688_tf32(bank: np.ndarray, a: int, b: int, rows: np.ndarray) -> np.ndarray:
    left, right = np.zeros((len(rows), 16, 8)), np.zeros((len(rows), 8, 8))
    for number in range(4):
        left[:, GROUP + 8 * (number % 2), IN_GROUP + 4 * (number // 2)] = tf32(bank[a + number][rows])
    for number in range(2):
        right[:, IN_GROUP + 4 * number, GROUP] = tf32(bank[b + number][rows])
    return left @ right


@instruction("HMMA")
def multiply_matrices(machine: Machine, own: Instruction) -> Execute:
    """d = a (16 x k) times b (k x 8) + c, k 16 for numbers of 16 bits and 8 for TF32; c, d float32 (PTX mma)."""
    modifiers = expect_modifiers(own, "16816", "1688", "F32", "BF16", "TF32")
    bank = machine.warps.registers
    to, a, b = (int(name[1:]) for name in own.operands[:3])
    c = None if own.operands[3] == "RZ" else int(own.operands[3][1:])
    products: Callable[[np.ndarray], np.ndarray]
    if {"16816", "F32"} <= modifiers and "TF32" not in modifiers:
        kind = np.dtype(ml_dtypes.bfloat16 if "BF16" in modifiers else np.float16)
        products = lambda rows: _products_16816(bank, kind, a, b, rows)  # noqa: E731
    elif {"1688", "F32", "TF32"} <= modifiers:
        products = lambda rows: _products_1688_tf32(bank, a, b, rows)  # noqa: E731
    else:
        raise UnknownInstructionError(f"{own.text}: these products are not modelled")
    places = accumulator_places(4)

    def execute(mask: Mask) -> None:
        rows = _whole_warps(machine, own, mask)
        result = products(rows)
        if c is not None:
            for number, (row, column) in enumerate(places):
                result[:, row, column] += bank[c + number][rows].view(np.float32)
        sums = result.astype(np.float32)
        for number, (row, column) in enumerate(places):
            bank[to + number][rows] = sums[:, row, column].view(np.uint32)

    return execute
