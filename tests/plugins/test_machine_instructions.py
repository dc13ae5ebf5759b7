"""Arithmetic of the machine code's interpreter gives the results that the PTX manual states for its instructions.

Expected values are worked out lane by lane with Python's own numbers, apart from the interpreter's arrays.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from machine_lines import HOLDS, LIMIT, RANDOM, WORDS, machine_of
from sass.machine import Machine


def signed(word: int) -> int:
    return word - LIMIT if word & 0x80000000 else word


def wide(low: int, high: int) -> int:
    return low | high << 32


def table(number: int, a: int, b: int, c: int) -> int:
    """Return the result of LOP3 by its truth table, bit by bit."""
    return sum((number >> ((a >> n & 1) * 4 + (b >> n & 1) * 2 + (c >> n & 1)) & 1) << n for n in range(32))


def permuted(a: int, b: int, c: int) -> int:
    """Return the result of PTX's PRMT in its default mode: bytes of {c, a} chosen by b."""
    whole, result = a | c << 32, 0
    for place in range(4):
        digit = b >> 4 * place & 15
        byte = whole >> 8 * (digit & 7) & 255
        result |= (0xFF if digit & 8 and byte & 0x80 else 0 if digit & 8 else byte) << 8 * place
    return result


def clamped(value: int, by: int, left: bool) -> int:
    """Return 32 bits shifted by at most 32."""
    return (value << by if left else value >> by) % LIMIT if by < 32 else 0


INTEGER = {
    "IADD3 R2, R4, R5, R6": lambda a, b, c: a + b + c,
    "IADD3 R2, R4, -R5, RZ": lambda a, b, c: a - b,
    "VIADD R2, R4, -R5": lambda a, b, c: a - b,
    "VIADD R2, R4, 0xffffffff": lambda a, b, c: a - 1,
    "IMAD R2, R4, R5, R6": lambda a, b, c: a * b + c,
    "IMAD.MOV.U32 R2, RZ, RZ, R6": lambda a, b, c: c,
    "IMAD.SHL.U32 R2, R4, 0x8, RZ": lambda a, b, c: a << 3,
    "IMAD.IADD R2, R4, 0x1, -R6": lambda a, b, c: a - c,
    "LEA R2, R4, R5, 0x3": lambda a, b, c: (a << 3) + b,
    "LEA.HI R2, R4, R5, R6, 0x5": lambda a, b, c: (wide(a, c) << 5 >> 32) + b,
    "LEA.HI R2, R4, R5, RZ, 0x5": lambda a, b, c: (a >> 27) + b,
    "LEA.HI.SX32 R2, R4, R5, 0x1e": lambda a, b, c: (signed(a) << 30 >> 32) + b,
    "SHF.L.U32 R2, R4, R5, RZ": lambda a, b, c: clamped(a, b, left=True),
    "SHF.R.U32.HI R2, RZ, R5, R4": lambda a, b, c: clamped(a, b, left=False),
    "SHF.R.S32.HI R2, RZ, R5, R4": lambda a, b, c: signed(a) >> min(b, 32),
    "SHF.L.U64.HI R2, R4, 0x7, R6": lambda a, b, c: wide(a, c) << 7 >> 32,
    "SHF.R.U64 R2, R4, 0x7, R6": lambda a, b, c: wide(a, c) >> 7,
    "SHF.L.W.U32.HI R2, R4, R5, R6": lambda a, b, c: wide(a, c) << (b & 31) >> 32,
    "LOP3.LUT R2, R4, R5, R6, 0xc0, !PT": lambda a, b, c: a & b,
    "LOP3.LUT R2, R4, R5, R6, 0xfc, !PT": lambda a, b, c: a | b,
    "LOP3.LUT R2, R4, R5, R6, 0x3c, !PT": lambda a, b, c: a ^ b,
    "LOP3.LUT R2, R4, R5, R6, 0xe8, !PT": lambda a, b, c: (a & b) | (a & c) | (b & c),
    "LOP3.LUT R2, R4, ~R5, R6, 0x96, !PT": lambda a, b, c: a ^ (b ^ 0xFFFFFFFF) ^ c,
    "PRMT R2, R4, R5, R6": permuted,
    "PRMT R2, R4, 0x9910, RZ": lambda a, b, c: (a & 0xFFFF) - (0x10000 if a & 0x8000 else 0),
    "IMNMX R2, R4, R5, PT": lambda a, b, c: min(signed(a), signed(b)),
    "VIMNMX R2, R4, R5, !PT": lambda a, b, c: max(signed(a), signed(b)),
    "VIMNMX.U32 R2, R4, R5, PT": lambda a, b, c: min(a, b),
    "VIMNMX.RELU R2, R4, R5, PT": lambda a, b, c: max(min(signed(a), signed(b)), 0),
    "VIADDMNMX R2, R4, R5, R6, !PT": lambda a, b, c: max(signed((a + b) % LIMIT), signed(c)),
    "VIADDMNMX.U32 R2, R4, R5, R6, PT": lambda a, b, c: min((a + b) % LIMIT, c),
    "VIADDMNMX.RELU R2, R4, -R5, R6, PT": lambda a, b, c: max(min(signed((a - b) % LIMIT), signed(c)), 0),
    "IABS R2, R4": lambda a, b, c: abs(signed(a)),
    "MOV R2, R4": lambda a, b, c: a,
}


