"""Numbers with a point: float32, float16, bfloat16 and conversions.

Sums and products are worked out in float64 and rounded once to float32: exact but where a sum lies between two float32
to within float64's last bit. The special functions are rounded to nearest, where the device may be one or two bits off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from .listing import Instruction
from .registry import Execute, UnknownInstructionError, expect_modifiers, instruction, one_of
from .warps import Mask

if TYPE_CHECKING:
    from .machine import Machine

U32, F32, F64 = np.uint32, np.float32, np.float64
SMALLEST = np.finfo(F32).smallest_normal


def flushed(value: np.ndarray) -> np.ndarray:
    """Return float32 with denormal numbers as zeros of their sign."""
    return np.where(np.abs(value) < SMALLEST, np.copysign(F32(0), value), value).astype(F32)


def rounded(exact: np.ndarray, direction: str) -> np.ndarray:
    """Return float64 as float32, rounded to nearest (RN), up (RP), down (RM) or towards zero (RZ)."""
    nearest = exact.astype(F32)
    if direction == "RN":
        return nearest
    above, below = nearest.astype(F64) > exact, nearest.astype(F64) < exact
    toward_zero = np.where(exact > 0, above, below)
    wrong = {"RP": below, "RM": above, "RZ": toward_zero}[direction]
    other = {"RP": np.inf, "RM": -np.inf, "RZ": 0.0}[direction]
    return np.where(wrong, np.nextafter(nearest, F32(other)), nearest)


def _direction(own: Instruction) -> str:
    return next((modifier for modifier in own.modifiers if modifier in ("RP", "RM", "RZ")), "RN")


def _arithmetic(machine: Machine, own: Instruction, work: Callable[..., np.ndarray]) -> Execute:
    modifiers, operands = expect_modifiers(own, "FTZ", "SAT", "RP", "RM", "RZ", "RN"), machine.operands
    to, read = operands.write_float(own.operands[0]), [operands.floats(name) for name in own.operands[1:]]
    direction, flushes = _direction(own), "FTZ" in modifiers

    def execute(mask: Mask) -> None:
        values = [part() for part in read]
        if flushes:
            values = [flushed(value) for value in values]
        found = rounded(work(*(value.astype(F64) for value in values)), direction)
        if "SAT" in modifiers:  # to [0, 1], NaN to 0
            found = np.fmin(np.fmax(found, F32(0)), F32(1))
        to(flushed(found) if flushes else found, mask)

    return execute


@instruction("FADD")
def add(machine: Machine, own: Instruction) -> Execute:
    """d = a + b."""
    if own.modifiers:
        return _arithmetic(machine, own, lambda a, b: a + b)
    to, (a, b) = machine.operands.write_float(own.operands[0]), map(machine.operands.floats, own.operands[1:])
    return lambda mask: to(a() + b(), mask)


@instruction("FMUL")
def multiply(machine: Machine, own: Instruction) -> Execute:
    """d = a * b."""
    if own.modifiers:
        return _arithmetic(machine, own, lambda a, b: a * b)
    to, (a, b) = machine.operands.write_float(own.operands[0]), map(machine.operands.floats, own.operands[1:])
    return lambda mask: to(a() * b(), mask)


@instruction("FFMA")
def fused_multiply_add(machine: Machine, own: Instruction) -> Execute:
    """d = a * b + c, rounded once."""
    return _arithmetic(machine, own, lambda a, b, c: a * b + c)


@instruction("FMNMX")
def lesser_or_greater_number(machine: Machine, own: Instruction) -> Execute:
    """d = min(a, b) where the predicate says so, else max(a, b); a number wins over NaN."""
    expect_modifiers(own)
    operands = machine.operands
    to, (a, b) = operands.write_float(own.operands[0]), map(operands.floats, own.operands[1:3])
    least = operands.predicate(own.operands[3])
    if own.operands[3] == "!PT":
        return lambda mask: to(np.fmax(a(), b()), mask)
    return lambda mask: to(np.where(least(), np.fmin(a(), b()), np.fmax(a(), b())), mask)


@instruction("FSEL")
def select_number(machine: Machine, own: Instruction) -> Execute:
    """d = a where the predicate says so, else b."""
    expect_modifiers(own)
    operands = machine.operands
    to, (a, b) = operands.write(own.operands[0]), map(operands.float_bits, own.operands[1:3])
    which = operands.predicate(own.operands[3])
    return lambda mask: to(np.where(which(), a(), b()), mask)


_ORDERED = {
    "EQ": np.equal, "NE": np.not_equal, "LT": np.less, "LE": np.less_equal, "GT": np.greater, "GE": np.greater_equal,
}  # fmt: skip
_COMPARISONS = (*_ORDERED, *(name + "U" for name in _ORDERED), "NUM", "NAN")


@instruction("FSETP")
def compare_numbers(machine: Machine, own: Instruction) -> Execute:
    """p = (a ? b) joined with a third predicate, q its opposite, joined; a test with U holds where a or b is NaN."""
    modifiers, operands = expect_modifiers(own, *_COMPARISONS, "FTZ", "AND", "OR", "XOR"), machine.operands
    test, join = one_of(own, _COMPARISONS), one_of(own, ("AND", "OR", "XOR"))
    p, q = (operands.write_predicate(name) for name in own.operands[:2])
    a, b = (operands.floats(name) for name in own.operands[2:4])
    other = operands.predicate(own.operands[4])
    combine = {"AND": np.logical_and, "OR": np.logical_or, "XOR": np.logical_xor}[join]

    def execute(mask: Mask) -> None:
        x, y = a(), b()
        if "FTZ" in modifiers:
            x, y = flushed(x), flushed(y)
        unordered = np.isnan(x) | np.isnan(y)
        if test in ("NUM", "NAN"):
            found = unordered if test == "NAN" else ~unordered
        else:
            found = _ORDERED[test.removesuffix("U")](x, y)
            found = found | unordered if test.endswith("U") else found & ~unordered
        third = other()
        results = combine(found, third), combine(~found, third)
        p(results[0], mask)
        q(results[1], mask)

    return execute


_SPECIAL: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "EX2": np.exp2, "LG2": np.log2, "RCP": lambda x: 1.0 / x, "RSQ": lambda x: 1.0 / np.sqrt(x), "SQRT": np.sqrt,
    "SIN": np.sin, "COS": np.cos, "TANH": np.tanh,
}  # fmt: skip


@instruction("MUFU")
def special_function(machine: Machine, own: Instruction) -> Execute:
    """d = 2^a, log2 a, 1/a …; denormal numbers are zeros, as the unit has it."""
    expect_modifiers(own, *_SPECIAL)
    work, operands = _SPECIAL[one_of(own, tuple(_SPECIAL))], machine.operands
    to, a = operands.write_float(own.operands[0]), operands.floats(own.operands[1])
    return lambda mask: to(flushed(work(flushed(a()).astype(F64)).astype(F32)), mask)


@instruction("FCHK")
def check_division(machine: Machine, own: Instruction) -> Execute:
    """p: a / b needs the slow way, since a, b or steps between may leave the normal numbers."""
    expect_modifiers(own)
    operands = machine.operands
    p, (a, b) = operands.write_predicate(own.operands[0]), map(operands.floats, own.operands[1:3])

    def execute(mask: Mask) -> None:
        x, y = a(), b()
        _, up = np.frexp(x)
        _, down = np.frexp(y)
        usual = np.isfinite(x) & np.isfinite(y) & (np.abs(y) >= SMALLEST) & (np.abs(x) >= SMALLEST)
        near = (np.abs(up - down) < 120) & (np.abs(down) < 120) & (up > -100)
        p(~(usual & near), mask)

    return execute


def _half_bits(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float16).view(np.uint16).astype(U32)


def _bfloat_bits(value: np.ndarray) -> np.ndarray:
    return value.astype(ml_dtypes.bfloat16).view(np.uint16).astype(U32)


@instruction("F2FP")
def pack_two(machine: Machine, own: Instruction) -> Execute:
    """d = a and b as 16-bit numbers, a in the high half."""
    modifiers, operands = expect_modifiers(own, "F16", "F32", "BF16", "PACK_AB"), machine.operands
    if "PACK_AB" not in modifiers:
        raise UnknownInstructionError(f"{own.text}: only .PACK_AB is modelled")
    to, (a, b) = operands.write(own.operands[0]), map(operands.floats, own.operands[1:3])
    bits = _bfloat_bits if "BF16" in modifiers else _half_bits
    return lambda mask: to(bits(a()) << U32(16) | bits(b()), mask)


@instruction("HADD2")
def add_halves(machine: Machine, own: Instruction) -> Execute:
    """d = a + b for two float16; .F32: the low ones' sum as float32."""
    modifiers, operands = expect_modifiers(own, "F32"), machine.operands
    a, b = operands.halves(own.operands[1]), operands.halves(own.operands[2])
    if modifiers:
        to_float = operands.write_float(own.operands[0])
        return lambda mask: to_float(a()[0] + b()[0], mask)
    to = operands.write(own.operands[0])

    def execute(mask: Mask) -> None:
        (low, high), (more_low, more_high) = a(), b()
        to(_half_bits(high + more_high) << U32(16) | _half_bits(low + more_low), mask)

    return execute


