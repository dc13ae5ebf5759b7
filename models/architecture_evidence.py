"""Evidence about an architecture in a checkpoint's contents and name, in terms of the dilations they allow.

Interprets; ``resolve_architecture.py`` weighs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

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
_SIZES = {"m": "mini", "t": "tiny", "s": "small", "b": "base", "l": "large"}
_KIND = r"dinat_s|nat_isotropic|dinat_isotropic|vitrpb_isotropic|vitrpb|dinat|nat"
_NAME = re.compile(rf"(?:^|_)({_KIND})_?(?:(mini|tiny|small|base|large)|(?<=_)([mtsbl]))(?=_|$)")
_KIND_ALONE = re.compile(rf"(?:^|_)({_KIND})(?=_|$)")
_PRETRAINING = re.compile(r"(?:^|_)[a-z0-9]+_pretrain(?:ed)?(?=_|$)")
_TASKS = (
    ("mask2former|m2f", "mask2former"),
    ("upernet|ade20k", "ade20k"),
    ("rcnn|coco", "coco"),
)
_ONEFORMER = (
    ("ade20k", "oneformer-coco", "oneformer-1280"),
    ("coco|mapillary|vistas", "oneformer-coco", "oneformer-coco"),
    ("cityscapes", "oneformer-cityscapes", "oneformer-cityscapes"),
)
"""Data sets of OneFormer's published files, with their dilations and those at 1280 pixels."""


@dataclass(frozen=True)
class Clue:
    """One piece of evidence, read for these shapes.

    Attributes:
        source: its place, for messages.
        claim: its words, for messages.
        dilations: the ones it allows; none, if it contradicts the shapes.
        preset: the task it names.
        entries: the published models it may mean.
        warnings: remarks on choices in reading it.
    """

    source: str
    claim: str
    dilations: frozenset[Dilations]
    preset: DilationPreset | None = None
    entries: tuple[ModelEntry, ...] = ()
    warnings: tuple[str, ...] = ()


def find_clues(structure: ModelConfig, checkpoint: Checkpoint, models: list[ModelEntry]) -> list[Clue]:
    """Interpret everything a checkpoint says about itself, its name last.

    Args:
        structure: the description read from the shapes.
        checkpoint: the evidence.
        models: the published models that have these shapes.
    """
    clues = []
    for evidence in checkpoint.evidence:
        if evidence.dilations is not None:
            matches = [len(level) for level in evidence.dilations] == list(structure.depths)
            found = frozenset({evidence.dilations}) if matches else frozenset()
            text = "/".join(",".join(map(str, level)) for level in evidence.dilations)
            clues.append(Clue(evidence.source, f"dilations {text}", found))
        elif evidence.architecture is not None:
            clue = _read_name(evidence.architecture, evidence.source, structure, models)
            if clue is not None:
                clues.append(clue)
    by_name = _read_name(checkpoint.name, BY_NAME, structure, models)
    return [*clues, by_name] if by_name else clues


def _read_name(name: str, source: str, structure: ModelConfig, models: list[ModelEntry]) -> Clue | None:
    """Interpret an architecture name or a file name for these shapes; ``None`` if it says nothing."""
    text = normalise(name)
    if text == "nat" and source != BY_NAME and structure.family == "nat":
        return Clue(source, "nat", frozenset({ones(structure.depths)}))
    if text in KINDS:
        return None  # "dinat" alone: which dilations is still open
    exact = None if source == BY_NAME else find_model(text)  # people shorten file names, programs do not
    groups = {exact.name: [exact]} if exact else _named_models(text)
    if not groups:
        return None
    fitting_groups = {
        stem: fitting
        for stem, group in groups.items()
        if (fitting := tuple(same_head([entry for entry in group if entry in models], structure)))
    }
    claim = exact.name if exact else text
    if len(fitting_groups) > 1:
        claim = f"{claim}, in which both {' and '.join(fitting_groups)} stand"
    fitting = tuple(entry for group in fitting_groups.values() for entry in group)
    if not fitting:
        return Clue(source, claim, frozenset())
    others = [stem for stem in groups if stem not in fitting_groups]
    remarks = (f"{source} also says {' and '.join(others)}, whose weights have other shapes",) if others else ()
    dilated = [entry for entry in fitting if entry.kind in DILATED_KINDS]
    if not dilated:
        return Clue(source, claim, frozenset({ones(structure.depths)}), entries=fitting, warnings=remarks)
    if structure.is_backbone:  # the name may be that of the pretrained model: only a task tells its dilations
        clue = _read_task(text, source, claim, structure, tuple(dilated))
        if clue is not None and len(dilated) < len(fitting):
            clue = replace(clue, dilations=clue.dilations | {ones(structure.depths)})
        return clue
    return Clue(
        source, claim, frozenset(entry.config.dilations for entry in fitting), entries=fitting, warnings=remarks
    )


