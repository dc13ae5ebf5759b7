"""Preparation of an image for the network: sizes, crop, scale, normalisation. Carried out elsewhere.

The official repository and Hugging Face's processors prepare images differently for the same weights, and a
wrong choice costs accuracy without any error; so the choice is a value that travels with the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from na_deploy.errors import UsageError

Mode = Literal["resize-then-crop", "square", "fit", "shortest-side", "none"]
Interpolation = Literal["bicubic", "bilinear", "nearest", "lanczos"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET_MEAN_255 = (123.675, 116.28, 103.53)
IMAGENET_STD_255 = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Placement:
    """Place of a picture in the network's input. All sizes are (height, width) in the input's pixels.

    Attributes:
        size: the input.
        scaled: the whole picture after scaling; where it is smaller than the input, zeros follow right and below.
        cut: pixels of it that were cut off above and at the left; negative where black was put there instead.
    """

    size: tuple[int, int]
    scaled: tuple[int, int]
    cut: tuple[int, int] = (0, 0)


def _covering(height: int, width: int, cover: tuple[int, int]) -> tuple[int, int]:
    """Scale a picture until it covers ``cover``.

    A square is covered as torchvision's Resize does (rounded down), other rectangles as timm's ResizeKeepRatio.
    """
    if cover[0] == cover[1]:
        return _scaled(height, width, cover[0], None, down=True)
    ratio = min(height / cover[0], width / cover[1])
    return max(round(height / ratio), cover[0]), max(round(width / ratio), cover[1])


def _scaled(height: int, width: int, shortest: int, longest: int | None, *, down: bool) -> tuple[int, int]:
    """Scale (height, width) so that the shorter side is ``shortest`` and the longer at most ``longest``.

    torchvision and transformers round ``down``; Detectron2 and mmcv round to the nearest.
    """
    short, long = min(height, width), max(height, width)
    if longest is not None and shortest * long > longest * short:
        sides = (longest * short / long, float(longest))
        if down:  # in this order, as transformers computes it
            first = int(shortest * long / short)
            sides = (longest * shortest / first, float(longest)) if first > longest else (float(shortest), first)
    else:
        sides = (float(shortest), shortest * long / short)
    small, large = (max(int(side if down else side + 0.5), 1) for side in sides)
    return (small, large) if height <= width else (large, small)


@dataclass(frozen=True)
class Preprocessing:
    """The way from pixels to the network's input: ``(pixel * scale - mean) / std``, channels first.

    Attributes:
        size: (H, W) the network gets.
        mode: "resize-then-crop" keeps the proportions, scales the image to cover :attr:`cover` and cuts ``size``
            from the centre; "square" scales straight to ``size``, whatever the proportions; "fit" keeps the
            proportions, scales to fit inside ``size`` and pads with zeros right and bottom after normalisation;
            "shortest-side" keeps the proportions, scales the shorter side to ``resize`` and lets the network get what
            comes out, in multiples of ``divisor``: for networks with free height and width; "none": nobody said how
            photographs become the input, so it takes arrays alone.
        resize: the shorter side of the rectangle to cover before the crop, or of "shortest-side", in pixels.
        longest: most pixels of the longer side; only for "shortest-side".
        divisor: the number that both sides are made multiples of; only for "shortest-side".
        filling: the way to reach the multiple: zeros right and bottom after normalisation (Detectron2,
            mmsegmentation), or stretched a little
            (transformers); only for "shortest-side".
        mean: per channel, in the unit after ``scale``; one entry means greyscale.
        std: likewise.
        scale: factor on pixels of 0…255: 1/255, or 1 where mean and std are in pixels.
        interpolation: filter used for scaling.
        channel_order: order of the channels.
    """

    size: tuple[int, int] = (224, 224)
    mode: Mode = "resize-then-crop"
    resize: int | None = 256
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    scale: float = 1 / 255
    interpolation: Interpolation = "bicubic"
    channel_order: Literal["RGB", "BGR"] = "RGB"
    longest: int | None = None
    divisor: int = 1
    filling: Literal["zeros", "stretch"] = "zeros"

    @property
    def prepares_images(self) -> bool:
        """True if photographs can be made into the input."""
        return self.mode != "none" and len(self.mean) in (1, 3)

    @property
    def cover(self) -> tuple[int, int]:
        """(H, W) that an image covers before the crop: ``size`` enlarged until its shorter side is ``resize``.

        As in timm's evaluation transform, whose ``crop_pct`` is the share of this that the crop keeps.
        """
        side, shorter = self.resize or min(self.size), min(self.size)
        return self.size[0] * side // shorter, self.size[1] * side // shorter

    def with_size(self, size: tuple[int, int]) -> Preprocessing:
        """Return the same for another (H, W), the crop keeping its share.

        A network with a size of its own has no use for "shortest-side": the picture is fitted into that size.
        """
        if self.mode == "shortest-side":
            return replace(self, size=size, mode="fit", resize=None, longest=None, divisor=1)
        resize = None if self.resize is None else min(size) * self.resize // min(self.size)
        return replace(self, size=size, resize=resize)

    def for_input(self, shape: Sequence[int | str]) -> Preprocessing:
        """Return the same for a network's input (B, C, H, W): a size that it fixes is the one images get."""
        sizes = list(zip(shape[2:], self.size, strict=True))
        height, width = (size if isinstance(size, int) else own for size, own in sizes)
        fixed = any(isinstance(size, int) for size, _ in sizes)
        if fixed and (self.mode == "shortest-side" or (height, width) != self.size):
            return self.with_size((height, width))
        return self

    def placement(self, height: int, width: int) -> Placement:
        """Return where the network gets to see a picture of ``height`` and ``width`` pixels."""
        match self.mode:
            case "square":
                return Placement(self.size, self.size)
            case "fit":
                ratio = min(self.size[0] / height, self.size[1] / width)
                return Placement(self.size, (max(round(height * ratio), 1), max(round(width * ratio), 1)))
            case "resize-then-crop":
                scaled = _covering(height, width, self.cover)
                # As torchvision rounds.
                before = tuple(round((whole - kept) / 2) for whole, kept in zip(scaled, self.size, strict=True))
                return Placement(self.size, scaled, (before[0], before[1]))
            case "shortest-side":
                shortest = self.resize or min(self.size)
                scaled = _scaled(height, width, shortest, self.longest, down=self.filling == "stretch")
                whole = (math.ceil(scaled[0] / self.divisor), math.ceil(scaled[1] / self.divisor))
                size = (whole[0] * self.divisor, whole[1] * self.divisor)
                return Placement(size, size if self.filling == "stretch" else scaled)
            case "none":
                raise UsageError(
                    f"the model takes {len(self.mean)} channels and does not say how images become them; "
                    "give a .npy array"
                )

    def to_json(self) -> str:
        """Return a compact JSON object."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Preprocessing:
        """Read what :meth:`to_json` wrote; missing keys take the official classification values.

        Raises:
            UsageError: not such an object.
        """
        try:
            content: Any = json.loads(text)
            known = {field.name for field in fields(cls)}
            values: dict[str, Any] = {name: value for name, value in content.items() if name in known}
        except (ValueError, AttributeError) as error:
            raise UsageError(f"not a description of image preprocessing: {error}") from None
        for name, value in values.items():
            values[name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


def official_classification(size: int = 224) -> Preprocessing:
    """Return the official repository's: shorter side 256 and crop at 224, crop_pct 1.0 at 384."""
    return Preprocessing(size=(size, size), resize=256 if size == 224 else size)


