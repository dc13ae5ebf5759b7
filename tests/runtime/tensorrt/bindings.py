"""Real TensorRT Python modules for the tests, from PyPI's wheels of the bindings, each in a folder of its own.

The bindings of TensorRT 10 and 11 link libraries that are not on PyPI; stand-ins with the names and functions that they
link let them be imported, so that their classes can be looked at. Those of TensorRT's lean runtime and of TensorRT-RTX
come with their libraries and work. Where a wheel cannot be had, the tests that need it are skipped, saying so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from wheels import install

_STAND_IN = """
void *createInferBuilder_INTERNAL(void *a, int b) { return 0; }
void *createInferRefitter_INTERNAL(void *a, void *b, int c) { return 0; }
void *createInferRuntime_INTERNAL(void *a, int b) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void *a, void *b, int c) { return 0; }
void *createNvOnnxParser_INTERNAL(void *a, void *b, int c) { return 0; }
void *getBuilderPluginRegistry(int a) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
void *getPluginRegistry(void) { return 0; }
int initLibNvInferPlugins(void *a, const char *b) { return 0; }
"""
_STOOD_IN = ("nvinfer", "nvinfer_plugin", "nvonnxparser")


@dataclass(frozen=True)
class Wheels:
    """Requirements of one module.

    Attributes:
        api: name of the recorded description in api/.
        module: the Python module.
        requirements: wheels.
        stand_in: major version of libraries that are not there.
    """

    api: str
    module: str
    requirements: tuple[str, ...]
    stand_in: int | None = None


TENSORRT_10 = Wheels("tensorrt_10", "tensorrt_bindings", ("tensorrt-cu13-bindings==10.16.1.11",), 10)
TENSORRT_11 = Wheels("tensorrt_11", "tensorrt_bindings", ("tensorrt-cu13-bindings==11.4.0.106",), 11)
LEAN_10 = Wheels(
    "lean_10",
    "tensorrt_lean_bindings",
    ("tensorrt-lean-cu13-bindings==10.16.1.11", "tensorrt-lean-cu13-libs==10.16.1.11"),
)
LEAN_11 = Wheels(
    "lean_11",
    "tensorrt_lean_bindings",
    ("tensorrt-lean-cu13-bindings==11.4.0.106", "tensorrt-lean-cu13-libs==11.4.0.106"),
)
RTX = Wheels(
    "tensorrt_rtx_1",
    "tensorrt_rtx_bindings",
    ("tensorrt-rtx-cu13-bindings==1.7.1.116", "tensorrt-rtx-cu13-libs==1.7.1.116"),
)


def installed(wheels: Wheels) -> tuple[Path, dict[str, str]]:
    """Return the folder with a module, and the environment to import it in; skip the test where it cannot be had."""
    if sys.platform != "linux":
        pytest.skip("the wheels of TensorRT's bindings are for Linux here")
    folder = install(wheels.api, wheels.requirements)
    if wheels.stand_in is not None and not (folder / "stand-ins").is_dir():
        _make_stand_ins(folder / "stand-ins", wheels.stand_in)
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    if wheels.stand_in is not None:
        environment["LD_LIBRARY_PATH"] = str(folder / "stand-ins")
    return folder, environment


def _make_stand_ins(folder: Path, major: int) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler to make stand-ins for TensorRT's libraries")
    folder.mkdir()
    source = folder / "stand_in.c"
    source.write_text(_STAND_IN)
    for library in _STOOD_IN:
        name = f"lib{library}.so.{major}"
        command = [compiler, "-shared", "-fPIC", "-o", str(folder / name), f"-Wl,-soname,{name}", str(source)]
        subprocess.run(command, check=True)
