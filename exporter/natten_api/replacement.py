"""Putting our functions in natten's place: in an installed natten while tracing, or as natten where there is none."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn

from na_deploy.errors import UsageError
from na_deploy.exporter.natten_api import current, fused_017, modules, unfused
from na_deploy.exporter.natten_api.monkeypatch import patched
from na_deploy.exporter.natten_api.old_modules import old_modules

_MARK = "na_deploy"

STAND_INS = ("0.14", "0.15", "0.17", "0.21")
"""Versions of natten's interface that :func:`importable_natten` can offer."""


@contextmanager
def importable_natten(version: str = STAND_INS[-1]) -> Iterator[bool]:
    """Let ``import natten`` succeed inside the block where natten is not installed; a real one keeps what it has.

    Only names that natten 0.20 and later no longer have, ``natten2dqkrpb`` and their like, are added to a real one.

    Args:
        version: whose names, signatures and defaults to offer. The separate functions of 0.14 to 0.17 have names of
            their own and are there in any.

    Yields:
        Whether the stand-in was put in place. Models built inside keep using its functions afterwards.

    Raises:
        UsageError: no such version.
    """
    if version not in STAND_INS:
        raise UsageError(f"there is no stand-in for natten {version}; choose one of {', '.join(STAND_INS)}")
    if "natten" in sys.modules or importlib.util.find_spec("natten") is not None:
        with _old_names():
            yield False
        return
    package, functional, layers = (ModuleType(name) for name in ("natten", "natten.functional", "natten.modules"))
    functions, classes = _interface(version)
    vars(functional).update(functions)
    vars(layers).update(classes)
    vars(package).update(functions, **classes, functional=functional, modules=layers, __path__=[])
    vars(package).update(__version__=f"{version}.0+{_MARK}", HAS_LIBNATTEN=False)
    vars(package).update(dict.fromkeys(_QUESTIONS, _no) | dict.fromkeys(_SWITCHES, _nothing))
    added = {module.__name__: module for module in (package, functional, layers)}
    sys.modules.update(added)
    try:
        yield True
    finally:
        for name, module in added.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


@contextmanager
def _old_names() -> Iterator[None]:
    """Add the functions that an installed natten has no more to its ``natten.functional``, inside the block."""
    functional = importlib.import_module("natten.functional")
    added = {name: function for name, function in unfused.FUNCTIONS.items() if not hasattr(functional, name)}
    vars(functional).update(added)
    try:
        yield
    finally:
        for name in added:
            delattr(functional, name)


_QUESTIONS = ("has_cuda", "has_half", "has_bfloat", "has_gemm", "has_fp32_gemm", "has_fp64_gemm", "is_fna_enabled")
_SWITCHES = (
    *("use_fused_na", "disable_fused_na", "use_autotuner", "disable_autotuner", "use_flex_attention"),
    *("use_kv_parallelism_in_fused_na", "disable_kv_parallelism_in_fused_na", "set_memory_usage_preference"),
)
"""What models ask of natten, or set, beside calling it: none of it changes results."""


def _no(*_: Any, **__: Any) -> bool:
    return False


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _interface(version: str) -> tuple[dict[str, Callable[..., Any]], dict[str, type[nn.Module]]]:
    """Return a version's functions and modules by name."""
    if version == STAND_INS[-1]:
        classes = {
            f"NeighborhoodAttention{rank}D": getattr(modules, f"NeighborhoodAttention{rank}D") for rank in (1, 2, 3)
        }
        return {**unfused.FUNCTIONS, **current.FUNCTIONS}, classes
    return {**unfused.FUNCTIONS, **fused_017.FUNCTIONS}, old_modules(pads=version != "0.17")


@contextmanager
def replaced_natten(model: nn.Module | None = None) -> Iterator[None]:
    """Replace natten's functions by ours inside the block, wherever they have been imported to.

    Args:
        model: its layers' attributes are searched too, for functions kept as ``self.attend = na2d``.
    """
    natten = sys.modules.get("natten")
    if natten is None or _MARK in getattr(natten, "__version__", ""):
        yield
        return
    with patched(_originals(natten), model):
        yield


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
