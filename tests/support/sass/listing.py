"""Instructions as ``cuobjdump -sass`` prints them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_FUNCTION = re.compile(r"^\s*Function : (\S+)")
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,6})\*/\s+(?:@(!?U?P[0-9T])\s+)?([A-Z][A-Z0-9_.a-z]*)\s*([^;]*?)\s*;")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a kernel.

    ``IMAD.WIDE.U32 R2, R4, 0x3, RZ`` has the name IMAD, two modifiers and four operands. ``guard`` is a predicate such
    as ``!P0``, or empty. ``text`` is the line as it was printed, for messages.
    """

    address: int
    guard: str
    name: str
    modifiers: tuple[str, ...]
    operands: tuple[str, ...]
    text: str

    @property
    def opcode(self) -> str:
        """Name and modifiers."""
        return ".".join((self.name, *self.modifiers))


def parse_instruction(line: str) -> Instruction | None:
    """Return the instruction of a line such as ``/*0010*/ @P0 BRA 0x40 ;``; None where a line has none."""
    found = _INSTRUCTION.match(line)
    if found is None:
        return None
    address, guard, opcode, operands = found.groups()
    name, *modifiers = opcode.split(".")
    text = f"{'@' + guard + ' ' if guard else ''}{opcode} {operands}".strip()
    return Instruction(
        int(address, 16),
        guard or "",
        name,
        tuple(modifiers),
        tuple(_split(operands)),
        f"{int(address, 16):#06x}: {text}",
    )


def _split(operands: str) -> Iterator[str]:
    """Cut at commas outside brackets, and at spaces: a return has none but those."""
    for part in re.split(r",(?![^\[]*\])", operands):
        yield from (word.replace(".reuse", "") for word in part.split())


def parse_listing(text: str) -> dict[str, list[Instruction]]:
    """Return each function's instructions, by its mangled name."""
    functions: dict[str, list[Instruction]] = {}
    own: list[Instruction] = []
    for line in text.splitlines():
        begins = _FUNCTION.match(line)
        if begins:
            own = functions.setdefault(begins[1], [])
        elif (instruction := parse_instruction(line)) is not None:
            own.append(instruction)
    return functions
