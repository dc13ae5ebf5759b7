"""Integers and bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .listing import Instruction
from .operands import LOW, WORD, Operands, Read
from .registry import Execute, UnknownInstructionError, expect_modifiers, instruction, one_of
from .warps import Mask

if TYPE_CHECKING:
    from .machine import Machine

U32, I64, U64 = np.uint32, np.int64, np.uint64
LIMIT = 1 << 32


def wide(value: np.ndarray, signed: bool = False) -> np.ndarray:
    """Return 32-bit numbers as 64-bit ones, int64."""
    return (value.view(np.int32) if signed else value).astype(I64)


def low_word(value: np.ndarray) -> np.ndarray:
    """Return the low 32 bits of 64-bit numbers."""
    return (value & (LIMIT - 1)).astype(U32)


def _carries(operands: Operands, names: tuple[str, ...]) -> list[Read]:
    return [operands.predicate(name) for name in names]


def _leading_predicates(operands: Operands, own: Instruction) -> int:
    """Count the predicates that stand behind an instruction's first operand: carries that it writes."""
    count = 0
    while operands.is_predicate(own.operands[1 + count]):
        count += 1
    return count


@instruction("IADD3", "UIADD3")
def add_three(machine: Machine, own: Instruction) -> Execute:
    """d = a + b + c, .64 of pairs, .X with the carries of a lower word; carries out say how often the sum overflows."""
    modifiers, operands = expect_modifiers(own, "X", "64"), machine.operands
    if "64" in modifiers:
        to_pair, pairs = operands.write_pair(own.operands[0]), [operands.pair(name) for name in own.operands[1:4]]
        return lambda mask: to_pair(pairs[0]() + pairs[1]() + pairs[2](), mask)
    carries_out = _leading_predicates(operands, own)
    names = own.operands[1 + carries_out :]
    to, parts = operands.write(own.operands[0]), []
    for name in names[:3]:
        # A negated number is its complement and one, so that a carry means "nothing borrowed".
        negated = operands.is_negated(name)
        parts.append((operands.bits("~" + name[1:] if negated else name), int(negated)))
    into = _carries(operands, names[3:]) if "X" in modifiers else []
    out = [operands.write_predicate(name) for name in own.operands[1 : 1 + carries_out]]

    if not out and not into:
        (a, x), (b, y), (c, z) = parts
        ones = U32(x + y + z)
        if ones:
            return lambda mask: to(a() + b() + c() + ones, mask)
        return lambda mask: to(a() + b() + c(), mask)

    def execute(mask: Mask) -> None:
        total = sum((wide(read()) + one for read, one in parts), start=np.zeros((1, 1), I64))
        for carry in into:
            total = total + carry()
        to(low_word(total), mask)
        for number, write in enumerate(out):
            write(total >> 32 > number, mask)

    return execute


@instruction("VIADD")
def add_two(machine: Machine, own: Instruction) -> Execute:
    """d = a + b."""
    expect_modifiers(own)
    to = machine.operands.write(own.operands[0])
    a, b = (machine.operands.bits(name) for name in own.operands[1:])
    return lambda mask: to(a() + b(), mask)


_SPELLINGS = ("MOV", "IADD", "SHL")
"""Modifiers of IMAD that change nothing: they say what a product by one, or by a power of two, is for."""


@instruction("IMAD", "UIMAD")
def multiply_add(machine: Machine, own: Instruction) -> Execute:
    """d = a * b + c in 32 bits; .WIDE with 64-bit c and d, .HI the high word of that; .X adds a carry.

    A predicate behind d takes the carry of the 64-bit sum.
    """
    modifiers, operands = expect_modifiers(own, "WIDE", "HI", "X", "U32", *_SPELLINGS), machine.operands
    out = _leading_predicates(operands, own)
    names = own.operands[1 + out :]
    is_wide = "WIDE" in modifiers or "HI" in modifiers
    if len(names) != (4 if "X" in modifiers else 3) or out > int(is_wide):
        raise UnknownInstructionError(f"{own.text}: these operands are not modelled")
    a, b = (operands.bits(name) for name in names[:2])
    carry = operands.predicate(names[3]) if "X" in modifiers else None
    if is_wide:
        return _wide_product(operands, own, (a, b, operands.pair(names[2])), carry)
    c, to = operands.bits(names[2]), operands.write(own.operands[0])
    if carry is not None:
        return lambda mask: to(a() * b() + c() + carry().astype(U32), mask)
    if "MOV" in modifiers and names[:2] == ("RZ", "RZ"):
        return lambda mask: to(c(), mask)
    return lambda mask: to(a() * b() + c(), mask)


