"""The file of a user's module against the module itself, at the example's sizes and at others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from torch import Tensor, nn

from na_deploy.errors import NaDeployError
from na_deploy.exporter.verify import Difference, open_session

Dynamic = Mapping[str, Mapping[int, str]]
"""Names of the free axes of each input: ``{"image": {0: "batch"}}``."""


def verify_module(
    module: nn.Module, inputs: Mapping[str, Tensor], dynamic: Dynamic, path: Path
) -> tuple[list[Difference], list[str]]:
    """Run the file in stock ONNX Runtime and the module in PyTorch, on the examples and with free axes doubled.

    Returns:
        The differences of every output, and a sentence for each free axis that could not be tried at another size.

    Raises:
        NaDeployError: ONNX Runtime refuses the file, or runs it at the example's sizes alone.
    """
    session = open_session(path)
    found = _compare(session, _run(module, inputs), inputs, path)
    untried = []
    for name in dict.fromkeys(name for axes in dynamic.values() for name in axes.values()):
        longer = {key: _doubled(tensor, name, dynamic.get(key, {})) for key, tensor in inputs.items()}
        try:
            expected = _run(module, longer)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            untried.append(f"{name!r} was not tried at another size: PyTorch refuses twice the example's ({reason})")
            continue
        found += _compare(session, expected, longer, path)
    return found, untried


def _doubled(tensor: Tensor, name: str, axes: Mapping[int, str]) -> Tensor:
    for axis, label in axes.items():
        if label == name:
            tensor = torch.cat([tensor, tensor.flip(axis)], axis)
    return tensor


def _run(module: nn.Module, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    with torch.inference_mode():
        outputs = torch.utils._pytree.tree_leaves(module(**inputs))
    return [value for value in outputs if isinstance(value, Tensor)]


def _compare(
    session: ort.InferenceSession, expected: list[Tensor], inputs: Mapping[str, Tensor], path: Path
) -> list[Difference]:
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
    return [
        Difference.between(name, ours.astype("float32"), theirs.float().numpy())
        for name, ours, theirs in zip(names, found, expected, strict=True)
    ]


def _array(tensor: Tensor, kind: str) -> Any:
    # bfloat16 files are run widened, and NumPy has no such type
    return (tensor.float() if kind == "tensor(float)" else tensor).numpy()
