"""The CPU kernels through their C interface, with ctypes: for tests and benchmarks, compiled by :func:`build`."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
from filelock import FileLock

from na_deploy.attention.reference import AttentionResult
from na_deploy.attention.windows import NeighborhoodSpec

ROOT = Path(__file__).parents[2]
LIBRARY = Path("plugins/tests/libna_deploy_cpu_test.so")
DTYPES = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]

Sizes = ctypes.c_int64 * 3


class Params(ctypes.Structure):
    """``na_params`` of plugins/core/na_params.h."""

    _fields_ = (
        [(name, ctypes.c_int32) for name in ("rank", "packed", "dtype")]
        + [("batch", ctypes.c_int64), ("length", Sizes)]
        + [(name, ctypes.c_int64) for name in ("heads", "key_heads", "head_dim", "value_dim", "additional")]
        + [(name, Sizes) for name in ("kernel_size", "dilation", "stride", "is_causal")]
        + [("scale", ctypes.c_float)]
        + [(name, ctypes.c_void_p) for name in ("query", "key", "value", "rel_pos_bias")]
        + [(name, ctypes.c_void_p) for name in ("additional_key", "additional_value", "padding")]
        + [(name, ctypes.c_void_p) for name in ("output", "lse", "prepared_bias")]
        + [("bias_is_float32", ctypes.c_int32)]
    )


class Plan(ctypes.Structure):
    """``na_cpu_plan`` of plugins/cpu/na_cpu.h."""

    _fields_ = (
        ("tasks", ctypes.c_int64),
        ("tile", Sizes),
        ("quad", Sizes),
        ("scratch_bytes", ctypes.c_size_t),
        ("prepared_bias_elements", ctypes.c_size_t),
    )


def build(folder: Path, *options: str, target: str = "native_tests") -> Path:
    """Compile the native tests into ``folder`` and return it.

    Raises:
        RuntimeError: compilation failed; the message is the compiler's.
    """
    configure = ["cmake", "-S", str(ROOT), "-B", str(folder), "-DNA_DEPLOY_NATIVE=ON", "-DNA_DEPLOY_TESTS=ON", *options]
    compile_ = ["cmake", "--build", str(folder), "--parallel", str(os.cpu_count()), "--target", target]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):  # tests run in several processes
        for command in (configure, compile_):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return folder


def aligned(elements: int, dtype: np.dtype = DTYPES[0]) -> np.ndarray:
    """Return uninitialised memory that begins at a multiple of 64 bytes, as ONNX Runtime's does."""
    room = np.empty(elements * dtype.itemsize + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + elements * dtype.itemsize].view(dtype)


class Problem:
    """One call's parameters and tensors. ``query`` is packed qkv where ``key`` is left out."""

    expected: AttentionResult | None = None
    """The result of float64, once a test has asked for it."""

    def __init__(
        self,
        spec: NeighborhoodSpec,
        query: np.ndarray,
        key: np.ndarray | None = None,
        value: np.ndarray | None = None,
        *,
        rel_pos_bias: np.ndarray | None = None,
        additional_key: np.ndarray | None = None,
        additional_value: np.ndarray | None = None,
        padding: np.ndarray | None = None,
        scale: float = 0.0,
        lse: bool = True,
    ):
        packed, rank = key is None, spec.rank
        batch, *lengths = query.shape[: 1 + rank]
        heads, head_dim = query.shape[-2:]
        value_dim = head_dim if value is None else value.shape[-1]
        self.arrays = {
            "query": query,
            "key": key,
            "value": value,
            "rel_pos_bias": rel_pos_bias,
            "additional_key": additional_key,
            "additional_value": additional_value,
            "padding": padding,
        }
        self.output = aligned(batch * int(np.prod(lengths)) * heads * value_dim, query.dtype)
        self.output = self.output.reshape(batch, *lengths, heads, value_dim)
        self.lse = np.empty((batch, *lengths, heads), np.float32) if lse else None
        self.params = Params(
            rank=rank,
            packed=packed,
            dtype=DTYPES.index(query.dtype),
            batch=batch,
            length=_sizes(lengths),
            heads=heads,
            key_heads=heads if key is None else key.shape[-2],
            head_dim=head_dim,
            value_dim=value_dim,
            additional=0 if additional_key is None else additional_key.shape[1],
            kernel_size=_sizes(spec.kernel_size),
            dilation=_sizes(spec.dilation),
            stride=_sizes(spec.stride),
            is_causal=_sizes(spec.is_causal),
            scale=scale,
            output=self.output.ctypes.data,
            lse=None if self.lse is None else self.lse.ctypes.data,
        )
        for name, array in self.arrays.items():
            if array is not None:
                assert array.flags.c_contiguous, name
                setattr(self.params, name, array.ctypes.data)


