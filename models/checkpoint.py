"""From a file or folder to one flat state_dict in the official key layout, with what the file says about it.

Wrappers and prefixes are undone, Hugging Face keys converted, and weights checked to be finite. What the
weights are is decided in ``detect.py``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from na_deploy.errors import CheckpointError
from na_deploy.models import huggingface
from na_deploy.models.checkpoint_files import finite, read_file, read_json, sha256_of, weight_files
from na_deploy.models.preprocessing import Preprocessing, from_hugging_face

WRAPPERS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "teacher",
    "state_dict", "model", "model_state_dict", "module", "net", "weights", "student",
)  # fmt: skip
"""Entries that hold the weights, averaged ones first, as timm prefers them."""

PREFERRED_PREFIXES = (
    "",
    "module.",
    "backbone.",
    "encoder.",
    "model.",
    "module.backbone.",
    "teacher.",
    "student.",
)
ANCHORS = ("patch_embed.proj.0.weight", "patch_embed.proj.weight", huggingface.ANCHOR)


@dataclass(frozen=True)
class Evidence:
    """What a file says about its model besides the weights.

    Attributes:
        source: where it says so, for messages.
        architecture: a name it was trained under.
        dilations: the dilations themselves.
    """

    source: str
    architecture: str | None = None
    dilations: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True)
class Checkpoint:
    """Weights in the official key layout and what came with them.

    Attributes:
        path: what was read.
        name: file or folder name.
        state_dict: official keys, tensors in float32 (buffers of integers as they are).
        sha256: of the file read; of the digests of all shards, for a sharded folder.
        evidence: statements about the architecture, the most direct first.
        hugging_face: the Hugging Face configuration, if there is one.
        preprocessing: the file's own preprocessing, if it says.
        labels: class names by number.
        warnings: what was left aside.
    """

    path: Path
    name: str
    state_dict: dict[str, Tensor]
    sha256: str
    evidence: tuple[Evidence, ...] = ()
    hugging_face: Mapping[str, Any] | None = None
    preprocessing: Preprocessing | None = None
    labels: Mapping[int, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint file, or a Hugging Face folder.

    Raises:
        CheckpointError: unreadable, without NAT or DiNAT weights, or with weights that are not finite.
    """
    path = Path(path)
    warnings: list[str] = []
    evidence: list[Evidence] = []
    configuration: Mapping[str, Any] | None = None
    preprocessing: Preprocessing | None = None
    folder = path if path.is_dir() else path.parent
    files = weight_files(path) if path.is_dir() else [path]
    content: Any = read_file(files[0])
    if len(files) > 1:
        content = {name: tensor for file in files for name, tensor in _tensors(file, read_file(file)).items()}
    is_mapping = isinstance(content, Mapping)
    if is_mapping:
        evidence += _embedded_evidence(content)
    tensors = _unwrap(path, content, warnings)
    tensors, converted = _strip_prefix(path, tensors, warnings)
    if converted or path.is_dir():
        beside = folder / "config.json"
        if beside.is_file():
            configuration = huggingface.backbone_configuration(read_json(beside))
        elif path.is_dir():
            raise CheckpointError(f"{path} holds no config.json; download the folder again, or give the weights file")
        if (folder / "preprocessor_config.json").is_file():
            preprocessing = from_hugging_face(read_json(folder / "preprocessor_config.json"))
    if converted:
        tensors = huggingface.convert_state_dict(tensors, path)
    if configuration is not None:
        evidence.insert(0, Evidence("config.json", *huggingface.evidence(configuration, path)))
    tensors = _in_float32(path, tensors, warnings)
    return Checkpoint(
        path=path,
        name=_source_name(path),
        state_dict=tensors,
        sha256=sha256_of(files),
        evidence=tuple(evidence),
        hugging_face=configuration,
        preprocessing=preprocessing,
        labels=huggingface.labels(configuration) if configuration is not None else {},
        warnings=tuple(warnings),
    )


def _source_name(path: Path) -> str:
    """Return the file or folder name, or the model's name for a folder in Hugging Face's cache."""
    whole = path.absolute()  # links keep their own names
    cached = next((part for part in whole.parts if part.startswith("models--")), None)
    return cached.removeprefix("models--").replace("--", "/") if cached else whole.name


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds {_kind(content)}, expected weights by name; save model.state_dict()")
    return {str(name): value.detach() for name, value in content.items() if isinstance(value, Tensor)}


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


