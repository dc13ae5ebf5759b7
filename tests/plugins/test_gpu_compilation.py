"""The GPU kernels compile with nvcc without spills, and ONNX Runtime's library that holds them runs without a GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cpu_library import build

import na_deploy
from na_deploy.runtime.native_libraries import ONNXRUNTIME_LIBRARY_VARIABLE, gpu_capabilities

pytestmark = pytest.mark.native
PLUGINS = Path(__file__).parents[2] / "plugins"


def require_nvcc() -> str:
    """Return nvcc, or skip."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("there is no nvcc")
    return nvcc


def compiled(unit: Path, architecture: str, folder: Path) -> str:
    nvcc = require_nvcc()
    include = [f"-I{PLUGINS / part}" for part in ("cuda", "core")]
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    options = ["-std=c++17", "-O3", target, "-Xptxas=-v,-warn-spills,-Werror", "-Werror=all-warnings"]
    command = [nvcc, *options, *include, "-c", str(unit), "-o", str(folder / "unit.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def unit_of(template: str, kind: str, dim: int, folder: Path) -> Path:
    unit = folder / "unit.cu"
    unit.write_text((PLUGINS / "cuda" / template).read_text().replace("@NA_TYPE@", kind).replace("@NA_DIM@", str(dim)))
    return unit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dim", "architecture"), [("dev::Half", 32, "80"), ("dev::Bfloat", 128, "90a"), ("float", 64, "120")]
)
def test_tiles_of_a_type_and_width_stay_in_registers(kind: str, dim: int, architecture: str, tmp_path: Path):
    told = compiled(unit_of("tile_unit.cu.in", kind, dim, tmp_path), architecture, tmp_path)
    assert told.count(" 0 bytes spill stores") >= 8  # eight shapes of tiles


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "architecture"), [(32, "80"), (32, "90a"), (64, "120")])
def test_the_one_pass_kernel_stays_in_registers(dim: int, architecture: str, tmp_path: Path):
    told = compiled(unit_of("onepass/unit.cu.in", "dev::Half", dim, tmp_path), architecture, tmp_path)
    assert told.count(" 0 bytes spill stores") >= 5


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dim"), [("dev::Half", 128), ("dev::Bfloat", 64)])
def test_hopper_s_kernels_stay_in_registers_and_run_products_side_by_side(kind: str, dim: int, tmp_path: Path):
    told = compiled(unit_of("hopper/unit.cu.in", kind, dim, tmp_path), "90a", tmp_path)
    assert told.count(" 0 bytes spill stores") >= 5
    assert "C75" not in told  # advisories: products made to wait for each other, registers that are not handed over


def test_the_plain_kernel_compiles(tmp_path: Path):
    told = compiled(PLUGINS / "cuda/na_cuda.cu", "80", tmp_path)
    assert told.count("plain_entry") >= 3  # one for each type


@pytest.mark.slow
def test_onnxruntimes_library_with_gpu_kernels_is_one_file_that_runs_without_a_gpu(
    write_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    require_nvcc()
    options = ("-DNA_DEPLOY_CUDA=ON", "-DNA_DEPLOY_TESTS=OFF", "-DCMAKE_CUDA_ARCHITECTURES=80-real")
    built = build(PLUGINS.parent / "build" / "native-gpu", *options, target="na_deploy_ort")
    library = tmp_path / "libna_deploy_ort.so"
    shutil.copy(built / "plugins/onnxruntime" / library.name, library)  # alone in its folder
    needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    assert "libstdc++" in needed
    assert not re.search(r"NEEDED.*(cuda|cudart|onnxruntime)", needed)
    assert gpu_capabilities(library) == "8.0"
    monkeypatch.setenv(ONNXRUNTIME_LIBRARY_VARIABLE, str(library))
    images = np.random.default_rng(5).normal(size=(1, 3, 32, 32)).astype(np.float32)
    path, providers = write_model(), ["CPUExecutionProvider"]
    with na_deploy.load(path, providers=providers) as ours:
        assert ours.library == library
        found = ours.run(images)["logits"]
    with na_deploy.load(path, providers=providers, custom_operators=False) as stock:
        np.testing.assert_allclose(found, stock.run(images)["logits"], rtol=1e-4, atol=1e-5)