@instruction("HFMA2")
def multiply_add_halves(machine: Machine, own: Instruction) -> Execute:
    """d = a * b + c for two float16; a number in the instruction is two, the high one first."""
    expect_modifiers(own, "MMA")
    operands = machine.operands
    to, a, b = operands.write(own.operands[0]), operands.halves(own.operands[1]), operands.halves(own.operands[2])
    if len(own.operands) == 5:
        high, low = (np.full((1, 1), float(name), F32) for name in own.operands[3:5])
        c = lambda: (low, high)  # noqa: E731
    else:
        c = operands.halves(own.operands[3])

    def execute(mask: Mask) -> None:
        found = [_half_bits(x.astype(F64) * y + z) for x, y, z in zip(a(), b(), c(), strict=True)]
        to(found[1] << U32(16) | found[0], mask)

    return execute


@instruction("I2F", "I2FP")
def integer_to_float(machine: Machine, own: Instruction) -> Execute:
    """d = an integer as float32: signed or unsigned, of 32 or 64 bits."""
    modifiers, operands = (
        expect_modifiers(own, "U32", "S32", "U64", "S64", "F32", "RP", "RM", "RZ", "RN"),
        machine.operands,
    )
    to, direction = operands.write_float(own.operands[0]), _direction(own)
    if "U64" in modifiers or "S64" in modifiers:
        pair = operands.pair(own.operands[1])

        def execute_pair(mask: Mask) -> None:
            whole = pair()
            exact = (whole if "U64" in modifiers else whole.view(np.int64)).astype(np.longdouble)
            nearest = exact.astype(F32)
            wrong = {"RP": nearest < exact, "RM": nearest > exact, "RZ": np.abs(nearest) > np.abs(exact)}
            other = {"RP": np.inf, "RM": -np.inf, "RZ": 0.0}
            if direction != "RN":
                nearest = np.where(wrong[direction], np.nextafter(nearest, F32(other[direction])), nearest)
            to(nearest, mask)

        return execute_pair
    read = operands.bits(own.operands[1]) if "U32" in modifiers else operands.signed(own.operands[1])
    return lambda mask: to(rounded(read().astype(F64), direction), mask)


