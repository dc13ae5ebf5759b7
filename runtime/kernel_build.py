"""Compilation of the GPU kernels for this machine into the installed package.

Compiles the operator library and TensorRT's plugin from the sources that come with the package. Missing tools are
fetched where a package or NVIDIA's repository has them
(nvcc, TensorRT's headers, ONNX Runtime's headers, Highway); for others an error says what to install.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import na_deploy
from na_deploy.errors import MissingDependencyError, NaDeployError, UsageError

CUDA_VERSION = "13.0"
CUDA_PACKAGES = ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-runtime", "nvidia-cuda-cccl")
"""The packages that hold nvcc, its parts, headers and the static runtime."""
TENSORRT_HEADERS = "https://raw.githubusercontent.com/NVIDIA/TensorRT/release"
FIRST_HEADER = "NvInferRuntime.h"
_LAST_LINES = 25

Say = Callable[[str], None]


@dataclass(frozen=True)
class KernelOptions:
    """Options of a compilation.

    Attributes:
        architectures: such as ``("90a", "80")``; empty for this machine's devices.
        fat: for every architecture that the kernels know, and those to come.
        tensorrt_root: folder that holds TensorRT's ``include/``; ``None`` to look for it.
        folder: where sources are compiled and fetched tools are kept; ``None`` for the user's cache.
        jobs: compilations at once; ``None`` for one a processor.
    """

    architectures: tuple[str, ...] = ()
    fat: bool = False
    tensorrt_root: Path | None = None
    folder: Path | None = None
    jobs: int | None = None


def build_kernels(options: KernelOptions, say: Say) -> list[Path]:
    """Compile the GPU kernels and put the libraries into the package's folder ``lib``; return the installed files.

    Args:
        options: what to compile for and with.
        say: told each step in a sentence.

    Raises:
        UsageError: no architecture is given and there is no GPU, or options contradict each other.
        MissingDependencyError: a tool is missing that cannot be fetched; the error says what to install.
        NaDeployError: the compilation fails, or the package's folder cannot be written.
    """
    if options.fat and options.architectures:
        raise UsageError("give --fat or --architectures, not both")
    target = package_folder() / "lib"
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise NaDeployError(
            f"{target} cannot be written by this user; install na-deploy into an environment of your own"
        )
    source = find_sources()
    folder = options.folder or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "na-deploy" / "kernels"
    folder.mkdir(parents=True, exist_ok=True)
    architectures = () if options.fat else options.architectures or present_architectures()
    cmake = _tool("cmake", "pip install cmake ninja")
    _tool(os.environ.get("CXX", "c++"), "a C++ compiler (Debian, Ubuntu: apt install g++)")
    nvcc = find_nvcc(folder, say)
    headers = find_tensorrt(options.tensorrt_root, folder, say)
    configure = [cmake, "-S", str(source), "-B", str(folder / "build"), "-DCMAKE_BUILD_TYPE=Release"]
    configure += ["-DNA_DEPLOY_NATIVE=ON", "-DNA_DEPLOY_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    configure += [f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(f'{one}-real' for one in architectures)}"]
    configure += [f"-DTENSORRT_ROOT={headers or ''}", "-UNA_DEPLOY_TENSORRT_INCLUDE"]
    configure += _fetch_headers(source, folder, say)
    if shutil.which("ninja") and not (folder / "build" / "CMakeCache.txt").exists():
        configure += ["-G", "Ninja"]
    wanted = ", ".join(architectures) if architectures else "all known architectures"
    say(f"compiling for {wanted} with {nvcc}; takes minutes")
    log = folder / "build.log"
    log.unlink(missing_ok=True)
    _run(configure, log)
    _run([cmake, "--build", str(folder / "build"), "--parallel", str(options.jobs or os.cpu_count() or 1)], log)
    staged = folder / "staged"
    shutil.rmtree(staged, ignore_errors=True)
    _run([cmake, "--install", str(folder / "build"), "--prefix", str(staged)], log)
    return _install(staged / "na_deploy" / "lib", target)


def package_folder() -> Path:
    """Return the folder of the installed package."""
    return Path(na_deploy.__path__[0])


def find_sources() -> Path:
    """Return the folder of CMakeLists.txt and plugins/: the tree that the package runs from, or the package's own copy.

    Raises:
        NaDeployError: this installation has no sources.
    """
    package = package_folder()
    for candidate in (package.parents[1], package / "sources"):
        if (candidate / "plugins" / "cuda" / "CMakeLists.txt").is_file():
            return candidate
    raise NaDeployError(
        "this installation of na-deploy has no sources of the GPU kernels, since it was installed without CMake; "
        "install it again with NA_DEPLOY_NATIVE=AUTO, or run the command in a clone of its repository"
    )


def present_architectures() -> tuple[str, ...]:
    """Return the architectures of this machine's GPUs, such as ``("90a",)``.

    Raises:
        UsageError: there is no GPU.
    """
    answer = _ask_driver("--query-gpu=compute_cap", "--format=csv,noheader")
    found = sorted(set(re.findall(r"^\s*(\d+)\.(\d+)\s*$", answer, re.M)))
    if not found:
        raise UsageError(
            "nvidia-smi finds no GPU here to compile for; give --architectures, such as 90a for H100 and H200, or --fat"
        )
    return tuple("90a" if numbers == ("9", "0") else "".join(numbers) for numbers in found)


def find_nvcc(folder: Path, say: Say) -> Path:
    """Return CUDA's compiler: on PATH, in CUDA_HOME or /usr/local/cuda, else fetched from PyPI into ``folder``.

    Raises:
        MissingDependencyError: it is not there and cannot be fetched, or the driver is too old for the packages.
    """
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if home and (Path(home) / "bin" / "nvcc").is_file():
            return Path(home) / "bin" / "nvcc"
    on_path = shutil.which("nvcc")
    if on_path:
        return Path(on_path)
    kept = folder / f"cuda-{CUDA_VERSION}"
    nvcc = kept / "nvidia" / f"cu{CUDA_VERSION.split('.', maxsplit=1)[0]}" / "bin" / "nvcc"
    if nvcc.is_file() and (kept / "complete").exists():
        return nvcc
    driver = re.search(r"CUDA Version:\s*(\d+)\.(\d+)", _ask_driver())
    if driver and int(driver[1]) < int(CUDA_VERSION.split(".", maxsplit=1)[0]):
        raise MissingDependencyError(
            f"there is no nvcc, and this driver takes CUDA {driver[1]}.{driver[2]} at most, whose compiler is no "
            f"package; install NVIDIA's CUDA toolkit {driver[1]}.{driver[2]}, or update the driver"
        )
    say(f"fetching CUDA's compiler {CUDA_VERSION} from PyPI")
    requirements = [f"{name}=={CUDA_VERSION}.*" for name in CUDA_PACKAGES]
    shutil.rmtree(kept, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(kept), *requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not nvcc.is_file():
        reason = (done.stderr.strip().splitlines() or ["the packages hold no nvcc"])[-1]
        pip = "pip into this environment, or " if "No module named pip" in reason else ""
        raise MissingDependencyError(
            f"there is no nvcc, and it cannot be fetched ({reason}); "
            f"install {pip}NVIDIA's CUDA toolkit {CUDA_VERSION} and set CUDA_HOME"
        )
    # Names that toolkits have and packages lack, without which CMake finds no toolkit.
    (nvcc.parents[1] / "lib64").symlink_to("lib")
    for library in (nvcc.parents[1] / "lib").glob("libcudart.so.*"):
        (library.parent / "libcudart.so").unlink(missing_ok=True)
        (library.parent / "libcudart.so").symlink_to(library.name)
    (kept / "complete").touch()
    return nvcc


def find_tensorrt(given: Path | None, folder: Path, say: Say) -> Path | None:
    """Return the folder that holds TensorRT's ``include/``.

    It is the given one, that of TENSORRT_ROOT, or one fetched for the installed version; ``None``
    where CMake shall look in the system's folders, or where there is no TensorRT.

    Raises:
        UsageError: the given folder holds no headers.
    """
    named = given or (Path(os.environ["TENSORRT_ROOT"]) if os.environ.get("TENSORRT_ROOT") else None)
    if named is not None:
        if not any((place / FIRST_HEADER).is_file() for place in (named, named / "include")):
            raise UsageError(
                f"{named} holds no include/{FIRST_HEADER}; name the folder that TensorRT was unpacked into"
            )
        return named
    version = _tensorrt_version()
    if version is None:
        say("TensorRT is not installed; its plugin is compiled only if its headers are in the system's folders")
        return None
    kept = folder / f"tensorrt-{version}"
    if (kept / "include" / FIRST_HEADER).is_file():
        return kept
    say(f"fetching TensorRT {version}'s headers from NVIDIA's repository")
    try:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _fetch_tensorrt(version, Path(scratch) / "include")
            kept.mkdir(exist_ok=True)
            (Path(scratch) / "include").rename(kept / "include")
    except (OSError, urllib.error.URLError) as error:
        say(
            f"TensorRT's headers cannot be fetched ({error}), and its plugin is compiled only if they are in the "
            "system's folders; install libnvinfer-headers-dev, or unpack TensorRT and give --tensorrt-root"
        )
        return None
    return kept


def _tensorrt_version() -> str | None:
    for name in ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"):
        try:
            return ".".join(metadata.version(name).split(".")[:2])
        except metadata.PackageNotFoundError:
            continue
    return None


def _fetch_tensorrt(version: str, include: Path) -> None:
    """Fetch a header and all that it includes."""
    base = os.environ.get("NA_DEPLOY_TENSORRT_HEADERS", TENSORRT_HEADERS)
    include.mkdir()
    waiting = [FIRST_HEADER]
    while waiting:
        name = waiting.pop()
        if (include / name).exists():
            continue
        with urllib.request.urlopen(f"{base}/{version}/include/{name}", timeout=60) as answer:
            text = answer.read().decode()
        (include / name).write_text(text, encoding="utf-8")
        waiting += re.findall(r'^#include "(NvInfer\w*\.h)"', text, re.M)


def _fetch_headers(source: Path, folder: Path, say: Say) -> list[str]:
    """Return CMake's options for ONNX Runtime's headers and Highway, fetched where they are missing."""
    if (source / "build" / "native" / "onnxruntime").is_dir():
        return []
    kept = folder / "native"
    script = source / "scripts" / "native_dependencies.sh"
    if script.is_file():
        say("looking for ONNX Runtime's headers and Highway")
        subprocess.run(["bash", str(script)], env=os.environ | {"NA_DEPLOY_FETCH_FOLDER": str(kept)}, check=False)
    found = {"ONNXRUNTIME_INCLUDE_DIR": kept / "onnxruntime", "HIGHWAY_SOURCE_DIR": kept / "highway"}
    return [f"-D{name}={path}" for name, path in found.items() if path.is_dir()]


def _ask_driver(*arguments: str) -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout if done.returncode == 0 else ""


def _tool(name: str, remedy: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        raise MissingDependencyError(f"compiling the GPU kernels needs {name}, which was not found; install {remedy}")
    return found


def _run(command: list[str], log: Path) -> None:
    with log.open("a", encoding="utf-8") as stream:
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        last = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:])
        raise NaDeployError(f"{' '.join(command[:2])} fails; the end of {log}:\n{last}")


def _install(built: Path, target: Path) -> list[Path]:
    """Put libraries in place, each at once, so that a running program keeps the file that it has open."""
    target.mkdir(exist_ok=True)
    installed = []
    for library in sorted(built.glob("*.so")):
        staged = target / f".{library.name}.{os.getpid()}"
        shutil.copy2(library, staged)
        staged.replace(target / library.name)
        installed.append(target / library.name)
    return installed