def _wide_product(operands: Operands, own: Instruction, read: tuple[Read, Read, Read], carry: Read | None) -> Execute:
    signed, high = "U32" not in own.modifiers, "HI" in own.modifiers
    carry_out = operands.write_predicate(own.operands[1]) if operands.is_predicate(own.operands[1]) else None
    if signed and (high or carry_out is not None):
        raise UnknownInstructionError(f"{own.text}: high words and carries of signed products are not modelled")
    a, b, c = read
    to = operands.write(own.operands[0]) if high else operands.write_pair(own.operands[0])

    def execute(mask: Mask) -> None:
        added = c()
        total = wide(a(), signed).view(U64) * wide(b(), signed).view(U64) + added
        over = total < added
        if carry is not None:
            total = total + carry().astype(U64)
            over = over | (total == 0) & carry()
        to((total >> WORD).astype(U32) if high else total, mask)
        if carry_out is not None:
            carry_out(over, mask)

    return execute


@instruction("LEA", "ULEA")
def load_effective_address(machine: Machine, own: Instruction) -> Execute:
    """d = (a << n) + b; .HI the high word of a shifted pair; .SX32 extends a by its sign; .X adds a carry."""
    modifiers, operands = expect_modifiers(own, "HI", "X", "SX32"), machine.operands
    out = _leading_predicates(operands, own)
    names = list(own.operands[1 + out :])
    to = operands.write(own.operands[0])
    carry_out = operands.write_predicate(own.operands[1]) if out else None
    a, b = operands.bits(names[0]), operands.bits(names[1])
    high = operands.bits(names.pop(2)) if "HI" in modifiers and "SX32" not in modifiers else None
    shift = U64(int(names[2], 16))
    carry = operands.predicate(names[3]) if "X" in modifiers else None

    def execute(mask: Mask) -> None:
        if "SX32" in modifiers:
            whole = wide(a(), signed=True).view(U64)
        elif high is not None:
            whole = a().astype(U64) | high().astype(U64) << WORD
        else:
            whole = a().astype(U64)
        shifted = whole << shift
        total = (shifted >> WORD if "HI" in modifiers else shifted & LOW) + b()
        if carry is not None:
            total = total + carry().astype(U64)
        to((total & LOW).astype(U32), mask)
        if carry_out is not None:
            carry_out(total > LOW, mask)

    return execute


@instruction("SHF", "USHF")
def funnel_shift(machine: Machine, own: Instruction) -> Execute:
    """d = a word of the pair (c, a) shifted by b: low, or .HI; b ends at 32, or at 64 for 64-bit types, or .W wraps."""
    modifiers, operands = expect_modifiers(own, "L", "R", "HI", "W", "S32", "U32", "S64", "U64"), machine.operands
    kind = one_of(own, ("S32", "U32", "S64", "U64"))
    to, (a, b, c) = operands.write(own.operands[0]), (operands.bits(name) for name in own.operands[1:4])
    most = 64 if kind.endswith("64") else 32
    word = WORD if "HI" in modifiers else U64(0)

    def execute(mask: Mask) -> None:
        whole = a().astype(U64) | c().astype(U64) << WORD
        by = b().astype(U64)
        by = by & U64(most - 1) if "W" in modifiers else np.minimum(by, U64(most))
        first = np.minimum(by, U64(63))  # a shift by 64 is one by 63 and one by 1
        if "L" in modifiers:
            shifted = whole << first << (by - first)
        elif kind.startswith("S"):
            shifted = (whole.view(I64) >> first.astype(I64) >> (by - first).astype(I64)).view(U64)
        else:
            shifted = whole >> first >> (by - first)
        to((shifted >> word & LOW).astype(U32), mask)

    return execute


