"""The launch that the host's code asks for, with its parameters, ready for the machine."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from .compiling import Compiled, Unit, compile_unit
from .cubin import Kernel, read_kernels
from .listing import Instruction, parse_listing
from .machine import Launch, Machine, constant_bank
from .memory import GlobalMemory

_TOLD = ctypes.CFUNCTYPE(
    None, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint64, ctypes.POINTER(ctypes.c_void_p)
)
_SYSTEM_SHARED = {"8": 0, "9": 1024}
"""Bytes of shared memory that the system keeps in front of a block's own, by the architecture's first digit.

``cuobjdump -res-usage`` tells them; sm_80 has 0, as its kernels address shared memory from 0 on."""


@dataclass(frozen=True)
class Program:
    """A compiled unit, loaded."""

    architecture: str
    library: ctypes.CDLL
    kernels: Mapping[str, Kernel]
    functions: Mapping[str, list[Instruction]]


@dataclass(frozen=True)
class Recorded:
    """A launch, and the kernel it is of."""

    launch: Launch
    kernel: Kernel


@cache
def _load(compiled: Compiled, architecture: str) -> Program:
    library = ctypes.CDLL(str(compiled.library))
    kernels = read_kernels(Path(compiled.cubin).read_bytes())
    return Program(architecture, library, kernels, parse_listing(compiled.listing.read_text()))


def load_unit(unit: Unit) -> Program:
    """Compile a unit, unless that was done before, and load it."""
    return _load(compile_unit(unit), unit.architecture)


def load_compiled(compiled: Compiled, architecture: str) -> Program:
    """Load what was compiled."""
    return _load(compiled, architecture)


def record(program: Program, call: Callable[[], int]) -> Recorded:
    """Return the launch that ``call()`` asks the runtime for.

    Raises:
        RuntimeError: if there is none, or the host's code answers an error.
    """
    found: list[Recorded] = []

    def told(name: bytes, blocks: int, threads: int, shared: int, parameters: ctypes._Pointer[ctypes.c_void_p]) -> None:
        kernel = program.kernels[name.decode()]
        values = bytearray(max((offset + size for offset, size in kernel.parameters), default=0))
        for number, (offset, size) in enumerate(kernel.parameters):
            values[offset : offset + size] = ctypes.string_at(parameters[number], size)
        bank = constant_bank(threads, blocks, kernel.parameter_base, bytes(values))
        base = _SYSTEM_SHARED[program.architecture[0]]
        instructions = program.functions[kernel.name]
        found.append(Recorded(Launch(instructions, threads, blocks, shared, bank, kernel.parameter_base, base), kernel))

    callback = _TOLD(told)
    program.library.na_record_launches(callback)
    answer = call()
    if answer or len(found) != 1:
        raise RuntimeError(f"expected one launch, got {len(found)}; the host's code answered {answer}")
    return found[0]


def record_problem(program: Program, params: ctypes.Structure, tactic: int) -> Recorded:
    """Return the launch of a problem, ``na_params`` with addresses of the machine's global memory."""
    hopper = ctypes.c_int32(program.architecture == "90a")
    call = program.library.na_launch_unit
    return record(program, lambda: call(ctypes.byref(params), ctypes.c_int32(tactic), hopper))


TENSORS = (
    "query", "key", "value", "rel_pos_bias", "additional_key", "additional_value", "padding", "output", "lse",
)  # fmt: skip
"""Fields of ``na_params`` that are addresses."""


def place(params: ctypes.Structure, arrays: Mapping[str, np.ndarray | None]) -> GlobalMemory:
    """Put a problem's arrays into global memory and their addresses into its parameters."""
    memory = GlobalMemory({name: array for name, array in arrays.items() if array is not None})
    for name in TENSORS:
        setattr(params, name, memory.address(name) if arrays.get(name) is not None else None)
    return memory


def execute(unit: Unit, params: ctypes.Structure, arrays: Mapping[str, np.ndarray | None]) -> Machine:
    """Compute a problem by executing a unit's machine code; ``arrays["output"]`` receives the result."""
    memory = place(params, arrays)
    return Machine(record_problem(load_unit(unit), params, unit.tactic).launch, memory).run()
