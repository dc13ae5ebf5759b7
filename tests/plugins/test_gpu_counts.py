"""Default kernels execute no more at NAT's and DiNAT's stages than was recorded; costs and bounds are right."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from sass.bounds import DEVICES, Counts, Device, bounds, class_of
from sass.compiling import MissingToolError, find_cuobjdump, find_nvcc
from sass.listing import parse_instruction
from sass.memory import sectors, wavefronts

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
GROWTH = 1.05


@pytest.fixture(scope="module")
def gpu_counts() -> ModuleType:
    try:
        find_nvcc()
        find_cuobjdump()
    except MissingToolError as error:
        pytest.skip(str(error))
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import gpu_counts
    finally:
        sys.path.remove(str(BENCHMARKS))
    return gpu_counts


@pytest.mark.parametrize("device", DEVICES[:2], ids=lambda device: device.name)
def test_the_default_kernels_execute_at_most_5_percent_more_than_was_recorded(gpu_counts: ModuleType, device: Device):
    recorded = json.loads((BENCHMARKS / "gpu_counts.json").read_text())
    for case in gpu_counts.family_a([128]):
        (name, found), *_ = gpu_counts.record_of([gpu_counts.count_case(case, device)]).items()
        assert found < GROWTH * recorded[name], f"{name}: {found} instructions, recorded are {recorded[name]}"


def test_a_tile_of_stage_1_takes_at_most_560_instructions_of_a_warp(gpu_counts: ModuleType):
    tile, beginning = gpu_counts.tile_and_beginning(gpu_counts.family_a([128])[0], DEVICES[1])
    assert 400 < tile <= 560
    assert 0 < beginning < 2100


@pytest.mark.parametrize("device", DEVICES[:2], ids=lambda device: device.name)
def test_windows_of_up_to_13_by_13_take_the_one_pass_kernel_which_counts_least(gpu_counts: ModuleType, device: Device):
    for case in gpu_counts.wider_windows(128):
        assert gpu_counts.default_tactic(gpu_counts.params_of(case, case.heads), device.architecture) >= 30


def test_every_stage_is_recorded_for_both_architectures(gpu_counts: ModuleType):
    recorded = json.loads((BENCHMARKS / "gpu_counts.json").read_text())
    names = {f"{case.name}, sm_{own}" for case in gpu_counts.family_a([128]) for own in ("80", "90a")}
    assert set(recorded) == names


def test_what_is_missing_is_said_and_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.which", lambda *arguments, **options: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for find, words in ((find_nvcc, "no nvcc"), (find_cuobjdump, "pip install nvidia-cuda-cuobjdump")):
        find.cache_clear()
        with pytest.raises(MissingToolError, match=words):
            find()
        find.cache_clear()


def every_lane() -> np.ndarray:
    return np.ones((1, 32), bool)


@pytest.mark.parametrize(
    ("addresses", "size", "expected"),
    [
        (np.arange(32) * 4, 4, (1, 1)),  # each lane a bank
        (np.arange(32) * 8, 4, (2, 1)),  # two lanes to a bank
        (np.arange(32) * 128, 4, (32, 1)),  # all in one bank
        (np.zeros(32, int), 4, (1, 1)),  # one word for all
        (np.arange(32) * 16, 16, (4, 4)),  # eight lanes at a time
        (np.arange(32) * 128, 16, (32, 4)),  # rows of 128 bytes that are not swizzled
        (np.arange(32) * 128 + (np.arange(32) % 8) * 16, 16, (4, 4)),  # rows of 128 bytes that are swizzled
        (np.arange(32) * 8, 8, (2, 2)),
    ],
)
def test_wavefronts_are_what_the_fullest_bank_needs(addresses: np.ndarray, size: int, expected: tuple[int, int]):
    assert wavefronts(addresses[None].astype(np.int64), every_lane(), size) == expected


def test_lanes_that_do_not_take_part_cost_no_wavefront():
    mask = every_lane()
    mask[0, 8:] = False
    assert wavefronts(np.arange(32)[None] * 128, mask, 4) == (8, 1)
    assert wavefronts(np.arange(32)[None] * 16, mask, 16) == (1, 1)
    assert wavefronts(np.arange(32)[None], ~every_lane(), 4) == (0, 0)


def test_a_sector_counts_once_for_a_warp():
    assert sectors(np.arange(32)[None] * 4, every_lane(), 4) == 4
    assert sectors(np.arange(32)[None] * 16, every_lane(), 16) == 16
    assert sectors(np.arange(32)[None] * 4096, every_lane(), 2) == 32
    assert sectors(np.full((2, 32), 64), np.ones((2, 32), bool), 2) == 2


def test_instructions_have_the_class_that_readers_expect():
    lines = {
        "HMMA.16816.F32 R4, R8, R12, R4": "tensor cores",
        "LDSM.16.M88.4 R4, [R8]": "matrix loads and stores",
        "UIADD3 UR4, UR5, 0x1, URZ": "uniform and constants",
        "IMAD.MOV.U32 R2, RZ, RZ, R3": "integers and addresses",
        "MUFU.EX2 R2, R3": "special functions",
    }
    for line, expected in lines.items():
        own = parse_instruction(f"        /*0010*/                   {line} ;")
        assert own is not None
        assert class_of(own) == expected


def test_bounds_are_work_divided_by_rate():
    h100 = next(device for device in DEVICES if device.name == "H100")
    counts = Counts({"integers and addresses": 4.0 * 132 * 1755}, {"special": 8.0 * 132 * 1755}, 2.0 * 132 * 1755, 0,
                    2.0 * 132 * 1755, 128, 16, 3.35e6)  # fmt: skip
    found = bounds(counts, h100)
    assert found == pytest.approx({"issue": 1, "special": 2, "shared memory": 2, "second cache": 1, "DRAM": 1})
