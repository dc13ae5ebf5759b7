"""Entries of mmcv and mmengine beside weights: the training configuration, class names and colours.

mmcv writes ``{meta: {config, CLASSES, PALETTE}, state_dict}``, mmengine ``{meta: {cfg, dataset_meta}, state_dict}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from na_deploy.models.config_text import nested, read_assignments
from na_deploy.models.preprocessing import Interpolation, Preprocessing, shortest_side


@dataclass(frozen=True)
class MMConfig:
    """Statements of a file.

    Attributes:
        assignments: the configuration's values by name, empty if there is none.
        classes: class names.
        palette: RGB of 0 to 255, by class number.
    """

    assignments: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()

    @property
    def model(self) -> Mapping[str, Any]:
        """The entry ``model``."""
        found = self.assignments.get("model")
        return found if isinstance(found, Mapping) else {}

    @property
    def backbone(self) -> Mapping[str, Any]:
        """The backbone's entry, empty if there is none."""
        return next((found for found in nested(self.assignments, "backbone") if isinstance(found, Mapping)), {})


def read_mm_config(content: Any) -> MMConfig:
    """Read what a checkpoint's content says; other files say nothing."""
    meta = content.get("meta") if isinstance(content, Mapping) else None
    if not isinstance(meta, Mapping):
        return MMConfig()
    text = next((meta[key] for key in ("config", "cfg") if isinstance(meta.get(key), str)), "")
    data = meta.get("dataset_meta")
    data = data if isinstance(data, Mapping) else {}
    classes = next((x for x in (meta.get("CLASSES"), data.get("classes"), data.get("CLASSES")) if x is not None), ())
    palette = next((x for x in (meta.get("PALETTE"), data.get("palette"), data.get("PALETTE")) if x is not None), ())
    return MMConfig(read_assignments(text), _names(classes), _colours(palette))


def _names(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list | tuple) else ()


def _colours(value: Any) -> tuple[tuple[int, int, int], ...]:
    try:
        return tuple((int(red), int(green), int(blue)) for red, green, blue in value)
    except (TypeError, ValueError):
        return ()


def mm_preprocessing(config: MMConfig) -> Preprocessing | None:
    """Return the test pipeline's preprocessing, ``None`` if the file does not tell the sizes.

    Both libraries' ``Resize`` keeps proportions and fits the picture into the two sides of ``scale``, whatever their
    order.
    """
    pipeline = _pipeline(config)
    sides = [
        found
        for key in ("img_scale", "scale")
        for found in nested(pipeline, key)
        if isinstance(found, list) and len(found) == 2 and all(isinstance(side, int) for side in found)
    ]
    if not sides:
        return None
    preprocessor = _preprocessor(config)
    given = (preprocessor.get(key) for key in ("size_divisor", "pad_size_divisor"))
    divisor = next(filter(None, given), None) or next(nested(pipeline, "size_divisor"), None) or 1
    prepared = shortest_side(min(sides[0]), max(sides[0]), divisor if isinstance(divisor, int) else 1)
    return _with_channels(prepared, preprocessor, pipeline)


def mm_classification(config: MMConfig) -> Preprocessing | None:
    """Return mmpretrain's test pipeline: straight to a size, or the shorter side to one and a crop.

    ``None`` if the file does not tell the size. ``Resize`` with one number, and with two, scales to exactly that size.
    """
    pipeline = _pipeline(config)
    steps = {step.get("type"): step for step in pipeline or () if isinstance(step, Mapping)}
    crop = steps.get("CenterCrop", {}).get("crop_size")
    scaling = next((steps[name] for name in ("ResizeEdge", "Resize") if name in steps), {})
    scale = scaling.get("scale", scaling.get("size"))
    width, height = _pair(scale)  # as in mmcv, width first
    crop, _ = _pair(crop)
    named: dict[str, Interpolation] = {"bicubic": "bicubic", "nearest": "nearest", "lanczos": "lanczos"}
    interpolation = named.get(scaling.get("interpolation", ""), "bilinear")
    if isinstance(crop, int) and isinstance(width, int):
        prepared = Preprocessing((crop, crop), "resize-then-crop", width, interpolation=interpolation)
    elif isinstance(width, int) and isinstance(height, int):
        prepared = Preprocessing((height, width), "square", None, interpolation=interpolation)
    else:
        return None
    if "mean" not in _preprocessor(config) and next(nested(pipeline, "mean"), None) is None:
        return prepared
    return _with_channels(replace(prepared, scale=1.0), _preprocessor(config), pipeline)


def _pair(value: Any) -> tuple[Any, Any]:
    """Return two values as they are, one as both."""
    if isinstance(value, list | tuple) and len(value) == 2:
        return value[0], value[1]
    return value, value


def _pipeline(config: MMConfig) -> Any:
    """Return the steps of the test pipeline, ``None`` if there are none."""
    pipeline = config.assignments.get("test_pipeline")
    if pipeline is None:
        pipeline = next((each for each in nested(config.assignments, "pipeline") if isinstance(each, list)), None)
    return pipeline


def _preprocessor(config: MMConfig) -> Mapping[str, Any]:
    """Return mmengine's ``data_preprocessor``, which stands in the model or, in mmpretrain, beside it."""
    for found in (config.model.get("data_preprocessor"), config.assignments.get("data_preprocessor")):
        if isinstance(found, Mapping):
            return found
    return {}


def _with_channels(prepared: Preprocessing, preprocessor: Mapping[str, Any], pipeline: Any) -> Preprocessing:
    """Set mean, std and the order of channels, as far as the file tells."""
    mean, std = (_channels(preprocessor.get(key), pipeline, key) for key in ("mean", "std"))
    if mean and std:
        prepared = replace(prepared, mean=mean, std=std)
    stated = preprocessor.get("bgr_to_rgb", preprocessor.get("to_rgb"))
    to_rgb = next(nested(pipeline, "to_rgb"), True) if stated is None else stated
    return prepared if to_rgb is not False else replace(prepared, channel_order="BGR")


def _channels(given: Any, pipeline: Any, key: str) -> tuple[float, ...] | None:
    values = given if isinstance(given, list) else next(nested(pipeline, key), None)
    if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
        return None
    return tuple(float(value) for value in values)