def _named_models(text: str) -> dict[str, list[ModelEntry]]:
    """Return the published models a longer name may mean, "my_dinat_large_384_run3" for instance, by kind and size."""
    groups: dict[str, list[ModelEntry]] = {}
    sizes_named = set()
    for found in _NAME.finditer(text):
        kind = found.group(1).replace("vitrpb_isotropic", "vitrpb").replace("vitrpb", "vitrpb_isotropic")
        size = found.group(2) or _SIZES[found.group(3)]
        sizes_named.add(size)
        groups |= _of_size(kind, size, text)
    for found in _KIND_ALONE.finditer(text):  # "dinat_from_nat_mini" names two kinds and one size
        kind = found.group(1)
        if kind == "dinat_s" and not _NAME.match(text, max(found.start(), 0)):
            groups |= {} if groups else _of_size("dinat", "small", text)
        for size in sizes_named:
            if not any(stem.startswith(f"{kind}_") for stem in groups):
                groups |= _of_size(kind, size, text)
    return groups


def _of_size(kind: str, size: str, text: str) -> dict[str, list[ModelEntry]]:
    stem = f"{kind}_{size}"
    named = [model for model in list_models() if model.kind == kind and model.name.startswith(stem)]
    sides = {model.image_size for model in named if re.search(rf"(?:^|_){model.image_size}(?:_|$)", text)}
    kept = [model for model in named if not sides or model.image_size in sides]
    return {stem: kept} if kept else {}


def _read_task(
    text: str, source: str, claim: str, structure: ModelConfig, fitting: tuple[ModelEntry, ...]
) -> Clue | None:
    """Read the dilations of the task that a backbone's name states; ``None`` where it states none."""
    task = _PRETRAINING.sub("", text)
    names = [preset for pattern, preset in _TASKS if re.search(pattern, task)]
    if "oneformer" in task:
        names = [
            wide if wide and "1280" in task else preset
            for pattern, preset, wide in _ONEFORMER
            if re.search(pattern, task)
        ]
    elif "mask2former" in names:  # its other word is the data set
        names = ["mask2former"]
    if not names:
        return None
    parsed = []
    for name in names:
        try:
            found = parse_dilations(name, structure)
        except UsageError:  # a task no such model was published for
            continue
        if found.preset is None or found.preset.published_for(structure):
            parsed.append(found)
    if not parsed:
        published = " and ".join(f"'{name}'" for name in names)
        return Clue(source, f"{claim} (the dilations {published} were published for other models)", frozenset())
    claim = claim if len(parsed) == 1 else f"{claim}, in which both {' and '.join(names)} stand"
    remarks = tuple(found.remark for found in parsed if found.remark)
    return Clue(source, claim, frozenset(found.dilations for found in parsed), parsed[0].preset, fitting, remarks)


def same_head(models: list[ModelEntry], structure: ModelConfig) -> list[ModelEntry]:
    """Keep the models of this class count, where the count is that of a published head."""
    if structure.num_classes not in (1000, IMAGENET_22K_CLASSES):
        return models
    return [model for model in models if model.config.num_classes == structure.num_classes] or models
