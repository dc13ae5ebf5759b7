"""Running a user's module in PyTorch, and its outputs as plain tensors."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from na_deploy.errors import NaDeployError
from na_deploy.exporter.natten_api.calls import call_site
from na_deploy.exporter.tracing import quiet
from na_deploy.exporter.user_code import described


def run_module(module: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    """Return a module's outputs for inputs by name, as it gives them."""
    with quiet(), torch.inference_mode():
        return module(**inputs)


def first_run(module: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Any, str | None]:
    """Run a module before anything is traced.

    Returns:
        Its outputs, and where its code makes complex numbers, which ONNX has no operators for.

    Raises:
        NaDeployError: its own code fails on these inputs; says where.
    """
    watch = _ComplexNumbers()  # type: ignore[no-untyped-call]
    try:
        with watch:
            outputs = run_module(module, inputs)
    except NaDeployError:
        raise
    except Exception as error:
        sizes = ", ".join(f"{name} {'x'.join(map(str, tensor.shape))}" for name, tensor in inputs.items())
        raise NaDeployError(
            f"the forward of {type(module).__name__} fails in PyTorch on inputs of {sizes}: {described(error)}"
        ) from error
    return outputs, watch.place


class _ComplexNumbers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    place: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.place is None and isinstance(result, Tensor) and result.is_complex():
            self.place = call_site()
        return result


def tensors_of(outputs: Any) -> list[Tensor]:
    """Return the tensors in a module's outputs, in order."""
    leaves = torch.utils._pytree.tree_leaves(plain(outputs))
    return [value for value in leaves if isinstance(value, Tensor)]


def plain(value: Any) -> Any:
    """Return outputs with dataclasses as dicts of their fields."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return value


def is_traceable(outputs: Any) -> bool:
    """Return whether the tracer takes outputs as they are: tensors in lists and dicts, and nothing else."""
    leaves = torch.utils._pytree.tree_leaves(outputs)
    return all(leaf is None or isinstance(leaf, Tensor) for leaf in leaves)


class PlainOutputs(nn.Module):
    """A module that returns the tensors of its outputs alone, in order; its forward has the same arguments."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

        def forward(*arguments: Any, **named: Any) -> Any:
            return tuple(tensors_of(model(*arguments, **named)))

        forward.__signature__ = inspect.signature(model.forward)  # type: ignore[attr-defined]
        self.forward = forward
