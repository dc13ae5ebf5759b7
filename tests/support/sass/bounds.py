"""Bounds on time from counts of executed instructions: the least that each resource of a device needs.

No time is measured. A bound is work divided by a rate that NVIDIA publishes; a kernel is slower than the largest of
them, by as much as its warps wait. Rates per multiprocessor and clock (CUDA C++ Programming Guide, arithmetic
instructions; the architectures' white papers):

- four schedulers, an instruction of a warp each;
- integers, logic, comparisons, selects and conversions of packed pairs: 64 lanes; integer products: 64 lanes of the
  unit for float32, which has 64 lanes on A100 and 128 on H100;
- special functions and conversions of single numbers: 16 lanes;
- tensor cores: 1,024 products of 16 bits on A100 and 2,048 on H100, which ``mma.sync`` alone does not reach; TF32 half;
- shared memory: one wavefront, 128 bytes (what wgmma reads by itself is not counted: at most 48 clocks of its 64);
- second cache: 64 bytes;
- DRAM: every tensor once, at the published rate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from .cubin import Kernel
from .listing import Instruction
from .machine import Launch, Machine
from .memory import SECTOR

CLASSES = {
    "tensor cores": "HMMA HGMMA",
    "matrix loads and stores": "LDSM STSM",
    "shared memory": "LDS STS",
    "global memory and copies": "LDG STG LDGSTS UTMALDG",
    "special functions": "MUFU",
    "sums and products": "FADD FMUL FFMA HADD2 HFMA2",
    "maxima": "FMNMX",
    "predicates and selects": "ISETP FSETP PLOP3 SEL FSEL R2P P2R FCHK",
    "conversions": "F2FP I2F I2FP F2I",
    "exchange between lanes": "SHFL VOTE REDUX R2UR ELECT",
    "uniform and constants": "LDC ULDC S2R S2UR CS2R",
    "barriers and branches": "BAR BRA BSSY BSYNC BREAK CALL RET EXIT NOP WARPSYNC DEPBAR LDGDEPBAR SYNCS WARPGROUP "
    "FENCE B2R",
}
"""Classes of instructions by name; what is named U… is uniform, everything else integers and addresses."""
_CLASS = {name: kind for kind, names in CLASSES.items() for name in names.split()}
INTEGERS = "integers and addresses"

_FLOAT = set(CLASSES["sums and products"].split())
_SPECIAL = {"MUFU", "I2F", "F2I"}
_ELSEWHERE = set(" ".join(CLASSES[kind] for kind in (
    "tensor cores", "matrix loads and stores", "shared memory", "global memory and copies", "exchange between lanes",
    "uniform and constants", "barriers and branches")).split())  # fmt: skip


def class_of(own: Instruction) -> str:
    """Return the class of an instruction."""
    return _CLASS.get(own.name) or ("uniform and constants" if own.name.startswith("U") else INTEGERS)


@dataclass(frozen=True)
class Device:
    """Rates of a device. ``float_lanes`` and ``products``: per multiprocessor and clock."""

    name: str
    architecture: str
    multiprocessors: int
    gigahertz: float
    terabytes: float
    """DRAM, in 10^12 bytes a second."""
    float_lanes: int
    products: int
    shared_kilobytes: int
    """Of a multiprocessor, for blocks."""
    reserved_shared: int
    """Bytes of shared memory that the system takes from each block."""


DEVICES = (
    Device("A100", "80", 108, 1.410, 2.039, 64, 1024, 164, 1024),
    Device("H100", "90a", 132, 1.755, 3.35, 128, 2048, 228, 1024),
    Device("H200", "90a", 132, 1.755, 4.8, 128, 2048, 228, 1024),
)


def warps_of_multiprocessor(launch: Launch, kernel: Kernel, device: Device) -> int:
    """Return how many warps of a launch a multiprocessor holds: by registers, shared memory, 64 warps, 32 blocks."""
    warps = launch.threads // 32
    registers = (kernel.registers + 7) // 8 * 8 * 32
    shared = (launch.shared_bytes + device.reserved_shared + 127) // 128 * 128
    blocks = min(32, 64 // warps, 65536 // (registers * warps), device.shared_kilobytes * 1024 // shared)
    return blocks * warps


@dataclass(frozen=True)
class Counts:
    """Counts of a launch, all blocks together."""

    classes: Mapping[str, float]
    """Instructions of warps by class."""
    units: Mapping[str, float]
    """Clocks of a quarter of a multiprocessor by its units: "integers", "floats", "special", "products"."""
    wavefronts: float
    conflicts: float
    sectors: float
    registers: int
    warps: int
    """Of a multiprocessor at once."""
    dram_bytes: float

    @property
    def instructions(self) -> float:
        """All instructions of warps."""
        return sum(self.classes.values())

    def times(self, factor: float) -> Counts:
        """Return the counts of so many launches like this one."""
        return replace(
            self,
            classes={name: value * factor for name, value in self.classes.items()},
            units={name: value * factor for name, value in self.units.items()},
            wavefronts=self.wavefronts * factor,
            conflicts=self.conflicts * factor,
            sectors=self.sectors * factor,
            dram_bytes=self.dram_bytes * factor,
        )


def _products(own: Instruction) -> int:
    """Return the clocks of a tensor core of 256 products that a warp's part of an instruction takes."""
    if own.name == "HGMMA":
        columns = int(own.modifiers[0].split("x")[1])
        return 16 * columns * 16 // 256
    return 8  # 16816 of 16 bits; 1688 of TF32, at half the rate


def count(machine: Machine, kernel: Kernel, device: Device, dram_bytes: float) -> Counts:
    """Return what the whole launch executes; blocks that the machine did not run are like the ones that it ran."""
    launch = machine.launch
    scale = launch.blocks * (launch.threads // 32) / machine.warps.count
    classes: Counter[str] = Counter()
    units: Counter[str] = Counter()
    float_clocks = 128 // device.float_lanes
    for own, times in zip(launch.instructions, machine.executed.sum(1) * scale, strict=True):
        classes[class_of(own)] += times
        if own.name in _FLOAT:
            units["floats"] += float_clocks * times
        elif own.name == "IMAD":
            units["floats"] += 2 * times
        elif own.name in _SPECIAL:
            units["special"] += 8 * times
        elif own.name in ("HMMA", "HGMMA"):
            units["products"] += _products(own) * times * 1024 / device.products
        elif own.name not in _ELSEWHERE and not own.name.startswith("U"):
            units["integers"] += 2 * times
    taken, least = machine.wavefronts.sum(0) * scale
    return Counts(
        dict(classes),
        dict(units),
        float(taken),
        float(taken - least),
        float(machine.sectors.sum() * scale),
        kernel.registers,
        warps_of_multiprocessor(launch, kernel, device),
        dram_bytes,
    )


def bounds(counts: Counts, device: Device) -> dict[str, float]:
    """Return the least microseconds that each resource needs."""
    clocks = device.multiprocessors * device.gigahertz * 1e3  # of all multiprocessors, a microsecond
    found = {"issue": counts.instructions / 4 / clocks}
    found |= {unit: clocks_of / 4 / clocks for unit, clocks_of in counts.units.items()}
    found["shared memory"] = counts.wavefronts / clocks
    found["second cache"] = counts.sectors * SECTOR / 64 / clocks
    found["DRAM"] = counts.dram_bytes / device.terabytes / 1e6
    return found
