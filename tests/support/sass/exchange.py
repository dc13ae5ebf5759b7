"""Constants, special registers, and what lanes of a warp tell each other."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from .listing import Instruction
from .registry import Execute, UnknownInstructionError, expect_modifiers, instruction, one_of
from .warps import LANES, Mask

if TYPE_CHECKING:
    from .machine import Machine

U32 = np.uint32


@instruction("LDC", "ULDC")
def load_constant(machine: Machine, own: Instruction) -> Execute:
    """d = a constant of the launch; .64 a pair; the address may have a register in it."""
    modifiers, operands = expect_modifiers(own, "64"), machine.operands
    moving = re.match(r"^c\[0x0\]\[(R\d+)(?:\+(0x[0-9a-f]+))?\]$", own.operands[1])
    if moving:
        register, offset = operands.bits(moving[1]), int(moving[2] or "0", 16)
        table = np.frombuffer(machine.launch.constants, np.uint8)

        def word(more: int, mask: Mask) -> np.ndarray:
            at = np.where(mask, register().astype(np.int64) + offset + more, 0)
            return sum(table[at + n].astype(U32) << U32(8 * n) for n in range(4))

        low, high = operands.write(own.operands[0]), operands.write(own.operands[0], 1) if modifiers else None

        def execute(mask: Mask) -> None:
            found = word(0, mask), word(4, mask) if high is not None else None
            low(found[0], mask)
            if high is not None and found[1] is not None:
                high(found[1], mask)

        return execute
    if modifiers:
        to_pair, pair = operands.write_pair(own.operands[0]), operands.pair(own.operands[1])
        return lambda mask: to_pair(pair(), mask)
    to, bits = operands.write(own.operands[0]), operands.bits(own.operands[1])
    return lambda mask: to(bits(), mask)


@instruction("S2R", "S2UR")
def special_register(machine: Machine, own: Instruction) -> Execute:
    """d = thread, block, lane …; blocks and their threads have one axis, and a cluster one block."""
    expect_modifiers(own)
    warps, to = machine.warps, machine.operands.write(own.operands[0])
    values = {
        "SR_TID.X": warps.thread,
        "SR_CTAID.X": warps.block,
        "SR_LANEID": np.arange(LANES, dtype=U32)[None],
        **dict.fromkeys(("SR_TID.Y", "SR_TID.Z", "SR_CTAID.Y", "SR_CTAID.Z", "SR_CgaCtaId"), np.zeros((1, 1), U32)),
    }
    if own.operands[1] not in values:
        raise UnknownInstructionError(f"{own.text}: {own.operands[1]} is not modelled")
    value = values[own.operands[1]]
    return lambda mask: to(value, mask)


@instruction("SHFL")
def shuffle(machine: Machine, own: Instruction) -> Execute:
    """d = a of another lane, within segments that c describes; p: that lane is in the segment (PTX manual, shfl)."""
    modifiers, operands = expect_modifiers(own, "BFLY", "IDX", "UP", "DOWN"), machine.operands
    (kind,) = modifiers
    p, to = operands.write_predicate(own.operands[0]), operands.write(own.operands[1])
    a, b, c = (operands.bits(name) for name in own.operands[2:5])
    lane = np.arange(LANES, dtype=np.int64)[None]

    def execute(mask: Mask) -> None:
        by, rule = b().astype(np.int64) & 31, c().astype(np.int64)
        clamp, segment = rule & 31, rule >> 8 & 31
        last = lane & segment | clamp & ~segment
        first = lane & segment
        if kind == "BFLY":
            source, inside = lane ^ by, (lane ^ by) <= last
        elif kind == "IDX":
            source = first | by & ~segment
            inside = source <= last
        elif kind == "UP":
            source, inside = lane - by, lane - by >= last
        else:
            source, inside = lane + by, lane + by <= last
        source = np.broadcast_to(np.where(inside, source, lane), (machine.warps.count, LANES))
        if not np.take_along_axis(mask, source, 1)[mask].all():
            raise machine.fault(own, "a lane reads from one that does not take part")
        values = np.broadcast_to(a(), (machine.warps.count, LANES))
        found = np.take_along_axis(values, source, 1)
        p(np.broadcast_to(inside, mask.shape), mask)
        to(found, mask)

    return execute


@instruction("VOTE")
def vote(machine: Machine, own: Instruction) -> Execute:
    """p: any lane, or all lanes, say so; d: the lanes that do, as bits."""
    kind, operands = one_of(own, ("ANY", "ALL")), machine.operands
    names = list(own.operands)
    to = None if operands.is_predicate(names[0]) else operands.write(names.pop(0))
    p = operands.write_predicate(names[0])
    says = operands.predicate(names[1])

    def execute(mask: Mask) -> None:
        yes = mask & says()
        count = yes.sum(1, keepdims=True)
        found = count > 0 if kind == "ANY" else count == mask.sum(1, keepdims=True)
        if to is not None:
            to(lane_bits(yes), mask)
        p(found, mask)

    return execute


def lane_bits(lanes: np.ndarray) -> np.ndarray:
    """Return (warps, 1) with a bit for each lane that is True."""
    return (lanes.astype(np.uint64) << np.arange(LANES, dtype=np.uint64)).sum(1, keepdims=True).astype(U32)


@instruction("REDUX")
def reduce(machine: Machine, own: Instruction) -> Execute:
    """A uniform register takes what all lanes' numbers come to: or, and, xor, sum, min, max."""
    modifiers, operands = expect_modifiers(own, "OR", "AND", "XOR", "SUM", "MIN", "MAX", "S32", "U32"), machine.operands
    kind = next((m for m in modifiers if m not in ("S32", "U32")), "AND")
    to, read = operands.write(own.operands[0]), operands.bits(own.operands[1])
    signed = "S32" in modifiers
    work, nothing = {
        "OR": (np.bitwise_or, 0), "AND": (np.bitwise_and, -1), "XOR": (np.bitwise_xor, 0), "SUM": (np.add, 0),
        "MIN": (np.minimum, 2**31 - 1 if signed else 2**32 - 1), "MAX": (np.maximum, -(2**31) if signed else 0),
    }[kind]  # fmt: skip

    def execute(mask: Mask) -> None:
        values = read().view(np.int32) if signed else read()
        held = np.where(mask, values.astype(np.int64), nothing)
        found = work.reduce(held, axis=1, keepdims=True)
        to((found & 0xFFFFFFFF).astype(U32), mask.any(1, keepdims=True))

    return execute


@instruction("R2UR")
def to_uniform(machine: Machine, own: Instruction) -> Execute:
    """A uniform register takes the lanes' number; lanes that differ are an error, as the manual has no answer."""
    expect_modifiers(own)
    operands = machine.operands
    to, read = operands.write(own.operands[0]), operands.bits(own.operands[1])

    def execute(mask: Mask) -> None:
        values = np.broadcast_to(read(), mask.shape)
        first = np.take_along_axis(values, mask.argmax(1)[:, None], 1)
        if ((values != first) & mask).any():
            raise machine.fault(own, "lanes of a warp disagree on what becomes uniform")
        to(first, mask.any(1, keepdims=True))

    return execute


@instruction("ELECT")
def elect(machine: Machine, own: Instruction) -> Execute:
    """p: this is the first lane that takes part; d, if any, its number."""
    expect_modifiers(own)
    operands = machine.operands
    p, to = operands.write_predicate(own.operands[0]), operands.write(own.operands[1])

    def execute(mask: Mask) -> None:
        first = mask.argmax(1)[:, None]
        to(first.astype(U32), mask.any(1, keepdims=True))
        p(np.arange(LANES)[None] == first, mask)

    return execute