@instruction("F2I")
def float_to_integer(machine: Machine, own: Instruction) -> Execute:
    """d = float32 as an integer, towards zero, at most and at least what the type holds; NaN is 0."""
    modifiers = expect_modifiers(own, "FTZ", "U32", "S32", "U64", "S64", "TRUNC", "NTZ")
    if "TRUNC" not in modifiers:
        raise UnknownInstructionError(f"{own.text}: only .TRUNC is modelled")
    operands, a = machine.operands, machine.operands.floats(own.operands[1])
    is_pair = "U64" in modifiers or "S64" in modifiers
    bits, unsigned = 64 if is_pair else 32, "U32" in modifiers or "U64" in modifiers
    low, high = (0, (1 << bits) - 1) if unsigned else (-(1 << bits - 1), (1 << bits - 1) - 1)
    to = operands.write_pair(own.operands[0]) if is_pair else operands.write(own.operands[0])

    def execute(mask: Mask) -> None:
        value = np.nan_to_num(np.trunc(a().astype(F64)), nan=0.0, posinf=2.0**70, neginf=-(2.0**70))
        over, under = value >= high, value <= low
        inside = np.where(over | under, 0.0, value)
        whole = np.where(inside < 0, inside.astype(np.int64).view(np.uint64), np.abs(inside).astype(np.uint64))
        whole = np.where(over, np.uint64(high), np.where(under, np.uint64(low & (1 << 64) - 1), whole))
        to(whole if is_pair else (whole & np.uint64(0xFFFFFFFF)).astype(U32), mask)

    return execute
