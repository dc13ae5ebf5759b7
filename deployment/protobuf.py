"""Triton's ``ModelConfig`` message, as tritonclient ships it: reading and writing ``config.pbtxt``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from na_deploy import __version__
from na_deploy.errors import MissingDependencyError, NaDeployError

CONFIG = "config.pbtxt"
LARGEST_CONFIG = 4 << 20
"""Bytes; a configuration of any model is a few kilobytes."""

Config = Any
"""``tritonclient.grpc.model_config_pb2.ModelConfig``, which has no types of its own."""

DATA_TYPES = {
    "bool": "TYPE_BOOL",
    **{f"{sign}int{bits}": f"TYPE_{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "string": "TYPE_STRING",
}
"""Triton's name of an element type, by ours."""


def messages() -> Any:
    """Return the module with ``ModelConfig``.

    Raises:
        MissingDependencyError: tritonclient is not installed.
    """
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise MissingDependencyError(
            f"writing and checking Triton's configurations needs tritonclient, which cannot be imported ({error}); "
            "install it with: pip install 'na-deploy[triton]'"
        ) from None
    return model_config_pb2


def data_type(name: str) -> int:
    """Return Triton's number of an element type.

    Raises:
        NaDeployError: Triton has no such type.
    """
    if name not in DATA_TYPES:
        raise NaDeployError(f"Triton has no element type for {name}; it has {', '.join(DATA_TYPES)}")
    number: int = messages().DataType.Value(DATA_TYPES[name])
    return number


def type_name(number: int) -> str:
    """Return the name of one of Triton's types, such as ``TYPE_FP32``."""
    name: str = messages().DataType.Name(number)
    return name


def to_text(config: Config) -> str:
    """Return a configuration as ``config.pbtxt`` holds it."""
    from google.protobuf import text_format

    text: str = text_format.MessageToString(config)
    return f"# Written by na-deploy {__version__}; `na-deploy package --check` checks it after changes by hand.\n{text}"


def parse(text: str) -> Config:
    """Read a configuration.

    Raises:
        NaDeployError: it is not one; the message says where.
    """
    from google.protobuf import text_format

    config = messages().ModelConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        raise NaDeployError(f"it cannot be parsed as ModelConfig: {' '.join(str(error).split())}") from None
    return config


def read(path: Path) -> Config:
    """Read a ``config.pbtxt``.

    Raises:
        NaDeployError: it cannot be read, or is not a configuration.
    """
    messages()
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_CONFIG + 1)
        if len(content) > LARGEST_CONFIG:
            raise NaDeployError(f"{path.name} is larger than {LARGEST_CONFIG >> 20} MiB")
        return parse(content.decode("utf-8"))
    except OSError as error:
        raise NaDeployError(f"{path.name} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise NaDeployError(f"{path.name} is not UTF-8 text") from None
