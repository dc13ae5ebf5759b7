"""Hopper's own: barriers in shared memory that count bytes, copies of boxes of tensors, products of warp groups.

Copies of boxes arrive only when nobody can go on without them, the newest first; until then their places hold 0xFF.
Products are worked out when they are waited for, from what shared memory and registers hold by then. So a kernel that
does not wait where it must, or lets go of operands too early, gives wrong results. Descriptors of matrices are those of
the PTX manual (matrix-descriptor, 128-byte swizzle) and of CUTLASS's canonical layouts.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from .listing import Instruction
from .matrices import accumulator_places, left_16
from .memory import SECTOR
from .registry import Execute, UnknownInstructionError, expect_modifiers, instruction
from .warps import HELD, LANES, Mask

if TYPE_CHECKING:
    from .machine import Machine

PARAMETERS = 1 << 40
"""Address of the kernel's parameters in generic memory."""
ROW = 128
"""Bytes of a swizzled row."""
_COUNTED = 1 << 20


def swizzled(address: np.ndarray) -> np.ndarray:
    """Return where the 128-byte swizzle puts what would be at an address of shared memory."""
    return address ^ (address >> 3 & 0x70)


# ---------------------------------------------------------------------- barriers


@dataclass
class MemoryBarrier:
    """A barrier object: its phase is over once all arrivals and all bytes that it expects have come."""

    arrivals: int
    missing: int
    bytes: int = 0
    phase: int = 0
    waiting: list[np.ndarray] = field(default_factory=list)
    """Masks of lanes that wait for the end of a phase."""

    def update(self, machine: Machine) -> None:
        """End the phase if nothing is missing, and let those go on who wait."""
        if self.missing or self.bytes:
            return
        self.phase ^= 1
        self.missing = self.arrivals
        for mask in self.waiting:
            machine.warps.place[mask] = machine.warps.resumes[mask]
        self.waiting.clear()


def _barrier(machine: Machine, own: Instruction, slot: int, address: int) -> MemoryBarrier:
    try:
        return machine.asynchronous.barriers[slot, address]
    except KeyError:
        raise machine.fault(own, f"there is no barrier at {address:#x} of shared memory") from None


def _lanes(machine: Machine, address: Callable[[], np.ndarray], mask: Mask) -> list[tuple[int, int, int]]:
    """Return (warp, block's slot, address) of each lane that takes part."""
    at = np.broadcast_to(address(), mask.shape)
    slots = np.broadcast_to(machine.warps.slot, mask.shape)
    rows = np.nonzero(mask)[0]
    return list(zip(rows.tolist(), slots[mask].tolist(), at[mask].tolist(), strict=True))


@instruction("SYNCS", control=True)
def barrier_in_memory(machine: Machine, own: Instruction) -> Execute:
    """mbarrier: EXCH sets one up, ARRIVE arrives and may expect bytes, PHASECHK waits for the end of a phase."""
    modifiers = expect_modifiers(own, "EXCH", "64", "ARRIVE", "TRANS64", "A1T0", "PHASECHK", "TRYWAIT")
    operands = machine.operands
    address = operands.address(own.operands[1])
    if "EXCH" in modifiers:
        start = operands.bits(own.operands[2])

        def make(mask: Mask) -> None:
            counts = np.broadcast_to(start(), mask.shape)[mask]
            for (_, slot, at), word in zip(_lanes(machine, address, mask), counts.tolist(), strict=True):
                arrivals = _COUNTED - (word >> 1)
                if not 0 < arrivals < _COUNTED:
                    raise machine.fault(own, f"{word:#x} sets up no barrier")
                machine.asynchronous.barriers[slot, at] = MemoryBarrier(arrivals, arrivals)

        return make
    if "ARRIVE" in modifiers:
        more = operands.bits(own.operands[2])

        def arrive(mask: Mask) -> None:
            expected = np.broadcast_to(more(), mask.shape)[mask]
            for (_, slot, at), size in zip(_lanes(machine, address, mask), expected.tolist(), strict=True):
                barrier = _barrier(machine, own, slot, at)
                if barrier.missing == 0:
                    raise machine.fault(own, "more arrive at a barrier than it expects")
                barrier.missing -= 1
                barrier.bytes += 0 if "A1T0" in modifiers else size
                barrier.update(machine)

        return arrive
    p, parity = operands.write_predicate(own.operands[0]), operands.bits(own.operands[2])

    def wait(mask: Mask) -> None:
        wanted = np.broadcast_to(parity(), mask.shape) >> np.uint32(31)
        at = np.broadcast_to(address(), mask.shape)
        warps = machine.warps
        for row in np.nonzero(mask.any(1))[0]:
            lane = int(mask[row].argmax())
            barrier = _barrier(machine, own, int(warps.slot[row, 0]), int(at[row, lane]))
            if barrier.phase != wanted[row, lane]:
                continue
            held = np.zeros_like(mask)
            held[row] = machine.here[row]
            warps.resumes[held] = machine.now  # asks again: counted once, when the answer is yes
            warps.place[held] = HELD
            machine.executed[machine.now, row] -= 1
            barrier.waiting.append(held)
        p(np.ones((1, 1), bool), mask)

    return wait


