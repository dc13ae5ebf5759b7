"""PNG files without what pictures can do without: a damaged note beside sound pixels does not damage the picture."""

from __future__ import annotations

import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
"""Chunks that pixels are made of (PNG, third edition, 11.2 and 11.3.1)."""


def only_pixels(data: bytes) -> bytes:
    """Return a PNG file with the chunks that pixels are made of, and its EXIF block if that is undamaged.

    Others are text, times, colour profiles: Pillow refuses the whole file where one of them is damaged. Bytes that
    follow the last whole chunk stay as they are.
    """
    kept, place = [SIGNATURE], len(SIGNATURE)
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4])
        kind = data[place + 4 : place + 8]
        if end > len(data):
            break
        sound = zlib.crc32(data[place + 4 : end - 4]) == int.from_bytes(data[end - 4 : end])
        if kind in _PIXELS or (kind == b"eXIf" and sound):
            kept.append(data[place:end])
        place = end
    return b"".join(kept) + data[place:]
