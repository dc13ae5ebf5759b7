"""The decision on a network's architecture, which weights do not tell, from explicit wishes and from evidence.

A wrong dilation gives plausible wrong answers, so nothing is guessed: explicit ``--arch`` and ``--dilations``
come first, then what the file states, then its name, then shapes that only one published model has; otherwise
the user must say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from na_deploy.errors import AmbiguousArchitectureError, UsageError
from na_deploy.models.architecture_evidence import BY_NAME, DILATED_KINDS, Clue, find_clues, same_head
from na_deploy.models.checkpoint import Checkpoint
from na_deploy.models.config import ModelConfig
from na_deploy.models.detect import describe, differences, fits, fitting_models
from na_deploy.models.dilations import DilationPreset, parse_dilations
from na_deploy.models.registry import (
    DINAT_S_LARGE_OLD_HEADS,
    KINDS,
    ModelEntry,
    get_model,
    normalise,
)

_FAMILY_OF_KIND = {"nat": "nat", "dinat": "nat", "dinat_s": "dinat_s"}


@dataclass(frozen=True)
class ResolvedArchitecture:
    """The outcome.

    Attributes:
        architecture: a published name, or a kind such as "dinat" for other sizes.
        config: the structure with its dilations.
        entry: the published model, if it is one.
        preset: the dilations' preset, where one was named.
        warnings: contradictions and clues the user should know of.
    """

    architecture: str
    config: ModelConfig
    entry: ModelEntry | None = None
    preset: DilationPreset | None = None
    warnings: tuple[str, ...] = ()


def resolve_architecture(
    structure: ModelConfig,
    checkpoint: Checkpoint,
    arch: str | None = None,
    dilations: str | Sequence[Sequence[int]] | None = None,
) -> ResolvedArchitecture:
    """Decide architecture and dilations.

    Args:
        structure: the description read from the shapes.
        checkpoint: for its evidence and its name.
        arch: the user's word: a published name, or one of the kinds for other sizes.
        dilations: the user's word.

    Raises:
        UsageError: ``arch`` is unknown or has other shapes; ``dilations`` do not suit the depths.
        AmbiguousArchitectureError: several fit and nothing tells them apart; names them.
    """
    models = fitting_models(structure)
    clues = find_clues(structure, checkpoint, models)
    warnings = [warning for clue in clues for warning in clue.warnings]
    if structure.family == "dinat_s" and structure.heads == DINAT_S_LARGE_OLD_HEADS and structure.embed_dim == 192:
        warnings.append("heads are 4,8,16,32: a DiNAT_s-L file made before February 2024, run with the heads it has")
    if arch is not None or dilations is not None:
        chosen = _explicit(structure, models, clues, arch, dilations, checkpoint)
        for clue in clues:
            if chosen.config.dilations not in clue.dilations:
                warnings.append(f"{clue.source} says {clue.claim}, which is not what was asked for; the request wins")
    else:
        chosen = _from_evidence(structure, models, clues, checkpoint)
    return replace(chosen, warnings=(*warnings, *chosen.warnings))


def _explicit(
    structure: ModelConfig,
    models: list[ModelEntry],
    clues: list[Clue],
    arch: str | None,
    dilations: str | Sequence[Sequence[int]] | None,
    checkpoint: Checkpoint,
) -> ResolvedArchitecture:
    entry = None if arch is None or normalise(arch) in KINDS else get_model(arch)
    kind = None if arch is None else entry.kind if entry else normalise(arch)
    if entry is not None and not fits(entry, structure):
        raise UsageError(
            f"--arch {entry.name} does not fit {checkpoint.path}: it has "
            f"{'; '.join(differences(entry, structure))}; {_what_fits(models, structure)}"
        )
    if kind is not None and entry is None:
        _check_kind(kind, structure, checkpoint)
    if dilations is not None:
        parsed = parse_dilations(dilations, structure)
        remarks = (parsed.remark,) if parsed.remark else ()
        config = replace(structure, dilations=parsed.dilations)
        if kind is not None and kind not in DILATED_KINDS and config.is_dilated:
            raise UsageError(f"--arch {arch} has no dilations, but --dilations gives some; use --arch di{kind}")
        named = entry or _entry_for(models, config, kind)
        name = named.name if named else kind or _kind_of(config)
        return ResolvedArchitecture(name, config, named, parsed.preset, remarks)
    stated = next(
        (clue for clue in clues if len(clue.dilations) == 1 and (clue.preset is not None or clue.source != BY_NAME)),
        None,
    )
    if entry is not None:
        # A backbone's name does not say which task's dilations it has; its file may.
        if structure.is_backbone and entry.config.is_dilated:
            if stated is not None and any(d > 1 for level in next(iter(stated.dilations)) for d in level):
                return ResolvedArchitecture(
                    entry.name,
                    replace(structure, dilations=next(iter(stated.dilations))),
                    entry,
                    stated.preset,
                )
            remark = (
                f"{entry.name}'s own dilations are used; detection and segmentation use others: give "
                "--dilations coco, ade20k, mask2former or oneformer if this backbone comes from there"
            )
            return ResolvedArchitecture(
                entry.name, replace(structure, dilations=entry.config.dilations), entry, None, (remark,)
            )
        return ResolvedArchitecture(entry.name, replace(structure, dilations=entry.config.dilations), entry)
    assert kind is not None
    if kind not in DILATED_KINDS:
        named = _entry_for(models, structure, kind)
        return ResolvedArchitecture(named.name if named else kind, structure, named)
    if stated is not None:
        config = replace(structure, dilations=next(iter(stated.dilations)))
        named = _entry_for(models, config, kind)
        return ResolvedArchitecture(named.name if named else kind, config, named, stated.preset)
    own = [model for model in models if model.kind == kind]
    if len({model.config.dilations for model in own}) == 1 and not structure.is_backbone:
        config = replace(structure, dilations=own[0].config.dilations)
        named = _entry_for(own, config, kind)
        assert named is not None
        return ResolvedArchitecture(named.name, config, named)
    raise AmbiguousArchitectureError(
        f"--arch {kind} does not settle the dilations of {checkpoint.path} ({describe(structure)}); give "
        f"{_dilation_hint(structure, own)}"
    )


def _check_kind(kind: str, structure: ModelConfig, checkpoint: Checkpoint) -> None:
    family = _FAMILY_OF_KIND.get(kind, "isotropic")
    if family != structure.family or (kind == "vitrpb_isotropic") != structure.fixed_map:
        raise UsageError(
            f"--arch {kind} does not fit {checkpoint.path}, which holds another layout: "
            f"{describe(structure)}; give one of {', '.join(_kinds_of(structure))}"
        )


def _from_evidence(
    structure: ModelConfig, models: list[ModelEntry], clues: list[Clue], checkpoint: Checkpoint
) -> ResolvedArchitecture:
    contradicting = [clue for clue in clues if not clue.dilations]
    allowed = [clue for clue in clues if clue.dilations]
    direct = next(
        (clue for clue in allowed if clue.source == "config.json" and len(clue.dilations) == 1),
        None,
    )
    if direct is not None:  # what Hugging Face's configuration states is how the model was run
        allowed, contradicting = [direct], []
    common = frozenset.intersection(*(clue.dilations for clue in allowed)) if allowed else frozenset()
    if contradicting or (allowed and not common):
        claims = " and ".join(f"{clue.source} says {clue.claim}" for clue in clues)
        raise AmbiguousArchitectureError(
            f"the evidence about {checkpoint.path} contradicts itself: {claims}, and its weights have "
            f"{describe(structure)}; {_choices(models, structure)}"
        )
    preset = None
    if len(common) == 1:
        config = replace(structure, dilations=next(iter(common)))
        preset = next((clue.preset for clue in allowed if clue.preset), None)
        preferred = [entry for clue in allowed for entry in clue.entries]
        named = _entry_for(preferred, config, None) or _entry_for(models, config, None)
        return ResolvedArchitecture(named.name if named else _kind_of(config), config, named, preset)
    possible = same_head(models, structure)
    if allowed:
        possible = [model for model in possible if model.config.dilations in common]
    distinct = {model.config.dilations for model in possible}
    undilated = all(not model.config.is_dilated for model in possible)
    if len(distinct) == 1 and (undilated or not structure.is_backbone):
        config = replace(structure, dilations=next(iter(distinct)))
        named = _entry_for(possible, config, None)
        assert named is not None
        return ResolvedArchitecture(named.name, config, named)
    said = [f"{clue.source} says {clue.claim}" for clue in allowed if len(clue.dilations) > 1]
    raise AmbiguousArchitectureError("; ".join([_ambiguity(structure, possible or models, checkpoint), *said]))


def _ambiguity(structure: ModelConfig, models: list[ModelEntry], checkpoint: Checkpoint) -> str:
    if not models:
        kinds = _kinds_of(structure)
        plain = [f"--arch {kind}" for kind in kinds if kind not in DILATED_KINDS]
        dilated = [f"--arch {kind} --dilations …" for kind in kinds if kind in DILATED_KINDS]
        return (
            f"{checkpoint.path} is of no published size ({describe(structure)}), and weights do not say "
            f"which dilations they were trained with; give {' or '.join([*plain, *dilated])} (one number per "
            "block, levels separated by '/')"
        )
    names = [model.name for model in models]
    if structure.is_backbone:
        return (
            f"{checkpoint.path} is a backbone that fits {' and '.join(names)}, and its weights do not say "
            f"which dilations it was trained with; {_choices(models, structure)}"
        )
    return (
        f"{checkpoint.path} fits {' and '.join(names)}, whose weights have the same names and shapes but "
        "other dilations, and neither its name nor its contents tell which it is; give "
        f"{' or '.join(f'--arch {name}' for name in names)}"
    )


def _choices(models: Sequence[ModelEntry], structure: ModelConfig) -> str:
    """Return the options that would settle the matter."""
    if not (structure.is_backbone and models):
        return _what_fits(list(models), structure)
    plain = [f"--arch {model.name}" for model in models if not model.config.is_dilated]
    dilated = [model for model in models if model.config.is_dilated]
    return f"give {', or '.join([*plain, *([_dilation_hint(structure, dilated)] if dilated else [])])}"


def _dilation_hint(structure: ModelConfig, models: Sequence[ModelEntry]) -> str:
    if not models:
        return "--dilations with one number per block, levels separated by '/'"
    if structure.is_backbone:
        large = "mask2former, oneformer, " if models[0].config.embed_dim == 192 else ""
        return f"--arch {models[0].name} with --dilations coco, ade20k, {large}or imagenet-224"
    return " or ".join(f"--arch {model.name}" for model in models)


def _what_fits(models: list[ModelEntry], structure: ModelConfig) -> str:
    if models:
        return f"what fits: --arch {' or '.join(model.name for model in models)}"
    kinds = " or ".join(_kinds_of(structure))
    return f"no published model fits; give --arch {kinds}, with --dilations where dilated"


def _entry_for(models: Sequence[ModelEntry], config: ModelConfig, kind: str | None) -> ModelEntry | None:
    """Return the published model to name this after: same dilations and head first, else same kind."""
    kinds = [kind] if kind else [k for k in _kinds_of(config) if (k in DILATED_KINDS) == config.is_dilated]
    own = [model for model in models if model.kind in kinds]
    same = [model for model in own if model.config.dilations == config.dilations]
    ranked = same_head(same, config) or same_head(own, config)
    return ranked[0] if ranked else None


def _kinds_of(structure: ModelConfig) -> tuple[str, ...]:
    if structure.family == "nat":
        return ("nat", "dinat")
    if structure.family == "dinat_s":
        return ("dinat_s",)
    return ("vitrpb_isotropic",) if structure.fixed_map else ("nat_isotropic", "dinat_isotropic")


def _kind_of(config: ModelConfig) -> str:
    kinds = [kind for kind in _kinds_of(config) if (kind in DILATED_KINDS) == config.is_dilated]
    return kinds[0] if kinds else _kinds_of(config)[0]