@pytest.mark.parametrize("line", INTEGER)
def test_an_instruction_on_integers(line: str):
    machine = machine_of([line]).run()
    expected = [INTEGER[line](*(int(WORDS[n][lane]) for n in (4, 5, 6))) % LIMIT for lane in range(32)]
    assert machine.warps.registers[2, 0].tolist() == expected


@pytest.mark.parametrize("number", range(0, 256, 5))
def test_three_operands_are_joined_bit_by_bit_as_the_table_says(number: int):
    machine = machine_of([f"LOP3.LUT P4, R2, R4, R5, R6, {number:#x}, !PT"]).run()
    expected = [table(number, *(int(WORDS[n][lane]) for n in (4, 5, 6))) for lane in range(32)]
    assert machine.warps.registers[2, 0].tolist() == expected
    assert machine.warps.predicates[4, 0].tolist() == [word != 0 for word in expected]


def pair_at(machine: Machine, number: int, lane: int) -> int:
    low, high = (int(machine.warps.registers[number + more, 0, lane]) for more in (0, 1))
    return wide(low, high)


def of_pair(number: int, lane: int) -> int:
    return wide(int(WORDS[number][lane]), int(WORDS[number + 1][lane]))


@pytest.mark.parametrize("lines", [
    ["IADD3 R2, P4, R4, R6, RZ", "IADD3.X R3, R5, R7, RZ, P4, !PT"],
    ["LEA R2, P4, R4, R6, 0x0", "LEA.HI.X R3, R4, R7, R5, 0x0, P4"],
    ["IADD3 R2, P4, R4, R6, RZ", "IMAD.X R3, R5, 0x1, R7, P4"],
], ids=["IADD3.X", "LEA.HI.X", "IMAD.X"])  # fmt: skip
def test_carries_make_a_sum_of_64_bits(lines: list[str]):
    machine = machine_of(lines).run()
    for lane in range(32):
        assert pair_at(machine, 2, lane) == (of_pair(4, lane) + of_pair(6, lane)) % (1 << 64)


def test_a_difference_of_64_bits_borrows():
    machine = machine_of(["IADD3 R2, P4, R4, -R6, RZ", "IADD3.X R3, R5, ~R7, RZ, P4, !PT"]).run()
    for lane in range(32):
        assert pair_at(machine, 2, lane) == (of_pair(4, lane) - of_pair(6, lane)) % (1 << 64)


def test_a_sum_of_three_may_carry_twice():
    lines = ["IADD3 R2, P4, P5, R4, R6, R8", "IADD3.X R3, R5, R7, R9, P4, P5"]
    machine = machine_of(lines).run()
    for lane in range(32):
        total = of_pair(4, lane) + of_pair(6, lane) + of_pair(8, lane)
        assert pair_at(machine, 2, lane) == total % (1 << 64)


@pytest.mark.parametrize(
    ("modifiers", "of"), [("WIDE.U32", lambda word: word), ("WIDE", signed)], ids=["unsigned", "signed"]
)
def test_products_of_64_bits(modifiers: str, of: Callable[[int], int]):
    machine = machine_of([f"IMAD.{modifiers} R2, R4, R5, R6"]).run()
    for lane in range(32):
        a, b = (of(int(WORDS[n][lane])) for n in (4, 5))
        assert pair_at(machine, 2, lane) == (a * b + of_pair(6, lane)) % (1 << 64)


def test_the_high_word_of_a_product_takes_a_sum_of_64_bits():
    machine = machine_of(["IMAD.HI.U32 R2, R4, R5, R6"]).run()
    for lane in range(32):
        product = int(WORDS[4][lane]) * int(WORDS[5][lane]) + of_pair(6, lane)
        assert int(machine.warps.registers[2, 0, lane]) == product % (1 << 64) >> 32


COMPARE = {
    "EQ": lambda a, b: a == b, "NE": lambda a, b: a != b, "LT": lambda a, b: a < b, "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b, "GE": lambda a, b: a >= b,
}  # fmt: skip
JOIN = {"AND": lambda a, b: a and b, "OR": lambda a, b: a or b, "XOR": lambda a, b: a != b}


