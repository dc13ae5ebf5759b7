"""From a unit of plugins/cuda to its machine code: compiled by nvcc as the library's units are, read by cuobjdump.

A unit of the library holds a kernel for each shape of tile. Here it gets one, which is compiled in two seconds instead
of twelve; nothing else of it changes. Kernels that tests need for two architectures, and the plain kernels of all
types, are compiled at once. What was compiled is kept in build/sass, by what it was compiled from.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[3]
CUDA, CORE = ROOT / "plugins" / "cuda", ROOT / "plugins" / "core"
RUNTIME = ROOT / "plugins" / "tests" / "recorded_cudart.cpp"
BUILD = ROOT / "build" / "sass"
TOOLS = "nvidia/cu13/bin"
"""Where NVIDIA's packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm put the tools, in site-packages."""


class MissingToolError(RuntimeError):
    """nvcc or cuobjdump is not on this machine."""


@dataclass(frozen=True)
class Unit:
    """A kernel to compile.

    Args:
        kind: type of numbers, as plugins/cuda names it: Half, Bfloat or float.
        dim: channels of a head.
        tactic: number in plugins/cuda/tactics.h.
        architecture: such as ``90a``.
    """

    kind: str
    dim: int
    tactic: int
    architecture: str = "90a"


@dataclass(frozen=True)
class Compiled:
    """``library``: the unit with its launch, for ctypes; ``cubin``, ``listing``: its machine code; ``log``: ptxas."""

    library: Path
    cubin: Path
    listing: Path
    log: Path


@cache
def find_nvcc() -> str:
    """Return nvcc.

    Raises:
        MissingToolError: saying what to install.
    """
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if found is None:
        raise MissingToolError("machine code is not executed: there is no nvcc (CUDA's compiler)")
    return found


@cache
def find_cuobjdump() -> tuple[str, Mapping[str, str]]:
    """Return cuobjdump and the environment in which it finds nvdisasm.

    Raises:
        MissingToolError: saying what to install.
    """
    found = shutil.which("cuobjdump")
    if found and shutil.which("nvdisasm"):
        return found, dict(os.environ)
    package = importlib.util.find_spec("nvidia")
    for place in package.submodule_search_locations or () if package else ():
        folder = Path(place).parent / TOOLS
        if (folder / "cuobjdump").exists() and (folder / "nvdisasm").exists():
            return str(folder / "cuobjdump"), os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"}
    raise MissingToolError(
        "machine code is not executed: there is no cuobjdump (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm)"
    )


def _shapes(macro: str) -> dict[int, str]:
    """Return a macro's entries in tactics.h by their tactic."""
    listed = re.search(rf"#define {macro}\(use\)((?:[^\n]*\\\n)*[^\n]*)", (CUDA / "tactics.h").read_text())
    if listed is None:
        raise ValueError(f"plugins/cuda/tactics.h has no {macro}")
    return {int(entry[0]): f"use({', '.join(entry)})" for entry in
            (re.split(r",\s*", own) for own in re.findall(r"use\((\d+[^)]*)\)", listed[1]))}  # fmt: skip


_ONEPASS = (30, 31, 32)
_PLAIN = 1
_BOTH = (_PLAIN, 2, 4, *_ONEPASS)
"""Tactics whose kernels are compiled for sm_80 and sm_90a at once: tests execute both."""
_A100, _H100 = "108, 163 * 1024, 164 * 1024", "132, 227 * 1024, 228 * 1024"
"""Multiprocessors, and bytes of shared memory that a block and a multiprocessor may have."""


def _onepass_source(kind: str, dim: int) -> str:
    """Return the one-pass kernel's unit with a function that plans for H100, or for A100, and launches it."""
    text = (CUDA / "onepass" / "unit.cu.in").read_text()
    return f"""#include "onepass/plan.cpp"
{text.replace("@NA_TYPE@", kind).replace("@NA_DIM@", str(dim))}
namespace na_deploy::cuda {{
extern "C" NA_CUDA_API int32_t na_launch_unit(const na_params* params, int32_t tactic, int32_t hopper) {{
  const onepass::Device device = hopper != 0 ? onepass::Device{{{_H100}}} : onepass::Device{{{_A100}}};
  const auto found = onepass::make_plan(*params, onepass::tactic_warps(tactic), device);
  if (!found) return cudaErrorInvalidValue;
  return launch_onepass<{kind}, {dim}>(make_cuda_problem(*params, sizeof({kind})), found->plan, device, nullptr);
}}
}}  // namespace na_deploy::cuda
"""


