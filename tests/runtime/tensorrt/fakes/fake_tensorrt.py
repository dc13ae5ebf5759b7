"""TensorRT's Python module over the fake CUDA runtime: the object protocol, with ONNX Runtime doing the work.

Faithful in what code can get wrong: an attribute that the real bindings of that version lack (../api)
cannot be read, set or defined here; one they have and this file does not model raises NotImplementedError. Contexts
compute when the stream runs, refuse to be recorded before a first run, and a graph whose context was changed after
recording is an error. An engine of another version or GPU is refused with TensorRT's own words, and a damaged one ends
the process if FAKE_TENSORRT_CRASH is set.
"""

from __future__ import annotations

import enum
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

API = Path(__file__).parent.parent / "api"


def make_module(name: str, version: str) -> dict[str, Any]:
    """Return the content of a module that stands in for one version."""
    from fake_tensorrt_build import build_classes
    from fake_tensorrt_run import run_classes

    described = json.loads((API / f"{version}.json").read_text())
    trt = SimpleNamespace(
        __version__=os.environ.get("FAKE_TENSORRT_VERSION", described["version"]),
        rtx=version.startswith("tensorrt_rtx"),
    )
    for key, members in described["enumerations"].items():
        setattr(trt, key, enum.IntEnum(key, members))
    base = _base(described["classes"])
    for make in (_logging, run_classes, build_classes):
        for made in make(trt, base):
            made.__module__ = name
            setattr(trt, made.__name__, made)
    registry = trt.IPluginRegistry()
    functions = {
        "get_plugin_registry": lambda: registry,
        "init_libnvinfer_plugins": lambda logger, namespace: True,
        "get_nv_onnx_parser_version": lambda: 0,
    }
    assert set(functions) <= set(described["functions"])
    trt.registry = registry
    names = [key for key in vars(trt) if key not in ("rtx", "registry")]
    return {key: getattr(trt, key) for key in names} | functions | {"fake": trt}


def _base(classes: dict[str, list[str]]) -> type:
    """Return a base class whose subclasses have nothing that the real class of their name lacks."""

    class Faithful:
        _known: frozenset[str] = frozenset()

        def __init_subclass__(cls, **options: Any) -> None:
            super().__init_subclass__(**options)
            if cls.__name__ in classes and not cls._known:
                cls._known = frozenset(classes[cls.__name__])
                public = {name for name in vars(cls) if not name.startswith("_")}
                assert public <= cls._known, f"{cls.__name__} has no {sorted(public - cls._known)}"

        def __setattr__(self, name: str, value: Any) -> None:
            if not name.startswith("_") and name not in self._known and type(self).__module__.startswith("tensorrt"):
                raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
            object.__setattr__(self, name, value)

        def __getattr__(self, name: str) -> Any:
            if name in self._known:
                raise NotImplementedError(f"the fake does not model {type(self).__name__}.{name}")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    return Faithful


def _logging(trt: Any, base: type) -> list[type]:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    class ILogger(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            self._ready = True

        def log(self, severity: Any, message: str) -> None:
            raise NotImplementedError

    class Logger(ILogger):
        def __init__(self, min_severity: Any = Severity.WARNING) -> None:
            super().__init__()
            self._least = min_severity

        def log(self, severity: Any, message: str) -> None:
            if severity <= self._least:
                print(message)

    for cls in (ILogger, Logger):
        cls.Severity = Severity
        for member in Severity:
            setattr(cls, member.name, member)

    class IPluginRegistry(base):  # type: ignore[misc, valid-type]
        """Libraries are JSON files that list operators, or say why they do not load."""

        def __init__(self) -> None:
            self._creators: dict[tuple[str, str, str], Any] = {}
            self._loaded: list[str] = []

        def load_library(self, plugin_path: str) -> Any:
            try:
                content = json.loads(Path(plugin_path).read_text())
            except (OSError, ValueError):
                return None
            self._loaded.append(plugin_path)
            for kind in content["operators"]:
                self._creators[kind, "1", "na_deploy"] = kind
            return object()

        def get_creator(self, type: str, version: str, plugin_namespace: str = "") -> Any:
            return self._creators.get((type, version, plugin_namespace))

    return [ILogger, Logger, IPluginRegistry]
