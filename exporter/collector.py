"""Python's search for unreachable objects, made rarer while models are traced."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

THRESHOLDS = (50_000, 20, 50)
"""New objects from which a search begins, and searches of one generation before the next one's."""


@contextmanager
def rare_collections() -> Iterator[None]:
    """Search for unreachable objects more rarely inside the block.

    Tracing makes millions of objects that stay, and with Python's own thresholds a tenth of an export goes into
    searching them. Thresholds that are higher already stay, as does a collector that is switched off.
    """
    before = gc.get_threshold()
    gc.set_threshold(*(0 if now == 0 else max(now, rare) for now, rare in zip(before, THRESHOLDS, strict=True)))
    try:
        yield
    finally:
        gc.set_threshold(*before)