_PLAIN_SOURCE = """#include "launch.cuh"
namespace na_deploy::cuda {
extern "C" NA_CUDA_API int32_t na_launch_unit(const na_params* params, int32_t /*tactic*/, int32_t /*hopper*/) {
  switch (params->dtype) {
    case NA_FLOAT32:
      return launch_plain<float>(make_cuda_problem(*params, 4), nullptr);
    case NA_FLOAT16:
      return launch_plain<dev::Half>(make_cuda_problem(*params, 2), nullptr);
    default:
      return launch_plain<dev::Bfloat>(make_cuda_problem(*params, 2), nullptr);
  }
}
}  // namespace na_deploy::cuda
"""


def _source(unit: Unit) -> str:
    """Return a unit of one kernel, with a function that launches it; that of plain kernels has one of each type."""
    if unit.tactic == _PLAIN:
        return _PLAIN_SOURCE
    macros = ("NA_TILE_SHAPES", "NA_WIDE_SHAPES", "NA_HOPPER_SHAPES")
    kind = unit.kind if unit.kind == "float" else f"dev::{unit.kind}"
    lines = ['#include "tactics.h"']
    template, launch = "", ""
    for macro in macros:
        shapes = _shapes(macro)
        lines += [f"#undef {macro}", f"#define {macro}(use) {shapes.get(unit.tactic, '')}"]
        if unit.tactic in shapes:
            template, launch = ("hopper/unit.cu.in", "launch_hopper") if "HOPPER" in macro else (
                "tile_unit.cu.in", "launch_tile")  # fmt: skip
    if unit.tactic in _ONEPASS:
        return _onepass_source(kind, unit.dim)
    text = (CUDA / template).read_text()
    lines.append(text.replace("@NA_TYPE@", kind).replace("@NA_DIM@", str(unit.dim)))
    lines.append(f"""
namespace na_deploy::cuda {{
extern "C" NA_CUDA_API int32_t na_launch_unit(const na_params* params, int32_t tactic, int32_t /*hopper*/) {{
  return {launch}<{kind}, {unit.dim}>(make_cuda_problem(*params, sizeof({kind})), tactic, nullptr);
}}
}}  // namespace na_deploy::cuda
""")
    return "\n".join(lines)


def _run(
    command: list[str], folder: Path, environment: Mapping[str, str] | None = None, log: Path | None = None
) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr[-3000:]}")
    if log is not None:
        log.write_text(done.stderr)
    return done.stdout


@cache
def _sources() -> bytes:
    """Return all that units are made of."""
    files = sorted(path for folder in (CUDA, CORE) for path in folder.rglob("*") if path.is_file())
    return b"".join(path.read_bytes() for path in [*files, RUNTIME])


@cache
def _versions() -> str:
    cuobjdump, environment = find_cuobjdump()
    return _run([find_nvcc(), "--version"], ROOT) + _run([cuobjdump, "--version"], ROOT, environment)


STRICT = ("-Xptxas=-v,-warn-spills,-Werror", "-Werror=all-warnings")
"""Options with which the library's units are compiled: a register that spills to memory is an error."""


@contextmanager
def _made_once(text: bytes) -> Iterator[tuple[Path, bool]]:
    """Yield a folder for what is made from a text, and whether it is still to be made there, by one process alone."""
    folder = BUILD / hashlib.sha256(text).hexdigest()[:16]
    ready = folder / "ready"
    BUILD.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        folder.mkdir(exist_ok=True)
        yield folder, not ready.exists()
        ready.touch()


