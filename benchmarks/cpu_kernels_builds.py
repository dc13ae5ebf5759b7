"""One thread of the CPU kernels in this tree against those of another build, such as that of an earlier commit.

    git worktree add ../earlier COMMIT
    cmake -S ../earlier -B ../earlier/build/tree -DNA_DEPLOY_NATIVE=ON -DNA_DEPLOY_TESTS=ON
    cmake --build ../earlier/build/tree --target na_deploy_cpu_test
    python benchmarks/cpu_kernels_builds.py ../earlier/build/tree [--rounds 41] [--set 1]

NAT's and DiNAT's layers and other windows that cover whole dilation groups, with a prepared float32 bias. Medians of
processor time, the two builds in turn; share is this tree's of the rate of multiply-adds, as in cpu_kernels.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from machine import describe_machine, time_interleaved
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "plugins"))

from cpu_library import DTYPES, CpuLibrary, Problem, aligned, build  # noqa: E402

from na_deploy.attention.windows import NeighborhoodSpec  # noqa: E402


class Layer(NamedTuple):
    """One layer: the map's lengths, heads, head_dim, kernel_size and dilation."""

    lengths: tuple[int, ...]
    heads: int
    head_dim: int
    kernel_size: tuple[int, ...]
    dilation: int


LAYERS = [
    Layer((56, 56), 2, 32, (7, 7), 1),
    Layer((7, 7), 16, 32, (7, 7), 1),
    Layer((56, 56), 2, 32, (7, 7), 8),
    Layer((28, 28), 4, 32, (7, 7), 4),
    Layer((14, 14), 8, 32, (7, 7), 2),
    Layer((7, 7), 8, 64, (7, 7), 1),
    Layer((20, 20), 8, 32, (5, 5), 4),
    Layer((12, 12), 8, 32, (3, 3), 4),
    Layer((48, 48), 2, 32, (8, 8), 6),
    Layer((6, 6, 6), 4, 32, (3, 3, 3), 2),
    Layer((104,), 4, 32, (13,), 8),
]
"""The first one is no dense group: both builds compute it alike."""


def make_problem(layer: Layer, dtype: np.dtype) -> Problem:
    lengths, heads, head_dim, kernel_size, dilation = layer
    random = np.random.default_rng(0)
    shape = (1, *lengths, 3, heads, head_dim)
    qkv = aligned(int(np.prod(shape)), dtype).reshape(shape)
    qkv[...] = random.normal(size=shape)
    bias = random.normal(size=(heads, *(2 * size - 1 for size in kernel_size))).astype(np.float32)
    spec = NeighborhoodSpec.create(len(lengths), kernel_size, dilation)
    problem = Problem(spec, qkv, rel_pos_bias=bias, lse=False)
    problem.params.bias_is_float32 = 1
    return problem


def prepare(cpu: CpuLibrary, layer: Layer, dtype: np.dtype, calls: int) -> Callable[[], object]:
    """Return a function that computes the layer ``calls`` times."""
    problem = make_problem(layer, dtype)
    plan = cpu.plan(problem)
    kept = cpu.prepare_bias(problem, plan)
    scratch = aligned(plan.scratch_bytes, np.dtype(np.uint8))
    return lambda: ([cpu.run(problem, plan, scratch=scratch) for _ in range(calls)], kept)


def rate_of(cpu: CpuLibrary) -> float:
    """Return the best rate of multiply-adds a second."""
    best = 0.0
    for _ in range(5):
        started = time.process_time()
        best = max(best, cpu.multiply_adds(400_000) / (time.process_time() - started))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the other build's folder")
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--calls", type=int, default=8, help="calls in each round")
    parser.add_argument("--set", type=int, default=0, help="the instruction set: 0 the best, 1 the next, ...")
    arguments = parser.parse_args()
    builds = {"other": CpuLibrary(arguments.other), "this": CpuLibrary(build(ROOT / "build" / "tree"))}
    for cpu in builds.values():
        cpu.use_targets([1 << bit for bit in range(63) if cpu.targets() >> bit & 1][arguments.set])
    console = Console(width=120)
    console.print(describe_machine(1))
    rate = rate_of(builds["this"])
    table = Table(title=f"{builds['this'].target()}, {rate / 1e9:.0f} G multiply-adds/s; µs and this tree's ratio")
    for column in ("map", "heads", "dim", "window", "dilation", *(str(d) for d in DTYPES), "share in float32"):
        table.add_column(column, justify="right")
    for layer in LAYERS:
        lengths, heads, head_dim, kernel_size, dilation = layer
        work = np.prod(lengths) * heads * np.prod(kernel_size) * 2 * head_dim
        cells, shares = [], []
        for dtype in DTYPES:
            runs = {name: prepare(cpu, layer, dtype, arguments.calls) for name, cpu in builds.items()}
            times = time_interleaved(runs, arguments.rounds, clock=time.process_time)
            other, this = (1e3 * times[name] / arguments.calls for name in ("other", "this"))
            cells.append(f"{other:.0f} → {this:.0f} ({this / other:.2f})")
            shares.append(f"{work / (this * 1e-6) / rate:.0%}")
        sizes = ("×".join(map(str, lengths)), str(heads), str(head_dim), "×".join(map(str, kernel_size)), str(dilation))
        table.add_row(*sizes, *cells, shares[0])
    console.print(table)


if __name__ == "__main__":
    main()
