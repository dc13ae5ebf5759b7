"""Hopper's instructions of the machine code's interpreter: barriers in memory, boxes of tensors, groups' products.

Rules and layouts are those of the PTX manual: mbarrier, cp.async.bulk.tensor, wgmma with its matrix descriptors.
"""

from __future__ import annotations

import struct

import ml_dtypes
import numpy as np
import pytest
from machine_lines import RANDOM, machine_of
from sass.hopper import PARAMETERS, Tensor, box_addresses, swizzled
from sass.machine import KernelError, Machine
from sass.memory import GlobalMemory

BASE = 1024
"""Address of the beginning of a block's shared memory."""
BARRIER = BASE + 512


def counted(arrivals: int) -> int:
    """Return the word that sets a barrier up for so many arrivals, as the assembler writes it."""
    return ((1 << 20) - arrivals) << 1


def barrier_lines(*lines: str) -> list[str]:
    """Return lines preceded by the set-up of a barrier by one lane, P0."""
    return ["@P0 SYNCS.EXCH.64 URZ, [R4], UR4", *lines]


FIRST_LANE = np.arange(32) == 0


def with_barrier(lines: list[str], arrivals: int, threads: int = 32) -> Machine:
    machine = machine_of(
        barrier_lines(*lines), {4: np.full(32, BARRIER)}, {0: FIRST_LANE}, {4: counted(arrivals)}, threads=threads
    )
    for warp in range(threads // 32):
        machine.warps.registers[4, warp] = BARRIER
        machine.warps.predicates[0, warp] = FIRST_LANE & (warp == 0)
    return machine


def test_a_barrier_lets_go_when_all_have_arrived():
    lines = ["SYNCS.ARRIVE.TRANS64.A1T0 RZ, [R4], RZ", "SYNCS.PHASECHK.TRANS64.TRYWAIT P4, [R4], RZ", "MOV R2, 0x1"]
    machine = with_barrier(lines, arrivals=32).run()
    assert (machine.warps.registers[2] == 1).all()
    assert machine.warps.predicates[4].all()
    with pytest.raises(KernelError, match="everybody waits"):
        with_barrier(lines, arrivals=33).run()


def test_the_parity_says_which_phase_is_waited_for():
    # Nothing has arrived: the phase before is over, this one is not.
    machine = with_barrier(["MOV R5, 0x80000000", "SYNCS.PHASECHK.TRANS64.TRYWAIT P4, [R4], R5"], arrivals=1).run()
    assert machine.warps.predicates[4].all()
    with pytest.raises(KernelError, match="everybody waits"):
        with_barrier(["SYNCS.PHASECHK.TRANS64.TRYWAIT P4, [R4], RZ"], arrivals=1).run()


def test_bytes_that_are_expected_hold_a_barrier_up():
    lines = ["MOV R5, 0x80", "@P0 SYNCS.ARRIVE.TRANS64 RZ, [R4], R5", "SYNCS.PHASECHK.TRANS64.TRYWAIT P4, [R4], RZ"]
    with pytest.raises(KernelError, match="everybody waits"):
        with_barrier(lines, arrivals=1).run()


def test_a_barrier_that_nobody_set_up_is_found():
    with pytest.raises(KernelError, match="no barrier"):
        machine_of(["SYNCS.ARRIVE.TRANS64.A1T0 RZ, [R4], RZ"], {4: np.full(32, BARRIER)}).run()


def test_the_swizzle_exchanges_pieces_by_the_row():
    """Piece p of 16 bytes of row r moves to piece p ^ r within each 1,024 bytes."""
    for row in range(8):
        for piece in range(8):
            assert swizzled(np.int64(2048 + row * 128 + piece * 16)) == 2048 + row * 128 + (piece ^ row) * 16


def encoded(tensor: Tensor) -> bytes:
    axes = len(tensor.size)
    size, stride, box = ((*values, *[0] * (room - len(values))) for values, room in
                         ((tensor.size, 5), (tensor.strides[1:], 4), (tensor.box, 5)))  # fmt: skip
    return struct.pack("<Q5Q4Q5II", tensor.base, *size, *stride, *box, axes).ljust(128, b"\0")


def test_a_box_is_copied_swizzled_with_zeros_outside_the_tensor():
    values = RANDOM.normal(size=(6, 5, 64)).astype(np.float16)
    memory = GlobalMemory({"tensor": values})
    tensor = Tensor(memory.address("tensor"), (64, 5, 6), (2, 128, 640), (64, 4, 2))
    # Places of UR8 …: shared memory, barrier, corner (0, 3, -1): two columns are outside, and the first row.
    uniform = {4: counted(1), 8: BASE + 1024, 9: BARRIER, 10: 0, 11: 3, 12: 0xFFFFFFFF,
               16: PARAMETERS & 0xFFFFFFFF, 17: PARAMETERS >> 32}  # fmt: skip
    lines = barrier_lines(
        "MOV R5, 0x400", "@P0 SYNCS.ARRIVE.TRANS64 RZ, [R4], R5", "UTMALDG.3D [UR8], [UR16]", "LDS R6, [0x800]",
        "SYNCS.PHASECHK.TRANS64.TRYWAIT P4, [R4], RZ",
    )  # fmt: skip
    machine = machine_of(lines, {4: np.full(32, BARRIER)}, {0: FIRST_LANE}, uniform, memory, encoded(tensor)).run()
    assert (machine.warps.registers[6] == 0xFFFFFFFF).all()  # absent before the wait
    found = machine.shared.bytes[1024:2048].reshape(8, 8, 16)
    for row in range(8):
        y, x = row // 4 - 1, row % 4 + 3
        expected = values[y, x] if 0 <= y < 6 and 0 <= x < 5 else np.zeros(64, np.float16)
        pieces = np.concatenate([found[row, piece ^ row] for piece in range(8)]).view(np.float16)
        np.testing.assert_array_equal(pieces, expected)


def test_addresses_of_a_box_go_row_by_row():
    tensor = Tensor(0x1000, (64, 7), (2, 256), (64, 3))
    found = box_addresses(tensor, np.array([0, 5])).reshape(3, 8)
    assert found[0].tolist() == [0x1000 + 5 * 256 + 16 * piece for piece in range(8)]
    assert found[2].tolist() == [0] * 8


def descriptor(address: int, leading: int) -> tuple[int, int]:
    """Return the two words of a matrix's descriptor: rows of 128 bytes, swizzled, eight of them 1,024 bytes on."""
    whole = 1 << 62 | (1024 >> 4) << 32 | (leading >> 4) << 16 | address >> 4
    return whole & 0xFFFFFFFF, whole >> 32


def put(machine: Machine, at: int, matrix: np.ndarray) -> None:
    """Put rows of 64 numbers into shared memory, swizzled."""
    for row, values in enumerate(matrix):
        for piece in range(8):
            place = int(swizzled(np.int64(at + row * 128 + piece * 16))) - BASE
            machine.shared.bytes[place : place + 16] = np.ascontiguousarray(values[8 * piece :][:8]).view(np.uint8)


def result_of(machine: Machine, first: int, columns: int) -> np.ndarray:
    """Gather a product from the registers: thread l of warp w has row 16 w + l / 4 and 8 below, columns 2 (l % 4) …"""
    found = np.zeros((64, columns), np.float32)
    for register in range(columns // 2):
        for warp in range(4):
            for lane in range(32):
                row = warp * 16 + lane // 4 + 8 * (register // 2 % 2)
                column = register // 4 * 8 + lane % 4 * 2 + register % 2
                found[row, column] = machine.warps.registers[first + register, warp, lane].view(np.float32)
    return found


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_a_warp_group_multiplies_what_descriptors_describe(kind: type):
    left, right = (RANDOM.normal(size=(64, 64)).astype(kind) for _ in range(2))
    a, b = BASE + 8192, BASE + 16384
    # The second 16 channels of both, right as rows of channels: d = a (64 x 16) times b (64 x 16) transposed.
    (low_a, high), (low_b, _) = descriptor(a + 32, 16), descriptor(b + 32, 16)
    suffix = "" if kind is np.float16 else ".BF16"
    lines = [
        f"HGMMA.64x64x16.F32{suffix} R24, gdesc[UR4], RZ, !UPT, gsb0",
        "MOV R2, R24",
        "WARPGROUP.DEPBAR.LE gsb0, 0x0",
    ]
    machine = machine_of(lines, {}, {}, {4: low_a, 5: high, 6: low_b, 7: high}, threads=128, shared=32768)
    put(machine, a, left)
    put(machine, b, right)
    machine.run()
    expected = left[:, 16:32].astype(np.float64) @ right[:, 16:32].astype(np.float64).T
    np.testing.assert_array_equal(result_of(machine, 24, 64), expected.astype(np.float32))
    assert (machine.warps.registers[2] == 0).all()  # absent before the wait


def test_a_warp_group_multiplies_registers_by_rows_and_adds():
    left, right = RANDOM.normal(size=(64, 16)).astype(np.float16), RANDOM.normal(size=(16, 128)).astype(np.float16)
    b = BASE + 8192
    low, high = descriptor(b, leading=2048)  # the next 64 channels lie 2,048 bytes on
    lines = ["HGMMA.64x128x16.F32 R24, R8, gdesc[UR4].tnspB, R24, gsb0", "WARPGROUP.DEPBAR.LE gsb0, 0x0"]
    machine = machine_of(lines, {}, {}, {6: low, 7: high}, threads=128, shared=32768)
    put(machine, b, right[:, :64])
    put(machine, b + 2048, right[:, 64:])
    for warp in range(4):
        for lane in range(32):
            for number, (row, column) in enumerate(((0, 0), (8, 0), (0, 8), (8, 8))):
                pair = left[warp * 16 + lane // 4 + row, column + lane % 4 * 2 :][:2]
                machine.warps.registers[8 + number, warp, lane] = np.ascontiguousarray(pair).view(np.uint32)[0]
    machine.warps.registers[24:88] = np.float32(2.0).view(np.uint32)
    machine.run()
    expected = left.astype(np.float64) @ right.astype(np.float64) + 2
    np.testing.assert_array_equal(result_of(machine, 24, 128), expected.astype(np.float32))


def test_groups_of_products_end_in_order():
    low, high = descriptor(BASE + 8192, 16)
    ones = np.ones((64, 64), np.float16)
    lines = [
        "HGMMA.64x64x16.F32 R24, gdesc[UR4], RZ, !UPT, gsb0", "HGMMA.64x64x16.F32 R88, gdesc[UR4], RZ, !UPT, gsb0",
        "WARPGROUP.DEPBAR.LE gsb0, 0x1", "MOV R2, R24", "MOV R3, R88", "WARPGROUP.DEPBAR.LE gsb0, 0x0", "MOV R4, R88",
    ]  # fmt: skip
    machine = machine_of(lines, {}, {}, {4: low, 5: high, 6: low, 7: high}, threads=128, shared=32768)
    put(machine, BASE + 8192, ones)
    machine.run()
    assert [float(machine.warps.registers[n, 0, 0].view(np.float32)) for n in (2, 3, 4)] == [16.0, 0.0, 16.0]
