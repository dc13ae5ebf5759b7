"""Putting our functions in natten's place: in an installed natten while tracing, or as natten where there is none."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from na_deploy.errors import UsageError
from na_deploy.exporter.natten_api.distribution import known_distribution
from na_deploy.exporter.natten_api.interface import AUTOGRAD, MARK, RELEASES, contents, functions, interface_of
from na_deploy.exporter.natten_api.monkeypatch import patched

STAND_INS = tuple(RELEASES)
"""Versions of natten's interface that :func:`importable_natten` can offer."""

_GET_KERNEL = ("get_kernel", "load_kernel", "get_locked_kernel")


def installed_natten() -> str | None:
    """Return the version of the natten that is installed, or ``None``."""
    module = sys.modules.get("natten")
    if module is not None and not hasattr(module, MARK):
        return str(getattr(module, "__version__", "0"))
    if module is None and importlib.util.find_spec("natten") is not None:
        return importlib.metadata.version("natten")
    return None


def replaces_installed(version: str | None) -> bool:
    """Return whether asking for an interface puts a stand-in over the natten that is installed, which has another."""
    installed = installed_natten()
    return version is not None and installed is not None and interface_of(installed) != version


@contextmanager
def importable_natten(version: str | None = None) -> Iterator[bool]:
    """Let ``import natten`` succeed inside the block, with the names that models of every version look for.

    An installed natten is used as it is, unless it has another interface than ``version``. Names that 0.20 and later
    no longer have, ``natten2dqkrpb`` and their like, are added to it.

    Args:
        version: whose names, signatures and defaults to offer; by default the installed natten's, or the latest. The
            separate functions of 0.14 to 0.17 have names of their own and are there in any.

    Yields:
        True if a stand-in was put in place. Models built inside keep using its functions afterwards.

    Raises:
        UsageError: no such version.
    """
    if version is not None and version not in STAND_INS:
        raise UsageError(f"there is no stand-in for natten {version}; choose one of {', '.join(STAND_INS)}")
    present = sys.modules.get("natten")
    if present is not None and hasattr(present, MARK):  # nested: the outer block's stays
        yield True
        return
    stands_in = installed_natten() is None or replaces_installed(version)
    with ExitStack() as stack:
        if stands_in:
            stack.enter_context(_stand_in(version or STAND_INS[-1]))
        else:
            stack.enter_context(_older_names(importlib.import_module("natten")))
        stack.enter_context(_natten_from_the_hub())
        yield stands_in


@contextmanager
def _stand_in(version: str) -> Iterator[None]:
    hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "natten"}
    for name in hidden:
        del sys.modules[name]
    modules = {name: _module(name, names) for name, names in contents(version).items()}
    package = modules["natten"]
    package.__path__ = []
    for name, module in modules.items():
        vars(package).setdefault(name.removeprefix("natten."), module)
    sys.modules.update(modules)
    try:
        with known_distribution(RELEASES[version]):
            yield
    finally:
        for name, module in modules.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
        sys.modules.update(hidden)


def _module(name: str, names: dict[str, Any]) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, origin="na-deploy", is_package=name == "natten")
    vars(module).update(names, **{MARK: True})
    return module


@contextmanager
def _older_names(natten: ModuleType) -> Iterator[None]:
    """Add to an installed natten what it has no more, or never had on this machine, inside the block."""
    undo: list[Callable[[], object]] = []
    for name, names in contents(interface_of(str(natten.__version__))).items():
        try:
            module = importlib.import_module(name)
        except ImportError:
            sys.modules[name] = module = _module(name, {})
            undo.append(partial(sys.modules.pop, name))
            if not hasattr(natten, name.removeprefix("natten.")):
                setattr(natten, name.removeprefix("natten."), module)
                undo.append(partial(delattr, natten, name.removeprefix("natten.")))
        space = vars(module)
        for key, value in names.items():
            if key not in space:
                space[key] = value
                undo.append(partial(space.pop, key))
    held = vars(natten).get("HAS_LIBNATTEN")
    vars(natten)["HAS_LIBNATTEN"] = True  # some packages insist; its kernels never run
    undo.append(lambda: vars(natten).update(HAS_LIBNATTEN=held))
    try:
        yield
    finally:
        for step in reversed(undo):
            step()


@contextmanager
def _natten_from_the_hub() -> Iterator[None]:
    """Let Hugging Face's ``kernels`` hand out the natten of this block, which needs no download and no GPU."""
    kernels = _kernels_package()
    if kernels is None:
        yield
        return

    def handed_out(original: Callable[..., Any]) -> Callable[..., Any]:
        def get_kernel(repo_id: Any, *arguments: Any, **named: Any) -> Any:
            if str(repo_id).rpartition("/")[2] == "natten":
                return importlib.import_module("natten")
            return original(repo_id, *arguments, **named)

        return get_kernel

    originals = [getattr(kernels, name) for name in _GET_KERNEL if hasattr(kernels, name)]
    with patched({id(original): handed_out(original) for original in originals}):
        yield


def _kernels_package() -> ModuleType | None:
    """Import Hugging Face's package, which a user's own module may share the name with."""
    try:
        distribution = importlib.metadata.distribution("kernels")
        spec = importlib.util.find_spec("kernels")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    own = Path(str(distribution.locate_file("kernels/__init__.py"))).resolve()
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != own:
        return None
    try:
        return importlib.import_module("kernels")
    except Exception:  # a broken installation is the user's module's to report
        return None


@contextmanager
def replaced_natten(model: nn.Module | None = None, version: str | None = None) -> Iterator[None]:
    """Replace natten's functions by ours inside the block, wherever they have been imported to.

    ``import natten`` works inside, as in :func:`importable_natten`, for models that import it when they run.

    Args:
        model: its layers' attributes are searched too, for functions kept as ``self.attend = na2d``.
        version: whose interface ``import natten`` offers.
    """
    originals = {}
    for package in _natten_packages():
        originals.update(_originals(package))
    with importable_natten(version), patched(originals, model):
        yield


def _natten_packages() -> list[ModuleType]:
    """Return every natten that is loaded, under whatever name: ``kernels`` loads it under one of its own."""
    found = []
    for module in list(sys.modules.values()):
        space = getattr(module, "__dict__", {})
        functional = space.get("functional") or sys.modules.get(f"{space.get('__name__')}.functional")
        if "HAS_LIBNATTEN" not in space and space.get("__name__") != "natten":
            continue
        has_calls = space.get("__name__") == "natten" or callable(getattr(functional, "na2d", None))
        if isinstance(functional, ModuleType) and has_calls and MARK not in space:
            found.append(module)
    return found


def _originals(natten: ModuleType) -> dict[int, Any]:
    """Return our function for the identity of each of natten's."""
    version = interface_of(str(getattr(natten, "__version__", "0.21")))
    names: dict[str, Any] = functions(version) | (AUTOGRAD if version != "0.21" else {})
    found: dict[int, Any] = {}
    submodules = [
        vars(natten).get(name) or sys.modules.get(f"{natten.__name__}.{name}")
        for name in ("functional", "attn_merge", "modules", "experimental")
    ]
    for module in (natten, *(module for module in submodules if isinstance(module, ModuleType))):
        for name, ours in names.items():
            original = vars(module).get(name)
            if original is not None and not isinstance(original, ModuleType):
                found[id(original)] = ours
    return found
