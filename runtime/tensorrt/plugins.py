"""Our plugin library for TensorRT: registering it, once per process, before what needs it is read."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from na_deploy.attention.schema import DOMAIN, OPERATORS, VERSION
from na_deploy.errors import NaDeployError
from na_deploy.runtime.tensorrt.api import Messages

_lock = threading.Lock()


def registered(module: Any) -> list[str]:
    """Return which of our operators have a plugin in this process."""
    registry = module.get_plugin_registry()
    return [name for name in OPERATORS if registry.get_creator(name, str(VERSION), DOMAIN) is not None]


def register_plugins(module: Any, library: Path, messages: Messages) -> None:
    """Load our library into the process's plugin registry. Does nothing where its plugins are registered already.

    Args:
        module: the TensorRT module.
        library: the library's file. It is code: only of a verified bundle or this installation.
        messages: where the logger of the process writes.

    Raises:
        NaDeployError: the library does not load or brings none of na-deploy's plugins.
    """
    with _lock:
        if registered(module):
            return
        try:
            handle = module.get_plugin_registry().load_library(str(library))
        except Exception as error:
            raise NaDeployError(
                f"TensorRT {module.__version__} cannot load the plugin library {library}: {error}"
            ) from None
        if handle is None or not registered(module):
            reason = messages.take_reason("it brings no neighborhood attention plugin for this version")
            raise NaDeployError(f"TensorRT {module.__version__} refuses the plugin library {library}: {reason}")
