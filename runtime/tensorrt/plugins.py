"""Registration of the plugin library with TensorRT, once per process, before networks or engines that need it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from na_deploy.attention.schema import DOMAIN, OPERATORS, VERSION
from na_deploy.errors import NaDeployError
from na_deploy.runtime.tensorrt.api import Messages

_lock = threading.Lock()


def registered(module: Any) -> list[str]:
    """Return the operators that have a plugin in this process."""
    registry = module.get_plugin_registry()
    return [name for name in OPERATORS if registry.get_creator(name, str(VERSION), DOMAIN) is not None]


def register_plugins(module: Any, library: Path, messages: Messages) -> None:
    """Load the plugin library into the process's registry. Does nothing where its plugins are registered already.

    Args:
        module: the TensorRT module.
        library: the library's file. It is code: give that of a verified bundle or of this installation only.
        messages: messages of the process's logger.

    Raises:
        NaDeployError: the library does not load or brings no plugin of na-deploy.
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
