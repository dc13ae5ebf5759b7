"""The GPU kernels compile with nvcc, and nothing of a tensor-core kernel spills out of its registers."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.native
PLUGINS = Path(__file__).parents[2] / "plugins"


def compiled(unit: Path, architecture: str, folder: Path) -> str:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("there is no nvcc")
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
