"""The table of instructions: each name with a function that prepares an instruction to be executed many times."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from .listing import Instruction
from .warps import Mask

if TYPE_CHECKING:
    from .machine import Machine

Execute = Callable[[Mask], None]
"""Executes an instruction for the lanes of a mask: (warps, 32), or (warps, 1) for one on uniform registers."""

Prepare = Callable[["Machine", Instruction], Execute]

INSTRUCTIONS: dict[str, Prepare] = {}
CONTROL: set[str] = set()
"""Names of instructions that move lanes, or let others move."""
UNIFORM: set[str] = set()
"""Names of instructions that a warp executes once."""


class UnknownInstructionError(ValueError):
    """An instruction, or a modifier of one, that the interpreter does not know."""


def instruction(*names: str, control: bool = False, uniform: bool = False) -> Callable[[Prepare], Prepare]:
    """Register how instructions of these names are prepared.

    A name's form with a U in front works on uniform registers and is registered too where it is given.
    """

    def register(prepare: Prepare) -> Prepare:
        for name in names:
            INSTRUCTIONS[name] = prepare
            if control:
                CONTROL.add(name)
            if uniform or name in ("S2UR", *(f"U{other}" for other in names)):
                UNIFORM.add(name)
        return prepare

    return register


def expect_modifiers(own: Instruction, *known: str) -> set[str]:
    """Return an instruction's modifiers.

    Raises:
        UnknownInstructionError: if one of them is not among ``known``.
    """
    unknown = set(own.modifiers) - set(known)
    if unknown:
        raise UnknownInstructionError(f"{own.text}: no meaning is known for .{' .'.join(sorted(unknown))}")
    return set(own.modifiers)


def one_of(own: Instruction, choices: Iterable[str]) -> str:
    """Return the one modifier that is among ``choices``.

    Raises:
        UnknownInstructionError: if none is, or several are.
    """
    found = [modifier for modifier in own.modifiers if modifier in choices]
    if len(found) != 1:
        raise UnknownInstructionError(f"{own.text}: expected one of .{' .'.join(choices)}")
    return found[0]
