"""Class names and colours of the data sets that published models were trained on, as data files beside this one.

Names and colours are those of the data sets' own tools as mmsegmentation and mmdetection write them; ImageNet's are
torchvision's. Which ADE20K and COCO classes are countable things follows their panoptic annotations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from na_deploy.errors import UsageError

CLASS_SETS = ("ade20k", "cityscapes", "coco", "coco_panoptic", "imagenet")
"""Names that :func:`class_set` takes."""

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class ClassSet:
    """The classes of a data set, in the order of models' outputs.

    Attributes:
        name: one of :data:`CLASS_SETS`.
        title: data set and choice of classes, in words.
        names: by class number.
        palette: RGB of 0 to 255 by class number; empty where the data set has none.
        things: numbers of the classes whose objects are counted one by one; ``None`` where the data set does not say.
        ids: numbers of the classes in the data set's annotation files; empty where those are class numbers.
    """

    name: str
    title: str
    names: tuple[str, ...]
    palette: tuple[Colour, ...] = ()
    things: tuple[int, ...] | None = None
    ids: tuple[int, ...] = ()

    @property
    def labels(self) -> dict[int, str]:
        """Names by class number, as :class:`ModelMetadata` holds them."""
        return dict(enumerate(self.names))

    def things_only(self) -> ClassSet:
        """Return the things alone, renumbered in their order, as instance segmenters have them.

        Raises:
            UsageError: the data set does not tell things from the rest.
        """
        if self.things is None:
            raise UsageError(f"{self.title}: this data set does not say which classes are countable things")
        kept = self.things
        return ClassSet(
            self.name,
            f"{self.title}, things only",
            tuple(self.names[k] for k in kept),
            tuple(self.palette[k] for k in kept) if self.palette else (),
            tuple(range(len(kept))),
            tuple(self.ids[k] for k in kept) if self.ids else (),
        )


@cache
def class_set(name: str) -> ClassSet:
    """Return a data set's classes.

    Raises:
        UsageError: ``name`` is not one of :data:`CLASS_SETS`.
    """
    if name not in CLASS_SETS:
        raise UsageError(f"no class names of {name!r} are known; those of {', '.join(CLASS_SETS)} are")
    content = json.loads(files(__package__).joinpath(f"{name}.json").read_text(encoding="utf-8"))
    classes = content["classes"]
    return ClassSet(
        name,
        content["title"],
        tuple(entry["name"] for entry in classes),
        tuple((red, green, blue) for red, green, blue in (entry["colour"] for entry in classes if "colour" in entry)),
        tuple(number for number, entry in enumerate(classes) if entry["thing"]) if "thing" in classes[0] else None,
        tuple(entry["id"] for entry in classes if "id" in entry),
    )


def matching(labels: Mapping[int, str]) -> ClassSet | None:
    """Return the data set whose names and order are ``labels``, or whose things are; ``None`` for any others."""
    names = tuple(labels[number] for number in sorted(labels))
    for name in CLASS_SETS:
        known = class_set(name)
        if known.names == names:
            return known
        if known.things is not None and len(known.things) == len(names) and known.things_only().names == names:
            return known.things_only()
    return None