def hugging_face_classification(size: int = 224) -> Preprocessing:
    """Return what the published Hugging Face processors do: straight to a square, no crop."""
    return Preprocessing(size=(size, size), mode="square", resize=None)


def unprepared(size: tuple[int, int], channels: int) -> Preprocessing:
    """Return a note of the input's size and channels, where nobody said how photographs become it."""
    return Preprocessing(size, "none", None, (0.0,) * channels, (1.0,) * channels, 1.0)


def dense_prediction(size: tuple[int, int]) -> Preprocessing:
    """Return detection's and segmentation's: RGB 0…255, proportions kept, zero padding."""
    return Preprocessing(
        size=size,
        mode="fit",
        resize=None,
        mean=IMAGENET_MEAN_255,
        std=IMAGENET_STD_255,
        scale=1.0,
        interpolation="bilinear",
    )


def shortest_side(shortest: int, longest: int, divisor: int = 32) -> Preprocessing:
    """Return Detectron2's and mmsegmentation's for free sizes: shorter and longest side, zeros up to a multiple."""
    return replace(
        dense_prediction((shortest, shortest)), mode="shortest-side", resize=shortest, longest=longest, divisor=divisor
    )


_PIL_FILTERS: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def from_hugging_face(content: Mapping[str, Any], channels: int = 3) -> Preprocessing:
    """Read a Hugging Face ``preprocessor_config.json``.

    Args:
        content: the parsed file; keys of ViTImageProcessor and its relatives.
        channels: number of the network's input channels.

    Raises:
        UsageError: a size or a filter in a form this does not know.
    """
    segmenter = _segmenter(content)
    filter_number = content.get("resample", 3 if segmenter is None else 2)
    if filter_number not in _PIL_FILTERS:
        raise UsageError(f"preprocessor_config.json asks for the filter {filter_number}, which is not supported")
    scale = float(content.get("rescale_factor", 1 / 255)) if content.get("do_rescale", True) else 1.0
    normalize = content.get("do_normalize", True)
    mean = _per_channel(content.get("image_mean", IMAGENET_MEAN)) if normalize else (0.0,) * channels
    std = _per_channel(content.get("image_std", IMAGENET_STD)) if normalize else (1.0,) * channels
    if segmenter is not None:
        least, most, divisor = segmenter
        dense = Preprocessing((least, least), "shortest-side", least, mean, std, scale, _PIL_FILTERS[filter_number])
        return replace(dense, longest=most, divisor=divisor, filling="stretch")
    shortest, size = _sizes(content.get("size", 224))
    crops = content.get("do_center_crop", False)
    if crops:
        _, crop = _sizes(content.get("crop_size", size))
        return Preprocessing(
            crop, "resize-then-crop", shortest or min(size), mean, std, scale, _PIL_FILTERS[filter_number]
        )
    return Preprocessing(size, "square", None, mean, std, scale, _PIL_FILTERS[filter_number])


