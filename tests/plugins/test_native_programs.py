"""Programs in C++: the fuzz target with sanitizers, and a model run from C++ by ONNX Runtime with our library."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from cpu_library import build

import na_deploy
from na_deploy.runtime.building import build as bundles

pytestmark = pytest.mark.native
ROOT = Path(__file__).parents[2]
ONE_TARGET = "-DHWY_COMPILE_ONLY_STATIC"
"""Compiles the kernels for the compiler's own instruction set alone: a program runs one of them."""


def run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_random_problems_stay_inside_their_memory():
    folder = build(
        ROOT / "build" / "native-sanitized",
        "-DNA_DEPLOY_SANITIZE=address,undefined",
        "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
        f"-DCMAKE_CXX_FLAGS=-O1 -march=native {ONE_TARGET}",
        target="fuzz_cpu",
    )
    told = run(folder / "plugins/tests/fuzz_cpu", "2000", "7")
    inputs, accepted = (int(word) for word in told.split() if word.isdigit())
    assert inputs == 2000
    assert accepted > 1500


def test_random_problems_agree_with_double_precision(native_build: Path):
    assert "accepted and right" in run(native_build / "plugins/tests/fuzz_cpu", "4000", "11")


def test_a_cpp_program_runs_a_bundle_from_several_threads(
    native_build: Path, write_model: Callable[..., Path], tmp_path: Path
):
    runtime = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*"), None)
    if runtime is None:
        pytest.skip(f"onnxruntime {onnxruntime.__version__} from pip has no C library")
    model, bundle = write_model(), tmp_path / "model.bundle"
    bundles.build(model, bundle, bundles.BuildOptions(plugins="embed"))
    library = bundle / "lib" / "libna_deploy_ort.so"
    found = float(run(native_build / "plugins/tests/run_model", runtime, library, bundle / "model.onnx"))
    shape = [size.dim_value for size in onnx.load(model).graph.input[0].type.tensor_type.shape.dim]
    image = ((np.arange(np.prod(shape)) % 13) / 13 - 0.5).astype(np.float32).reshape(shape)
    with na_deploy.load(model, custom_operators=False) as session:
        expected = np.abs(next(iter(session.run({session.inputs[0].name: image}).values()))).sum(dtype=np.float64)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_types_of_one_name_are_one_type_in_every_library():
    """The linker compares all types: two different types that share a name would be one type in C++."""
    folder = build(
        ROOT / "build" / "native-odr",
        f"-DCMAKE_CXX_FLAGS=-O1 -flto -Wodr -Werror=odr -Wlto-type-mismatch -Werror=lto-type-mismatch {ONE_TARGET}",
        target="na_deploy_everything",
    )
    assert (folder / "plugins/tests/libna_deploy_everything.so").exists()
