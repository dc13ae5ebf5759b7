"""Branches, calls and barriers: which lanes go on, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .listing import Instruction
from .registry import Execute, UnknownInstructionError, expect_modifiers, instruction
from .warps import HELD, LANES, Mask

if TYPE_CHECKING:
    from .machine import Machine


@instruction("NOP", "YIELD", "ERRBAR", "MEMBAR", "CCTL", "WARPSYNC", "UNOP")
def nothing(machine: Machine, own: Instruction) -> Execute:
    """Have no effect here: lanes of a warp that are at one place run together, and memory is in order."""
    if own.name == "WARPSYNC" and "COLLECTIVE" in own.modifiers:
        raise UnknownInstructionError(f"{own.text}: the way around a divergent collective is not modelled")
    return lambda mask: None


@instruction("BRA", control=True)
def branch(machine: Machine, own: Instruction) -> Execute:
    """Lanes go elsewhere where guard and predicate say so; .DIV: where not all of a warp's lanes are here; .CONV ~URZ:
    where all are."""
    modifiers, operands = expect_modifiers(own, "CONV", "DIV", "U", "ANY"), machine.operands
    target = machine.index_of(int(own.operands[-1], 16))
    place = machine.warps.place
    if "CONV" in modifiers:
        if own.operands[0] != "~URZ":
            raise UnknownInstructionError(f"{own.text}: only .CONV of all lanes is modelled")

        def converge(mask: Mask) -> None:
            place[mask & (mask == machine.warps.alive).all(1, keepdims=True)] = target

        return converge
    if "DIV" in modifiers:
        expected = operands.bits(own.operands[0].removeprefix("~"))
        lanes = np.arange(LANES, dtype=np.uint32)

        def diverge(mask: Mask) -> None:
            wanted = (expected() >> lanes & np.uint32(1)).astype(bool)
            place[(mask != wanted & machine.warps.alive).any(1, keepdims=True) & mask] = target

        return diverge
    if "ANY" in modifiers:  # the whole warp goes if the guard of any lane says so

        def all_if_any(mask: Mask) -> None:
            here = machine.here & mask.any(1, keepdims=True)
            place[here] = target

        return all_if_any
    if len(own.operands) == 2:
        also = operands.predicate(own.operands[0])

        def execute(mask: Mask) -> None:
            place[mask & also()] = target

        return execute

    def jump(mask: Mask) -> None:
        place[mask] = target

    return jump


@instruction("EXIT", control=True)
def leave(machine: Machine, own: Instruction) -> Execute:
    """Lanes end."""
    expect_modifiers(own)
    warps = machine.warps

    def execute(mask: Mask) -> None:
        warps.place[mask] = HELD
        warps.alive &= ~mask
        machine.release_converged()
        machine.release_barriers()

    return execute


@instruction("BSSY", control=False)
def begin_divergence(machine: Machine, own: Instruction) -> Execute:
    """A convergence barrier remembers the lanes that are here, and where they will go on."""
    expect_modifiers(own, "RECONVERGENT", "RELIABLE")
    number, target = int(own.operands[0][1:]), machine.index_of(int(own.operands[1], 16))
    barrier, place = machine.warps.convergence[number], machine.warps.convergence_place[number]

    def execute(mask: Mask) -> None:
        rows = mask.any(1)
        barrier[rows] = mask[rows]
        place[rows] = target

    return execute


@instruction("BSYNC", control=True)
def converge(machine: Machine, own: Instruction) -> Execute:
    """Lanes wait for those that the convergence barrier remembers."""
    expect_modifiers(own, "RECONVERGENT", "RELIABLE")
    number, warps = int(own.operands[0][1:]), machine.warps

    def execute(mask: Mask) -> None:
        warps.resumes[mask] = np.broadcast_to(warps.convergence_place[number], mask.shape)[mask]
        warps.place[mask] = HELD
        machine.converging[number] |= mask
        machine.release_converged(number)

    return execute


@instruction("BREAK", control=True)
def leave_convergence(machine: Machine, own: Instruction) -> Execute:
    """Lanes will not come to the convergence barrier."""
    expect_modifiers(own)
    number = int(own.operands[-1][1:])

    def execute(mask: Mask) -> None:
        machine.warps.convergence[number] &= ~mask
        machine.release_converged(number)

    return execute


@instruction("CALL", control=True)
def call(machine: Machine, own: Instruction) -> Execute:
    """Lanes go to a function; a register holds the way back."""
    expect_modifiers(own, "REL", "NOINC")
    target, place = machine.index_of(int(own.operands[0], 16)), machine.warps.place

    def execute(mask: Mask) -> None:
        place[mask] = target

    return execute


@instruction("RET", control=True)
def come_back(machine: Machine, own: Instruction) -> Execute:
    """Lanes go to the address in a register."""
    expect_modifiers(own, "REL", "NODEC")
    address, place = machine.operands.bits(own.operands[0]), machine.warps.place

    def execute(mask: Mask) -> None:
        for found in np.unique(address()[mask]):
            place[mask & (address() == found)] = machine.index_of(int(found))

    return execute


@instruction("BAR", control=True)
def wait_for_block(machine: Machine, own: Instruction) -> Execute:
    """Threads wait at a barrier of the block for as many threads as it names; .RED.OR tells all whether any said so."""
    modifiers, operands = expect_modifiers(own, "SYNC", "DEFER_BLOCKING", "RED", "OR"), machine.operands
    reduces = "RED" in modifiers
    numbers = operands.bits(own.operands[0])
    counted = len(own.operands) > 1 and not operands.is_predicate(own.operands[1])
    threads = operands.bits(own.operands[1]) if counted else None
    says = operands.predicate(own.operands[-1]) if reduces else None
    warps = machine.warps

    def execute(mask: Mask) -> None:
        warps.resumes[mask] = warps.place[mask]
        warps.place[mask] = HELD
        number = np.broadcast_to(numbers(), mask.shape)[mask]
        machine.barrier_number[mask] = number
        machine.barrier_threads[mask] = 0 if threads is None else np.broadcast_to(threads(), mask.shape)[mask]
        if says is not None:
            machine.barrier_says[mask] = np.broadcast_to(says(), mask.shape)[mask]
        machine.release_barriers()

    return execute


@instruction("B2R")
def barrier_result(machine: Machine, own: Instruction) -> Execute:
    """p: what the last barrier with a reduction told."""
    if own.modifiers != ("RESULT",):
        raise UnknownInstructionError(f"{own.text}: only .RESULT is modelled")
    p = machine.operands.write_predicate(own.operands[1])
    return lambda mask: p(machine.barrier_result, mask)
