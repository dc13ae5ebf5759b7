"""Properties of an exported file that describe its model. Needs neither PyTorch nor ONNX."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from na_deploy import __version__
from na_deploy.errors import UsageError
from na_deploy.models.config import Dilations, ModelConfig
from na_deploy.models.preprocessing import Preprocessing

PREFIX = "na_deploy."
SegmentRule = Literal["transformers", "detectron2"]

TASKS = {
    "module": "whatever the module returns",
    "classification": "class scores of the whole image",
    "regression": "numbers, one for each output of the head",
    "features": "pooled features, no head",
    "backbone": "feature maps of several levels",
    "semantic": "a class for every pixel",
    "instance": "masks of countable objects, which may overlap",
    "panoptic": "a segment for every pixel: an object, or all that is of one class",
    "detection": "boxes of objects, with masks where the model has them",
}
"""Kinds of answers that models give."""

SEGMENT_TASKS = ("semantic", "instance", "panoptic")
"""Those whose answer is segments."""

HEADS = {
    "upernet": "UPerNet",
    "maskformer": "MaskFormer",
    "mask2former": "Mask2Former",
    "oneformer": "OneFormer",
    "faster_rcnn": "Faster R-CNN",
    "mask_rcnn": "Mask R-CNN",
    "cascade_rcnn": "Cascade R-CNN",
    "cascade_mask_rcnn": "Cascade Mask R-CNN",
}
"""Segmenters and detectors by the name of their head in metadata."""

DETECTORS = ("faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn")
"""Heads whose answer is boxes."""

QUERY_OUTPUTS = ("class_logits", "mask_logits")
BOX_OUTPUTS = ("boxes", "scores", "classes", "count")
BOX_AND_MASK_OUTPUTS = ("boxes", "scores", "classes", "masks", "count")
HEAD_OUTPUTS = {
    "upernet": ("logits",),
    "maskformer": QUERY_OUTPUTS,
    "mask2former": QUERY_OUTPUTS,
    "oneformer": QUERY_OUTPUTS,
    "faster_rcnn": BOX_OUTPUTS,
    "mask_rcnn": BOX_AND_MASK_OUTPUTS,
    "cascade_rcnn": BOX_OUTPUTS,
    "cascade_mask_rcnn": BOX_AND_MASK_OUTPUTS,
}
"""Names of outputs by head: class scores of pixels; class scores and masks of queries; or detections."""

THRESHOLDS = {
    "score": 0.5,
    "mask": 0.5,
    "overlap": 0.8,
    "mask_size": 0.0,
}
"""Numbers that turn outputs into segments, with their defaults.