@pytest.mark.parametrize("join", JOIN)
@pytest.mark.parametrize("kind", ["", "U32."])
@pytest.mark.parametrize("test", COMPARE)
def test_integers_are_compared_and_the_answer_is_joined(test: str, kind: str, join: str):
    equal = {**WORDS, 5: np.where(np.arange(32) % 3 == 0, WORDS[4], WORDS[5])}
    machine = machine_of([f"ISETP.{test}.{kind}{join} P4, P5, R4, R5, P0"], equal).run()
    of = (lambda word: word) if kind else signed
    for lane in range(32):
        answer = COMPARE[test](*(of(int(equal[n][lane])) for n in (4, 5)))
        found = [bool(machine.warps.predicates[n, 0, lane]) for n in (4, 5)]
        assert found == [JOIN[join](each, bool(HOLDS[0][lane])) for each in (answer, not answer)]


@pytest.mark.parametrize("test", COMPARE)
def test_numbers_of_64_bits_are_compared_word_by_word(test: str):
    values = {**WORDS, 7: np.where(np.arange(32) % 2 == 0, WORDS[5], WORDS[7])}
    values[6] = np.where(np.arange(32) % 4 == 0, values[4], values[6])
    lines = [f"ISETP.{test}.U32.AND P4, PT, R4, R6, PT", f"ISETP.{test}.U32.AND.EX P5, PT, R5, R7, PT, P4"]
    machine = machine_of(lines, values).run()
    for lane in range(32):
        a, b = (wide(int(values[n][lane]), int(values[n + 1][lane])) for n in (4, 6))
        assert bool(machine.warps.predicates[5, 0, lane]) == COMPARE[test](a, b)


FLOATS = np.array(
    [0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 3e38, 1e-30, 2.5, *RANDOM.normal(size=20)],
    np.float32,
)
NUMBERS = {4: FLOATS.view(np.uint32), 5: RANDOM.permutation(FLOATS).view(np.uint32),
           6: RANDOM.permutation(FLOATS).view(np.uint32)}  # fmt: skip


def number(register: int, lane: int) -> np.float32:
    return NUMBERS[register][lane].view(np.float32)


@pytest.mark.parametrize("unordered", ["", "U"])
@pytest.mark.parametrize("test", COMPARE)
def test_a_comparison_of_numbers_says_what_nan_answers(test: str, unordered: str):
    machine = machine_of([f"FSETP.{test}{unordered}.AND P4, PT, R4, R5, PT"], NUMBERS).run()
    for lane in range(32):
        a, b = (float(number(n, lane)) for n in (4, 5))
        answer = bool(unordered) if a != a or b != b else COMPARE[test](a, b)
        assert bool(machine.warps.predicates[4, 0, lane]) == answer


NUMERIC = {
    "FADD R2, R4, -R5": lambda a, b, c: np.float64(a) - np.float64(b),
    "FMUL R2, R4, |R5|": lambda a, b, c: np.float64(a) * abs(np.float64(b)),
    "FFMA R2, R4, R5, -R6": lambda a, b, c: np.longdouble(a) * np.longdouble(b) - np.longdouble(c),
    "FMUL R2, R4, 0.25": lambda a, b, c: np.float64(a) * 0.25,
    "FMNMX R2, R4, R5, PT": lambda a, b, c: np.fmin(a, b),
    "FMNMX R2, R4, R5, !PT": lambda a, b, c: np.fmax(a, b),
    "MUFU.EX2 R2, R4": lambda a, b, c: flushed(2.0 ** np.float64(flushed(a))),
    "MUFU.RCP R2, R4": lambda a, b, c: flushed(1 / np.float64(flushed(a))),
    "MUFU.LG2 R2, R4": lambda a, b, c: np.log2(np.float64(flushed(a))),
}


def flushed(value: np.floating) -> np.floating:
    return value if abs(value) >= 2.0**-126 or value != value else np.copysign(np.float64(0.0), value)


@pytest.mark.parametrize("line", NUMERIC)
def test_an_instruction_on_numbers_rounds_once(line: str):
    machine = machine_of([line], NUMBERS).run()
    with np.errstate(all="ignore"):
        expected = [np.float32(NUMERIC[line](*(number(n, lane) for n in (4, 5, 6)))) for lane in range(32)]
    np.testing.assert_array_equal(machine.warps.registers[2, 0].view(np.float32), expected)


