"""The GPU kernels compiled for one device with nvcc alone, and called by ctypes."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CUDA = ROOT / "plugins" / "cuda"
NAMES = {
    1: "plain", 2: "64", 3: "128", 4: "8×8", 5: "16×8", 6: "4×16", 7: "4×4×4", 8: "2×4×8", 9: "4×4×8",
    10: "8×8, keys 16×8", 11: "16×8, keys 16×8", 12: "4×4×4, keys 8×4×4",
    20: "Hopper 128", 21: "Hopper 8×16", 22: "Hopper 16×8", 23: "Hopper 2×8×8", 24: "Hopper 4×4×8",
    30: "one pass, 4 warps", 31: "one pass, 8 warps", 32: "one pass, 16 warps",
}  # fmt: skip
"""Names of tactics in tables: the shape of their tiles (plugins/cuda/tactics.h)."""


def write_units(macro: str, template: str, prefix: str, folder: Path) -> list[Path]:
    """Write a unit for each type and width that a macro of tactics.h lists, as CMake does."""
    listed = re.search(rf"#define {macro}\(use\)((?:[^\n]*\\\n)*[^\n]*)", (CUDA / "tactics.h").read_text())
    assert listed is not None
    units = []
    for kind, dim in re.findall(r"use\(((?:dev::)?[A-Za-z]+), (\d+)\)", listed[1]):
        unit = folder / f"{prefix}_{kind.removeprefix('dev::')}_{dim}.cu"
        unit.write_text((CUDA / template).read_text().replace("@NA_TYPE@", kind).replace("@NA_DIM@", dim))
        units.append(unit)
    return units


def build_library(folder: Path, architecture: str) -> Path:
    """Compile the kernels for one architecture, such as ``90a``, each unit in a process of its own, and link them."""
    include = [f"-I{ROOT / 'plugins' / part}" for part in ("cuda", "core")]
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    nvcc = ["nvcc", "-std=c++17", "-O3", target, "-Xcompiler", "-fPIC,-fvisibility=hidden", *include]
    nvcc.append('-DNA_DEPLOY_KERNEL_REVISION="gpu_check"')
    units = [CUDA / "na_cuda.cu", CUDA / "onepass/plan.cpp", CUDA / "tactics.cpp", ROOT / "plugins/core/check.cpp"]
    units += write_units("NA_TILE_UNITS", "tile_unit.cu.in", "tile", folder)
    units += write_units("NA_ONEPASS_UNITS", "onepass/unit.cu.in", "onepass", folder)
    if architecture == "90a":
        nvcc.append("-DNA_DEPLOY_HOPPER")
        units += write_units("NA_HOPPER_UNITS", "hopper/unit.cu.in", "hopper", folder)

    def compiled(unit: Path) -> str:
        output = folder / f"{unit.stem}.o"
        subprocess.run([*nvcc, "-c", str(unit), "-o", str(output)], check=True)
        return str(output)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, units))
    library = folder / "libna_deploy_cuda.so"
    subprocess.run([*nvcc, "-shared", *objects, "-o", str(library)], check=True)
    return library


def tactics_of(library: ctypes.CDLL, params: Any) -> list[int]:
    """Return a library's ways to compute a problem, the default first."""
    found = (ctypes.c_int32 * 16)()
    return list(found[: library.na_cuda_tactics(ctypes.byref(params), found, len(found))])


class Kernels:
    """The compiled kernels on the present device."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.na_forward.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p]

    def tactics(self, params: Any) -> list[int]:
        """Return the ways to compute a problem, the default first."""
        return tactics_of(self._library, params)

    def launch(self, params: Any, tactic: int) -> None:
        """Launch on PyTorch's current stream."""
        import torch

        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        code = self._library.na_forward(ctypes.byref(params), tactic, stream)
        if code:
            raise RuntimeError(f"the launch failed with CUDA error {code}")
