"""From a file or folder to tensors by name: wrappers are undone and averaged weights preferred.

Knows how training scripts and libraries store weights, and nothing of networks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from na_deploy.errors import CheckpointError
from na_deploy.models.checkpoint_files import finite, read_file, weight_files

WRAPPERS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema_model_state_dict", "model_ema_state_dict", "ema_model",
    "params_ema", "g_ema", "ema", "averaged_model", "swa_state_dict", "teacher",
    "state_dict", "model", "model_state_dict", "module", "net", "net_state_dict", "network", "weights", "params",
    "blobs", "student",
)  # fmt: skip
"""Entries that hold the weights, averaged ones first, as timm prefers them."""

_AVERAGED = {"ema_model", "model_ema", "ema", "averaged_model"}
"""Parts of a module that hold averaged weights beside the trained ones: ema-pytorch's and their like."""

PREFERRED_PREFIXES = (
    "",
    "module.",
    "backbone.",
    "encoder.",
    "model.",
    "module.backbone.",
    "teacher.",
    "student.",
    "online_model.",
)

_WRAPPER_PARTS = {"_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module"}
"""Names that torch.compile, FSDP and activation checkpointing put between a module and its parts."""


@dataclass(frozen=True)
class Weights:
    """Tensors by name, and the file around them.

    Attributes:
        tensors: as they are stored, on the CPU.
        content: everything the first file holds.
        files: the files read, in order.
        warnings: choices made and things left aside.
    """

    tensors: dict[str, Tensor]
    content: Any
    files: list[Path]
    warnings: list[str]


def read_weights(path: Path) -> Weights:
    """Read a checkpoint file or a folder of shards down to its state dict.

    Raises:
        CheckpointError: unreadable, or without weights.
    """
    files = weight_files(path) if path.is_dir() else [path]
    warnings: list[str] = []
    content: Any = read_file(files[0], warnings)
    if len(files) > 1:
        content = {name: tensor for file in files for name, tensor in _tensors(file, read_file(file, warnings)).items()}
    tensors = unwrapped_names(path, _unwrap(path, content, warnings))
    return Weights(_averaged_by_lit(tensors), content, files, warnings)


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds {_kind(content)}, expected weights by name; save model.state_dict()")
    found = {}
    for name, value in content.items():
        if isinstance(value, Tensor):
            found[str(name)] = value.detach()
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.ndim:  # Detectron2's
            found[str(name)] = torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))
    return found


def _kind(content: Any) -> str:
    return f"a {type(content).__name__}"


def _unwrap(path: Path, content: Any, warnings: list[str]) -> dict[str, Tensor]:
    """Follow wrappers down to the mapping that holds tensors."""
    trail: list[str] = []
    while isinstance(content, Mapping):
        inner = [key for key in WRAPPERS if isinstance(content.get(key), Mapping) and content[key]]
        tensors = _tensors(path, content)
        if tensors and (not inner or len(tensors) > len(inner)):
            return tensors
        if not inner or len(trail) > 4:
            names = ", ".join(map(str, list(content)[:5])) or "nothing"
            raise CheckpointError(
                f"{path} holds {names}{' inside ' + '.'.join(trail) if trail else ''} and no weights; "
                f"expected a state_dict, or one under 'state_dict' or 'model'"
            )
        if len(inner) > 1:
            warnings.append(f"{path.name} holds several sets of weights ({', '.join(inner)}); '{inner[0]}' was taken")
        trail.append(inner[0])
        content = content[inner[0]]
    raise CheckpointError(f"{path} holds {_kind(content)}, expected weights by name; save model.state_dict()")


