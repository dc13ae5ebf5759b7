"""ONNX Runtime's real CUDA provider over a CUDA runtime that pretends to have a GPU.

The provider comes from the wheel of onnxruntime-gpu, in a folder of its own; the libraries that it links are made here:
plugins/tests/pretended_cudart.cpp and pretended_graphs.cpp, and functions that do nothing for the rest. Where the wheel
or CUDA's headers cannot be had, the tests that need them are skipped, saying so.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from wheels import install

WHEEL = "onnxruntime-gpu==1.31.1"
SOURCES = [
    Path(__file__).parents[2] / "plugins" / "tests" / name for name in ("pretended_cudart.cpp", "pretended_graphs.cpp")
]
LIBRARIES = {
    "cublasLt": "libcublasLt.so.13",
    "cublas": "libcublas.so.13",
    "curand": "libcurand.so.10",
    "cudart": "libcudart.so.13",
    "cuda": "libcuda.so.1",
}
"""What the provider links, most particular names first."""


def environment(folder: Path) -> dict[str, str]:
    """Make the libraries in a folder; return the environment in which Python finds them and that ONNX Runtime."""
    if shutil.which("nvcc") is None:
        pytest.skip("there is no nvcc, which knows where CUDA's headers are")
    wheel = install(WHEEL.replace("==", "_"), [WHEEL])
    provider = wheel / "onnxruntime/capi/libonnxruntime_providers_cuda.so"
    _make_libraries(provider, folder)
    paths = [str(wheel), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return dict(os.environ) | {
        "PYTHONPATH": os.pathsep.join(paths),
        "LD_LIBRARY_PATH": str(folder),
        "LD_PRELOAD": str(folder / LIBRARIES["cudart"]),
    }


def _make_libraries(provider: Path, folder: Path) -> None:
    """Compile a library for each that the provider links, with every function that it asks for."""
    listed = subprocess.run(
        ["readelf", "--dyn-syms", "-W", provider], capture_output=True, text=True, check=True
    ).stdout
    asked = re.findall(r" UND ((?:__cuda|cu)\w+)(?:@+(\S+))?", listed)
    written = {name for source in SOURCES for name in re.findall(r"\b((?:__)?cuda\w+)\(", source.read_text())}
    owned: dict[str, list[tuple[str, str]]] = {kind: [] for kind in LIBRARIES}
    for name, version in asked:
        kind = next((kind for kind in LIBRARIES if version.startswith(f"lib{kind}.so")), "cuda")
        owned[kind].append((name, version))
    for kind, functions in owned.items():
        stubs = folder / f"{kind}.c"
        missing = [name for name, _ in functions if kind != "cudart" or name not in written]
        stubs.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in missing))
        parts = [str(stubs)]
        if kind == "cudart":
            objects = [str(folder / f"{source.stem}.o") for source in SOURCES]
            for source, made in zip(SOURCES, objects, strict=True):
                _compile("nvcc", "-std=c++17", "-O1", "-Xcompiler", "-fPIC", "-c", str(source), "-o", made)
            parts += [*objects, "-lstdc++"]
        script = folder / f"{kind}.map"
        script.write_text("".join(f"{version} {{ global: *; }};\n" for version in {v for _, v in functions if v}))
        options = [f"-Wl,--version-script={script}"] if script.stat().st_size else []
        library = folder / LIBRARIES[kind]
        _compile("cc", "-w", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", *options, *parts, "-o", str(library))


def _compile(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