def _sizes(numbers: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return Sizes(*(int(number) for number in numbers))


class CpuLibrary:
    """The compiled kernels."""

    def __init__(self, folder: Path):
        self._library = library = ctypes.CDLL(str(folder / LIBRARY))
        library.na_cpu_target.restype = ctypes.c_char_p
        library.na_test_targets.restype = ctypes.c_int64
        library.na_test_use_targets.argtypes = [ctypes.c_int64]
        library.na_test_multiply_add.argtypes = [ctypes.c_int64, ctypes.c_void_p]
        library.na_test_multiply_add.restype = ctypes.c_double
        pointer, integer = ctypes.c_void_p, ctypes.c_int64
        library.na_cpu_run.argtypes = [pointer, pointer, integer, integer, pointer]
        library.na_cpu_prepare_bias.argtypes = [pointer, pointer, pointer]
        library.na_cpu_window_bounds.argtypes = [integer] * 4 + [ctypes.c_int32, pointer, pointer]

    def target(self) -> str:
        """The instruction set in use, such as "AVX3"."""
        return str(self._library.na_cpu_target().decode())

    def targets(self) -> int:
        """The instruction sets of this processor that the kernels are compiled for, as bits; the best is lowest."""
        return int(self._library.na_test_targets())

    def use_targets(self, targets: int) -> None:
        """Run the kernels of the best of these instruction sets from now on."""
        self._library.na_test_use_targets(targets)

    def multiply_adds(self, rounds: int) -> float:
        """Run ``rounds`` rounds of float32 multiply-adds at the processor's best rate and return how many they were."""
        return float(self._library.na_test_multiply_add(rounds, ctypes.byref(ctypes.c_float())))

    def window_bounds(
        self, length: int, kernel_size: int, dilation: int, stride: int, is_causal: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the windows of an axis as na_deploy.attention.windows.window_bounds does."""
        start, end = np.empty(length, np.int64), np.empty(length, np.int64)
        self._library.na_cpu_window_bounds(
            length, kernel_size, dilation, stride, is_causal, start.ctypes.data, end.ctypes.data
        )
        return start, end

    def check(self, problem: Problem) -> str:
        """Return what is wrong with a problem; empty if nothing is wrong."""
        message = ctypes.create_string_buffer(512)
        refused = self._library.na_cpu_check(ctypes.byref(problem.params), message, len(message))
        return message.value.decode() if refused else ""

    def plan(self, problem: Problem) -> Plan:
        """Return how the kernels cut a checked problem."""
        plan = Plan()
        self._library.na_cpu_make_plan(ctypes.byref(problem.params), ctypes.byref(plan))
        return plan

    def prepare_bias(self, problem: Problem, plan: Plan) -> np.ndarray:
        """Prepare the bias and have the problem use it. Keep the result as long as the problem."""
        prepared = aligned(plan.prepared_bias_elements)
        self._library.na_cpu_prepare_bias(ctypes.byref(problem.params), ctypes.byref(plan), prepared.ctypes.data)
        if len(prepared):
            problem.params.prepared_bias = prepared.ctypes.data
        return prepared

    def run(
        self,
        problem: Problem,
        plan: Plan,
        first: int = 0,
        last: int | None = None,
        scratch: np.ndarray | None = None,
    ) -> None:
        """Compute a range of tasks in this thread, the whole problem if none is given."""
        scratch = aligned(plan.scratch_bytes, np.dtype(np.uint8)) if scratch is None else scratch
        last = plan.tasks if last is None else last
        self._library.na_cpu_run(ctypes.byref(problem.params), ctypes.byref(plan), first, last, scratch.ctypes.data)

    def run_in_threads(self, problem: Problem, plan: Plan, threads: int) -> None:
        """Compute a problem in ``threads`` pieces at once."""
        cuts = [plan.tasks * i // threads for i in range(threads + 1)]
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda i: self.run(problem, plan, cuts[i], cuts[i + 1]), range(threads)))
