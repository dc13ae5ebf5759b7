"""The GPU kernels stay in registers, and Hopper's products run side by side.

The machine code's tests compile a kernel of each kind; here it is read what ptxas said of them.
benchmarks/gpu_compilation.py does so for all kernels and architectures.
"""

from __future__ import annotations

import re

import pytest
from sass.compiling import MissingToolError, Unit, compile_source, compile_unit, find_cuobjdump, find_nvcc

SPILLING = """
extern "C" __global__ void __launch_bounds__(1024) spill(float* memory) {
  float own[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) own[i] = memory[threadIdx.x + i * 1024];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 96; ++i) memory[threadIdx.x * 96 + 95 - i] = own[i] * own[(i + 7) % 96];
}
"""


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    try:
        find_nvcc()
        find_cuobjdump()
    except MissingToolError as error:
        pytest.skip(str(error))


UNITS = [
    Unit("Bfloat", 64, 23),
    Unit("Half", 128, 21),
    Unit("Half", 32, 30, "90a"),
    Unit("Half", 32, 31, "80"),
    Unit("float", 32, 2, "80"),
    Unit("Half", 32, 4, "90a"),
    Unit("Half", 32, 4, "80"),
]
"""Units that tests/plugins/test_machine_code.py executes, in the opposite order: where both files run at once, neither
waits for what the other compiles."""


@pytest.mark.parametrize("unit", UNITS, ids=str)
def test_a_kernel_of_each_kind_stays_in_registers(unit: Unit):
    told = compile_unit(unit).log.read_text()
    stores = re.findall(r"(\d+) bytes spill stores", told)
    assert stores
    assert set(stores) == {"0"}


@pytest.mark.parametrize("unit", [unit for unit in UNITS if 20 <= unit.tactic < 30], ids=str)
def test_hoppers_products_do_not_wait_for_each_other(unit: Unit):
    """ptxas tells advisories where it makes them wait, or where registers are not handed over."""
    assert "C75" not in compile_unit(unit).log.read_text()


def test_a_register_that_spills_is_an_error():
    with pytest.raises(RuntimeError, match="spill"):
        compile_source(SPILLING, ("90a",), ("-Xptxas=-v,-warn-spills,-Werror",))
