"""Detectors and segmenters of objects on COCO's annotations: average precision of boxes and masks, by pycocotools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from na_deploy.errors import NaDeployError, UsageError, one_line
from na_deploy.model_file.answers import answer_of
from na_deploy.runtime.evaluation.annotations import index, match_categories, pycocotools, read_annotations
from na_deploy.runtime.evaluation.figures import Figures, Shares
from na_deploy.runtime.evaluation.pictures import check_folder, spread
from na_deploy.runtime.results.predict import Result, ResultOptions, Segmentation
from na_deploy.runtime.session import Session

STATISTICS = {"AP": 0, "AP50": 1, "AP75": 2, "small": 3, "medium": 4, "large": 5, "AR100": 8}
"""Figures and their places in pycocotools' ``stats``: AP by overlap and by size, recall of 100 boxes a picture."""

KINDS = {"boxes": "bbox", "masks": "segm"}


class CocoPictures:
    """Pictures with COCO's annotations.

    Args:
        annotations: the JSON file.
        images: the folder of pictures.
        limit: pictures to take, spread evenly over all; ``None`` for all.

    Raises:
        UsageError: the file has another form, or a picture is missing.
        NaDeployError: the file is not JSON.
        MissingDependencyError: pycocotools is not installed.
    """

    def __init__(self, annotations: Path, images: Path, limit: int | None = None) -> None:
        pycocotools()
        content = read_annotations(annotations)
        check_folder(images, "--images", "pictures")
        entries = spread(sorted(content["images"], key=lambda entry: entry["id"]), limit)
        missing = [entry["file_name"] for entry in entries if not (images / entry["file_name"]).is_file()]
        if missing:
            raise UsageError(
                f"{len(missing)} of {len(entries)} pictures that {annotations.name} lists are not in {images}, the "
                f"first is {missing[0]}; give --images the folder that holds them"
            )
        self.entries: Sequence[Mapping[str, Any]] = entries
        self.pictures: Sequence[Path] = [images / entry["file_name"] for entry in entries]
        chosen = {entry["id"] for entry in entries}
        self.objects = [entry for entry in content["annotations"] if entry["image_id"] in chosen]
        if not self.objects:
            raise UsageError(
                f"{annotations} has no annotation of the {len(entries)} pictures; give others, or no --limit"
            )
        present = {entry["category_id"] for entry in self.objects}
        self.categories = {entry["id"]: entry["name"] for entry in content["categories"] if entry["id"] in present}
        self.has_masks = all(entry.get("segmentation") for entry in self.objects)
        # pycocotools takes an annotation numbered 0 for none, and needs what some files leave out.
        objects = [
            {"iscrowd": 0, "area": entry["bbox"][2] * entry["bbox"][3], **entry, "id": number}
            for number, entry in enumerate(self.objects, 1)
        ]
        self.truth = index({**content, "images": list(entries), "annotations": objects})
        self.name = f"{len(entries)} pictures in {images}, {len(self.objects)} objects of {annotations.name}"

    def scorer(self, session: Session, labels: Mapping[int, str] | None) -> Precision:
        """Return the scorer for a model. Errors as in :class:`~na_deploy.runtime.evaluation.figures.DataSet`."""
        answer, metadata = answer_of(session.outputs, session.metadata), session.metadata
        if metadata is None or not (answer.has_queries or answer.has_boxes):
            raise UsageError(
                f"{session.path.name} answers with {answer.task}, and --coco is for detectors and segmenters of "
                "objects; leave it out for classifiers, give --maps for semantic segmenters"
            )
        names = metadata.labels if labels is None else labels
        numbers, rule = match_categories(self.categories, names, metadata.num_classes or len(names))
        options = ResultOptions(
            task="instance" if answer.has_queries else None, thresholds={"score": 0.0}, labels=labels
        )
        return Precision(self, session.path.name, numbers, options, (f"Categories are the model's classes {rule}",))


class Precision:
    """The scorer of a detector or a segmenter of objects. Everything it finds counts, however low its score."""

    def __init__(
        self,
        data: CocoPictures,
        model: str,
        numbers: Mapping[int, int],
        options: ResultOptions,
        notes: tuple[str, ...],
    ) -> None:
        self.options, self.notes = options, notes
        self._data, self._model, self._numbers = data, model, numbers
        self._found: list[dict[str, Any]] = []
        self._has_masks = data.has_masks

    def add(self, index: int, result: Result) -> None:
        """Take one picture's objects; those of classes that are no category are left out."""
        if not isinstance(result, Segmentation):
            raise NaDeployError(f"{self._model} gave no objects")
        entry = self._data.entries[index]
        size = (entry.get("height", result.size[0]), entry.get("width", result.size[1]))
        if size != result.size:
            raise UsageError(
                f"{self._data.pictures[index]} has {result.size[1]}×{result.size[0]} pixels and is annotated with "
                f"{size[1]}×{size[0]}; give the pictures that were annotated"
            )
        self._has_masks &= result.has_masks
        for segment, written in zip(result.segments, result.to_coco(), strict=True):
            if segment.class_index not in self._numbers:
                continue
            number = self._numbers[segment.class_index]
            own = {"image_id": entry["id"], "category_id": number, "score": segment.score, "bbox": list(segment.box)}
            self._found.append({**written, **own, "id": len(self._found) + 1, "iscrowd": 0})

    def figures(self) -> Figures:
        """Return average precision of boxes and, where model and annotations have them, of masks."""
        overall, classes = {}, {}
        for kind in ("boxes", "masks") if self._has_masks else ("boxes",):
            overall[kind], classes[kind] = self._measured(kind)
        return Figures(overall, classes)

    def _measured(self, kind: str) -> tuple[Shares, Shares]:
        truth = self._data.truth
        found = [{**entry, "area": entry["bbox"][2] * entry["bbox"][3]} for entry in self._found]
        # Masks are small or large by their own pixels, boxes by their sides.
        found = self._found if kind == "masks" else found
        results = index(
            {"images": truth.dataset["images"], "categories": truth.dataset["categories"], "annotations": found}
        )
        with redirect_stdout(StringIO()):
            measured = pycocotools()[1](truth, results, KINDS[kind])
            try:
                measured.evaluate()
                measured.accumulate()
                measured.summarize()
            except Exception as error:  # pycocotools' own errors are of many kinds
                raise NaDeployError(f"pycocotools cannot compare the {kind}: {one_line(error)}") from error
        overall = {name: _share(measured.stats[place]) for name, place in STATISTICS.items()}
        # precision: (overlaps, recalls, categories, sizes, counts); all sizes, 100 boxes a picture.
        table, numbers = measured.eval["precision"], measured.params.catIds
        classes = {}
        for place, number in enumerate(numbers):
            if number in self._data.categories:
                own = table[:, :, place, 0, 2]
                own = own[own > -1]
                classes[self._data.categories[number]] = float(np.mean(own)) if own.size else None
        return overall, classes


def _share(value: float) -> float | None:
    return None if value < 0 else float(value)
