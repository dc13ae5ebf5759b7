"""The work of the GPU kernels at NAT's, DiNAT's and NATTEN's published problems, counted in their machine code.

    python benchmarks/gpu_counts.py [--batch 128] [--only stages|windows|large] [--tactic N] [--json FILE]

Needs nvcc and cuobjdump, no GPU: the interpreter of tests/support/sass runs blocks of the default tactic's launch.
Printed are instructions by class, wavefronts and conflicts of shared memory, sectors of global memory, registers,
warps that a multiprocessor holds, and the least time that each resource of A100, H100 and H200 needs for that
(tests/support/sass/bounds.py lists the rates). Counted, never measured: a kernel is slower than its largest bound.

``--json`` writes the instructions of NAT's and DiNAT's stages; benchmarks/gpu_counts.json is what the tests hold the
kernels to.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tests" / "plugins")]

from cpu_library import Params, Sizes  # noqa: E402
from gpu_check_build import NAMES  # noqa: E402
from gpu_check_timings import FAMILY_B, NARROW, Case, family_a  # noqa: E402
from sass.bounds import CLASSES, DEVICES, INTEGERS, Counts, Device, bounds, count  # noqa: E402
from sass.compiling import MissingToolError, Unit, compile_tactics  # noqa: E402
from sass.launching import Recorded, load_unit, place, record_problem  # noqa: E402
from sass.machine import Machine  # noqa: E402
from sass.memory import GlobalMemory  # noqa: E402

ONE_PASS = (30, 31, 32)
MOST_SHARES = 64
PARTS = ("stages", "windows", "large")
RECORD = Path(__file__).with_suffix(".json")
MOST_BLOCKS = 256
"""Blocks that are executed of a launch; the others are like them."""
MOST_BLOCKS_OF_LARGE_WINDOWS = 6
MOST_BLOCKS_OF_ONE_PASS = 8
"""They take images in turn, so each does much."""


@dataclass(frozen=True)
class Counted:
    """A case on a device."""

    case: Case
    device: Device
    tactic: int
    counts: Counts


def wider_windows(batch: int) -> list[Case]:
    """Return NAT-Tiny's first two stages with the widest windows that one pass takes."""
    return [
        Case(f"{side}², window {size}×{size}", batch, (side, side), heads, 32, (size, size), bias=True)
        for side, heads in ((56, 2), (28, 4))
        for size in (11, 13)
    ]


def cases_of(device: Device, batch: int) -> dict[str, list[Case]]:
    """Return the cases of a device by the part of the tables that they stand in."""
    large = [*FAMILY_B, *(NARROW if device.architecture == "90a" else ())]
    return {"stages": family_a([batch]), "windows": wider_windows(batch), "large": large}


def params_of(case: Case, heads: int) -> Params:
    """Return the parameters of a case in float16, without addresses."""
    rank = len(case.lengths)
    return Params(
        rank=rank,
        packed=1,
        dtype=1,
        batch=case.batch,
        length=Sizes(*case.lengths),
        heads=heads,
        key_heads=heads,
        head_dim=case.head_dim,
        value_dim=case.head_dim,
        kernel_size=Sizes(*case.kernel_size),
        dilation=Sizes(*(case.dilation or (1,) * rank)),
        stride=Sizes(*(case.stride or (1,) * rank)),
    )


@cache
def _tactics() -> ctypes.CDLL:
    return ctypes.CDLL(str(compile_tactics()))


def default_tactic(params: Params, architecture: str) -> int:
    """Return the tactic that a device of an architecture takes by default."""
    _tactics().na_pretend_hopper(int(architecture == "90a"))
    found = (ctypes.c_int32 * 16)()
    _tactics().na_cuda_tactics(ctypes.byref(params), found, len(found))
    return int(found[0])


