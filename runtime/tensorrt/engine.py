"""A deserialised engine with its inputs and outputs, and sentences for engines that cannot be loaded.

Runs nothing; :mod:`na_deploy.runtime.tensorrt.contexts` does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from na_deploy.errors import NaDeployError
from na_deploy.model_file.tensors import TensorSpec
from na_deploy.runtime.tensorrt.api import Flavor, Messages, dtype_name, make_logger
from na_deploy.runtime.tensorrt.plugins import register_plugins
from na_deploy.runtime.tensorrt.profiles import EngineProfile, read_profiles

_CAUSES = (
    (
        re.compile(r"plugin|creator", re.I),
        "it needs a plugin that is not registered; install na-deploy with its TensorRT plugin or name it in "
        "NA_DEPLOY_TRT_LIBRARY",
    ),
    (
        re.compile(r"magic|header|corrupt|truncat|checksum|unexpected end|stdArchiveReader|serialization", re.I),
        "it is damaged or no engine; copy or build it again",
    ),
    (
        re.compile(r"compute capability|incompatible device|expecting compute|\bSM\b|platform", re.I),
        "it was built for another GPU; build it again on this one, or with --hardware-compatible",
    ),
    (
        re.compile(r"version|older|newer|not compatible with this", re.I),
        "it was built with another version; build it again with the installed one",
    ),
    (
        re.compile(r"out of memory|OutOfMemory|memory allocation", re.I),
        "the GPU does not have enough memory free",
    ),
)


@dataclass
class Engine:
    """A loaded engine.

    Attributes:
        path: the file it was read from.
        flavor: its library.
        module: the library's Python module.
        handle: its ``ICudaEngine``.
        messages: the library's messages.
        inputs: its inputs; a free size is named after its input and axis.
        outputs: its outputs.
        profiles: its optimization profiles.
        keep: objects of the library that must outlive the engine.
    """

    path: Path
    flavor: Flavor
    module: Any
    handle: Any
    messages: Messages
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[EngineProfile, ...]
    keep: list[object] = field(default_factory=list, repr=False)

    @property
    def activation_bytes(self) -> int:
        """Device memory that one execution needs besides weights, inputs and outputs, for any of the profiles."""
        return int(self.handle.device_memory_size_v2)

    def create_context(self) -> Any:
        """Return a new execution context without memory for activations.

        Raises:
            NaDeployError: the library refuses.
        """
        strategy = self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self.handle.create_execution_context(strategy)
        if context is None:
            raise self.failure("could not be given an execution context")
        return context

    def failure(self, what: str) -> NaDeployError:
        """Return an error of the engine's failure and the library's last message."""
        reason = self.messages.take_reason("it does not say why")
        return NaDeployError(f"{self.flavor.title}: {self.path.name} {what}: {reason}")

    def layer_information(self) -> str:
        """Return the engine inspector's description of all layers, as JSON."""
        inspector = self.handle.create_engine_inspector()
        return str(inspector.get_engine_information(self.module.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Release the engine, after its contexts."""
        self.handle = None
        self.keep.clear()


def load_engine(
    path: Path,
    module: Any,
    flavor: Flavor,
    *,
    library: Path | None = None,
    host_code_allowed: bool = False,
) -> Engine:
    """Deserialise an engine on the current device.

    Args:
        path: the engine's file.
        module: the library's Python module.
        flavor: the library.
        library: the plugin library, registered before; ``None`` where the engine needs none.
        host_code_allowed: run code inside the engine, which version-compatible ones carry. For trusted files only.

    Raises:
        NaDeployError: the library refuses the engine; the message gives the reason, where it is known.
    """
    messages = Messages()
    logger = make_logger(module, messages)
    if library is not None and flavor.takes_plugins:
        register_plugins(module, library, messages)
    runtime = module.Runtime(logger)
    if host_code_allowed:
        runtime.engine_host_code_allowed = True
    plan = path.read_bytes()
    if not plan:
        raise NaDeployError(f"{path} is empty; copy or build the engine again")
    try:
        handle = runtime.deserialize_cuda_engine(plan)
    except Exception as error:
        messages.add("error", str(error))
        handle = None
    if handle is None:
        reason = messages.take_reason("it does not say why")
        raise NaDeployError(f"{flavor.title} {module.__version__} cannot load {path}: {explain(reason)}")
    inputs, outputs = _interface(handle, module, path)
    profiles = read_profiles(handle, [spec.name for spec in inputs])
    return Engine(path, flavor, module, handle, messages, inputs, outputs, profiles, [runtime, logger])


def explain(reason: str) -> str:
    """Return the library's reason, with explanation and advice where it is a known one."""
    for pattern, meaning in _CAUSES:
        if pattern.search(reason):
            return f"{meaning} ({reason})"
    return reason


def _interface(handle: Any, module: Any, path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    inputs, outputs = [], []
    for index in range(int(handle.num_io_tensors)):
        name = str(handle.get_tensor_name(index))
        if handle.is_shape_inference_io(name) or handle.get_tensor_location(name) != module.TensorLocation.DEVICE:
            raise NaDeployError(f"{path}: {name} holds sizes, not numbers; sessions do not run such engines")
        if handle.get_tensor_format(name) != module.TensorFormat.LINEAR:
            raise NaDeployError(f"{path}: {name} is not in plain layout; build the engine without such formats")
        spec = _spec(handle, name)
        if handle.get_tensor_mode(name) == module.TensorIOMode.INPUT:
            inputs.append(spec)
        else:
            outputs.append(spec)
    return tuple(inputs), tuple(outputs)


def _spec(handle: Any, name: str) -> TensorSpec:
    sizes = [int(size) for size in handle.get_tensor_shape(name)]
    shape = tuple(f"{name}.{axis}" if size < 0 else size for axis, size in enumerate(sizes))
    return TensorSpec(name, dtype_name(handle.get_tensor_dtype(name), name), shape)


def named_like(found: Sequence[TensorSpec], known: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return ``found`` with the names of free sizes that a manifest knows, where it agrees on everything else."""
    by_name = {spec.name: spec for spec in known}

    def named(spec: TensorSpec) -> TensorSpec:
        other = by_name.get(spec.name)
        fits = (
            other is not None
            and other.dtype == spec.dtype
            and len(other.shape) == len(spec.shape)
            and all(isinstance(b, str) or a == b for a, b in zip(spec.shape, other.shape, strict=True))
        )
        return other if fits and other is not None else spec

    return tuple(named(spec) for spec in found)