def _strip_prefix(path: Path, tensors: dict[str, Tensor], warnings: list[str]) -> tuple[dict[str, Tensor], bool]:
    """Find the network inside a larger model by its first layer; say whether names are Hugging Face's."""
    found = {
        name.removesuffix(anchor): anchor
        for anchor in ANCHORS
        for name in tensors
        if name == anchor or name.endswith("." + anchor)
    }
    if not found:
        raise CheckpointError(f"{path} holds no NAT or DiNAT network: {_what_else(tensors)}")
    order = [prefix for prefix in PREFERRED_PREFIXES if prefix in found]
    if not order and len(found) > 1:
        raise CheckpointError(
            f"{path} holds several networks ({', '.join(sorted(found))}); save the one you want with "
            "torch.save(model.state_dict(), 'weights.pth')"
        )
    prefix = order[0] if order else next(iter(found))
    if len(found) > 1:
        warnings.append(f"{path.name} holds several networks ({', '.join(found)}); '{prefix}' was taken")
    converted = found[prefix] == huggingface.ANCHOR
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    outside = [name for name in tensors if not name.startswith(prefix)]
    if converted:
        heads = [name for name in outside if name in ("classifier.weight", "classifier.bias")]
        inside.update({name: tensors[name] for name in heads})
        outside = [name for name in outside if name not in heads]
    if outside:
        groups = sorted({name.split(".", 1)[0] for name in outside})
        shown = ", ".join(groups[:6]) + (", …" if len(groups) > 6 else "")
        warnings.append(f"only the part '{prefix.rstrip('.')}' of {path.name} is the network; left aside: {shown}")
    return inside, converted


def _what_else(tensors: Mapping[str, Tensor]) -> str:
    names = list(tensors)
    if any("relative_position_bias_table" in name for name in names):
        return "these look like the weights of a Swin Transformer; expected attn.rpb and patch_embed.proj"
    shown = ", ".join(names[:3])
    return f"its first weights are {shown or 'none'}; expected names such as levels.0.blocks.0.attn.rpb"


def _in_float32(path: Path, tensors: dict[str, Tensor], warnings: list[str]) -> dict[str, Tensor]:
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


def _embedded_evidence(content: Mapping[Any, Any]) -> list[Evidence]:
    """Read what training scripts store beside the weights: timm's arch and args, mmcv's meta and the like."""
    result = []
    if isinstance(content.get("arch"), str):
        result.append(Evidence("its entry 'arch'", content["arch"]))
    for key in ("args", "config", "cfg", "hyper_parameters", "hparams"):
        entry = content.get(key)
        values = vars(entry) if hasattr(entry, "__dict__") and not isinstance(entry, Mapping) else entry
        if not isinstance(values, Mapping):
            continue
        name = next(
            (values[k] for k in ("model", "arch", "model_name", "architecture") if isinstance(values.get(k), str)),
            None,
        )
        dilations = _nested_numbers(values.get("dilations"))
        if name or dilations:
            result.append(Evidence(f"its entry '{key}'", name, dilations))
    meta = content.get("meta")
    text = meta.get("config") if isinstance(meta, Mapping) else None
    if isinstance(text, str):
        found = re.search(r"dilations\s*=\s*(\[\s*\[[\d\s,\[\]]*\]\s*\])", text)
        dilations = _nested_numbers(ast.literal_eval(found.group(1))) if found else None
        kind = re.search(r"backbone\s*=\s*dict\(.*?type\s*=\s*['\"](NAT|DiNAT|DiNAT_s)['\"]", text, re.DOTALL)
        if dilations:
            result.append(Evidence("its training configuration", None, dilations))
        elif kind and kind.group(1) == "NAT":
            result.append(Evidence("its training configuration", "nat"))
    return result


def _nested_numbers(value: Any) -> tuple[tuple[int, ...], ...] | None:
    if not isinstance(value, list | tuple) or not value:
        return None
    if not all(isinstance(level, list | tuple) and all(isinstance(d, int) for d in level) for level in value):
        return None
    return tuple(tuple(level) for level in value)