# ---------------------------------------------------------------------- copies of boxes


@dataclass(frozen=True)
class Tensor:
    """A tensor of 16-bit numbers and its box, as plugins/tests/recorded_cudart.cpp writes it; axis 0 is innermost."""

    base: int
    size: tuple[int, ...]
    strides: tuple[int, ...]
    """Bytes between neighbours on an axis."""
    box: tuple[int, ...]

    @classmethod
    def read(cls, words: bytes) -> Tensor:
        """Read the 128 bytes of a CUtensorMap."""
        base, *rest = struct.unpack_from("<Q5Q4Q5II", words)
        axes = rest[14]
        if not 1 <= axes <= 5:
            raise ValueError("these bytes describe no tensor")
        return cls(base, tuple(rest[:axes]), (2, *rest[5 : 4 + axes]), tuple(rest[9 : 9 + axes]))


@dataclass
class BoxCopy:
    """A box that is on its way to a block's shared memory."""

    slot: int
    to: int
    barrier: int
    addresses: np.ndarray
    """Of each piece of 16 bytes; 0 outside the tensor."""

    def arrive(self, machine: Machine) -> None:
        """Arrive: write the box and tell the barrier."""
        places = swizzled(self.to + np.arange(len(self.addresses)) * 16)
        values = np.zeros((len(places), 16), np.uint8)
        inside = self.addresses != 0
        values[inside] = machine.memory.read(self.addresses[inside], 16)
        machine.shared.write(np.full(len(places), self.slot), places, values)
        barrier = machine.asynchronous.barriers[self.slot, self.barrier]
        barrier.bytes -= values.size
        barrier.update(machine)


def box_addresses(tensor: Tensor, corner: np.ndarray) -> np.ndarray:
    """Return the global address of each 16 bytes of a box, row after row; 0 for what lies outside the tensor."""
    if tensor.box[0] * 2 != ROW:
        raise ValueError(f"boxes of rows of {ROW} bytes are modelled, got {tensor.box[0] * 2}")
    axes = len(tensor.size)
    grid = np.indices(tuple(reversed((8, *tensor.box[1:])))).reshape(axes, -1)[::-1]
    first = corner[:axes].astype(np.int64)[:, None]
    places = first + grid * np.array([8] + [1] * (axes - 1))[:, None]
    size = np.array(tensor.size)[:, None]
    inside = ((places >= 0) & (places < size)).all(0)
    addresses = tensor.base + (places * np.array(tensor.strides)[:, None]).sum(0)
    return np.where(inside, addresses, 0)


