"""The Python modules of TensorRT and TensorRT-RTX: finding them, their versions, log and element types.

Enumerations are always asked for by name: their values changed between TensorRT 10 and 11.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from na_deploy.errors import MissingDependencyError, NaDeployError

_KEPT_MESSAGES = 200


@dataclass(frozen=True)
class Flavor:
    """One of the two libraries.

    Attributes:
        backend: the name that users choose it by.
        title: its name in sentences.
        modules: Python modules that have its interface; the first that is installed is used.
        majors: major versions that this code works with.
        install: the command that installs it.
        takes_plugins: true if engines can use plugins.
    """

    backend: str
    title: str
    modules: tuple[str, ...]
    majors: tuple[int, ...]
    install: str
    takes_plugins: bool


TENSORRT = Flavor(
    "tensorrt",
    "TensorRT",
    ("tensorrt",),
    (10, 11),
    "pip install tensorrt-cu13 (tensorrt-cu12 with a driver of CUDA 12), on a machine with an NVIDIA GPU",
    takes_plugins=True,
)
RTX = Flavor(
    "tensorrt-rtx",
    "TensorRT-RTX",
    ("tensorrt_rtx", "tensorrt_rtx_bindings"),
    (1,),
    "pip install 'na-deploy[tensorrt-rtx]'",
    takes_plugins=False,
)
FLAVORS = {flavor.backend: flavor for flavor in (TENSORRT, RTX)}

DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
"""Name of a ``DataType`` to NumPy's (ml_dtypes' for bfloat16). FP8 and types of less than a byte have none."""


@cache
def load_module(flavor: Flavor) -> Any:
    """Import the library's Python module.

    Raises:
        MissingDependencyError: it is not installed, cannot be imported, or is of a version this code does not know.
    """
    reasons = []
    for name in flavor.modules:
        try:
            module = import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                reasons.append(str(error))
            continue
        except Exception as error:
            reasons.append(str(error).splitlines()[0] if str(error) else type(error).__name__)
            continue
        if version_of(module)[0] not in flavor.majors:
            known = " and ".join(map(str, flavor.majors))
            raise MissingDependencyError(
                f"{flavor.title} {module.__version__} is installed; this na-deploy works with {known}: {flavor.install}"
            )
        return module
    why = f"cannot be imported ({reasons[0]})" if reasons else "is not installed"
    raise MissingDependencyError(f"{flavor.title} {why}; install it with: {flavor.install}")


def version_of(module: Any) -> tuple[int, ...]:
    """Return the first three numbers of a module's version."""
    return tuple(int(part) for part in str(module.__version__).split(".")[:3] if part.isdecimal())


class Messages:
    """The library's latest warnings and errors. Any of its threads may add some."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: deque[tuple[str, str]] = deque(maxlen=_KEPT_MESSAGES)

    def add(self, severity: str, text: str) -> None:
        """Keep one message; ``severity`` is the library's name of it, in lower case."""
        with self._lock:
            self._kept.append((severity, " ".join(text.split())))

    def all(self) -> list[str]:
        """Return everything kept as "severity: text"."""
        with self._lock:
            return [f"{severity.replace('_', ' ')}: {text}" for severity, text in self._kept]

    def take_reason(self, otherwise: str) -> str:
        """Return the last error and forget all; ``otherwise`` where there is none."""
        with self._lock:
            errors = [text for severity, text in self._kept if "error" in severity]
            self._kept.clear()
        return errors[-1] if errors else otherwise


def make_logger(module: Any, messages: Messages, inform: Callable[[str], None] | None = None) -> Any:
    """Return an ``ILogger`` that keeps warnings and errors in ``messages``, and hands other texts to ``inform``."""
    kept = {module.ILogger.Severity.INTERNAL_ERROR, module.ILogger.Severity.ERROR, module.ILogger.Severity.WARNING}

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in kept:
                messages.add(severity.name.lower(), message)
            elif inform is not None:
                inform(message)

    return Logger()


def dtype_name(dtype: Any, what: str) -> str:
    """Return NumPy's name of a ``DataType``.

    Raises:
        NaDeployError: it has none.
    """
    name = DTYPES.get(dtype.name)
    if name is None:
        raise NaDeployError(f"{what} is of type {dtype.name}, which sessions do not handle; convert it in the model")
    return name
