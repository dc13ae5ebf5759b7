"""COCO's annotation files: pictures, categories and objects, as pycocotools reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from na_deploy.errors import MissingDependencyError, NaDeployError, UsageError, one_line
from na_deploy.models.class_sets import matching


def pycocotools() -> tuple[Any, Any]:
    """Return pycocotools' ``COCO`` and ``COCOeval``.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise MissingDependencyError(
            "average precision needs pycocotools; install it with: pip install 'na-deploy[eval]'"
        ) from None
    return COCO, COCOeval


def read_annotations(path: Path) -> dict[str, Any]:
    """Read an annotation file of COCO's detection task.

    Raises:
        UsageError: the file cannot be read, or has another form.
        NaDeployError: it is not JSON.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the annotations {path}: {error.strerror}; give --coco a JSON file") from None
    except ValueError as error:
        raise NaDeployError(f"the annotations {path} are not valid JSON ({one_line(error, 100)})") from None
    parts = {"images": ("id", "file_name"), "categories": ("id", "name"), "annotations": ("image_id", "category_id")}
    for part, keys in parts.items():
        entries = content.get(part) if isinstance(content, dict) else None
        sound = isinstance(entries, list) and all(
            isinstance(entry, dict) and all(key in entry for key in keys) for entry in entries
        )
        if not sound:
            raise UsageError(
                f"{path} is not an annotation file of COCO's detection task: it needs a list {part!r} of objects with "
                f"{' and '.join(keys)}, as instances_val2017.json has"
            )
    if not content["annotations"]:
        raise UsageError(f"{path} holds no annotations, so there is nothing to compare with")
    if not all("bbox" in entry for entry in content["annotations"]):
        raise UsageError(f"{path} holds annotations without bbox; give a file of COCO's detection task, with boxes")
    return content


def index(dataset: Mapping[str, Any]) -> Any:
    """Return pycocotools' ``COCO`` over a data set in memory, without what it prints."""
    found = pycocotools()[0]()
    with redirect_stdout(StringIO()):
        found.dataset = dict(dataset)
        found.createIndex()
    return found


def match_categories(
    categories: Mapping[int, str], labels: Mapping[int, str], count: int
) -> tuple[dict[int, int], str]:
    """Return the category's number of each class of a model, and the rule that gave it, in words.

    Classes are found by name where the model names every category; by the data set's numbers where its names are those
    of a known data set; else in the order of the numbers, where there are as many classes as categories.

    Args:
        categories: names by number, of those that are annotated.
        labels: the model's class names.
        count: the number of the model's classes.

    Raises:
        UsageError: none of this fits.
    """
    names = {name.casefold(): number for number, name in categories.items()}
    named = {index: names[label.casefold()] for index, label in labels.items() if label.casefold() in names}
    if len(set(named.values())) == len(categories):
        return named, "by name"
    known = matching(labels) if labels else None
    if known is not None and known.ids and set(categories) <= set(known.ids):
        return dict(enumerate(known.ids)), f"by the numbers of {known.title}"
    if not named and len(categories) == count:
        return dict(enumerate(sorted(categories))), "in the order of their numbers"
    missing = next(name for number, name in categories.items() if number not in named.values())
    raise UsageError(
        f"the annotations have {len(categories)} categories, the model has {count} classes, none named {missing!r}; "
        "give --labels with the categories' names in the order of the model's classes"
    )
