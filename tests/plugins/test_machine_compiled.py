"""C++ that nvcc compiles gives C++'s results on the machine code's interpreter: divisions, wide numbers, the library.

One kernel does one operation on each pair of numbers; Python gives the expected results. Instructions are
thus checked against the compiler's meaning, operand by operand.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sass.compiling import MissingToolError, compile_source
from sass.launching import load_compiled
from sass.machine import Launch, Machine, constant_bank
from sass.memory import GlobalMemory

I64, U64, I32, U32, F32 = np.int64, np.uint64, np.int32, np.uint32, np.float32
RANDOM = np.random.default_rng(11)
COUNT = 256


def whole(kind: type, *edges: int) -> np.ndarray:
    """Return numbers of all sizes, edges first."""
    bits = np.dtype(kind).itemsize * 8
    spread = RANDOM.integers(0, 1 << 63, COUNT, dtype=U64) * U64(2) >> RANDOM.integers(64 - bits, 64, COUNT).astype(U64)
    spread[: len(edges)] = np.array([edge & (1 << 64) - 1 for edge in edges], U64)
    return spread.astype(kind)


def python_quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


ANY = tuple[str, type, type, Callable[[Any, Any], Any]]
OPERATIONS: dict[str, ANY] = {
    "a * b": ("long long", I64, I64, lambda a, b: a * b),
    "a / b": ("long long", I64, I64, python_quotient),
    "a % b": ("long long", I64, I64, lambda a, b: a - b * python_quotient(a, b)),
    "a / b ": ("unsigned long long", U64, U64, lambda a, b: a // b),
    "a % b ": ("unsigned", U32, U32, lambda a, b: a % b),
    "a / b  ": ("int", I32, I32, python_quotient),
    "a >> (b & 63)": ("long long", I64, I64, lambda a, b: a >> (b & 63)),
    "a << (b & 63)": ("unsigned long long", U64, U64, lambda a, b: a << (b & 63)),
    "a > b ? a - b : b - a": ("unsigned long long", U64, U64, lambda a, b: abs(a - b)),
    "__umulhi(a, b)": ("unsigned", U32, U32, lambda a, b: a * b >> 32),
    "__byte_perm(a, b, 0x5140)": ("unsigned", U32, U32, lambda a, b: a & 255 | (b & 255) << 8 | (a >> 8 & 255) << 16
                                  | (b >> 8 & 255) << 24),
    "__funnelshift_r(a, b, 9)": ("unsigned", U32, U32, lambda a, b: (a | b << 32) >> 9),
    "max(min(a, b + 3), -5)": ("int", I32, I32, lambda a, b: max(min(a, b + 3), -5)),
}  # fmt: skip
NUMERIC: dict[str, tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], float]] = {
    "a / b": (lambda a, b: a / b, 0.5),
    "sqrtf(fabsf(a))": (lambda a, b: np.sqrt(np.abs(a)), 0.5),
    "logf(fabsf(a))": (lambda a, b: np.log(np.abs(a)), 1.0),
    "expf(b * 1e-3f)": (lambda a, b: np.exp(b * np.float64(F32(1e-3))), 40.0),
    "fmaf(a, b, a)": (lambda a, b: a * b + a, 0.5),
    "fminf(a, b) - fmaxf(a, b)": (lambda a, b: np.minimum(a, b) - np.maximum(a, b), 0.5),
}
"""Expected results, and how many units of the last place they may be off: CUDA's tables, and one rounding of 1e-3 b."""


KERNELS = [(operation[0], expression) for expression, operation in OPERATIONS.items()]
KERNELS += [("float", expression) for expression in NUMERIC]
SOURCE = "".join(
    f"""
extern "C" __global__ void apply{number}(const {kind}* left, const {kind}* right, {kind}* result) {{
  const int n = blockIdx.x * blockDim.x + threadIdx.x;
  const {kind} a = left[n], b = right[n];
  result[n] = {expression};
}}
"""
    for number, (kind, expression) in enumerate(KERNELS)
)


def apply(kind: str, expression: str, architecture: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Run a kernel over all pairs."""
    try:
        program = load_compiled(compile_source(SOURCE, ("80", "90a"))[architecture], architecture)
    except MissingToolError as error:
        pytest.skip(str(error))
    own = program.kernels[f"apply{KERNELS.index((kind, expression))}"]
    memory = GlobalMemory({"a": a, "b": b, "result": np.zeros_like(a)})
    parameters = struct.pack("<3Q", *(memory.address(name) for name in ("a", "b", "result")))
    bank = constant_bank(64, COUNT // 64, own.parameter_base, parameters)
    Machine(Launch(program.functions[own.name], 64, COUNT // 64, 0, bank, own.parameter_base), memory).run()
    return memory.arrays["result"].values


@pytest.mark.parametrize("expression", OPERATIONS)
def test_whole_numbers(expression: str):
    kind, a_type, b_type, expected = OPERATIONS[expression]
    a = whole(a_type, 0, 1, -1, 1 << 31, (1 << 31) - 1, 7)
    b = whole(b_type, 1, -1, 3, 5, 1 << 30, 10)
    b[b == 0] = 9
    b[b == np.iinfo(b_type).max] -= 3
    found = apply(kind, expression, "90a", a, b)
    bits = np.dtype(a_type).itemsize * 8
    for lane in range(COUNT):
        assert (int(found[lane]) - expected(int(a[lane]), int(b[lane]))) % (1 << bits) == 0, (a[lane], b[lane])


@pytest.mark.parametrize("architecture", ["90a", "80"])
@pytest.mark.parametrize("expression", NUMERIC)
def test_numbers_with_a_point(expression: str, architecture: str):
    expected, units = NUMERIC[expression]
    a = (RANDOM.normal(size=COUNT) * 10.0 ** RANDOM.integers(-30, 30, COUNT)).astype(F32)
    b = (RANDOM.normal(size=COUNT) * 10.0 ** RANDOM.integers(-3, 3, COUNT)).astype(F32)
    a[:3] = 1e-41, 3e38, -1e-44  # operands for which division takes its slow path
    found = apply("float", expression, architecture, a, b)
    exact = expected(a.astype(np.float64), b.astype(np.float64))
    finite = np.abs(exact) < 3.4e38
    unit = np.spacing(np.clip(np.abs(exact[finite]), 1e-38, None).astype(F32)).astype(np.float64)
    assert (np.abs(found[finite] - exact[finite]) <= (units + 1e-3) * unit).all()
