"""Compiling the C++ example of examples/cpp against an installed TensorRT; for tests and ``na-deploy doctor --gpu``."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from na_deploy.errors import NaDeployError


def compile_example(source: Path, tensorrt: Path, cuda: Path, program: Path, compiler: str, link: bool = True) -> Path:
    """Compile ``run_engine.cpp``.

    Args:
        source: the file.
        tensorrt: TensorRT's folder: ``include/`` with NvInfer.h, and ``lib/`` where it is linked.
        cuda: CUDA's folder: ``include/`` with cuda_runtime_api.h, and ``lib64/`` where it is linked.
        program: the program to write; an object file without ``link``.
        compiler: the C++ compiler.
        link: link the program; without it only headers are needed.

    Raises:
        NaDeployError: the headers are not there, or the compiler refuses.
    """
    for folder, header, variable in (
        (tensorrt, "NvInfer.h", "TENSORRT_ROOT"),
        (cuda, "cuda_runtime_api.h", "CUDA_HOME"),
    ):
        if not (folder / "include" / header).is_file():
            raise NaDeployError(f"{folder / 'include'} holds no {header}; set {variable} to the folder that does")
    headers = ["-isystem", str(tensorrt / "include"), "-isystem", str(cuda / "include")]
    command = [compiler, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", *headers]
    if link:
        libraries = [tensorrt / "lib", cuda / "lib64"]
        command += [str(source), "-o", str(program)]
        command += [f"-L{folder}" for folder in libraries] + [f"-Wl,-rpath,{folder}" for folder in libraries]
        command += ["-lnvinfer", "-lcudart"]
    else:
        command += ["-c", str(source), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:300])
        raise NaDeployError(f"{source.name} does not compile: {first}")
    return program


def find_cuda() -> Path | None:
    """Return CUDA's folder: ``CUDA_HOME``, or its usual place."""
    places = [Path(place) for place in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if place]
    places += sorted(Path("/usr/local").glob("cuda-*"), reverse=True)
    return next((place for place in places if (place / "include" / "cuda_runtime_api.h").is_file()), None)
