"""The check that a configuration describes the model that lies beside it: names, element types, sizes, batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from na_deploy.deployment.check_config import fits
from na_deploy.deployment.config import INTERFACE, declared_type
from na_deploy.deployment.protobuf import DATA_TYPES, Config, type_name
from na_deploy.deployment.source import open_source
from na_deploy.errors import NaDeployError
from na_deploy.model_file.tensors import TensorSpec, format_shape


@dataclass(frozen=True)
class Interface:
    """Inputs and outputs of a model, and the largest batch its engine allows."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    largest_batch: int | None = None


def read_interface(folder: Path, model_file: str) -> Interface | None:
    """Return what the model in a version's folder takes and gives; ``None`` where nothing there says so.

    Raises:
        NaDeployError: the model, or what describes it, is damaged.
    """
    plan = folder / model_file
    if (folder / INTERFACE).is_file() and plan.suffix == ".plan":
        return _recorded(folder / INTERFACE, plan)
    for name in ("model.bundle", "model.onnx", model_file):
        if (folder / name).suffix in (".bundle", ".onnx") and (folder / name).exists():
            with open_source(folder / name) as source:
                return Interface(source.inputs, source.outputs)
    return None


def check_interface(config: Config, interface: Interface) -> Iterator[str]:
    """Yield one sentence for every difference between a configuration and its model."""
    for kind, entries, specs in (
        ("input", config.input, interface.inputs),
        ("output", config.output, interface.outputs),
    ):
        declared = {entry.name: entry for entry in entries}
        known = {spec.name: spec for spec in specs}
        for name in sorted(declared.keys() - known.keys()):
            yield f"{kind} {name!r} is not in the model, which has {', '.join(known)}"
        for name in sorted(known.keys() - declared.keys()):
            if kind == "input":  # outputs may be left out
                yield f"the model's {kind} {known[name]} is missing"
        for name in sorted(declared.keys() & known.keys()):
            yield from _tensor(f"{kind} {name!r}", declared[name], known[name], config)
    if interface.largest_batch is not None and config.max_batch_size > interface.largest_batch:
        yield f"max_batch_size is {config.max_batch_size}, the engine takes batches up to {interface.largest_batch}"


def _tensor(what: str, entry: Any, spec: TensorSpec, config: Config) -> Iterator[str]:
    expected = DATA_TYPES.get(declared_type(spec, config.backend))
    if expected is not None and entry.data_type and type_name(entry.data_type) != expected:
        yield f"{what} is {type_name(entry.data_type)}, the model has {spec.dtype} ({expected})"
    sizes = list(entry.reshape.shape) if entry.HasField("reshape") else list(entry.dims)
    shape = [size if isinstance(size, int) else -1 for size in spec.shape]
    if config.max_batch_size > 0:
        if shape[:1] != [-1]:
            yield f"{what} is {format_shape(spec.shape)} in the model, whose batch is fixed; write max_batch_size: 0"
            return
        shape = shape[1:]
    if not _holds(sizes, shape):
        batch = " beside the batch" if config.max_batch_size > 0 else ""
        yield f"{what} has dims {sizes}, the model has {shape}{batch}"


def _holds(declared: Sequence[int], shape: Sequence[int]) -> bool:
    """Tell whether dims describe a shape: a free size may be declared fixed, a fixed one not free."""
    return fits(declared, shape) and all(a != -1 or b == -1 for a, b in zip(declared, shape, strict=True))


def _recorded(path: Path, plan: Path) -> Interface:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        inputs, outputs = (
            tuple(TensorSpec(str(e["name"]), str(e["dtype"]), tuple(e["shape"])) for e in content[part])
            for part in ("inputs", "outputs")
        )
        sha256, largest = content["sha256"], content["largest_batch"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NaDeployError(f"{path.name} is damaged ({error}); package the bundle again") from None
    if sha256 is not None and plan.is_file():
        with plan.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise NaDeployError(f"{plan.name} is not the engine that {path.name} describes; package the bundle again")
    return Interface(inputs, outputs, largest)