def unwrapped_names(path: Path | str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove from names the parts that wrappers around modules add, wherever they stand.

    Raises:
        CheckpointError: FSDP's flat parameters, or names that become equal.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if parts[-1] in ("_flat_param", "flat_param"):
            raise CheckpointError(
                f"{path} holds FSDP's flat parameters ({name}), in which weights have no names; save it with "
                "StateDictType.FULL_STATE_DICT"
            )
        plain = ".".join(part for part in parts if part not in _WRAPPER_PARTS)
        if plain in result:
            raise CheckpointError(f"{path} holds {plain} twice, with and without a wrapper's name; save one of them")
        result[plain] = tensor
    return result


def _averaged_by_lit(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give LitEma's averaged weights, which are stored under names without dots, the names of the trained ones."""
    counter = next((name for name in tensors if name.endswith(".num_updates")), None)
    if counter is None:
        return tensors
    prefix = counter.removesuffix("num_updates")
    flat = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if any("." in name for name in flat):
        return tensors
    trained = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    result = dict(trained)
    for root in dict.fromkeys(name.partition(".")[0] + "." for name in trained):
        for name, tensor in trained.items():
            averaged = flat.get(name.removeprefix(root).replace(".", "")) if name.startswith(root) else None
            if averaged is not None and averaged.shape == tensor.shape:
                result[prefix + name.removeprefix(root)] = averaged
    return result


def network_prefix(path: Path, prefixes: Iterable[str], warnings: list[str]) -> str:
    """Choose among the places where a network stands in a state dict; averaged weights come first.

    Args:
        path: for messages.
        prefixes: the places, at least one.
        warnings: gets a sentence where there was a choice.

    Raises:
        CheckpointError: several, and none of them is preferred.
    """
    found = list(dict.fromkeys(prefixes))
    averaged = [prefix for prefix in found if _AVERAGED & set(prefix.split("."))]
    order = [*averaged, *(prefix for prefix in PREFERRED_PREFIXES if prefix in found)]
    if not order and len(found) > 1:
        raise CheckpointError(
            f"{path} holds several networks ({', '.join(sorted(found))}); save the one you want with "
            "torch.save(model.state_dict(), 'weights.pth')"
        )
    chosen = order[0] if order else found[0]
    if len(found) > 1:
        shown = [prefix.rstrip(".") or "the whole" for prefix in (*found, chosen)]
        warnings.append(f"{path.name} holds several networks ({', '.join(shown[:-1])}); '{shown[-1]}' was taken")
    return chosen


def parts_of(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the first names of weights that are not single numbers, sorted."""
    return tuple(sorted({name.split(".", 1)[0] for name, tensor in tensors.items() if tensor.dim()}))


def left_aside(path: Path, prefix: str, tensors: Mapping[str, Tensor], warnings: list[str]) -> None:
    """Say which parts of a file are not the network's; counters, which are single numbers, are not mentioned."""
    groups = parts_of(tensors)
    if groups:
        shown = ", ".join(groups[:6]) + (", …" if len(groups) > 6 else "")
        warnings.append(f"only the part '{prefix.rstrip('.')}' of {path.name} is the network; left aside: {shown}")


def checked(path: Path, tensors: dict[str, Tensor], warnings: list[str]) -> dict[str, Tensor]:
    """Return the tensors in float32, integers as they are.

    Raises:
        CheckpointError: quantised or complex weights, or some that are not finite.
    """
    quantised = [name for name, tensor in tensors.items() if tensor.is_quantized or tensor.is_complex()]
    if quantised:
        raise CheckpointError(f"{path} holds quantised or complex weights ({quantised[0]}); give the original ones")
    for name, trouble in finite(tensors):
        raise CheckpointError(
            f"{path} holds {trouble} values in {name}; the training diverged or the file is damaged: use another one"
        )
    narrow = {str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.is_floating_point()} - {"float32"}
    if narrow:
        warnings.append(f"weights of {path.name} are stored as {', '.join(sorted(narrow))}; they are read as float32")
    return {
        name: tensor.to(torch.float32).contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def fitted(path: Path, weights: Weights, names: Mapping[str, Tensor], warnings: list[str]) -> dict[str, Tensor]:
    """Return the weights of a module whose names are known, wherever they stand in the file.

    Args:
        path: for messages.
        weights: the file's.
        names: the module's own state dict.
        warnings: gets a sentence for each choice.

    Raises:
        CheckpointError: the module's names are not there.
    """
    wanted = list(names)
    tensors = weights.tensors
    first = re.compile(rf"^(.*\.)?{re.escape(wanted[0])}$")
    prefixes = [m.group(1) or "" for name in tensors if (m := first.match(name))]
    whole = [prefix for prefix in prefixes if all(prefix + name in tensors for name in wanted)]
    if not whole:
        missing = next((name for name in wanted if name not in tensors), wanted[0])
        unexpected = next((name for name in tensors if name not in names), None)
        extra = f" and holds {unexpected}, which it has not" if unexpected else ""
        raise CheckpointError(f"{path.name} lacks {missing}, which the module has{extra}")
    prefix = network_prefix(path, whole, warnings)
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if prefix:
        outside = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
        left_aside(path, prefix, outside, warnings)
    return inside
