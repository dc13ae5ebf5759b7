"""The GPU kernels compile with nvcc, nothing of a tensor-core kernel spills out of its registers, and ONNX Runtime's
library with them inside is of use without a GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cpu_library import build

import na_deploy
from na_deploy.runtime.native import ONNXRUNTIME_LIBRARY_VARIABLE, gpu_capabilities

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
    options = ["-std=c++17", "-O3", f"-arch={architecture}", "-Xptxas=-v", "-Werror=all-warnings"]
    command = [nvcc, *options, *include, "-c", str(unit), "-o", str(folder / "unit.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dim", "architecture"),
    [("dev::Half", 32, "sm_80"), ("dev::Bfloat", 128, "sm_90a"), ("float", 64, "sm_120")],
)
def test_tiles_of_a_type_and_width_stay_in_registers(kind: str, dim: int, architecture: str, tmp_path: Path):
    unit = tmp_path / "unit.cu"
    source = (PLUGINS / "cuda/tile_unit.cu.in").read_text().replace("@NA_TYPE@", kind).replace("@NA_DIM@", str(dim))
    unit.write_text(source)
    told = compiled(unit, architecture, tmp_path)
    spills = [int(number) for number in re.findall(r"(\d+) bytes spill", told)]
    assert len(spills) >= 2 * 8  # eight shapes of tiles
    assert not any(spills), told


def test_the_plain_kernel_compiles(tmp_path: Path):
    told = compiled(PLUGINS / "cuda/na_cuda.cu", "sm_80", tmp_path)
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
