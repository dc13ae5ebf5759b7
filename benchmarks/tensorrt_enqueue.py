"""The TensorRT plugin's launches on a device, driven as TensorRT drives a plugin, held to float64.

    python benchmarks/tensorrt_enqueue.py --library libna_deploy_trt.so --driver trt_enqueue [--tensorrt libnvinfer.so]

The driver is plugins/tests/trt_enqueue.cpp, which CMake compiles beside the plugin (target trt_enqueue, with
-DNA_DEPLOY_CUDA=ON -DNA_DEPLOY_TESTS=ON -DTENSORRT_ROOT=…). It needs no builder: it makes the plugin by its creator or,
with ``--tensorrt``, by the registry of a TensorRT, also a lean runtime. Every tactic offered computes random problems
in two execution contexts at once, again in a CUDA graph that was captured over other numbers, and in batches down to
none; misaligned addresses must be refused. Needs NumPy, ml_dtypes, pytest and filelock; nothing of na-deploy has to be
installed. Ends with an error where something differs, or where a kind of problem did not come up.
"""

from __future__ import annotations

import argparse
import collections
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gpu_check import import_ours
from gpu_check_build import NAMES

NO_DEVICE = 77
"""What the driver returns where there is no device."""
TYPES = ("float", "half", "bf16")
BATCH = 3
SEEDS = 24
INPUTS = {
    True: ("query", "rel_pos_bias", "padding"),
    False: ("query", "key", "value", "rel_pos_bias", "additional_key", "additional_value"),
}
"""The operators' inputs in their order, by whether the operator is the packed one."""
HAVE_BATCH = {"query", "key", "value", "additional_key", "additional_value"}


def random_problems(seeds: Sequence[int]) -> Iterator[tuple[Any, Any, float]]:
    """Yield problems, attributes of windows and scales: of every type and operator, some for Hopper's kernels."""
    from test_gpu_kernels import DTYPES, random_problem, small_map

    for seed in seeds:
        for number, dtype in enumerate(DTYPES):
            if seed % 5 == 1:
                found = small_map(seed, dtype, [8, 16, 24, 32, 60], batch=BATCH)
            elif seed % 5 == 3 and number:
                found = random_problem(seed, dtype, [64, 128], large_windows=True, batch=BATCH)
            else:
                found = random_problem(seed, dtype, [7, 33] if seed % 7 == 2 else [8, 16, 32, 64], batch=BATCH)
            yield found


def present(problem: Any) -> dict[str, np.ndarray]:
    """Return the inputs as a network has them: without gaps, a missing bias before others is zeros."""
    arrays = dict(problem.arrays)
    names = INPUTS[bool(problem.params.packed)]
    last = max(place for place, name in enumerate(names) if arrays[name] is not None)
    if arrays["rel_pos_bias"] is None and names.index("rel_pos_bias") < last:
        kernel_size = problem.params.kernel_size[: problem.params.rank]
        shape = (problem.params.heads, *(2 * kernel - 1 for kernel in kernel_size))
        arrays["rel_pos_bias"] = np.zeros(shape, arrays["query"].dtype)
    return {name: arrays[name] for name in names[: last + 1]}


def write_case(name: str, problem: Any, scale: float, folder: Path) -> str:
    """Write a problem's tensors; return its line of cases.txt."""
    params = problem.params
    words: list[Any] = [name, "NeighborhoodAttentionQKV" if params.packed else "NeighborhoodAttention"]
    words.append(TYPES[params.dtype])
    for attribute in ("kernel_size", "dilation", "stride", "is_causal"):
        words += [params.rank, *getattr(params, attribute)[: params.rank]]
    words += [scale, int(problem.lse is not None)]
    batches = sorted({params.batch, 1, 0}, reverse=True)
    words += [len(batches), *batches]
    inputs = present(problem)
    words.append(len(inputs))
    for own, array in inputs.items():
        (folder / f"{name}.{own}").write_bytes(array.tobytes())
        words += [f"{name}.{own}", int(own in HAVE_BATCH), array.ndim, *array.shape]
    return " ".join(map(str, words))


