"""From a file or folder to one flat state_dict in the official key layout, with the file's other statements.

Wrappers and prefixes are undone, Hugging Face keys converted, and weights checked to be finite. What the
weights are is decided in ``detect.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from na_deploy.errors import CheckpointError
from na_deploy.models import huggingface
from na_deploy.models.checkpoint_files import read_json, sha256_of
from na_deploy.models.classifier_head import adopt_head
from na_deploy.models.heads.names import HeadWeights, split_head
from na_deploy.models.mm_config import MMConfig, read_mm_config
from na_deploy.models.preprocessing import Preprocessing, from_hugging_face
from na_deploy.models.weights import checked, left_aside, network_prefix, parts_of, read_weights

ANCHORS = ("patch_embed.proj.0.weight", "patch_embed.proj.weight", huggingface.ANCHOR)


@dataclass(frozen=True)
class Evidence:
    """A statement of a file about its model, besides the weights.

    Attributes:
        source: the place of the statement, for messages.
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
        path: the file or folder read.
        name: file or folder name.
        state_dict: official keys, tensors in float32 (buffers of integers as they are).
        sha256: the hash of the file read; of the digests of all shards, for a sharded folder.
        evidence: statements about the architecture, the most direct first.
        hugging_face: the Hugging Face configuration, if there is one.
        preprocessing: the file's own preprocessing, if it says.
        problem: the head's task in Hugging Face's words, such as "multi_label_classification".
        labels: class names by number.
        warnings: readings and choices.
        head: a segmentation head beside the network, with its weights.
        whole_configuration: Hugging Face's configuration of the whole model, where the network is a part of it.
        training: the entries that mmcv and mmengine store beside weights.
        others: parts of the file beside the network and its head.
    """

    path: Path
    name: str
    state_dict: dict[str, Tensor]
    sha256: str
    evidence: tuple[Evidence, ...] = ()
    hugging_face: Mapping[str, Any] | None = None
    preprocessing: Preprocessing | None = None
    problem: str | None = None
    labels: Mapping[int, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    head: HeadWeights | None = None
    whole_configuration: Mapping[str, Any] | None = None
    training: MMConfig = field(default_factory=MMConfig)
    others: tuple[str, ...] = ()


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint file, or a Hugging Face folder.

    Raises:
        CheckpointError: unreadable, without NAT or DiNAT weights, or with weights that are not finite.
    """
    path = Path(path)
    warnings: list[str] = []
    evidence: list[Evidence] = []
    whole: Mapping[str, Any] | None = None
    configuration: Mapping[str, Any] | None = None
    preprocessing: Preprocessing | None = None
    folder = path if path.is_dir() else path.parent
    weights = read_weights(path)
    warnings += weights.warnings
    if isinstance(weights.content, Mapping):
        evidence += _embedded_evidence(weights.content)
    head, rest = split_head(path, weights.tensors, warnings)
    tensors, converted, others = _strip_prefix(path, rest, warnings, head)
    if converted or path.is_dir():
        beside = folder / "config.json"
        if beside.is_file():
            whole = read_json(beside)
            configuration = huggingface.backbone_configuration(whole)
        elif path.is_dir():
            raise CheckpointError(f"{path} holds no config.json; download the folder again, or give the weights file")
        if (folder / "preprocessor_config.json").is_file():
            channels = 3 if configuration is None else int(configuration.get("num_channels", 3))
            preprocessing = from_hugging_face(read_json(folder / "preprocessor_config.json"), channels)
    if configuration is not None:
        evidence.insert(0, Evidence("config.json", *huggingface.evidence(configuration, path)))
    tensors = checked(path, tensors, warnings)
    if head is not None:
        head = replace(head, tensors=checked(path, head.tensors, warnings))
    named = whole if head is not None else configuration
    return Checkpoint(
        path=path,
        name=_source_name(path),
        state_dict=tensors,
        sha256=sha256_of(weights.files),
        evidence=tuple(evidence),
        hugging_face=configuration,
        preprocessing=preprocessing,
        problem=None if configuration is None else configuration.get("problem_type"),
        labels=huggingface.labels(named) if named is not None else {},
        warnings=tuple(dict.fromkeys(warnings)),
        head=head,
        whole_configuration=whole,
        training=read_mm_config(weights.content),
        others=others,
    )


def _source_name(path: Path) -> str:
    """Return the file or folder name, or the model's name for a folder in Hugging Face's cache."""
    whole = path.absolute()  # links keep their own names
    cached = next((part for part in whole.parts if part.startswith("models--")), None)
    return cached.removeprefix("models--").replace("--", "/") if cached else whole.name


def _strip_prefix(
    path: Path, tensors: dict[str, Tensor], warnings: list[str], head: HeadWeights | None
) -> tuple[dict[str, Tensor], bool, tuple[str, ...]]:
    """Find the network inside a larger model by its first layer.

    Returns:
        Its weights, in the official layout; whether they were in Hugging Face's; the file's other parts.
    """
    found = {
        name.removesuffix(anchor): anchor
        for anchor in ANCHORS
        for name in tensors
        if name == anchor or name.endswith("." + anchor)
    }
    if not found:
        whose = f"a {head.title} on another backbone than NAT or DiNAT" if head else "no NAT or DiNAT network"
        raise CheckpointError(f"{path} holds {whose}: {_what_else(tensors)}")
    prefix = network_prefix(path, found, warnings)
    converted = found[prefix] == huggingface.ANCHOR
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    outside = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    if converted:
        inside = huggingface.convert_state_dict(inside, path)
    taken = adopt_head(path, inside, outside, warnings)
    rest = {name: tensor for name, tensor in outside.items() if name not in taken}
    if "head.weight" in inside or "norm.weight" in inside:
        left_aside(path, prefix, rest, warnings)
        return inside, converted, ()
    return inside, converted, parts_of(rest)


def _what_else(tensors: Mapping[str, Tensor]) -> str:
    names = list(tensors)
    if any("relative_position_bias_table" in name for name in names):
        return "these look like the weights of a Swin Transformer; expected attn.rpb and patch_embed.proj"
    shown = ", ".join(names[:3])
    return f"its first weights are {shown or 'none'}; expected names such as levels.0.blocks.0.attn.rpb"


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
    backbone = read_mm_config(content).backbone
    dilations = _nested_numbers(backbone.get("dilations"))
    if dilations:
        result.append(Evidence("its training configuration", None, dilations))
    elif backbone.get("type") == "NAT":
        result.append(Evidence("its training configuration", "nat"))
    return result


def _nested_numbers(value: Any) -> tuple[tuple[int, ...], ...] | None:
    if not isinstance(value, list | tuple) or not value:
        return None
    if not all(isinstance(level, list | tuple) and all(isinstance(d, int) for d in level) for level in value):
        return None
    return tuple(tuple(level) for level in value)
