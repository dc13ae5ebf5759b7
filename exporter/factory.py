"""``package.module:factory``: importing the user's Python and calling it, with its errors named as its own."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

from torch import nn

from na_deploy.errors import NaDeployError, UsageError
from na_deploy.exporter.natten_api import importable_natten
from na_deploy.exporter.user_code import described


def build_module(name: str, natten: str | None = None) -> nn.Module:
    """Import ``package.module:factory`` and call it; this runs the user's Python.

    The current folder is searched first, as ``python -m`` does. The factory takes no arguments and returns a module; a
    module object is taken as it is.

    Args:
        name: the module and the factory in it.
        natten: whose interface ``import natten`` offers, see :func:`importable_natten`.

    Raises:
        UsageError: it cannot be imported, is not there, fails, or gives no module.
    """
    path, _, attribute = name.partition(":")
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        with importable_natten(natten):
            found = _attribute(_imported(path), path, attribute)
            module = found if isinstance(found, nn.Module) else _called(found, name)
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    if not isinstance(module, nn.Module):
        raise UsageError(f"{name} gave {type(module).__name__}; it must give a torch.nn.Module")
    return module


def _imported(path: str) -> Any:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if path == missing or path.startswith(f"{missing}."):
            raise UsageError(
                f"cannot import {path!r}: there is no Python module {missing!r}; run from the folder that holds it, or "
                "install it"
            ) from error
        raise UsageError(f"importing {path} fails in it: {described(error)}; install what it imports") from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"importing {path} fails in it: {described(error)}{_advice(error)}") from error


def _attribute(module: Any, path: str, attribute: str) -> Any:
    found = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            there = f"; it has {', '.join(names[:8])}" if names else ""
            raise UsageError(f"{path} has no attribute {part!r}{there}") from error
    return found


def _called(factory: Any, name: str) -> Any:
    if not callable(factory):
        raise UsageError(f"{name} is {type(factory).__name__}; it must be a function or a torch.nn.Module")
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise UsageError(
            f"{name} must be callable without arguments: {error}; write a function that fills them in"
        ) from error
    except ValueError:  # a callable without a signature
        pass
    try:
        return factory()
    except NaDeployError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"{name} fails in your factory: {described(error)}{_advice(error)}") from error


_NEW_ARGUMENTS = ("embed_dim", "stride")
_OLD_ARGUMENTS = ("dim", "bias", "rel_pos_bias", "rpb", "attn_drop")


def _advice(error: BaseException) -> str:
    """Return what to try where the error is about natten's interface."""
    text = str(error)
    unexpected = "unexpected keyword argument" in text
    if unexpected and any(f"'{name}'" in text for name in _NEW_ARGUMENTS):
        return "; this is written for natten 0.20 or later: remove --natten, or give 0.21"
    old_argument = unexpected and any(f"'{name}'" in text for name in _OLD_ARGUMENTS)
    if "natten" in text.lower() or "NeighborhoodAttention" in text or old_argument:
        return "; for code written for an older natten give --natten 0.14, 0.15 or 0.17"
    return ""
