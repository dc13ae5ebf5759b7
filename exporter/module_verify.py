"""The file of a user's module against the module itself, at the example's sizes and at others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from torch import Tensor, nn

from na_deploy.errors import NaDeployError
from na_deploy.exporter.module_run import run_module, tensors_of
from na_deploy.exporter.verify import open_session
from na_deploy.model_file.differences import Difference

Dynamic = Mapping[str, Mapping[int, str]]
"""Names of the free axes of each input: ``{"image": {0: "batch"}}``."""


@dataclass(frozen=True)
class ModuleCase:
    """The differences for inputs of one size each.

    Attributes:
        inputs: sizes by name.
        differences: one for each output.
    """

    inputs: Mapping[str, tuple[int, ...]]
    differences: tuple[Difference, ...]

    @property
    def sizes(self) -> str:
        """The sizes in words: "x 1x4x64x64, time 1"."""
        return ", ".join(f"{name} {'x'.join(map(str, sizes)) or 'scalar'}" for name, sizes in self.inputs.items())


def verify_module(
    module: nn.Module, inputs: Mapping[str, Tensor], dynamic: Dynamic, path: Path, expected: list[Tensor]
) -> tuple[list[ModuleCase], list[str]]:
    """Run the file in stock ONNX Runtime and the module in PyTorch, on the examples and with free axes doubled.

    Args:
        module: the module.
        inputs: the examples.
        dynamic: the axes left free.
        path: the file.
        expected: the module's outputs for the examples.

    Returns:
        A case for each size, and a sentence for each free axis that could not be tried at another size.

    Raises:
        NaDeployError: ONNX Runtime refuses the file, or runs it at the example's sizes alone.
    """
    session = open_session(path)
    found = [_compare(session, expected, inputs, path)]
    untried = []
    for name in dict.fromkeys(name for axes in dynamic.values() for name in axes.values()):
        longer = {key: _doubled(tensor, name, dynamic.get(key, {})) for key, tensor in inputs.items()}
        try:
            outputs = tensors_of(run_module(module, longer))
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            untried.append(f"{name!r} was not tried at another size: PyTorch refuses twice the example's ({reason})")
            continue
        found.append(_compare(session, outputs, longer, path))
    return found, untried


def _doubled(tensor: Tensor, name: str, axes: Mapping[int, str]) -> Tensor:
    for axis, label in axes.items():
        if label == name:
            tensor = torch.cat([tensor, tensor.flip(axis)], axis)
    return tensor


def _compare(
    session: ort.InferenceSession, expected: list[Tensor], inputs: Mapping[str, Tensor], path: Path
) -> ModuleCase:
    names = [output.name for output in session.get_outputs()]
    taken = {value.name: value.type for value in session.get_inputs()}
    feed = {name: _array(tensor, taken[name]) for name, tensor in inputs.items() if name in taken}
    try:
        found: list[Any] = session.run(names, feed)
    except Exception as error:
        sentence = " ".join(str(error).split())[:400]
        sizes = ", ".join("x".join(map(str, tensor.shape)) for tensor in inputs.values())
        raise NaDeployError(
            f"ONNX Runtime {ort.__version__} cannot run {path.name} on inputs of {sizes}: {sentence}"
        ) from error
    if len(names) != len(expected):
        raise NaDeployError(f"{path.name} has {len(names)} outputs and the module returns {len(expected)} tensors")
    differences = (
        Difference.between(name, ours.astype("float32"), theirs.float().numpy())
        for name, ours, theirs in zip(names, found, expected, strict=True)
    )
    return ModuleCase({name: tuple(tensor.shape) for name, tensor in inputs.items()}, tuple(differences))


def _array(tensor: Tensor, kind: str) -> Any:
    # bfloat16 files are run widened, and NumPy has no such type
    return (tensor.float() if kind == "tensor(float)" else tensor).numpy()
