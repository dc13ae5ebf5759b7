"""Putting functions in the place of others wherever loaded Python code keeps them, for as long as a block runs."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn

Replacements = dict[int, Callable[..., Any]]
"""The new function for the identity of each old one."""


@contextmanager
def patched(
    replacements: Replacements, model: nn.Module | None = None, leave: Callable[[str], bool] = lambda _: False
) -> Iterator[None]:
    """Replace functions inside the block: in modules' names, in their dicts and lists, and in partials.

    Args:
        replacements: new objects by the identity of old ones.
        model: its layers' attributes are searched too, for functions kept as ``self.attend = na2d``.
        leave: names of Python modules that keep theirs.
    """
    undo: list[Callable[[], None]] = []
    try:
        for module in list(sys.modules.values()):
            space = getattr(module, "__dict__", None)
            if isinstance(module, ModuleType) and space is not None:
                name = module.__name__
                if not name.startswith("na_deploy.") and not leave(name):
                    _swap(space, replacements, undo)
        for layer in () if model is None else model.modules():
            _swap(vars(layer), replacements, undo)
        yield
    finally:
        for restore in reversed(undo):
            restore()


def _swap(space: dict[str, Any], replacements: Replacements, undo: list[Callable[[], None]]) -> None:
    for name, held in list(space.items()):
        new = _replaced(held, replacements)
        if new is None and type(held) in (list, tuple, dict):
            new = _replaced_inside(held, replacements)
        if new is not None:
            space[name] = new
            undo.append(functools.partial(space.__setitem__, name, held))


def _replaced(held: Any, replacements: Replacements) -> Any:
    if id(held) in replacements:
        return replacements[id(held)]
    if type(held) is functools.partial and id(held.func) in replacements:
        return functools.partial(replacements[id(held.func)], *held.args, **held.keywords)
    return None


def _replaced_inside(held: Any, replacements: Replacements) -> Any:
    """Return a copy of a container in which functions are replaced; None where it holds none of them."""
    items = list(held.values() if isinstance(held, dict) else held)
    new = [_replaced(item, replacements) for item in items]
    if all(item is None for item in new):
        return None
    merged = [old if replaced is None else replaced for old, replaced in zip(items, new, strict=True)]
    return dict(zip(held, merged, strict=True)) if isinstance(held, dict) else type(held)(merged)