def sampled(blocks: int, images: int, most: int) -> list[int]:
    """Return the blocks of one image, which do what those of the others do; if they are too many, some, spread."""
    if blocks % images == 0 and blocks // images <= most:
        return list(range(blocks // images))
    return sorted({int(block) for block in np.linspace(0, blocks - 1, min(blocks, most)).round()})


def count_case(case: Case, device: Device, tactic: int | None = None) -> Counted:
    """Execute blocks of the launch of a case's default tactic, or of another, and return the counts of all of them."""
    # One head in memory where heads are many and large: blocks of all heads do the same.
    heads = case.heads if case.bias else 1
    random = np.random.default_rng(0)
    image = random.standard_normal((1, *case.lengths, 3, heads, case.head_dim), dtype=np.float32).astype(np.float16)
    recorded, memory, tactic, moved = _launch(case, device, heads, image, tactic)
    if tactic >= 30:
        blocks = sampled(recorded.launch.blocks, recorded.launch.blocks + 1, MOST_BLOCKS_OF_ONE_PASS)
    else:
        most = MOST_BLOCKS if case.bias else MOST_BLOCKS_OF_LARGE_WINDOWS
        blocks = sampled(recorded.launch.blocks, case.batch, most)
    machine = Machine(recorded.launch, memory, blocks).run()
    found = count(machine, recorded.kernel, device, moved)
    return Counted(case, device, tactic, found.times(case.heads / heads))


def _launch(
    case: Case, device: Device, heads: int, image: np.ndarray, tactic: int | None = None
) -> tuple[Recorded, GlobalMemory, int, float]:
    """Return the launch of a tactic (by default the case's), its memory, the tactic, and the bytes of the tensors."""
    params = params_of(case, heads)
    bias = np.random.default_rng(1).standard_normal((heads, *(2 * k - 1 for k in case.kernel_size))).astype(np.float16)
    arrays = {
        "query": np.repeat(image, case.batch, axis=0),
        "rel_pos_bias": bias if case.bias else None,
        "output": np.zeros((case.batch, *case.lengths, heads, case.head_dim), np.float16),
    }
    memory = place(params, arrays)
    tactic = tactic or default_tactic(params, device.architecture)
    program = load_unit(Unit("Half", case.head_dim, tactic, device.architecture))
    moved = sum(array.nbytes for array in arrays.values() if array is not None)
    return record_problem(program, params, tactic), memory, tactic, float(moved)


def tile_and_beginning(case: Case, device: Device) -> tuple[float, float]:
    """Return the instructions of a warp for a tile of the one-pass kernel, and for the beginning of a block.

    Of two blocks that share a tile's images one takes an image more: the batch is the next one for which that is so.

    Raises:
        ValueError: The default kernel is another, or a block takes all images of a tile.
    """
    for batch in range(case.batch, case.batch + MOST_SHARES):
        own = replace(case, batch=batch)
        params = params_of(own, case.heads)
        tactic = default_tactic(params, device.architecture)
        shares = int(_tactics().na_shares(ctypes.byref(params), tactic)) if tactic in ONE_PASS else 1
        if batch % shares:
            break
    else:
        raise ValueError(f"no blocks of {case.name} share images unevenly")
    image = np.zeros((1, *case.lengths, 3, case.heads, case.head_dim), np.float16)
    recorded, memory, *_ = _launch(own, device, case.heads, image)
    first, last = (
        Machine(recorded.launch, memory, [block]).run().executed.sum() / (recorded.launch.threads // 32)
        for block in (0, recorded.launch.blocks // shares * (shares - 1))
    )
    return first - last, first - (first - last) * -(-batch // shares)


def table(rows: list[list[str]]) -> str:
    """Return rows as a Markdown table; the first one is the head."""
    head, *body = rows
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _share(counted: Counted) -> float:
    """Return the number of groups of 16 queries of a head (a warp's part of a tile) in a case."""
    case = counted.case
    return case.batch * prod(case.lengths) * case.heads / 16


def counts_table(all_counted: list[Counted]) -> str:
    """Return instructions by class, memory, registers: per 16 queries of a head."""
    kinds = [INTEGERS, *CLASSES]
    rows = [["per 16 queries of a head", *(own.case.name for own in all_counted)]]
    rows.append(["kernel, by its tile", *(NAMES.get(own.tactic, str(own.tactic)) for own in all_counted)])
    rows.append(["instructions", *(f"{own.counts.instructions / _share(own):,.0f}" for own in all_counted)])
    for kind in kinds:
        values = [own.counts.classes.get(kind, 0) / _share(own) for own in all_counted]
        rows.append([kind, *map(_number, values)])
    for name, field in (("wavefronts", "wavefronts"), ("of them conflicts", "conflicts"), ("sectors", "sectors")):
        rows.append([name, *(f"{getattr(own.counts, field) / _share(own):,.0f}" for own in all_counted)])
    rows.append(["registers", *(str(own.counts.registers) for own in all_counted)])
    rows.append(["warps of a multiprocessor", *(str(own.counts.warps) for own in all_counted)])
    return table(rows)


def bounds_table(all_counted: list[Counted]) -> str:
    """Return the least microseconds of each resource, and the largest as a multiple of the DRAM's."""
    names = ["issue", "integers", "floats", "special", "products", "shared memory", "second cache", "DRAM"]
    rows = [["bound, µs", "device", *names, "largest", "of DRAM's"]]
    for own in all_counted:
        found = bounds(own.counts, own.device)
        largest = max(found, key=lambda name: found[name])
        values = [_number(found.get(name, 0.0)) for name in names]
        rows.append([own.case.name, own.device.name, *values, largest, f"{found[largest] / found['DRAM']:.1f}"])
    return table(rows)


def shares_table(by_device: dict[str, list[Counted]]) -> str:
    """Return what issue and shared memory need at each stage, as multiples of the DRAM's least time."""
    names = [own.case.name for own in next(iter(by_device.values()))]
    rows = [["of the bytes' time", *names]]
    for device, counted in by_device.items():
        found = [bounds(own.counts, own.device) for own in counted]
        for resource in ("issue", "shared memory"):
            rows.append([f"{device}, {resource}", *(f"{own[resource] / own['DRAM']:.2f}" for own in found)])
    return table(rows)


def architecture_of(name: str) -> str:
    """Return the architecture of a device."""
    return next(device.architecture for device in DEVICES if device.name == name)


def record_of(all_counted: list[Counted]) -> dict[str, Any]:
    """Return the figures that the tests compare: instructions per 16 queries of a head."""
    return {
        f"{own.case.name}, sm_{own.device.architecture}": round(own.counts.instructions / _share(own), 1)
        for own in all_counted
    }


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128, help="images of NAT's and DiNAT's stages (default: 128)")
    parser.add_argument("--json", type=Path, help="also write the stages' instructions to this file")
    parser.add_argument(
        "--tactic", type=int, help="count this one (plugins/cuda/tactics.h), not each problem's default"
    )
    parser.add_argument("--only", choices=PARTS, help="one part of the problems")
    options = parser.parse_args()
    wanted = PARTS if options.only is None else (options.only,)
    by_device: dict[str, dict[str, list[Counted]]] = {}
    for device in DEVICES:
        twin = next((own for own in DEVICES if own.architecture == device.architecture and own.name in by_device), None)
        if twin is not None:  # the same code; only rates differ
            by_device[device.name] = {
                part: [replace(own, device=device) for own in counted] for part, counted in by_device[twin.name].items()
            }
            continue
        parts: dict[str, list[Counted]] = {part: [] for part in wanted}
        for part in wanted:
            for case in cases_of(device, options.batch)[part]:
                print(f"{device.name}: {case.name}", file=sys.stderr)
                parts[part].append(count_case(case, device, options.tactic))
        by_device[device.name] = parts
    for name in ("A100", "H100"):
        print(f"\nCounted in sm_{architecture_of(name)} code ({name}), batch {options.batch}, float16\n")
        for counted in by_device[name].values():
            print(counts_table(counted), end="\n\n")
    print("\nBounds by published rates, not measured\n")
    print(bounds_table([own for parts in by_device.values() for counted in parts.values() for own in counted]))
    for part in wanted:
        if part != "large":
            print("\n" + shares_table({name: parts[part] for name, parts in by_device.items()}))
    if "stages" not in wanted or options.tactic is not None:
        return
    first = by_device["H100"]["stages"][0]
    split = tile_and_beginning(first.case, first.device)
    print(f"\n{first.case.name}, H100: {split[0]:.0f} instructions of a warp a tile, {split[1]:.0f} to begin a block")
    if options.json is not None:
        record = {
            key: value for name in ("A100", "H100") for key, value in record_of(by_device[name]["stages"]).items()
        }
        options.json.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    try:
        main()
    except MissingToolError as error:
        sys.exit(f"error: {error}")
