"""A few lines of machine code, run by one warp whose registers are set: for tests of instructions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from sass.listing import Instruction, parse_instruction
from sass.machine import Launch, Machine, constant_bank
from sass.memory import GlobalMemory

LIMIT = 1 << 32
RANDOM = np.random.default_rng(3)
EDGES = [0, 1, 2, 31, 32, 33, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFF, 0xFFFF0000, 0x0000FFFF]
WORDS = {
    number: np.array([*RANDOM.permutation(EDGES), *RANDOM.integers(0, LIMIT, 20)], np.uint32) for number in range(4, 10)
}
"""Numbers in R4 to R9."""
HOLDS = {number: RANDOM.random(32) < 0.5 for number in range(4)}
"""P0 to P3."""


def instructions(lines: list[str]) -> list[Instruction]:
    found = [parse_instruction(f"        /*{16 * n:04x}*/                   {line} ;") for n, line in enumerate(lines)]
    assert all(own is not None for own in found)
    return [own for own in found if own is not None]


def machine_of(
    lines: list[str],
    registers: Mapping[int, np.ndarray] = WORDS,
    predicates: Mapping[int, np.ndarray] = HOLDS,
    uniform: Mapping[int, int] | None = None,
    memory: GlobalMemory | None = None,
    parameters: bytes = b"",
    threads: int = 32,
    shared: int = 4096,
) -> Machine:
    """Return a machine with one block whose first warp's registers are set, before it runs."""
    bank = constant_bank(threads, 1, 0x210, parameters)
    launch = Launch(instructions([*lines, "EXIT"]), threads, 1, shared, bank, 0x210)
    machine = Machine(launch, memory or GlobalMemory({}))
    for number, values in registers.items():
        machine.warps.registers[number, 0] = values
    for number, values in predicates.items():
        machine.warps.predicates[number, 0] = values
    for number, value in (uniform or {}).items():
        machine.warps.uniform[number] = value
    return machine
