"""Description of a compiled kernel: its parameters' place in the constant bank, and the registers it takes.

A cubin is an ELF file with sections ``.nv.info.KERNEL`` of attributes: a byte of form, a byte that names the attribute,
and two bytes of value or of size (EIFMT and EIATTR of ``cuobjdump -elf``).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_SIZED = 0x04
_PARAMETER_BANK, _PARAMETER, _REGISTERS = 0x0A, 0x17, 0x2F


@dataclass(frozen=True)
class Kernel:
    """``parameters``: (offset, bytes) of each, from ``parameter_base`` in constant bank 0 on."""

    name: str
    parameter_base: int
    parameters: tuple[tuple[int, int], ...]
    registers: int


def _sections(cubin: bytes) -> dict[str, bytes]:
    if cubin[:4] != b"\x7fELF":
        raise ValueError("a cubin is an ELF file; these bytes are not")
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    entry, count, names_at = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", cubin, table + n * entry) for n in range(count)]
    names = headers[names_at]
    found = {}
    for name, _, _, _, offset, size, *_ in headers:
        start = names[4] + name
        end = cubin.index(b"\0", start)
        found[cubin[start:end].decode()] = cubin[offset : offset + size]
    return found


def _symbols(sections: dict[str, bytes]) -> list[str]:
    names, table = sections[".strtab"], sections[".symtab"]
    starts = [struct.unpack_from("<I", table, at)[0] for at in range(0, len(table), 24)]
    return [names[start : names.index(b"\0", start)].decode() for start in starts]


def _attributes(section: bytes) -> list[tuple[int, bytes]]:
    """Return (attribute, value) of an information section."""
    found, at = [], 0
    while at + 4 <= len(section):
        form, attribute, size = struct.unpack_from("<BBH", section, at)
        at += 4
        if form == _SIZED:
            found.append((attribute, section[at : at + size]))
            at += size
    return found


def read_kernels(cubin: bytes) -> dict[str, Kernel]:
    """Return the kernels of a cubin by their mangled names."""
    sections = _sections(cubin)
    symbols = _symbols(sections)
    registers = {}
    for attribute, value in _attributes(sections.get(".nv.info", b"")):
        if attribute == _REGISTERS:
            symbol, count = struct.unpack("<II", value)
            registers[symbols[symbol]] = count
    kernels = {}
    for section, content in sections.items():
        if not section.startswith(".nv.info."):
            continue
        name = section.removeprefix(".nv.info.")
        base, parameters = 0, {}
        for attribute, value in _attributes(content):
            if attribute == _PARAMETER_BANK:
                _, base, _ = struct.unpack("<IHH", value)
            elif attribute == _PARAMETER:
                _, ordinal, offset, size = struct.unpack("<IHHI", value)
                parameters[ordinal] = (offset, size >> 18)
        kernels[name] = Kernel(name, base, tuple(parameters[n] for n in sorted(parameters)), registers.get(name, 0))
    return kernels
