"""Putting our functions in natten's place: in an installed natten while tracing, or as natten where there is none."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn

from na_deploy.exporter.natten_api import current, fused_017, modules, unfused

SHIM_VERSION = "0.21.0+na_deploy"


@contextmanager
def importable_natten() -> Iterator[bool]:
    """Let ``import natten`` succeed inside the block where natten is not installed; a real one is left alone.

    Yields:
        Whether the stand-in was put in place. Models built inside keep using its functions afterwards.
    """
    if "natten" in sys.modules or importlib.util.find_spec("natten") is not None:
        yield False
        return
    package, functional, layers = (ModuleType(name) for name in ("natten", "natten.functional", "natten.modules"))
    classes = {f"NeighborhoodAttention{rank}D": getattr(modules, f"NeighborhoodAttention{rank}D") for rank in (1, 2, 3)}
    vars(functional).update(current.FUNCTIONS)
    vars(layers).update(classes)
    vars(package).update(current.FUNCTIONS, **classes, functional=functional, modules=layers, __path__=[])
    vars(package).update(__version__=SHIM_VERSION, HAS_LIBNATTEN=False)
    added = {module.__name__: module for module in (package, functional, layers)}
    sys.modules.update(added)
    try:
        yield True
    finally:
        for name, module in added.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


@contextmanager
def replaced_natten(model: nn.Module | None = None) -> Iterator[None]:
    """Replace natten's functions by ours inside the block, wherever they have been imported to.

    Args:
        model: its layers' attributes are searched too, for functions kept as ``self.attend = na2d``.
    """
    natten = sys.modules.get("natten")
    if natten is None or getattr(natten, "__version__", "") == SHIM_VERSION:
        yield
        return
    ours = _originals(natten)
    undo: list[Callable[[], None]] = []
    try:
        for module in list(sys.modules.values()):
            space = getattr(module, "__dict__", None)
            if isinstance(module, ModuleType) and space is not None and not module.__name__.startswith("na_deploy."):
                _swap(space, ours, undo)
        for layer in () if model is None else model.modules():
            _swap(vars(layer), ours, undo)
        yield
    finally:
        for restore in reversed(undo):
            restore()


def _originals(natten: ModuleType) -> dict[int, Callable[..., Any]]:
    """Return our function for the identity of each of natten's."""
    version = tuple(int(part) for part in str(natten.__version__).split(".")[:2])
    functions = current.FUNCTIONS if version >= (0, 20) else {**fused_017.FUNCTIONS, **unfused.FUNCTIONS}
    found = {}
    for module in (natten, sys.modules.get("natten.functional"), sys.modules.get("natten.attn_merge")):
        for name, function in functions.items():
            original = getattr(module, name, None)
            if original is not None:
                found[id(original)] = function
    return found


def _swap(space: dict[str, Any], ours: dict[int, Callable[..., Any]], undo: list[Callable[[], None]]) -> None:
    for name, held in list(space.items()):
        if id(held) in ours:
            new: Any = ours[id(held)]
        elif type(held) is functools.partial and id(held.func) in ours:
            new = functools.partial(ours[id(held.func)], *held.args, **held.keywords)
        else:
            continue
        space[name] = new
        undo.append(functools.partial(space.__setitem__, name, held))
