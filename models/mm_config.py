"""Entries of mmcv and mmengine beside weights: the training configuration, class names and colours.

mmcv writes ``{meta: {config, CLASSES, PALETTE}, state_dict}``, mmengine ``{meta: {cfg, dataset_meta}, state_dict}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from na_deploy.models.config_text import nested, read_assignments
from na_deploy.models.preprocessing import Preprocessing, shortest_side


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
    pipeline = config.assignments.get("test_pipeline")
    if pipeline is None:
        pipeline = next((each for each in nested(config.assignments, "pipeline") if isinstance(each, list)), None)
    sides = [
        found
        for key in ("img_scale", "scale")
        for found in nested(pipeline, key)
        if isinstance(found, list) and len(found) == 2 and all(isinstance(side, int) for side in found)
    ]
    if not sides:
        return None
    preprocessor = config.model.get("data_preprocessor")
    preprocessor = preprocessor if isinstance(preprocessor, Mapping) else {}
    given = (preprocessor.get(key) for key in ("size_divisor", "pad_size_divisor"))
    divisor = next(filter(None, given), None) or next(nested(pipeline, "size_divisor"), None) or 1
    prepared = shortest_side(min(sides[0]), max(sides[0]), divisor if isinstance(divisor, int) else 1)
    mean, std = (_channels(preprocessor.get(key), pipeline, key) for key in ("mean", "std"))
    if mean and std:
        prepared = replace(prepared, mean=mean, std=std)
    to_rgb = preprocessor.get("bgr_to_rgb", next(nested(pipeline, "to_rgb"), True))
    return prepared if to_rgb is not False else replace(prepared, channel_order="BGR")


def _channels(given: Any, pipeline: Any, key: str) -> tuple[float, ...] | None:
    values = given if isinstance(given, list) else next(nested(pipeline, key), None)
    if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
        return None
    return tuple(float(value) for value in values)