def _per_channel(value: Any) -> tuple[float, ...]:
    return tuple(float(each) for each in value) if isinstance(value, list | tuple) else (float(value),)


_SEGMENTERS = {"MaskFormer": 32, "Mask2Former": 32, "OneFormer": 1}
"""transformers' processors that scale the shorter side, with the default of their ``size_divisor``."""


def _segmenter(content: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Return shortest side, longest side and divisor, if the processor is a segmenter's that keeps proportions."""
    kind = str(content.get("image_processor_type") or content.get("feature_extractor_type") or "")
    family = next((name for name in _SEGMENTERS if kind.startswith(name)), None)
    size = content.get("size")
    if family is None or (isinstance(size, Mapping) and "height" in size):
        return None
    if isinstance(size, Mapping):
        shortest, longest = size.get("shortest_edge", 800), size.get("longest_edge", 1333)
    else:
        shortest, longest = size or 800, content.get("max_size", 1333)
    divisor = content.get("size_divisor", content.get("size_divisibility", _SEGMENTERS[family]))
    return int(shortest), int(longest), max(int(divisor), 1) if family != "OneFormer" else 1


def _sizes(value: Any) -> tuple[int | None, tuple[int, int]]:
    """Return the shorter side, if that is what the value says, and (H, W)."""
    if isinstance(value, int):
        return None, (value, value)
    if isinstance(value, Mapping) and "height" in value and "width" in value:
        return None, (int(value["height"]), int(value["width"]))
    if isinstance(value, Mapping) and "shortest_edge" in value:
        side = int(value["shortest_edge"])
        return side, (side, side)
    raise UsageError(f"preprocessor_config.json gives the size {value!r}, expected height and width or shortest_edge")