``score``: smallest score of a segment that is reported. ``mask``: probability from which a pixel counts as a mask's own
area. ``overlap``: share of that area that a segment must keep where masks compete. ``mask_size``: side of the square
that masks are scaled to first (transformers does so for Mask2Former, to 384 pixels); 0 for none.
"""


SCORES = ("softmax", "sigmoid")
"""Functions that turn class scores into probabilities: of one class out of all, or of every class by itself."""


def score_function(num_classes: int) -> str:
    """Return the function for a head of which nothing else is known: a single score is that of a yes or no."""
    return "sigmoid" if num_classes == 1 else "softmax"


_TEXTS = (
    "architecture",
    "head",
    "task",
    "source_name",
    "source_sha256",
    "dtype",
    "quantized",
    "quantization",
    "tool_version",
)


@dataclass(frozen=True)
class ModelMetadata:
    """A model's source and its use.

    Attributes:
        architecture: name in the registry, or the family for other sizes; of a segmenter, its backbone's.
        head: a segmenter's or a detector's head, "mask2former" for instance; empty for other models.
        task: one of :data:`TASKS`.
        num_classes: classes of the head, 0 if there is none.
        scores: one of :data:`SCORES`, for classifiers.
        dilations: per level, one per block.
        source_name: file or folder the weights came from, without its path.
        source_sha256: SHA-256 of that file, in hexadecimal.
        dtype: "fp32", "fp16" or "bf16".
        quantized: "int8" or "fp8" where products are quantized; empty for others. ``dtype`` is then that of all else.
        quantization: the way it was done, in words.
        preprocessing: the way from images to inputs.
        tool_version: version of na-deploy that wrote this.
        labels: class names by class number, empty if unknown.
        palette: RGB of 0 to 255 by class number, empty if unknown.
        things: numbers of the classes whose objects are counted one by one; ``None`` where nobody said. For
            "panoptic"; in "instance" every class is a thing.
        thresholds: for turning outputs into segments, by the names in :data:`THRESHOLDS`; those left out have the
            values there.
        segment_rule: whose rule turns queries into segments: "transformers" for checkpoints from there, else
            "detectron2" (see ``runtime/results/queries.py``).
        config: the network's full description, ``None`` if the file does not say.
        inputs: shape of every input that the file was exported and verified with, by name.
        windows: each layer that was given a window in place of full attention, with the window, in words.
    """

    architecture: str
    task: str = "classification"
    num_classes: int = 0
    scores: str = "softmax"
    dilations: Dilations = ()
    source_name: str = ""
    source_sha256: str = ""
    dtype: str = "fp32"
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    tool_version: str = __version__
    labels: Mapping[int, str] = field(default_factory=dict)
    palette: tuple[tuple[int, int, int], ...] = ()
    things: tuple[int, ...] | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)
    segment_rule: SegmentRule = "detectron2"
    config: ModelConfig | None = None
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    windows: tuple[str, ...] = ()
    head: str = ""
    quantized: str = ""
    quantization: str = ""

    @property
    def precision(self) -> str:
        """The type of the model's products and, where it is another, of all else: "fp16" or "int8 + fp16"."""
        return f"{self.quantized} + {self.dtype}" if self.quantized else self.dtype

    @property
    def input_size(self) -> tuple[int, int, int, int]:
        """One image's input shape (1, 3, H, W)."""
        channels = 3 if self.config is None else self.config.in_channels
        return (1, channels, *self.preprocessing.size)

    def to_props(self) -> dict[str, str]:
        """Return text properties, each key prefixed with ``na_deploy.``."""
        values = {
            "architecture": self.architecture,
            "task": self.task,
            "num_classes": str(self.num_classes),
            "scores": self.scores,
            "dilations": "/".join(",".join(map(str, level)) for level in self.dilations),
            "source_name": self.source_name,
            "source_sha256": self.source_sha256,
            "dtype": self.dtype,
            "preprocessing": self.preprocessing.to_json(),
            "tool_version": self.tool_version,
        }
        if self.task in SEGMENT_TASKS:
            values["segment_rule"] = self.segment_rule
        for key in ("head", "quantized", "quantization"):
            if getattr(self, key):
                values[key] = getattr(self, key)
        if self.palette:
            values["palette"] = " ".join(f"{red:02x}{green:02x}{blue:02x}" for red, green, blue in self.palette)
        if self.things is not None:
            values["things"] = json.dumps(self.things, separators=(",", ":"))
        if self.thresholds:
            values["thresholds"] = json.dumps(dict(self.thresholds), separators=(",", ":"))
        if self.labels:
            values["labels"] = json.dumps({str(index): name for index, name in self.labels.items()}, ensure_ascii=False)
        if self.config is not None:
            values["config"] = self.config.to_json()
        if self.inputs:
            values["inputs"] = json.dumps({name: list(shape) for name, shape in self.inputs.items()})
        if self.windows:
            values["windows"] = json.dumps(list(self.windows), ensure_ascii=False)
        return {PREFIX + key: value for key, value in values.items()}

    @classmethod
    def from_props(cls, props: Mapping[str, str]) -> ModelMetadata | None:
        """Read what :meth:`to_props` wrote; missing or unreadable entries take their defaults.

        Returns:
            ``None`` if the properties name no architecture: the file is not one of ours.
        """
        values = {key.removeprefix(PREFIX): value for key, value in props.items() if key.startswith(PREFIX)}
        if "architecture" not in values:
            return None
        known: dict[str, Any] = {key: values[key] for key in _TEXTS if key in values}
        readers: dict[str, Callable[[str], Any]] = {
            "num_classes": int,
            "dilations": _read_dilations,
            "preprocessing": Preprocessing.from_json,
            "labels": _read_labels,
            "palette": _read_palette,
            "things": _read_things,
            "thresholds": _read_thresholds,
            "segment_rule": _read_rule,
            "config": ModelConfig.from_json,
            "inputs": _read_inputs,
            "windows": lambda text: tuple(str(window) for window in json.loads(text)),
        }
        for key, read in readers.items():
            if key in values:
                try:
                    known[key] = read(values[key])
                except (ValueError, TypeError, AttributeError, UsageError):
                    continue
        known.setdefault("tool_version", "unknown")
        if values.get("scores") in SCORES:
            known["scores"] = values["scores"]
        else:  # written before it was recorded
            known["scores"] = score_function(known.get("num_classes", 0))
        return cls(**known)


def _read_dilations(text: str) -> Dilations:
    return tuple(tuple(int(number) for number in level.split(",")) for level in text.split("/")) if text else ()


def _read_labels(text: str) -> dict[int, str]:
    return {int(index): str(name) for index, name in json.loads(text).items()}


def _read_inputs(text: str) -> dict[str, tuple[int, ...]]:
    return {str(name): tuple(int(size) for size in shape) for name, shape in json.loads(text).items()}


def _read_palette(text: str) -> tuple[tuple[int, int, int], ...]:
    def channels(colour: str) -> tuple[int, int, int]:
        if len(colour) != 6:
            raise ValueError(colour)
        return int(colour[:2], 16), int(colour[2:4], 16), int(colour[4:], 16)

    return tuple(channels(colour) for colour in text.split())


def _read_things(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in json.loads(text))


def _read_thresholds(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in json.loads(text).items() if name in THRESHOLDS}


def _read_rule(text: str) -> SegmentRule:
    if text not in get_args(SegmentRule):
        raise ValueError(text)
    return text  # type: ignore[return-value]  # one of the two, as was just checked