@cache
def _runtime() -> Path:
    """Compile the recorded runtime once for all units and return the object."""
    with _made_once(RUNTIME.read_bytes() + _versions().encode()) as (folder, missing):
        made = folder / "runtime.o"
        if missing:
            host = ["-std=c++17", "-O1", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
            _run([find_nvcc(), *host, "-c", str(RUNTIME), "-o", str(made)], folder)
    return made


def compile_source(source: str, architectures: tuple[str, ...], options: tuple[str, ...] = ()) -> dict[str, Compiled]:
    """Compile CUDA C++, with the recorded runtime linked to it, or return what was compiled from the same before.

    Returns:
        What was compiled for each architecture; the library and the log are those of all.
    """
    text = "\0".join([source, *architectures, _versions(), *options]).encode()
    text += _sources() if "#include" in source else RUNTIME.read_bytes()
    with _made_once(text) as (folder, missing):
        library, log = folder / "unit.so", folder / "unit.log"
        made = {own: Compiled(library, folder / f"{own}.cubin", folder / f"{own}.sass", log) for own in architectures}
        if not missing:
            return made
        unit = folder / "unit.cu"
        unit.write_text(source)
        targets = [f"-gencode=arch=compute_{own},code=sm_{own}" for own in architectures]
        # The host's code only asks for the launch: it is not optimized.
        host = ["-Xcompiler", "-fPIC,-fvisibility=hidden,-O0", "-Xlinker", "-Bsymbolic", "--cudart", "none", "-shared"]
        nvcc = [find_nvcc(), "-std=c++17", "-O3", *targets, *options, f"-I{CUDA}", f"-I{CORE}", *host]
        _run([*nvcc, str(unit), str(_runtime()), "-o", str(library)], folder, log=log)
        cuobjdump, environment = find_cuobjdump()
        _run([cuobjdump, "-xelf", "unit", str(library)], folder, environment)
        for own, compiled in made.items():
            (cubin,) = [path for path in folder.glob(f"*.sm_{own}.cubin") if path.stem.startswith("unit")]
            cubin.rename(compiled.cubin)
            compiled.listing.write_text(_run([cuobjdump, "-sass", str(compiled.cubin)], folder, environment))
    return made


TACTICS = f"""#include "tactics.h"
#include "na_cuda.h"
#include "onepass/plan.h"
static bool hopper = true;
na_deploy::cuda::onepass::Device na_deploy::cuda::present_device() {{
  if (hopper) return {{{_H100}}};
  return {{{_A100}}};
}}
bool na_deploy::cuda::device_is_hopper() {{ return hopper; }}
extern "C" NA_CUDA_API void na_pretend_hopper(int32_t yes) {{ hopper = yes != 0; }}
extern "C" NA_CUDA_API int32_t na_shares(const na_params* params, int32_t tactic) {{
  using namespace na_deploy::cuda;
  const auto found = onepass::make_plan(*params, onepass::tactic_warps(tactic), present_device());
  return found ? found->plan.shares : 0;
}}
"""


@cache
def compile_tactics() -> Path:
    """Compile what chooses tactics, for the host, and return the library.

    ``na_pretend_hopper`` tells it the device; ``na_shares`` gives the blocks that share a tile's images in one pass.
    """
    with _made_once(TACTICS.encode() + _sources()) as (folder, missing):
        library = folder / "tactics.so"
        if missing:
            unit = folder / "device.cpp"
            unit.write_text(TACTICS)
            parts = (unit, CUDA / "onepass/plan.cpp", CUDA / "tactics.cpp", CORE / "check.cpp")
            include = [f"-I{CUDA}", f"-I{CORE}", '-DNA_DEPLOY_KERNEL_REVISION="counts"']
            options = ["-std=c++17", "-O1", "-fPIC", "-shared", *include]
            _run([os.environ.get("CXX", "c++"), *options, *map(str, parts), "-o", str(library)], folder)
    return library


def compile_unit(unit: Unit) -> Compiled:
    """Compile a kernel of plugins/cuda.

    Raises:
        MissingToolError: nvcc or cuobjdump is not there.
        RuntimeError: it does not compile, or a register spills to memory.
    """
    together = ("80", "90a") if unit.tactic in _BOTH else (unit.architecture,)
    return compile_source(_source(unit), together, STRICT)[unit.architecture]
