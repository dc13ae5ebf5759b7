"""Registration of the plugin library with TensorRT, once per process, and networks whose nodes use its plugins."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import onnx

from na_deploy.attention.schema import DOMAIN, OPERATORS, VERSION
from na_deploy.errors import NaDeployError
from na_deploy.runtime.tensorrt.api import Messages

PREFERS_PLUGINS = (10, 7)
"""The first version whose ONNX parser prefers a registered plugin to a function body of its name."""

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


def parse(module: Any, parser: Any, model: Path) -> bool:
    """Parse a model into the parser's network, with our plugins for its attention nodes where they are registered.

    Parsers before 10.7 inline a node's function body even where a plugin of its name is registered. They are given the
    model without those functions.

    Returns:
        Whether the parser takes the model.
    """
    ours = registered(module) if hasattr(module, "get_plugin_registry") else []
    if not ours or _version(module) >= PREFERS_PLUGINS:
        return bool(parser.parse_from_file(str(model)))
    proto = onnx.load(model, load_external_data=False)
    kept = [function for function in proto.functions if function.domain != DOMAIN or function.name not in ours]
    del proto.functions[:]
    proto.functions.extend(kept)
    return bool(parser.parse(proto.SerializeToString(), str(model)))  # the path is where external data are looked for


def plugins_of(module: Any, network: Any, model: Path) -> list[str]:
    """Return our operators that are plugins in a parsed network. Its layers have the names of the model's nodes."""
    proto = onnx.load(model, load_external_data=False)
    nodes = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    names = {node.name or node.output[0]: node.op_type for node in nodes if node.domain == DOMAIN}
    found = set()
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if layer.type == module.LayerType.PLUGIN_V3:
            found.add(names.get(layer.name) or names.get(re.sub(r"_\d+$", "", layer.name)))
    return sorted(name for name in found if name is not None)


def _version(module: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", module.__version__)[:2])
