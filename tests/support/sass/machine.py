"""Blocks of a launch, executed: lanes of a warp together where they are at one place, all warps side by side.

Of all lanes that can go on, those furthest behind go first, so that lanes that parted meet again, and warps that do the
same do it at once. Lanes wait at convergence barriers (BSYNC), at barriers of the block, and for memory barriers;
copies and products that run on by themselves end no sooner than they are waited for.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import accesses, control, exchange, floats, hopper, integers, matrices, predicates  # noqa: F401  (they fill the table)
from .accesses import CopyQueue
from .hopper import PARAMETERS, Asynchronous
from .listing import Instruction
from .memory import GlobalMemory, SharedMemory
from .operands import Operands, UnknownOperandError
from .registry import CONTROL, INSTRUCTIONS, UNIFORM, Execute, UnknownInstructionError
from .warps import HELD, LANES, Mask, Warps

NOBODY = -1


class KernelError(RuntimeError):
    """A kernel did what the device does not allow, or waits for ever."""


@dataclass(frozen=True)
class Launch:
    """A kernel and how it is launched. ``constants``: constant bank 0, parameters and all."""

    instructions: Sequence[Instruction]
    threads: int
    blocks: int
    shared_bytes: int
    constants: bytes
    parameter_base: int = 0
    """Where in the bank the parameters begin."""
    shared_base: int = 1024
    """Where the block's own shared memory begins: the system has the first KB on sm_90."""


def constant_bank(threads: int, blocks: int, parameter_base: int, parameters: bytes) -> bytes:
    """Return constant bank 0: block and grid, the stack's begin, and the parameters."""
    bank = bytearray(parameter_base) + parameters + bytes(64)
    struct.pack_into("<6I", bank, 0, threads, 1, 1, blocks, 1, 1)
    struct.pack_into("<I", bank, 0x28, 0x1000)
    if parameter_base > 0x198:  # sm_90: the parameters' own address
        struct.pack_into("<Q", bank, 0x198, PARAMETERS)
    return bytes(bank)


