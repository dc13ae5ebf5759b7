"""Operands, by which instructions name the state: each operand becomes a function that returns, or takes, an array.

Names are those of the listing: ``R4``, ``-R4``, ``|R4|``, ``~R4``, ``RZ``, ``UR4``, ``P0``, ``!UP1``,
``c[0x0][0x210]``, ``0x10``, ``-1.5``, ``+INF``, ``R4.H0_H0``. Readers may return an array of the state itself:
instructions work out all results before they write any.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

import numpy as np

from .warps import Mask, Warps

Read = Callable[[], np.ndarray]
Write = Callable[[np.ndarray, Mask], None]

_CONSTANT = re.compile(r"^c\[(0x[0-9a-f]+)\]\[(?:(RZ|U?R\d+)\+?)?(0x[0-9a-f]+)?\]$")
_INTEGER = re.compile(r"^-?0x[0-9a-f]+$")
_REGISTER = re.compile(r"^(U?R)(Z|\d+)$")
_SPECIAL_FLOATS = {
    "+INF": 0x7F800000, "-INF": 0xFF800000, "INF": 0x7F800000, "+QNAN": 0x7FC00000, "QNAN": 0x7FC00000,
    "-QNAN": 0xFFC00000, "+SNAN": 0x7F800001, "-SNAN": 0xFF800001,
}  # fmt: skip
LOW = np.uint64(0xFFFFFFFF)
WORD = np.uint64(32)
SIGN = np.uint32(0x80000000)


class UnknownOperandError(ValueError):
    """An operand that the interpreter does not know."""


def float_bits(value: np.ndarray) -> np.ndarray:
    """Return the bits of numbers after rounding to float32."""
    return np.ascontiguousarray(value, np.float32).view(np.uint32)


class Operands:
    """Makes readers and writers over the state of some warps. ``constants``: bank 0 of the launch."""

    def __init__(self, warps: Warps, constants: bytes) -> None:
        self._warps = warps
        self._constants = constants

    # ------------------------------------------------------------------ registers

    def _row(self, name: str, offset: int = 0) -> np.ndarray | None:
        """Return the array behind a register's name, None for the ones that are zero."""
        found = _REGISTER.match(name)
        if found is None:
            raise UnknownOperandError(f"no register is called {name}")
        if found[2] == "Z":
            return None
        bank = self._warps.registers if found[1] == "R" else self._warps.uniform
        return bank[int(found[2]) + offset]

    def _constant(self, text: str, more: int = 0) -> np.ndarray | None:
        found = _CONSTANT.match(text)
        if found is None:
            return None
        if int(found[1], 16) != 0 or found[2] not in (None, "RZ"):
            raise UnknownOperandError(f"{text} is not in the launch's own constants at a fixed place")
        return self.constant(int(found[3] or "0", 16) + more)

    def constant(self, offset: int) -> np.ndarray:
        """Return a number of constant bank 0."""
        return np.full((1, 1), struct.unpack_from("<I", self._constants, offset)[0], np.uint32)

    def _plain(self, text: str, more: int = 0) -> Read:
        """Read 32 bits without any sign; ``more``: registers after the one named."""
        constant = self._constant(text, 4 * more)
        if constant is not None:
            return lambda: constant
        if _INTEGER.match(text):
            whole = int(text, 16) & 0xFFFFFFFFFFFFFFFF
            fixed = np.full((1, 1), whole >> 32 * more & 0xFFFFFFFF, np.uint32)
            return lambda: fixed
        if text == "SRZ" or (row := self._row(text, more)) is None:
            zero = np.zeros((1, 1), np.uint32)
            return lambda: zero
        return lambda: row

    def register(self, text: str, more: int = 0) -> Read:
        """Read a register as it is, or one so many after it."""
        return self._plain(text, more)

    def bits(self, text: str) -> Read:
        """Read 32 bits as an integer, negated or inverted as the operand says."""
        if text.startswith("~"):
            own = self._plain(text[1:])
            return lambda: ~own()
        if text.startswith("-") and not _INTEGER.match(text):
            own = self._plain(text[1:])
            return lambda: np.uint32(0) - own()
        return self._plain(text)

    def is_negated(self, text: str) -> bool:
        """Say whether an integer operand is a negated register."""
        return text.startswith("-") and not _INTEGER.match(text)

    def signed(self, text: str) -> Read:
        """Read 32 bits as a signed integer."""
        own = self.bits(text)
        return lambda: own().view(np.int32)

    def pair(self, text: str) -> Read:
        """Read 64 bits: two registers, two neighbouring constants, or a number."""
        negated = text.startswith("-") and not _INTEGER.match(text)
        text = text.removeprefix("-") if negated else text
        text = text.removesuffix(".64")
        low, high = self._plain(text), self._plain(text, 1)

        def read() -> np.ndarray:
            whole = low().astype(np.uint64) | high().astype(np.uint64) << WORD
            return np.uint64(0) - whole if negated else whole

        return read

    def float_bits(self, text: str) -> Read:
        """Read a float32 as its bits, with its sign changed or taken away as the operand says."""
        if text.lstrip("+-") in ("INF", "QNAN", "SNAN"):
            fixed = np.full((1, 1), _SPECIAL_FLOATS[text], np.uint32)
            return lambda: fixed
        negated = text.startswith("-")
        bare = text[1:] if negated else text
        absolute = bare.startswith("|")
        bare = bare.strip("|")
        if re.match(r"^[\d.]", bare) and not bare.startswith("0x"):
            fixed = float_bits(np.full((1, 1), float(text)))
            return lambda: fixed
        own = self._plain(bare)
        if absolute and negated:
            return lambda: own() | SIGN
        if absolute:
            return lambda: own() & ~SIGN
        if negated:
            return lambda: own() ^ SIGN
        return own

    def floats(self, text: str) -> Read:
        """Read a float32."""
        own = self.float_bits(text)
        return lambda: own().view(np.float32)

    def halves(self, text: str) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
        """Read two float16, the low and the high one; ``.H0_H0`` and ``.H1_H1`` take one twice."""
        found = re.match(r"^(-?)(\|?)(U?R(?:Z|\d+))\|?(?:\.(H[01]_H[01]))?$", text)
        if found is None:
            raise UnknownOperandError(f"{text} does not name two float16")
        own, which = self._plain(found[3]), found[4] or "H1_H0"
        sign = -1.0 if found[1] else 1.0

        def read() -> tuple[np.ndarray, np.ndarray]:
            bits = own()
            parts = [
                (bits >> np.uint32(16 * int(digit)) & np.uint32(0xFFFF)).astype(np.uint16).view(np.float16)
                for digit in (which[4], which[1])
            ]
            low, high = (part.astype(np.float32) for part in parts)
            if found[2]:
                low, high = np.abs(low), np.abs(high)
            return sign * low, sign * high

        return read

    def write(self, text: str, more: int = 0) -> Write:
        """Write 32 bits to a register."""
        row = self._row(text, more)
        if row is None:
            return lambda value, mask: None

        def write(value: np.ndarray, mask: Mask) -> None:
            np.copyto(row, value, where=mask, casting="same_kind")

        return write

    def write_float(self, text: str) -> Write:
        """Write a number as float32 to a register."""
        own = self.write(text)
        return lambda value, mask: own(float_bits(value), mask)

    def write_pair(self, text: str) -> Write:
        """Write 64 bits to two registers."""
        low, high = self.write(text), self.write(text, 1)

        def write(value: np.ndarray, mask: Mask) -> None:
            low((value & LOW).astype(np.uint32), mask)
            high((value >> WORD).astype(np.uint32), mask)

        return write

    # ------------------------------------------------------------------ predicates

    def is_predicate(self, text: str) -> bool:
        """Say whether an operand is a predicate."""
        return re.match(r"^!?U?P[0-9T]$", text) is not None

    def predicate(self, text: str) -> Read:
        """Read a predicate, or its opposite."""
        bare = text.removeprefix("!")
        bank = self._warps.uniform_predicates if bare.startswith("U") else self._warps.predicates
        number = bare.removeprefix("U")[1:]
        row = bank[7 if number == "T" else int(number)]
        if text.startswith("!"):
            return lambda: ~row
        return lambda: row

    def write_predicate(self, text: str) -> Write:
        """Write a predicate; PT swallows everything."""
        if text in ("PT", "UPT"):
            return lambda value, mask: None
        bank = self._warps.uniform_predicates if text.startswith("U") else self._warps.predicates
        row = bank[int(text.removeprefix("U")[1:])]
        return lambda value, mask: np.copyto(row, value, where=mask)

    # ------------------------------------------------------------------ addresses

    def _scaled(self, register: str, factor: str) -> Read:
        own, by = self._plain(register), np.uint32(int(factor))
        return lambda: own() * by

    def address(self, text: str) -> Read:
        """Read an address: ``[R4+UR5+0x10]``, ``[R4.X4]``, ``desc[UR4][R2.64+-0x8]``. 64 bits where a part says so."""
        found = re.match(r"^(?:desc\[UR\d+\])?\[([^\]]*)\]$", text)
        if found is None:
            raise UnknownOperandError(f"{text} is not an address")
        wide = ".64" in found[1]
        parts: list[Read] = []
        offset = 0
        for part in filter(None, found[1].replace("+-", "+~").split("+")):
            part = part.replace("~", "-")
            if _INTEGER.match(part):
                offset += int(part, 16)
            elif part.endswith(".64"):
                parts.append(self.pair(part))
            elif part.endswith(".U32"):
                parts.append(self._plain(part.removesuffix(".U32")))
            elif ".X" in part:
                parts.append(self._scaled(*part.split(".X")))
            elif wide and part.startswith("UR"):
                parts.append(self.pair(part))
            else:
                parts.append(self._plain(part))

        def read() -> np.ndarray:
            total = np.full((1, 1), offset, np.int64)
            for own in parts:
                total = total + own().astype(np.int64)
            return total if wide else total & 0xFFFFFFFF

        return read
