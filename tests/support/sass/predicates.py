"""Predicates: comparisons of integers, choices, logic, and moves from and to registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .integers import LIMIT, U32
from .listing import Instruction
from .operands import Write
from .registry import Execute, expect_modifiers, instruction, one_of
from .warps import Mask

if TYPE_CHECKING:
    from .machine import Machine


def _byte(name: str) -> tuple[str, int]:
    register, _, byte = name.partition(".B")
    return register, 8 * int(byte or 0)


def _joined(own: Instruction, value: np.ndarray, other: np.ndarray) -> np.ndarray:
    if "AND" in own.modifiers:
        return value & other
    return value | other if "OR" in own.modifiers else value ^ other


@instruction("PLOP3", "UPLOP3")
def predicate_logic(machine: Machine, own: Instruction) -> Execute:
    """Two predicates from three, each by a table."""
    expect_modifiers(own, "LUT")
    operands = machine.operands
    to = [operands.write_predicate(name) for name in own.operands[:2]]
    read = [operands.predicate(name) for name in own.operands[2:5]]
    tables = [int(name, 16) for name in own.operands[5:7]]

    def execute(mask: Mask) -> None:
        a, b, c = (part().astype(np.int32) for part in read)
        number = a * 4 + b * 2 + c
        for write, table in zip(to, tables, strict=True):
            write((table >> number & 1).astype(bool), mask)

    return execute


@instruction("ISETP", "UISETP")
def compare_integers(machine: Machine, own: Instruction) -> Execute:
    """p = (a ? b) joined with a third predicate, and q = its opposite, joined; .EX goes on from the lower words'."""
    expect_modifiers(own, "EQ", "NE", "LT", "LE", "GT", "GE", "U32", "AND", "OR", "XOR", "EX")
    operands, test = machine.operands, one_of(own, ("EQ", "NE", "LT", "LE", "GT", "GE"))
    one_of(own, ("AND", "OR", "XOR"))
    p, q = (operands.write_predicate(name) for name in own.operands[:2])
    read = operands.bits if "U32" in own.modifiers else operands.signed
    a, b = (read(name) for name in own.operands[2:4])
    other = operands.predicate(own.operands[4])
    lower = operands.predicate(own.operands[5]) if "EX" in own.modifiers else None
    compare = {
        "EQ": np.equal, "NE": np.not_equal, "LT": np.less, "LE": np.less_equal, "GT": np.greater,
        "GE": np.greater_equal,
    }[test]  # fmt: skip
    strict = {"LE": np.less, "GE": np.greater}.get(test, compare)

    def execute(mask: Mask) -> None:
        x, y = a(), b()
        if lower is None:
            found = compare(x, y)
        elif test == "NE":
            found = compare(x, y) | lower()
        elif test == "EQ":
            found = compare(x, y) & lower()
        else:
            found = strict(x, y) | (x == y) & lower()
        third = other()
        results = _joined(own, found, third), _joined(own, ~found, third)
        p(results[0], mask)
        q(results[1], mask)

    return execute


@instruction("SEL", "USEL")
def select(machine: Machine, own: Instruction) -> Execute:
    """d = a where the predicate says so, else b."""
    expect_modifiers(own)
    operands = machine.operands
    to, a, b = operands.write(own.operands[0]), operands.bits(own.operands[1]), operands.bits(own.operands[2])
    which = operands.predicate(own.operands[3])
    return lambda mask: to(np.where(which(), a(), b()), mask)


@instruction("R2P")
def register_to_predicates(machine: Machine, own: Instruction) -> Execute:
    """The predicates that a mask names become bits of a register's byte."""
    expect_modifiers(own)
    register, first = _byte(own.operands[1])
    a, chosen = machine.operands.bits(register), int(own.operands[2], 16)
    rows: list[tuple[int, Write]] = [
        (number, machine.operands.write_predicate(f"P{number}")) for number in range(7) if chosen >> number & 1
    ]

    def execute(mask: Mask) -> None:
        bits = a() >> U32(first)
        for number, write in rows:
            write((bits >> U32(number) & U32(1)).astype(bool), mask)

    return execute


@instruction("P2R")
def predicates_to_register(machine: Machine, own: Instruction) -> Execute:
    """A byte of d takes the predicates that a mask names; the rest is that of a."""
    modifiers = expect_modifiers(own, "B0", "B1", "B2", "B3")
    first = 8 * int(next(iter(modifiers), "B0")[1])
    to, a = machine.operands.write(own.operands[0]), machine.operands.bits(own.operands[2])
    chosen = int(own.operands[3], 16)
    read = [(number, machine.operands.predicate(f"P{number}")) for number in range(7)]

    def execute(mask: Mask) -> None:
        bits = np.zeros((1, 1), U32)
        for number, predicate in read:
            bits = bits | predicate().astype(U32) << U32(number)
        to(a() & U32(~(chosen << first) & (LIMIT - 1)) | (bits & U32(chosen)) << U32(first), mask)

    return execute