class Machine:
    """Runs some blocks of a launch.

    Args:
        launch: the kernel and its launch.
        memory: global memory; results are written there.
        blocks: numbers of the blocks to run, all of the grid if none are given.
    """

    def __init__(self, launch: Launch, memory: GlobalMemory, blocks: Sequence[int] | None = None) -> None:
        self.launch, self.memory = launch, memory
        numbers = np.arange(launch.blocks) if blocks is None else np.asarray(blocks)
        per_block = (launch.threads + LANES - 1) // LANES
        if launch.threads % LANES:
            raise ValueError(f"blocks of whole warps are modelled, got {launch.threads} threads")
        self.warps = warps = Warps(len(numbers) * per_block, per_block, numbers)
        self.operands = Operands(warps, launch.constants)
        self.shared = SharedMemory(len(numbers), launch.shared_bytes, launch.shared_base)
        self.copies = CopyQueue(warps.count)
        self.asynchronous = Asynchronous(warps.count)
        self.executed = np.zeros((len(launch.instructions), warps.count), np.int64)
        """How often each warp executed each instruction; one whose guard no lane passes counts too."""
        self.wavefronts = np.zeros((len(launch.instructions), 2), np.int64)
        """Of each instruction: wavefronts, and what there would be without conflicts."""
        self.sectors = np.zeros(len(launch.instructions), np.int64)
        self.here: Mask = np.zeros((warps.count, LANES), bool)
        """Lanes at the instruction that is executed, whatever its guard."""
        self.converging = np.zeros((16, warps.count, LANES), bool)
        self.barrier_number = np.full((warps.count, LANES), NOBODY, np.int64)
        self.barrier_threads = np.zeros((warps.count, LANES), np.int64)
        self.barrier_says = np.zeros((warps.count, LANES), bool)
        self.barrier_result = np.zeros((warps.count, LANES), bool)
        self._index = {own.address: index for index, own in enumerate(launch.instructions)}
        self.now = 0
        """Index of the instruction that is executed."""
        self._steps: list[Execute | None] = [None] * len(launch.instructions)
        self._guards = [self.operands.predicate(own.guard) if own.guard else None for own in launch.instructions]

    def index_of(self, address: int) -> int:
        """Return the index of the instruction at an address."""
        return self._index[address]

    def fault(self, own: Instruction, what: str) -> KernelError:
        """Return an error that names the instruction."""
        return KernelError(f"{own.text}: {what}")

    def note_shared(self, taken: int, least: int) -> None:
        """Count wavefronts of the instruction that is executed."""
        self.wavefronts[self.now] += taken, least

    def note_global(self, count: int) -> None:
        """Count sectors of the instruction that is executed."""
        self.sectors[self.now] += count

    # ------------------------------------------------------------------ running

    def run(self) -> Machine:
        """Run the blocks to their end and return this machine.

        Raises:
            KernelError: for what the device does not allow, and where everybody waits.
            MemoryAccessError: for accesses outside the arrays, and badly aligned ones.
            UnknownInstructionError: for what the interpreter does not know.
        """
        with np.errstate(all="ignore"):  # infinities and NaN are results like others
            return self._run()

    def _run(self) -> Machine:
        place = self.warps.place
        while True:
            lowest = int(place.min())
            if lowest == HELD:
                if not self.warps.alive.any():
                    return self
                if not self.wake():
                    raise KernelError(f"everybody waits: {self._waiting()}")
                continue
            mask = place == lowest
            others = place[~mask]
            self._run_from(lowest, mask, int(others.min()) if others.size else HELD)

    def _run_from(self, index: int, here: Mask, stop: int) -> None:
        """Run lanes from one place on until they branch, or come to where others are."""
        instructions, warps = self.launch.instructions, here.any(1)
        self.here = here
        whole = warps[:, None]
        while True:
            own = instructions[index]
            step = self._steps[index] or self._prepare(index)
            self.executed[index] += warps
            self.now = index
            guard = self._guards[index]
            mask = whole if own.name in UNIFORM else here
            if guard is not None:
                mask = mask & guard()
            if own.name in CONTROL:
                self.warps.place[here] = index + 1
                step(mask)
                return
            step(mask)
            index += 1
            if index == stop:
                self.warps.place[here] = index
                return

    def _prepare(self, index: int) -> Execute:
        own = self.launch.instructions[index]
        if own.name not in INSTRUCTIONS:
            raise UnknownInstructionError(f"{own.text}: {own.name} is not modelled")
        try:
            step = INSTRUCTIONS[own.name](self, own)
        except UnknownOperandError as error:
            raise UnknownInstructionError(f"{own.text}: {error}") from error
        self._steps[index] = step
        return step

    # ------------------------------------------------------------------ waiting

    def release_converged(self, number: int | None = None) -> None:
        """Let go the lanes whose convergence barrier has everybody who is alive and expected."""
        warps = self.warps
        for barrier in range(16) if number is None else (number,):
            waiting = self.converging[barrier]
            if not waiting.any():
                continue
            missing = warps.convergence[barrier] & warps.alive & ~waiting
            ready = waiting & ~missing.any(1, keepdims=True)
            warps.place[ready] = warps.resumes[ready]
            waiting &= ~ready

    def release_barriers(self) -> None:
        """Let go the threads of blocks' barriers that enough have come to; threads that have left are not expected."""
        waiting = self.barrier_number != NOBODY
        if not waiting.any():
            return
        warps = self.warps
        slots = np.broadcast_to(warps.slot, waiting.shape)
        numbers = slots[waiting] * 16 + self.barrier_number[waiting]
        alive = warps.alive.reshape(-1, warps.per_block * LANES).sum(1)
        for key in np.unique(numbers):
            group = waiting & (slots == key // 16) & (self.barrier_number == key % 16)
            expected = int(self.barrier_threads[group].max()) or int(alive[key // 16])
            if group.sum() < expected:
                continue
            self.barrier_result[group] = self.barrier_says[group].any()
            self.barrier_says[group] = False
            self.barrier_number[group] = NOBODY
            warps.place[group] = warps.resumes[group]

    def wake(self) -> bool:
        """Let something that runs on by itself come to its end; return whether there was anything."""
        return self.asynchronous.let_arrive(self)

    def _waiting(self) -> str:
        warps = self.warps
        held = np.unique(warps.resumes[warps.alive])
        return ", ".join(self.launch.instructions[max(index - 1, 0)].text for index in held[:4])