def compare(problem: Any, folder: Path, stem: str, batch: int) -> str:
    """Return what differs in a result of the first images; empty if nothing does."""
    from test_gpu_kernels import TOLERANCE

    dtype = problem.output.dtype
    expected = problem.expected.output[:batch]
    found = np.fromfile(folder / f"{stem}.out", np.uint8).view(dtype)
    if found.size != expected.size:
        return f"{stem}: {found.size} numbers, expected {expected.size}"
    if not batch:
        return ""
    difference = np.abs(found.reshape(expected.shape).astype(np.float64) - expected).max() / np.abs(expected).max()
    if not difference < TOLERANCE[dtype]:
        return f"{stem}: relative difference {difference:.1e}"
    if problem.lse is not None:
        lse = problem.expected.lse[:batch]
        own = np.abs(np.fromfile(folder / f"{stem}.lse", np.float32).reshape(lse.shape) - lse).max()
        if not own < 1e-5 * max(np.abs(lse).max(), 1):
            return f"{stem}: lse differs by {own:.1e}"
    return ""


def check(
    command: Sequence[str],
    library: Path,
    tensorrt: Path | None,
    problems: Iterable[tuple[Any, Any, float]],
    folder: Path,
) -> tuple[list[str], collections.Counter[str]]:
    """Have the driver compute problems; return sentences about what is wrong, and how often each kind came up right.

    Args:
        command: the driver.
        library: the plugin.
        tensorrt: a TensorRT whose registry makes the plugin; ``None`` for the plugin's own creators.
        problems: problems, attributes of their windows and scales.
        folder: where tensors are written.

    Raises:
        SystemExit: there is no device, and the message is the driver's.
    """
    from test_gpu_kernels import expect

    given = {f"case{number}": one for number, one in enumerate(problems)}
    lines = [write_case(name, problem, scale, folder) for name, (problem, _, scale) in given.items()]
    (folder / "cases.txt").write_text("\n".join(lines) + "\n")
    run = [*command, str(library), str(folder), *([] if tensorrt is None else [str(tensorrt)])]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    if done.returncode == NO_DEVICE:
        raise SystemExit(done.stdout.strip())
    wrong = [line for line in done.stdout.splitlines() if not line.startswith("result ")]
    kinds: collections.Counter[str] = collections.Counter()
    refusals = done.stderr.count("must begin at an address that is a multiple of 16 on a GPU")
    tactics = set()
    for line in done.stdout.splitlines():
        if not line.startswith("result "):
            continue
        _, name, tactic, way, batch = line.split()
        problem, spec, scale = given[name]
        expect(problem, spec, scale)
        told = compare(problem, folder, f"{name}.{tactic}.{way}.{batch}", int(batch))
        tactics.add((name, tactic))
        if told:
            wrong.append(f"{told} ({NAMES[int(tactic)]})")
            continue
        operator = "packed" if problem.params.packed else "separate"
        kinds[f"{operator}, {TYPES[problem.params.dtype]}"] += 1
        kinds[f"{way}, batch {batch}"] += 1
        kinds[f"{operator}, {'bias' if problem.params.rel_pos_bias else 'no bias'}"] += 1
        kinds[f"{operator}, {'lse' if problem.lse is not None else 'no lse'}"] += 1
        kinds[f"tactic {NAMES[int(tactic)]}"] += 1
    if refusals != 2 * len(tactics) and not wrong:
        wrong.append(f"{refusals} sentences about misaligned tensors, expected {2 * len(tactics)}")
    if done.returncode and not wrong:
        wrong.append(f"the driver ends with {done.returncode}: {done.stderr.strip()[-500:]}")
    return wrong, kinds


def missing(kinds: collections.Counter[str], batch: int = BATCH) -> list[str]:
    """Return the kinds of problems that did not come up."""
    expected = [f"{way}, batch {size}" for way in ("first", "second", "graph") for size in (batch, 1)]
    expected += ["first, batch 0", "second, batch 0"]
    for operator in ("packed", "separate"):
        parts = (*TYPES, "bias", "no bias", "lse", "no lse")
        expected += [f"{operator}, {part}" for part in parts]
    return [kind for kind in expected if not kinds[kind]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, required=True, help="libna_deploy_trt.so")
    parser.add_argument("--driver", required=True, help="trt_enqueue, with a tool before it where one shall watch it")
    parser.add_argument("--tensorrt", type=Path, help="a TensorRT of the headers' major version, for its registry")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="problems of each type")
    options = parser.parse_args()
    import_ours()
    with tempfile.TemporaryDirectory() as folder:
        problems = random_problems(range(options.seeds))
        wrong, kinds = check(options.driver.split(), options.library, options.tensorrt, problems, Path(folder))
    for kind, count in sorted(kinds.items()):
        print(f"{kind}: {count} right")
    wrong += [f"nothing came up of: {kind}" for kind in missing(kinds)] if options.seeds >= SEEDS else []
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    right = sum(count for kind, count in kinds.items() if kind.startswith("tactic "))
    print(f"{right} results right, {len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
