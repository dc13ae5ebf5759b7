"""A classifier's last layer under the names that training code gives it: one linear layer, or an error that helps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from na_deploy.errors import CheckpointError

_NETWORK = re.compile(r"^(levels|layers|patch_embed|norm\d*)\.")
_HEAD = re.compile(r"(^|[._])(head|heads|fc|classifier|cls|linear|logits)([._\d]|$)")


def adopt_head(path: Path, inside: dict[str, Tensor], outside: Mapping[str, Tensor], warnings: list[str]) -> set[str]:
    """Put a classifier's only linear layer where the network has its own, ``head.weight`` and ``head.bias``.

    Args:
        path: for messages.
        inside: the network's weights in the official layout; changed in place.
        outside: the file's other weights.
        warnings: gets a sentence where the layer had another name.

    Returns:
        The names of ``outside`` that were taken.

    Raises:
        CheckpointError: the head has several layers, or others than linear ones.
    """
    if "norm.weight" not in inside or any(re.match(r"norm\d", name) for name in inside):
        return set()  # a backbone
    width = inside["norm.weight"].shape[0]
    own = {name: tensor for name, tensor in inside.items() if not _NETWORK.match(name)}
    other = {name: tensor for name, tensor in outside.items() if _HEAD.search(name)}
    parts = own or other
    linear = [name for name, tensor in parts.items() if name.endswith("weight") and _columns(tensor) == width]
    if len(linear) == 1:
        weight, bias = linear[0], linear[0].removesuffix("weight") + "bias"
        if set(parts) <= {weight, bias}:
            for name in (weight, bias):
                inside.pop(name, None)
            inside["head.weight"] = parts[weight].flatten(1)
            inside["head.bias"] = parts.get(bias, torch.zeros(len(parts[weight])))
            layer = weight.removesuffix(".weight")
            if layer not in ("head", "fc", "classifier"):
                warnings.append(
                    f"the head of {path.name} was taken to be the linear layer '{layer}' alone; layers without weights "
                    "before it, an activation for instance, leave no trace in a file"
                )
            return set(parts) if parts is other else set()
    layers = sorted({name.rpartition(".")[0] for name in parts})
    if own and not (linear == ["head.weight"]):  # entries beside a plain head are named where weights are compared
        raise CheckpointError(
            f"{path} has a head of other layers ({', '.join(layers[:4])}) than one linear one of {width} inputs; "
            "export the module itself with package.module:factory, or its feature maps with --out-indices"
        )
    if other and not own:
        warnings.append(
            f"{path.name} has a head that is not one linear layer of {width} inputs ({', '.join(layers[:4])}); the "
            "model gives pooled features: export the module itself with package.module:factory to keep its head"
        )
    return set()


def _columns(tensor: Tensor) -> int | None:
    """Return the inputs of a linear layer, or of a 1×1 convolution."""
    flat = tensor.dim() == 2 or (tensor.dim() == 4 and tuple(tensor.shape[2:]) == (1, 1))
    return tensor.shape[1] if flat else None
