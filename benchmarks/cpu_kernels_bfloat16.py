"""One thread of the CPU kernels on NAT's and DiNAT's layers: float32, and bfloat16 with and without its dot products.

    python benchmarks/cpu_kernels_bfloat16.py [--rounds 101]

Candidates take turns; the fastest of all rounds, because one thread without waiting is disturbed in one direction only.
Heads have 32 channels, windows are 7×7, the bias is float32 and prepared. Without dot products means the processor's
next instruction set, whose kernels convert bfloat16 to float32.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "plugins"))

from cpu_library import DTYPES, CpuLibrary, Plan, Problem, aligned, build  # noqa: E402

from na_deploy.attention.windows import NeighborhoodSpec  # noqa: E402

LAYERS = [(56, 2, 1), (28, 4, 1), (14, 8, 1), (7, 16, 1), (56, 2, 8), (28, 4, 4), (14, 8, 2)]
"""Side of the map, heads, dilation."""


def make_problem(side: int, heads: int, dilation: int, dtype: np.dtype) -> Problem:
    random = np.random.default_rng(0)
    qkv = aligned(side * side * 3 * heads * 32, dtype).reshape(1, side, side, 3, heads, 32)
    qkv[...] = random.normal(size=qkv.shape)
    bias = random.normal(size=(heads, 13, 13)).astype(np.float32)
    problem = Problem(NeighborhoodSpec.create(2, 7, dilation), qkv, rel_pos_bias=bias, lse=False)
    problem.params.bias_is_float32 = 1
    return problem


def fastest(cpu: CpuLibrary, candidates: dict[str, tuple[int, Problem, Plan]], rounds: int) -> dict[str, float]:
    """Return each candidate's least microseconds; a candidate is instruction sets, a problem and its plan."""
    best = dict.fromkeys(candidates, float("inf"))
    for _ in range(rounds):
        for name, (targets, problem, plan) in candidates.items():
            cpu.use_targets(targets)
            started = time.perf_counter()
            cpu.run(problem, plan)
            best[name] = min(best[name], 1e6 * (time.perf_counter() - started))
    cpu.use_targets(-1)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=101)
    rounds = parser.parse_args().rounds
    cpu = CpuLibrary(build(ROOT / "build" / "tree"))
    targets = cpu.targets()
    next_best = targets & ~(targets & -targets)
    kinds = {
        "float32": (targets, DTYPES[0]),
        f"bfloat16, {cpu.target()}": (targets, DTYPES[2]),
        "bfloat16, next best": (next_best, DTYPES[2]),
    }
    table = Table(title="one thread, microseconds and ratio to float32")
    for column in ("map", "heads", "dilation", *kinds):
        table.add_column(column, justify="right")
    for side, heads, dilation in LAYERS:
        candidates, prepared = {}, []
        for name, (own, dtype) in kinds.items():
            cpu.use_targets(own)
            problem = make_problem(side, heads, dilation, dtype)
            plan = cpu.plan(problem)
            prepared.append(cpu.prepare_bias(problem, plan))
            candidates[name] = (own, problem, plan)
        times = fastest(cpu, candidates, rounds)
        first, *_ = times.values()
        cells = (f"{us:.0f} ({us / first:.2f})" for us in times.values())
        table.add_row(f"{side}×{side}", str(heads), str(dilation), *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
