"""What a checkpoint's contents and name say about its architecture, in terms of the dilations they allow.

Interprets; ``settle.py`` weighs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from na_deploy.errors import UsageError
from na_deploy.models.checkpoint import Checkpoint
from na_deploy.models.config import Dilations, ModelConfig, ones
from na_deploy.models.dilations import DilationPreset, parse_dilations
from na_deploy.models.registry import (
    IMAGENET_22K_CLASSES,
    KINDS,
    ModelEntry,
    find_model,
    list_models,
    normalise,
)

DILATED_KINDS = ("dinat", "dinat_s", "dinat_isotropic")
BY_NAME = "the file's name"
_NAME = re.compile(
    r"(?:^|_)(dinat_s|nat_isotropic|dinat_isotropic|vitrpb_isotropic|vitrpb|dinat|nat)"
    r"_(mini|tiny|small|base|large)(?=_|$)"
)
_TASKS = (
    ("mask2former|m2f", "mask2former"),
    ("oneformer", None),
    ("upernet|ade20k", "ade20k"),
    ("rcnn|coco", "coco"),
)


@dataclass(frozen=True)
class Reading:
    """What one piece of evidence comes down to for these shapes.

    Attributes:
        source: where it stands, for messages.
        claim: what it says, for messages.
        dilations: the ones it allows; none, if it contradicts the shapes.
        preset: the task it names.
        entries: the published models it may mean.
        warnings: how it was read, where that is a choice.
    """

    source: str
    claim: str
    dilations: frozenset[Dilations]
    preset: DilationPreset | None = None
    entries: tuple[ModelEntry, ...] = ()
    warnings: tuple[str, ...] = ()


def read_evidence(structure: ModelConfig, checkpoint: Checkpoint, models: list[ModelEntry]) -> list[Reading]:
    """Interpret everything a checkpoint says about itself, its name last.

    Args:
        structure: what the shapes say.
        checkpoint: the evidence.
        models: the published models that have these shapes.
    """
    readings = []
    for evidence in checkpoint.evidence:
        if evidence.dilations is not None:
            matches = [len(level) for level in evidence.dilations] == list(structure.depths)
            found = frozenset({evidence.dilations}) if matches else frozenset()
            text = "/".join(",".join(map(str, level)) for level in evidence.dilations)
            readings.append(Reading(evidence.source, f"dilations {text}", found))
        elif evidence.architecture is not None:
            reading = _read_name(evidence.architecture, evidence.source, structure, models)
            if reading is not None:
                readings.append(reading)
    by_name = _read_name(checkpoint.name, BY_NAME, structure, models)
    return [*readings, by_name] if by_name else readings


def _read_name(name: str, source: str, structure: ModelConfig, models: list[ModelEntry]) -> Reading | None:
    """Interpret an architecture name or a file name for these shapes; ``None`` if it says nothing."""
    text = normalise(name)
    if text == "nat" and source != BY_NAME and structure.family == "nat":
        return Reading(source, "nat", frozenset({ones(structure.depths)}))
    if text in KINDS:
        return None  # "dinat" alone: which dilations is still open
    exact = None if source == BY_NAME else find_model(text)  # people shorten file names, programs do not
    named = [exact] if exact else _named_models(text)
    if not named:
        return None
    claim = exact.name if exact else text
    fitting = tuple(same_head([entry for entry in named if entry in models], structure))
    if not fitting:
        return Reading(source, claim, frozenset())
    if fitting[0].kind not in DILATED_KINDS:
        return Reading(source, claim, frozenset({ones(structure.depths)}), entries=fitting)
    if structure.is_backbone:  # the name may be that of the pretrained model: only a task tells its dilations
        return _read_task(text, source, claim, structure, fitting)
    return Reading(source, claim, frozenset(entry.config.dilations for entry in fitting), entries=fitting)


def _named_models(text: str) -> list[ModelEntry]:
    """Return the published models a longer name may mean, "my_dinat_large_384_run3" for instance."""
    found = _NAME.search(text)
    if found is None:
        return []
    kind = "vitrpb_isotropic" if found.group(1) == "vitrpb" else found.group(1)
    stem = f"{kind}_{found.group(2)}"
    named = [model for model in list_models() if model.kind == kind and model.name.startswith(stem)]
    sizes = {model.image_size for model in named if re.search(rf"(?:^|_){model.image_size}(?:_|$)", text)}
    return [model for model in named if not sizes or model.image_size in sizes]


def _read_task(
    text: str, source: str, claim: str, structure: ModelConfig, fitting: tuple[ModelEntry, ...]
) -> Reading | None:
    preset_name = next((preset for pattern, preset in _TASKS if re.search(pattern, text)), None)
    if preset_name is None:
        return None
    try:
        parsed = parse_dilations(preset_name, structure)
    except UsageError:  # a task no such model was published for
        return None
    remarks = (parsed.remark,) if parsed.remark else ()
    return Reading(source, claim, frozenset({parsed.dilations}), parsed.preset, fitting, remarks)


def same_head(models: list[ModelEntry], structure: ModelConfig) -> list[ModelEntry]:
    """Keep the models of this class count, where the count is that of a published head."""
    if structure.num_classes not in (1000, IMAGENET_22K_CLASSES):
        return models
    return [model for model in models if model.config.num_classes == structure.num_classes] or models
