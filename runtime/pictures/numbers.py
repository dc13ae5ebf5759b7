"""Numbers in pictures, as people write them."""

from __future__ import annotations


def count_text(count: float) -> str:
    """Return a count with the prefix that suits it: ``2.15 M``, ``4.31 G``."""
    for prefix in ("", "k", "M", "G"):
        if abs(count) < 999.5:
            return f"{count:.3g} {prefix}".rstrip()
        count /= 1000
    return f"{count:.3g} T"
