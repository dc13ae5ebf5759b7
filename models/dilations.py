"""Dilations by name and as text: ``--dilations coco``, ``--dilations 1,8,1/1,4,1,4/1,2,1,2,1,2/1,1,1,1,1``.

The same weights are run with other dilations in other tasks, so a backbone's file does not say which are
right. Sources: the configurations of the official NAT/DiNAT, Mask2Former and OneFormer repositories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from na_deploy.errors import UsageError
from na_deploy.models.config import Dilations, ModelConfig, check_dilations, ones

Pattern = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class DilationPreset:
    """Dilations of one task, for the published depths.

    Attributes:
        name: the word that ``--dilations`` takes.
        note: its task.
        nat: a pattern per level for depths (3, 4, n, 5); the third repeats to its level's depth.
        dinat_s: likewise for depths (2, 2, n, 2); ``None`` where no such model was published.
        image_size: (H, W) of the images it was trained on.
        third_level: the third level in full where it is no plain repetition (18 blocks).
        widths: the first level's widths that it was published for; empty for all.
        kernel_sizes: the windows that it was published with.
    """

    name: str
    note: str
    nat: Pattern
    dinat_s: Pattern | None
    image_size: tuple[int, int]
    third_level: tuple[int, ...] | None = None
    widths: tuple[int, ...] = ()
    kernel_sizes: tuple[int, ...] = (7,)

    def published_for(self, config: ModelConfig) -> bool:
        """Return whether a model of this width and window was published with these dilations."""
        return config.kernel_size in self.kernel_sizes and (not self.widths or config.embed_dim in self.widths)

    def for_config(self, config: ModelConfig) -> Dilations:
        """Return the dilations for a model's depths.

        Raises:
            UsageError: the task was never published for such a model, so the pattern would be a guess.
        """
        patterns, ends = (self.nat, (3, 4, 5)) if config.family == "nat" else (self.dinat_s, (2, 2, 2))
        depths = config.depths
        fits = patterns is not None and config.family != "isotropic" and len(depths) == 4
        if not fits or patterns is None or (depths[0], depths[1], depths[3]) != ends:
            raise UsageError(
                f"the dilations '{self.name}' are not defined for {config.family} of depths {list(depths)}; "
                "write them out, one number per block, levels separated by '/'"
            )
        third = self.third_level if self.third_level and depths[2] == len(self.third_level) else patterns[2]
        result = (patterns[0], patterns[1], _repeat(third, depths[2]), patterns[3])
        check_dilations(result, depths)
        return result


def _repeat(pattern: Sequence[int], count: int) -> tuple[int, ...]:
    return tuple(pattern[index % len(pattern)] for index in range(count))


_COCO_NAT = ((1, 28, 1), (1, 7, 1, 14), (1, 3, 1, 5, 1, 7), (1, 3, 1, 3, 1))
_ADE_LARGE = ((1, 20, 1), (1, 5, 1, 10), (1, 2, 1, 3, 1, 4, 1, 5), (1, 2, 1, 2, 1))
_ADE_LARGE_THIRD = (1, 2, 1, 3, 1, 4, 1, 5, 1, 2, 1, 3, 1, 4, 1, 5, 1, 5)
_ONEFORMER_WIDE = ((1, 28, 1), (1, 7, 1, 14), (1, 3, 1, 5, 1, 5, 1, 7), (1, 3, 1, 3, 1))
_ONEFORMER_WIDE_THIRD = (1, 3, 1, 5, 1, 5, 1, 7, 1, 3, 1, 5, 1, 5, 1, 7, 1, 7)

PRESETS: dict[str, DilationPreset] = {
    preset.name: preset
    for preset in (
        DilationPreset(
            "imagenet-224", "classification at 224, and 384 with an 11×11 window",
            ((1, 8, 1), (1, 4, 1, 4), (1, 2), (1, 1, 1, 1, 1)), ((1, 8), (1, 4), (1, 2), (1, 1)), (224, 224),
            kernel_sizes=(7, 11),
        ),
        DilationPreset(
            "imagenet-384", "classification at 384",
            ((1, 13, 1), (1, 6, 1, 6), (1, 3), (1, 1, 1, 1, 1)), ((1, 13), (1, 6), (1, 3), (1, 1)),
            (384, 384),
        ),
        DilationPreset(
            "coco", "Mask R-CNN and Cascade Mask R-CNN on COCO",
            _COCO_NAT, ((1, 28), (1, 14), (1, 3, 1, 5, 1, 7), (1, 3)), (800, 1344),
        ),
        DilationPreset(
            "ade20k-512", "UPerNet on ADE20K at 512: mini, tiny, small, base",
            ((1, 16, 1), (1, 4, 1, 8), (1, 2, 1, 3, 1, 4), (1, 2, 1, 2, 1)),
            ((1, 16), (1, 8), (1, 2, 1, 3, 1, 4), (1, 2)), (512, 512), widths=(64, 96, 128),
        ),
        DilationPreset(
            "ade20k-640", "UPerNet on ADE20K at 640: large",
            _ADE_LARGE, ((1, 20), (1, 10), (1, 2, 1, 3, 1, 4, 1, 5), (1, 2)), (640, 640), _ADE_LARGE_THIRD,
            widths=(192,),
        ),
        DilationPreset(
            "mask2former", "Mask2Former with DiNAT-L and an 11×11 window, every data set",
            ((1, 14, 1), (1, 4, 1, 7), (1, 2, 1, 3), (1, 1, 1, 1, 1)), None, (640, 640),
            (1, 2, 1, 3, 1, 2, 1, 3, 1, 2, 1, 3, 1, 2, 1, 3, 1, 3), widths=(192,), kernel_sizes=(11,),
        ),
        DilationPreset(
            "oneformer-coco", "OneFormer with DiNAT-L, 11×11: COCO, Mapillary Vistas, ADE20K at 640 and 896",
            _ADE_LARGE, None, (800, 1344), _ADE_LARGE_THIRD, widths=(192,), kernel_sizes=(11,),
        ),
        DilationPreset(
            "oneformer-1280", "OneFormer with DiNAT-L, 11×11: ADE20K at 1280",
            _ONEFORMER_WIDE, None, (1280, 1280), _ONEFORMER_WIDE_THIRD, widths=(192,), kernel_sizes=(11,),
        ),
        DilationPreset(
            "oneformer-cityscapes", "OneFormer with DiNAT-L, 7×7: Cityscapes",
            ((1, 18, 1), (1, 5, 1, 9), (1, 2, 1, 3, 1, 4), (1, 2, 1, 2, 1)), None, (1024, 2048), widths=(192,),
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class ParsedDilations:
    """Dilations read from a request, with what the user should be told about the reading."""

    dilations: Dilations
    preset: DilationPreset | None = None
    remark: str | None = None


def parse_dilations(request: str | Sequence[Sequence[int]], config: ModelConfig) -> ParsedDilations:
    """Read ``--dilations``: "none", a preset's name, text such as "1,8,1/1,4,1,4/…", or nested numbers.

    Args:
        request: the user's word.
        config: the model; only its family, width and depths are read.

    Raises:
        UsageError: unknown name, text that is no numbers, or another number of blocks than the model's.
    """
    if not isinstance(request, str):
        nested = tuple(tuple(int(dilation) for dilation in level) for level in request)
        check_dilations(nested, config.depths)
        return ParsedDilations(nested)
    text = request.strip().lower().replace("_", "-")
    if text in ("none", "nat"):
        return ParsedDilations(ones(config.depths))
    name, remark = _preset_name(text, config)
    if name in PRESETS:
        preset = PRESETS[name]
        if not preset.published_for(config) and config.family == "nat":
            windows = " or ".join(f"{size}×{size}" for size in preset.kernel_sizes)
            widths = f" and embed_dim {' or '.join(map(str, preset.widths))}" if preset.widths else ""
            unusual = f"the dilations '{name}' were published for models with {windows} windows{widths}"
            unusual = f"{unusual}; this one has {config.kernel_size}×{config.kernel_size} and {config.embed_dim}"
            remark = f"{remark}; {unusual}" if remark else unusual
        return ParsedDilations(preset.for_config(config), preset, remark)
    try:
        levels = tuple(tuple(int(number) for number in level.split(",")) for level in text.split("/"))
    except ValueError:
        known = ", ".join(("none", "ade20k", "oneformer", *PRESETS))
        raise UsageError(
            f"cannot read the dilations '{request}'; give one of {known}, or one number per block with "
            "levels separated by '/', such as 1,8,1/1,4,1,4/1,2,1,2,1,2/1,1,1,1,1"
        ) from None
    check_dilations(levels, config.depths)
    return ParsedDilations(levels)


def _preset_name(text: str, config: ModelConfig) -> tuple[str, str | None]:
    """Resolve the names that stand for one of several configurations."""
    if text == "ade20k":
        name = "ade20k-640" if config.embed_dim >= 192 else "ade20k-512"
        return name, f"'ade20k' was read as {name}, the published one for this width"
    if text == "oneformer":
        others = ", ".join(name for name in PRESETS if name.startswith("oneformer") and name != "oneformer-1280")
        return (
            "oneformer-1280",
            f"'oneformer' was read as oneformer-1280 (ADE20K at 1280); the others are {others}",
        )
    if text == "imagenet":
        return "imagenet-224", None
    return text, None
