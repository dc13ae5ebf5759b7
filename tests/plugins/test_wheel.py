"""A wheel carries the operator library, and works where nothing else is: in an empty environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from filelock import FileLock

from na_deploy.runtime.environment import OPERATOR_LIBRARY

ROOT = Path(__file__).parents[2]
NEEDED = ["click", "numpy", "onnx", "onnxruntime", "pillow", "rich"]
FILES = ["CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml"]

pytestmark = pytest.mark.native


def build_wheel(source: Path, folder: Path, **environment: str) -> Path:
    # The build tools of this environment serve: pip would otherwise install them anew for every wheel.
    tools = ["--no-deps", "--no-build-isolation", "--quiet", f"--config-settings=build-dir={source / 'build' / 'tree'}"]
    command = [sys.executable, "-m", "pip", "wheel", str(source), *tools, "--wheel-dir", str(folder)]
    variables = os.environ | {"NA_DEPLOY_NATIVE": "AUTO"} | environment
    (source / "build").mkdir(exist_ok=True)
    with FileLock(source / "build" / "tree.lock"):  # the native tests are compiled there too
        done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if name.startswith("na_deploy/lib/")}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of a wheel's sources, without fetched dependencies."""
    copy = tmp_path / "sources"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["scikit-build"]["wheel"]["packages"].values()
    for name in (*packages, "cmake", "licenses", "plugins"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "lib"))
    for name in FILES:
        shutil.copy(ROOT / name, copy / name)
    return copy


def test_a_wheel_runs_the_library_in_an_empty_environment(tmp_path: Path):
    wheel = build_wheel(ROOT, tmp_path / "wheels", NA_DEPLOY_NATIVE="ON")
    assert contents(wheel) == {"na_deploy/lib/libna_deploy_ort.so", "na_deploy/lib/libna_deploy_openvino.so"}
    assert "none-any" not in wheel.name

    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-compile", "-c", ROOT / "constraints.txt"]
    subprocess.run([*install, *NEEDED], check=True, cwd=tmp_path)
    subprocess.run([*install, "--no-deps", wheel], check=True, cwd=tmp_path)
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "NA_DEPLOY_ORT_LIBRARY")}
    doctor = [environment / "bin" / "na-deploy", "doctor", "--json"]
    said = subprocess.run(doctor, capture_output=True, text=True, check=True, cwd=tmp_path, env=clean).stdout
    (native,) = (finding for finding in json.loads(said)["findings"] if finding["name"] == OPERATOR_LIBRARY)
    assert native["status"] == "works"
    assert native["detail"].startswith(str(environment))
    assert "difference to float64" in native["detail"]


def test_without_headers_or_a_compiler_the_wheel_says_why(sources: Path, tmp_path: Path):
    nowhere = str(tmp_path / "nowhere")
    wheel = build_wheel(sources, tmp_path / "wheels", ONNXRUNTIME_INCLUDE_DIR=nowhere)
    assert contents(wheel) == {"na_deploy/lib/native_build.txt"}
    with zipfile.ZipFile(wheel) as archive:
        note = archive.read("na_deploy/lib/native_build.txt").decode()
    assert note == f"ONNXRUNTIME_INCLUDE_DIR is {nowhere}, which does not hold onnxruntime_cxx_api.h\n"


def test_a_library_that_does_not_compile_does_not_stop_the_installation(sources: Path, tmp_path: Path):
    shutil.copytree(ROOT / "build" / "native", sources / "build" / "native")
    (sources / "plugins" / "onnxruntime" / "CMakeLists.txt").write_text("message(FATAL_ERROR broken)\n")
    wheel = build_wheel(sources, tmp_path / "wheels")
    assert contents(wheel) == set()
    assert wheel.name.endswith("none-any.whl")