@instruction("UTMALDG", uniform=True)
def copy_box(machine: Machine, own: Instruction) -> Execute:
    """Begin copying a box: place, barrier and corner are in a row of uniform registers, the tensor behind a pair."""
    expect_modifiers(own, "2D", "3D", "4D", "5D")
    first, tensor_at = (int(name.strip("[]")[2:]) for name in own.operands[:2])
    bank, launch = machine.warps.uniform, machine.launch

    def execute(mask: Mask) -> None:
        for row in np.nonzero(mask.any(1))[0]:
            words = bank[first : first + 7, row, 0]
            at = int(bank[tensor_at, row, 0]) | int(bank[tensor_at + 1, row, 0]) << 32
            offset = launch.parameter_base + at - PARAMETERS
            if not 0 <= offset <= len(launch.constants) - 128:
                raise machine.fault(own, "the tensor is not among the kernel's parameters")
            tensor = Tensor.read(launch.constants[offset : offset + 128])
            to, barrier = int(words[0]), int(words[1])
            if to % 1024:
                raise machine.fault(own, f"a box goes to {to:#x}, which is not aligned to its swizzle")
            addresses = box_addresses(tensor, words[2:].view(np.int32))
            slot = int(machine.warps.slot[row, 0])
            places = to + np.arange(len(addresses)) * 16
            machine.shared.write(np.full(len(places), slot), places, np.full((len(places), 16), 0xFF, np.uint8))
            machine.note_global(int((addresses != 0).sum()) * 16 // SECTOR)
            machine.asynchronous.copies.append(BoxCopy(slot, to, barrier, addresses))

    return execute


# ---------------------------------------------------------------------- products


def _described(descriptors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return start, leading and stride offset in bytes of matrices' descriptors."""
    if (descriptors >> np.uint64(62) != 1).any() or (descriptors >> np.uint64(49) & np.uint64(7)).any():
        raise ValueError("a matrix is not described as rows of 128 bytes, swizzled, from an aligned place on")
    fields = (descriptors >> np.uint64(shift) & np.uint64(0x3FFF) for shift in (0, 16, 32))
    start, leading, stride = ((part << np.uint64(4)).astype(np.int64) for part in fields)
    return start, leading, stride


def by_row(descriptors: np.ndarray, rows: np.ndarray, channels: int = 16) -> np.ndarray:
    """Return addresses (matrices, rows, channels) of a matrix whose channels, side by side, are summed over."""
    start, _, stride = (part[:, None, None] for part in _described(descriptors))
    row, channel = rows[None, :, None], np.arange(channels)[None, None]
    return swizzled(start + row // 8 * stride + row % 8 * ROW + channel * 2)


def by_sum(descriptors: np.ndarray, columns: int, rows: int = 16) -> np.ndarray:
    """Return addresses (matrices, rows, columns) of a matrix whose rows are summed over."""
    start, leading, stride = (part[:, None, None] for part in _described(descriptors))
    row, column = np.arange(rows)[None, :, None], np.arange(columns)[None, None]
    return swizzled(start + column // 64 * leading + row // 8 * stride + row % 8 * ROW + column % 64 * 2)


@dataclass
class Product:
    """One product of warp groups that is under way, of the warps ``rows``."""

    rows: np.ndarray
    groups: np.ndarray
    """Each warp's group of products that this one belongs to."""
    work: Callable[[np.ndarray, np.ndarray], None]
    """Works it out for some of the rows, given as a mask, too."""
    descriptors: np.ndarray


class Asynchronous:
    """State that runs on by itself: barriers, boxes on their way, products."""

    def __init__(self, warps: int) -> None:
        self.barriers: dict[tuple[int, int], MemoryBarrier] = {}
        self.copies: list[BoxCopy] = []
        self.products: list[Product] = []
        self.groups = np.zeros(warps, np.int64)

    def let_arrive(self, machine: Machine) -> bool:
        """Let each block's newest copy arrive; return whether there was one."""
        newest = {copy.slot: copy for copy in self.copies}
        self.copies = [copy for copy in self.copies if newest[copy.slot] is not copy]
        for copy in newest.values():
            copy.arrive(machine)
        return bool(newest)

    def wait(self, rows: np.ndarray, pending: int) -> None:
        """Work out all but the last ``pending`` groups of these warps' products."""
        left = []
        for product in self.products:
            done = rows[product.rows] & (product.groups < (self.groups - pending)[product.rows])
            if done.any():
                product.work(product.rows[done], product.descriptors[done])
            if not done.all():
                keep = ~done
                left.append(Product(product.rows[keep], product.groups[keep], product.work, product.descriptors[keep]))
        self.products = left


def _shape(own: Instruction) -> int:
    """Return the columns of a product 64 x columns x 16."""
    for modifier in own.modifiers:
        if modifier.startswith("64x") and modifier.endswith("x16"):
            return int(modifier.split("x")[1])
    raise UnknownInstructionError(f"{own.text}: products of 64 rows and 16 channels are modelled")


@instruction("HGMMA")
def multiply_of_group(machine: Machine, own: Instruction) -> Execute:
    """d (64 x n) = or += a (64 x 16), described or in registers, times b, described; each warp has 16 of the rows."""
    columns = _shape(own)
    modifiers = expect_modifiers(own, f"64x{columns}x16", "F32", "BF16")
    if "F32" not in modifiers:
        raise UnknownInstructionError(f"{own.text}: sums in float32 are modelled")
    kind = np.dtype(ml_dtypes.bfloat16 if "BF16" in modifiers else np.float16)
    names = list(own.operands)
    commits = names[-1] == "gsb0"
    names = names[:-1] if commits else names
    to = int(names.pop(0)[1:])
    left = None if names[0].startswith("gdesc") else int(names.pop(0)[1:])
    described = names.pop(0)
    first, transposed = int(described[len("gdesc[UR") : described.index("]")]), described.endswith(".tnspB")
    added = None if names[0] == "RZ" else int(names[0][1:])
    keeps = machine.operands.predicate(names[1]) if len(names) > 1 else None
    if added not in (None, to) or ("tnsp" in described and not transposed):
        raise UnknownInstructionError(f"{own.text}: sums in place are modelled")
    bank, uniform, asynchronous = machine.warps.registers, machine.warps.uniform, machine.asynchronous
    places = accumulator_places(columns // 2)

    def numbers(rows: np.ndarray, addresses: np.ndarray) -> np.ndarray:
        slots = np.broadcast_to(machine.warps.slot[rows][:, :, None], addresses.shape)
        bits = machine.shared.read(slots.ravel(), addresses.ravel(), 2)
        return bits.view(kind).reshape(addresses.shape).astype(np.float64)

    def work(rows: np.ndarray, descriptors: np.ndarray) -> None:
        # Warps of a group, and often both groups, share the right operand.
        keys = np.concatenate([descriptors[:, 1:2], machine.warps.slot[rows].astype(np.uint64)], axis=1)
        _, chosen, which = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        if transposed:
            right = numbers(rows[chosen], by_sum(descriptors[chosen, 1], columns))
        else:
            right = numbers(rows[chosen], by_row(descriptors[chosen, 1], np.arange(columns))).swapaxes(1, 2)
        if left is None:
            of_warp = np.arange(16) + machine.warps.number[rows] % 4 * 16
            a = np.concatenate(
                [numbers(rows[n : n + 1], by_row(descriptors[n : n + 1, 0], of_warp[n])) for n in range(len(rows))]
            )
        else:
            a = left_16(bank[left : left + 4][:, rows], kind)
        result = a @ right[which.ravel()]
        keep = descriptors[:, 2].astype(bool)
        for number, (row, column) in enumerate(places):
            before = np.where(keep[:, None], bank[to + number][rows].view(np.float32), np.float32(0))
            bank[to + number][rows] = (result[:, row, column] + before).astype(np.float32).view(np.uint32)

    def execute(mask: Mask) -> None:
        taken = mask.any(1)
        if not mask[taken].all():
            raise machine.fault(own, "some lanes of a warp do not take part")
        rows = np.nonzero(taken)[0]
        words = uniform[first : first + 4][:, rows, 0].astype(np.uint64)
        adds = np.full(len(rows), added is not None)
        if keeps is not None:
            adds &= np.broadcast_to(keeps(), (machine.warps.count, LANES))[rows, 0]
        pairs = [words[0] | words[1] << np.uint64(32), words[2] | words[3] << np.uint64(32), adds.astype(np.uint64)]
        asynchronous.products.append(Product(rows, asynchronous.groups[rows], work, np.stack(pairs, axis=1)))
        if commits:
            asynchronous.groups[rows] += 1

    return execute


@instruction("WARPGROUP")
def warp_group(machine: Machine, own: Instruction) -> Execute:
    """.ARRIVE has no effect here; .DEPBAR waits until at most so many groups of products are under way."""
    modifiers = expect_modifiers(own, "ARRIVE", "DEPBAR", "LE")
    if "ARRIVE" in modifiers:
        return lambda mask: None
    pending = int(own.operands[1], 16)
    return lambda mask: machine.asynchronous.wait(mask.any(1), pending)


@instruction("USETMAXREG", uniform=True)
def set_registers(machine: Machine, own: Instruction) -> Execute:
    """Give up registers, or take them, which always succeeds here."""
    modifiers = expect_modifiers(own, "TRY_ALLOC", "DEALLOC", "CTAPOOL")
    if "DEALLOC" in modifiers:
        return lambda mask: None
    p = machine.operands.write_predicate(own.operands[0])
    return lambda mask: p(np.ones((1, 1), bool), mask)


@instruction("FENCE")
def fence(machine: Machine, own: Instruction) -> Execute:
    """Have no effect here: memory is in order."""
    return lambda mask: None
