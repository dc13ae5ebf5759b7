"""Joint work of the warps of the machine code's interpreter: exchange, branches, barriers, memory, matrices.

Layouts and rules are those of the PTX manual; expected values are worked out lane by lane.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from machine_lines import HOLDS, RANDOM, WORDS, machine_of
from sass.listing import parse_listing
from sass.machine import KernelError
from sass.memory import GlobalMemory, MemoryAccessError
from sass.registry import UnknownInstructionError


def bits_of(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("BFLY", lambda lane, by: lane ^ by),
        ("IDX", lambda lane, by: by),
        ("UP", lambda lane, by: lane - by if lane >= by else lane),
        ("DOWN", lambda lane, by: lane + by if lane + by < 32 else lane),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_lanes_read_from_each_other(kind: str, source: Callable[[int, int], int]):
    clamp = 0 if kind == "UP" else 0x1F
    machine = machine_of([f"SHFL.{kind} P4, R2, R4, 0x5, {clamp:#x}"]).run()
    for lane in range(32):
        assert machine.warps.registers[2, 0, lane] == WORDS[4][source(lane, 5)]


def test_a_warp_votes_reduces_and_makes_uniform():
    lines = [
        "VOTE.ANY R10, P4, P0",
        "VOTE.ALL P5, P0",
        "REDUX.OR UR4, R4",
        "R2UR UR5, R6",
        "REDUX.MAX UR6, R4",
        "S2UR UR7, SR_CTAID.X",
        "IMAD.U32 R11, RZ, RZ, UR4",
    ]
    machine = machine_of(lines, {**WORDS, 6: np.full(32, 77)}).run()
    assert int(machine.warps.registers[10, 0, 0]) == sum(1 << lane for lane in range(32) if HOLDS[0][lane])
    assert machine.warps.predicates[4, 0].all()
    assert not machine.warps.predicates[5, 0].any()
    assert int(machine.warps.uniform[4, 0, 0]) == int(np.bitwise_or.reduce(WORDS[4]))
    assert int(machine.warps.uniform[5, 0, 0]) == 77
    assert int(machine.warps.uniform[6, 0, 0]) == int(WORDS[4].max())
    assert (machine.warps.registers[11, 0] == machine.warps.uniform[4, 0, 0]).all()
    with pytest.raises(KernelError, match="disagree"):
        machine_of(["R2UR UR5, R4"]).run()


def test_constants_come_from_the_launch():
    parameters = struct.pack("<IIf", 7, 9, 2.5)
    lines = [
        "LDC R10, c[0x0][0x210]",
        "LDC.64 R12, c[0x0][0x210]",
        "FADD R14, R4, c[0x0][0x218]",
        "LDC R15, c[0x0][R5+0x210]",
        "ULDC UR4, c[0x0][0x0]",
    ]
    machine = machine_of(lines, {4: np.zeros(32), 5: np.full(32, 4)}, parameters=parameters).run()
    rows = machine.warps.registers[:, 0, 3]
    assert [int(rows[n]) for n in (10, 12, 13, 15)] == [7, 7, 9, 9]
    assert rows[14].view(np.float32) == 2.5
    assert int(machine.warps.uniform[4, 0, 0]) == 32


def test_lanes_part_and_meet_again():
    lines = [
        "BSSY B0, 0x60",
        "@P0 BRA 0x40",
        "IMAD.MOV.U32 R2, RZ, RZ, 0x1",
        "BSYNC B0",
        "IMAD.MOV.U32 R2, RZ, RZ, 0x2",
        "BSYNC B0",
        "SHFL.BFLY PT, R3, R2, 0x1, 0x1f",
    ]
    # Lanes of P0 go to the fifth instruction; each part waits at a BSYNC of its own, and both go on at 0x60.
    machine = machine_of(lines, {}).run()
    expected = np.where(HOLDS[0], 2, 1)
    assert machine.warps.registers[2, 0].tolist() == expected.tolist()
    assert machine.warps.registers[3, 0].tolist() == expected[np.arange(32) ^ 1].tolist()
    assert machine.executed[-2].sum() == 1  # all lanes together


def test_a_loop_runs_as_often_as_its_slowest_lane():
    lines = ["IADD3 R2, R2, 0x1, RZ", "ISETP.LT.AND P4, PT, R2, R4, PT", "@P4 BRA 0x0"]
    machine = machine_of(lines, {4: np.arange(32)}).run()
    assert machine.warps.registers[2, 0].tolist() == [max(1, lane) for lane in range(32)]
    assert machine.executed[:3].sum(1).tolist() == [31, 31, 31]


def test_a_function_comes_back_to_where_each_lane_called():
    lines = [
        "MOV R20, 0x20",
        "CALL.REL.NOINC 0x40",
        "MOV R21, 0x9",
        "EXIT",
        "IADD3 R2, R2, 0x3, RZ",
        "RET.REL.NODEC R20 0x0",
    ]
    machine = machine_of(lines, {}).run()
    assert (machine.warps.registers[2, 0] == 3).all()
    assert (machine.warps.registers[21, 0] == 9).all()


def test_a_block_waits_for_all_its_warps():
    # The first warp stores, all warps read behind the barrier.
    lines = [
        "S2R R4, SR_TID.X",
        "ISETP.GE.U32.AND P4, PT, R4, 0x20, PT",
        "@P4 BRA 0x40",
        "STS [R4.X4], R4",
        "BAR.SYNC.DEFER_BLOCKING 0x0",
        "LOP3.LUT R5, R4, 0x1f, RZ, 0xc0, !PT",
        "LDS R2, [R5.X4]",
    ]
    machine = machine_of(lines, {}, {}, threads=96)
    machine.shared.base = 0
    machine.run()
    for warp in range(3):
        assert machine.warps.registers[2, warp].tolist() == list(range(32))


def test_a_barrier_for_more_threads_than_come_is_found():
    with pytest.raises(KernelError, match="everybody waits"):
        machine_of(["BAR.SYNC.DEFER_BLOCKING 0x1, 0x40"], {}).run()


def test_a_barrier_tells_whether_any_thread_said_so():
    lines = ["MOV R4, 0x1", "BAR.RED.OR.DEFER_BLOCKING R4, 0x20, P0", "B2R.RESULT RZ, P4"]
    assert machine_of(lines, {}).run().warps.predicates[4, 0].all()
    assert not machine_of(lines, {}, {0: np.zeros(32, bool)}).run().warps.predicates[4, 0].any()


def address_of(array: np.ndarray, memory: GlobalMemory, offsets: np.ndarray) -> dict[int, np.ndarray]:
    whole = memory.address("array") + offsets.astype(np.int64)
    return {4: whole & 0xFFFFFFFF, 5: whole >> 32}


@pytest.mark.parametrize(("kind", "size"), [("U8", 1), ("U16", 2), ("", 4), ("64", 8), ("128", 16)])
def test_global_memory_is_read_and_written(kind: str, size: int):
    array = RANDOM.integers(0, 256, 1024).astype(np.uint8)
    memory = GlobalMemory({"array": array.copy()})
    own = f".{kind}" if kind else ""
    lines = [f"LDG.E{own} R8, desc[UR4][R4.64]", f"STG.E{own} desc[UR4][R4.64+0x200], R8"]
    machine = machine_of(lines, address_of(array, memory, np.arange(32)[::-1] * size), memory=memory).run()
    written = memory.arrays["array"].values
    assert written[512 : 512 + 32 * size].tolist() == array[: 32 * size].tolist()
    assert int(machine.sectors[0]) == size  # 32 lanes side by side


def test_an_access_that_is_not_aligned_or_not_ours_is_found():
    memory = GlobalMemory({"array": np.zeros(1024, np.uint8)})
    for offsets, message in ((np.arange(32) * 2, "aligned"), (np.arange(32) * 64, "no array")):
        with pytest.raises(MemoryAccessError, match=message):
            machine_of(["LDG.E R8, [R4.64]"], address_of(np.zeros(0), memory, offsets), memory=memory).run()
    with pytest.raises(MemoryAccessError, match="outside the block's"):
        machine_of(["LDS R8, [R4]"], {4: np.arange(32) * 4}).run()


def test_a_copy_arrives_when_its_group_is_waited_for_and_brings_zeros_where_nothing_is():
    array = RANDOM.integers(0, 256, 2048).astype(np.uint8)
    memory = GlobalMemory({"array": array})
    lines = [
        "LDGSTS.E.BYPASS.128 [R6], desc[UR4][R4.64], P0",
        "LDGDEPBAR",
        "LDS R8, [R6]",
        "LDGDEPBAR",
        "DEPBAR.LE SB0, 0x1",
        "LDS R9, [R6]",
    ]
    registers = {**address_of(array, memory, np.arange(32) * 16), 6: 1024 + np.arange(32) * 16}
    machine = machine_of(lines, registers, memory=memory).run()
    assert (machine.warps.registers[8, 0] == 0xFFFFFFFF).all()
    there = array.view(np.uint32)[np.arange(32) * 4]
    assert machine.warps.registers[9, 0].tolist() == np.where(HOLDS[0], there, 0).tolist()


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_are_loaded_as_the_manual_lays_them_out(transposed: bool):
    """ldmatrix: thread l holds elements 2 (l % 4) and the next of row l / 4 of each matrix."""
    machine = machine_of([f"LDSM.16.M{'T' if transposed else ''}88.4 R8, [R4]"], {4: 1024 + np.arange(32) * 16})
    numbers = RANDOM.integers(0, 1 << 16, (4, 8, 8)).astype(np.uint16)
    machine.shared.bytes[:512] = numbers.reshape(-1).view(np.uint8)
    machine.run()
    for matrix in range(4):
        own = numbers[matrix].T if transposed else numbers[matrix]
        for lane in range(32):
            low, high = own[lane // 4, 2 * (lane % 4)], own[lane // 4, 2 * (lane % 4) + 1]
            assert int(machine.warps.registers[8 + matrix, 0, lane]) == int(low) | int(high) << 16


def test_matrices_are_stored_as_they_are_loaded():
    lines = ["LDSM.16.M88.4 R8, [R4]", "STSM.16.M88.4 [R4+0x400], R8"]
    machine = machine_of(lines, {4: 1024 + np.arange(32) * 16})
    machine.shared.bytes[:512] = RANDOM.integers(0, 256, 512).astype(np.uint8)
    machine.run()
    assert (machine.shared.bytes[1024:1536] == machine.shared.bytes[:512]).all()


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_a_product_on_tensor_cores_has_the_manuals_layout(kind: type):
    """mma.m16n8k16: a0 is row l / 4, columns 2 (l % 4) …; b0 rows 2 (l % 4) …, column l / 4; c0 as a0."""
    a, b = RANDOM.normal(size=(16, 16)).astype(kind), RANDOM.normal(size=(16, 8)).astype(kind)
    c = RANDOM.normal(size=(16, 8)).astype(np.float32)
    registers = {n: np.zeros(32, np.uint32) for n in range(8, 20)}
    word = lambda low, high: int(low.view(np.uint16)) | int(high.view(np.uint16)) << 16  # noqa: E731
    for lane in range(32):
        group, inner = lane // 4, lane % 4
        for n, (row, column) in enumerate(((0, 0), (8, 0), (0, 8), (8, 8))):
            at = group + row, 2 * inner + column
            registers[8 + n][lane] = word(a[at], a[at[0], at[1] + 1])
        for n in range(2):
            row = 2 * inner + 8 * n
            registers[12 + n][lane] = word(b[row, group], b[row + 1, group])
        for n in range(4):
            registers[16 + n][lane] = bits_of(c[group + 8 * (n // 2), 2 * inner + n % 2])
    suffix = ".BF16" if kind is ml_dtypes.bfloat16 else ""
    machine = machine_of([f"HMMA.16816.F32{suffix} R20, R8, R12, R16"], registers).run()
    expected = (a.astype(np.float64) @ b.astype(np.float64) + c).astype(np.float32)
    for lane in range(32):
        for n in range(4):
            found = machine.warps.registers[20 + n, 0, lane].view(np.float32)
            assert found == expected[lane // 4 + 8 * (n // 2), 2 * (lane % 4) + n % 2]


def test_what_is_not_known_is_said():
    for line in ("TEX R2, R4", "IADD3.SAT R2, R4, R5, R6", "LDC R2, c[0x3][0x10]", "FADD R2, R4, R5.H0"):
        with pytest.raises(UnknownInstructionError, match=line.split()[0].split(".")[0]):
            machine_of([line]).run()


def test_a_listing_is_read_by_function():
    text = """
        Function : first
    .headerflags    @"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;       /* 0x00000a00ff017b82 */
                                                                /* 0x000fe20000000800 */
        /*0010*/              @!P0 LDS.64 R2, [R4+UR5+-0x8] ;   /* 0x0000000000000000 */
        Function : second
        /*0000*/                   RET.REL.NODEC R10 0x0 ;      /* 0x0000000000000000 */
"""
    found = parse_listing(text)
    assert [own.name for own in found["first"]] == ["LDC", "LDS"]
    own = found["first"][1]
    assert (own.guard, own.modifiers, own.operands) == ("!P0", ("64",), ("R2", "[R4+UR5+-0x8]"))
    assert found["second"][0].operands == ("R10", "0x0")