@instruction("LOP3", "ULOP3")
def logic(machine: Machine, own: Instruction) -> Execute:
    """d = any function of three bits, given by its table; a predicate says whether the result is not 0."""
    expect_modifiers(own, "LUT")
    operands, names = machine.operands, list(own.operands)
    is_set = operands.write_predicate(names.pop(0)) if operands.is_predicate(names[0]) else None
    to, table = operands.write(names[0]), int(names[4], 16)
    read = [operands.bits(name) for name in names[1:4]]
    terms = [number for number in range(8) if table >> number & 1]

    def execute(mask: Mask) -> None:
        a, b, c = (part() for part in read)
        if table == 0xC0:
            result = a & b
        elif table == 0xFC:
            result = a | b
        elif table == 0x3C:
            result = a ^ b
        else:
            result = np.zeros((1, 1), U32)
            for term in terms:
                result = result | (a if term & 4 else ~a) & (b if term & 2 else ~b) & (c if term & 1 else ~c)
        to(result, mask)
        if is_set is not None:
            is_set(result != 0, mask)

    return execute


@instruction("IMNMX", "VIMNMX", "UIMNMX")
def lesser_or_greater(machine: Machine, own: Instruction) -> Execute:
    """d = min(a, b) where the predicate says so, else max(a, b); .RELU: at least 0."""
    modifiers, operands = expect_modifiers(own, "U32", "S32", "RELU"), machine.operands
    kind = U32 if "U32" in modifiers else np.int32
    to, (a, b) = operands.write(own.operands[0]), (operands.bits(name) for name in own.operands[1:3])
    least = operands.predicate(own.operands[3])
    return lambda mask: to(_bounded(least(), a().view(kind), b().view(kind), "RELU" in modifiers), mask)


def _bounded(least: np.ndarray, a: np.ndarray, b: np.ndarray, at_least_0: bool) -> np.ndarray:
    found = np.where(least, np.minimum(a, b), np.maximum(a, b))
    return (np.maximum(found, found.dtype.type(0)) if at_least_0 else found).view(U32)


@instruction("VIADDMNMX")
def add_then_lesser_or_greater(machine: Machine, own: Instruction) -> Execute:
    """d = min(a + b, c) where the predicate says so, else max(a + b, c); .RELU: at least 0."""
    modifiers, operands = expect_modifiers(own, "U32", "RELU"), machine.operands
    kind = U32 if "U32" in modifiers else np.int32
    to, (a, b, c) = operands.write(own.operands[0]), (operands.bits(name) for name in own.operands[1:4])
    least = operands.predicate(own.operands[4])
    return lambda mask: to(_bounded(least(), (a() + b()).view(kind), c().view(kind), "RELU" in modifiers), mask)


@instruction("IABS")
def absolute(machine: Machine, own: Instruction) -> Execute:
    """d = |a|."""
    expect_modifiers(own)
    to, a = machine.operands.write(own.operands[0]), machine.operands.signed(own.operands[1])
    return lambda mask: to(np.abs(a()).view(U32), mask)


@instruction("PRMT", "UPRMT")
def permute_bytes(machine: Machine, own: Instruction) -> Execute:
    """d = four bytes of (c, a), chosen by four digits of b; a digit's high bit spreads the byte's sign."""
    expect_modifiers(own)
    operands = machine.operands
    to, (a, b, c) = operands.write(own.operands[0]), (operands.bits(name) for name in own.operands[1:4])

    def execute(mask: Mask) -> None:
        pair = a().astype(U64) | c().astype(U64) << WORD
        choice, result = b(), np.zeros((1, 1), U32)
        for place in range(4):
            digit = choice >> U32(4 * place) & U32(15)
            byte = (pair >> ((digit & U32(7)) * U32(8)).astype(U64) & U64(255)).astype(U32)
            spread = np.where(byte >> U32(7), U32(255), U32(0))
            result = result | np.where(digit & U32(8), spread, byte) << U32(8 * place)
        to(result, mask)

    return execute


@instruction("MOV", "UMOV")
def move(machine: Machine, own: Instruction) -> Execute:
    """d = a."""
    expect_modifiers(own)
    to, a = machine.operands.write(own.operands[0]), machine.operands.bits(own.operands[1])
    return lambda mask: to(a(), mask)


@instruction("CS2R")
def clear(machine: Machine, own: Instruction) -> Execute:
    """Clear two registers, or with .32 one; other special registers are not modelled."""
    modifiers = expect_modifiers(own, "32")
    if own.operands[1] != "SRZ":
        raise UnknownInstructionError(f"{own.text}: only SRZ is modelled")
    zero = np.zeros((1, 1), U64)
    if modifiers:
        to = machine.operands.write(own.operands[0])
        return lambda mask: to(zero.astype(U32), mask)
    to_pair = machine.operands.write_pair(own.operands[0])
    return lambda mask: to_pair(zero, mask)