@pytest.mark.parametrize(("direction", "toward"), [("RP", 1), ("RM", -1), ("RZ", 0)])
def test_a_product_is_rounded_in_a_direction(direction: str, toward: int):
    values = {4: RANDOM.normal(size=32).astype(np.float32).view(np.uint32), 5: WORDS[5] & 0x3FFFFFFF | 0x3F000000, 6: 0}
    machine = machine_of([f"FFMA.{direction} R2, R4, R5, R6"], values).run()
    for lane in range(32):
        a, b = (np.float64(values[n][lane].view(np.float32)) for n in (4, 5))
        found, exact = float(machine.warps.registers[2, 0, lane].view(np.float32)), float(a * b)
        sign = toward or (-1 if exact > 0 else 1)
        assert (found - exact) * sign >= 0
        other = np.nextafter(np.float32(found), np.float32(-sign * np.inf))
        assert found == exact or (float(other) - exact) * sign < 0


def test_conversions_of_integers_and_numbers():
    values = {
        4: WORDS[4],
        5: np.array([0.0, -0.5, 1.9, -1.9, 3e9, 5e9, -5e9, np.nan, *[7.25] * 24], np.float32).view(np.uint32),
    }
    lines = [
        "I2FP.F32.S32 R10, R4",
        "I2F.U32.RP R11, R4",
        "F2I.FTZ.U32.TRUNC.NTZ R12, R5",
        "F2I.TRUNC.NTZ R13, R5",
        "F2I.U64.TRUNC R14, R5",
        "I2F.U64.RP R16, R4",
    ]
    machine = machine_of(lines, {**WORDS, **values}).run()
    rows = machine.warps.registers[:, 0]
    second = {**WORDS, **values}[5]
    for lane in range(32):
        word, value = int(WORDS[4][lane]), float(values[5][lane].view(np.float32))
        assert rows[10, lane].view(np.float32) == np.float32(signed(word))
        up = float(rows[11, lane].view(np.float32))
        assert up >= word
        assert float(np.nextafter(np.float32(up), np.float32(0))) < word or up == 0
        whole = 0 if value != value else int(value)
        assert int(rows[12, lane]) == min(max(whole, 0), LIMIT - 1)
        assert signed(int(rows[13, lane])) == min(max(whole, -(1 << 31)), (1 << 31) - 1)
        assert wide(int(rows[14, lane]), int(rows[15, lane])) == max(whole, 0)
        assert float(rows[16, lane].view(np.float32)) >= wide(word, int(second[lane]))


def test_sixteen_bits_are_packed_and_taken_apart():
    numbers = RANDOM.normal(size=(2, 32)).astype(np.float32)
    lines = [
        "F2FP.F16.F32.PACK_AB R10, R4, R5",
        "F2FP.BF16.F32.PACK_AB R11, R4, R5",
        "HADD2.F32 R12, -RZ, R10.H1_H1",
        "HADD2.F32 R13, -RZ, R10.H0_H0",
        "HFMA2.MMA R14, -RZ, RZ, 1.875, 0.5",
    ]
    machine = machine_of(lines, {4: numbers[0].view(np.uint32), 5: numbers[1].view(np.uint32)}).run()
    for lane in range(32):
        halves = [int(np.float16(n).view(np.uint16)) for n in numbers[:, lane]]
        brain = [int(np.array(n).astype(ml_dtypes.bfloat16).view(np.uint16)) for n in numbers[:, lane]]
        rows = machine.warps.registers[:, 0, lane]
        assert int(rows[10]) == halves[0] << 16 | halves[1]
        assert int(rows[11]) == brain[0] << 16 | brain[1]
        assert rows[12].view(np.float32) == np.float32(np.float16(numbers[0, lane]))
        assert rows[13].view(np.float32) == np.float32(np.float16(numbers[1, lane]))
        assert int(rows[14]) == 0x3F80 << 16 | 0x3800


def test_predicates_are_chosen_joined_and_moved():
    lines = [
        "SEL R10, R4, R5, !P0",
        "FSEL R11, R4, -INF, P1",
        "PLOP3.LUT P4, P5, P0, P1, P2, 0xa8, 0x1",
        "P2R R12, PR, R4, 0x7",
        "R2P PR, R5.B1, 0x6",
    ]
    machine = machine_of(lines).run()
    for lane in range(32):
        p = [bool(HOLDS[n][lane]) for n in range(4)]
        rows, bits = machine.warps.registers[:, 0, lane], machine.warps.predicates[:, 0, lane]
        assert int(rows[10]) == int(WORDS[5 if p[0] else 4][lane])
        assert int(rows[11]) == (int(WORDS[4][lane]) if p[1] else 0xFF800000)
        assert bool(bits[4]) == ((p[0] or p[1]) and p[2])
        assert bool(bits[5]) == (not any(p[:3]))
        assert int(rows[12]) == int(WORDS[4][lane]) & ~7 | p[0] | p[1] << 1 | p[2] << 2
        byte = int(WORDS[5][lane]) >> 8
        assert [bool(bits[n]) for n in range(4)] == [p[0], bool(byte & 2), bool(byte & 4), p[3]]
