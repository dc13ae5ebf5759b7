"""Registers, spills and advisories of every GPU kernel for every architecture, and the library that holds them.

    python benchmarks/gpu_compilation.py [--architectures 80,90a] [--jobs 2] [--library]

Needs nvcc, no GPU, and minutes. Printed is a table of what ptxas says of each architecture's kernels, a row as soon as
an architecture is compiled; standard error tells each unit. A register that spills to memory, or a product of Hopper's
tensor cores that ptxas makes wait for another, ends it with an error.

``--library`` also compiles libna_deploy_ort.so with GPU kernels, for the first architecture, as build-kernels does, and
asserts that it is one file, which needs nothing of CUDA to load and runs a model on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tests" / "plugins")]

from gpu_counts import table  # noqa: E402
from sass.compiling import CORE, CUDA, MissingToolError, find_nvcc  # noqa: E402

TEMPLATES = {
    "NA_TILE_UNITS": "tile_unit.cu.in",
    "NA_ONEPASS_UNITS": "onepass/unit.cu.in",
    "NA_HOPPER_UNITS": "hopper/unit.cu.in",
}
STRICT = "-Xptxas=-v,-warn-spills,-Werror"


@dataclass(frozen=True)
class Told:
    """What ptxas says of a unit: registers of each kernel, advisories on Hopper's products."""

    registers: list[int]
    advisories: int


def architectures() -> list[str]:
    """Return those of plugins/cuda/CMakeLists.txt."""
    listed = re.search(r"set\(CMAKE_CUDA_ARCHITECTURES ([^)]*)\)", (CUDA / "CMakeLists.txt").read_text())
    assert listed is not None
    return [name.removesuffix("-real") for name in listed[1].split() if name.endswith("-real")]


def units(architecture: str, folder: Path) -> Iterator[Path]:
    """Write the units of an architecture and yield their paths."""
    yield CUDA / "na_cuda.cu"
    text = (CUDA / "tactics.h").read_text()
    for macro, template in TEMPLATES.items():
        if "HOPPER" in macro and architecture != "90a":
            continue
        listed = re.search(rf"#define {macro}\(use\)((?:[^\n]*\\\n)*[^\n]*)", text)
        assert listed is not None
        for kind, dim in re.findall(r"use\(([\w:]+), (\d+)\)", listed[1]):
            unit = folder / f"{template.replace('/', '_').split('.')[0]}_{kind.split(':')[-1]}_{dim}.cu"
            source = (CUDA / template).read_text()
            unit.write_text(source.replace("@NA_TYPE@", kind).replace("@NA_DIM@", dim))
            yield unit


def compile_unit(unit: Path, architecture: str, folder: Path) -> Told:
    """Compile a unit as the library's are.

    Raises:
        RuntimeError: it does not compile, or a register spills.
    """
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    options = ["-std=c++17", "-O3", target, STRICT, "-Werror=all-warnings", f"-I{CUDA}", f"-I{CORE}"]
    command = [find_nvcc(), *options, "-c", str(unit), "-o", str(folder / f"{unit.stem}_{architecture}.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{unit.name} for {architecture}:\n{done.stderr[-3000:]}")
    spills = [number for number in re.findall(r"(\d+) bytes spill", done.stderr) if number != "0"]
    advisories = len(re.findall(r"\(C75\d\d\)", done.stderr))
    if spills or advisories:
        raise RuntimeError(f"{unit.name} for {architecture} spills registers, or its products wait:\n{done.stderr}")
    return Told([int(number) for number in re.findall(r"Used (\d+) registers", done.stderr)], advisories)


def compile_and_tell(unit: Path, architecture: str, folder: Path) -> Told:
    """Compile a unit and say on standard error that it is done."""
    begin = time.perf_counter()
    told = compile_unit(unit, architecture, folder)
    print(f"{unit.stem} for {architecture}: {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    return told


def check_library(architecture: str) -> str:
    """Compile the operator library with GPU kernels and return what was found.

    Raises:
        RuntimeError: it is not one file, or does not run without a GPU.
    """
    import os

    import numpy as np
    from cpu_library import build
    from small_models import small_model

    options = ("-DNA_DEPLOY_CUDA=ON", "-DNA_DEPLOY_TESTS=OFF", f"-DCMAKE_CUDA_ARCHITECTURES={architecture}-real")
    built = build(ROOT / "build" / "native-gpu", *options, target="na_deploy_ort")
    with tempfile.TemporaryDirectory() as name:
        library, model = Path(name) / "libna_deploy_ort.so", Path(name) / "model.onnx"
        shutil.copy(built / "plugins/onnxruntime" / library.name, library)  # alone in its folder
        command = ["readelf", "-d", str(library)]
        needed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        if re.search(r"NEEDED.*(cuda|cudart|onnxruntime)", needed):
            raise RuntimeError(f"the library needs others:\n{needed}")
        os.environ["NA_DEPLOY_ORT_LIBRARY"] = str(library)
        import onnx

        import na_deploy
        from na_deploy.runtime.native_libraries import gpu_capabilities

        onnx.save(small_model(), model)
        image = np.random.default_rng(5).normal(size=(1, 3, 32, 32)).astype(np.float32)
        found = []
        for custom in (True, False):
            with na_deploy.load(model, providers=["CPUExecutionProvider"], custom_operators=custom) as session:
                if custom and session.library != library:
                    raise RuntimeError(f"the model runs on {session.library}")
                found.append(session.run(image)["logits"])
        np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)
        return f"one file of {library.stat().st_size / 1e6:.1f} MB for {gpu_capabilities(library)}, runs without a GPU"


def main() -> None:
    """Compile, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", help="such as 80,90a (default: all that the library is compiled for)")
    parser.add_argument("--jobs", type=int, default=2, help="compilations at once (default: 2)")
    parser.add_argument("--library", action="store_true", help="compile the operator library too")
    options = parser.parse_args()
    names = options.architectures.split(",") if options.architectures else architectures()
    head = ["architecture", "kernels", "most registers", "spilled", "advisories", "seconds"]
    print(table([head]), flush=True)
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(options.jobs) as pool:
        for architecture in names:
            print(f"compiling for {architecture}", file=sys.stderr)
            folder, begin = Path(name), time.perf_counter()
            work = list(units(architecture, folder))
            told = list(pool.map(lambda unit, own=architecture, to=folder: compile_and_tell(unit, own, to), work))  # type: ignore[misc]
            registers = [number for own in told for number in own.registers]
            seconds = f"{time.perf_counter() - begin:.0f}"
            row = [architecture, str(len(registers)), str(max(registers)), "0", "0", seconds]
            print(f"| {' | '.join(row)} |", flush=True)
    if options.library:
        print(check_library(names[0]))


if __name__ == "__main__":
    try:
        main()
    except (MissingToolError, RuntimeError) as error:
        sys.exit(f"error: {error}")
