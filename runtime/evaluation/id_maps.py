"""Semantic segmenters on id maps: each class's intersection over union, and the share of pixels that are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from na_deploy.errors import NaDeployError, UsageError
from na_deploy.model_file.answers import answer_of
from na_deploy.runtime.evaluation.figures import Figures
from na_deploy.runtime.evaluation.pictures import check_folder, pictures_in, spread
from na_deploy.runtime.results.predict import Result, ResultOptions, Segmentation
from na_deploy.runtime.session import Session

IGNORED = 255
"""Value of pixels that belong to no class, in most data sets."""

_ROLES = ("_leftImg8bit", "_gtFine_labelTrainIds")
"""Ends of names that tell Cityscapes' pictures from their maps."""

IdMap = NDArray[np.int32]


class IdMaps:
    """Pictures, and for each a map of class numbers: a greyscale or palette PNG of the picture's size.

    Args:
        images: folder of pictures.
        maps: folder of maps, under the same names apart from the ending.
        first: the value that stands for class 0; smaller ones are no class.
        ignored: the value of pixels that are not counted.
        limit: pictures to take, spread evenly over all; ``None`` for all.

    Raises:
        UsageError: a folder does not exist or is empty, or a picture has no map.
    """

    def __init__(
        self, images: Path, maps: Path, *, first: int = 0, ignored: int = IGNORED, limit: int | None = None
    ) -> None:
        check_folder(images, "--images", "pictures")
        check_folder(maps, "--maps", "id maps")
        self._first, self._ignored = first, ignored
        pictures = pictures_in(images)
        if not pictures:
            raise UsageError(f"{images} holds no pictures; give --images a folder of JPEG or PNG files")
        known = {_key(path, maps): path for path in pictures_in(maps)}
        missing = [path for path in pictures if _key(path, images) not in known]
        if missing:
            raise UsageError(
                f"{len(missing)} of {len(pictures)} pictures have no id map in {maps}, the first is {missing[0].name}; "
                f"expected {_key(missing[0], images)}.png"
            )
        self.pictures: Sequence[Path] = spread(pictures, limit)
        self.maps: Sequence[Path] = [known[_key(path, images)] for path in self.pictures]
        self.name = f"{len(self.pictures)} pictures in {images}, id maps in {maps}"

    def truth(self, index: int, classes: int) -> IdMap:
        """Return the class of every pixel of a picture, -1 for none.

        Raises:
            UsageError: a value is no class, or the file is no id map.
        """
        path = self.maps[index]
        values = _read(path)
        numbers: IdMap = values - np.int32(self._first)
        numbers[(values == self._ignored) | (numbers < 0)] = -1
        largest = int(numbers.max(initial=-1))
        if largest >= classes:
            raise UsageError(
                f"{path} holds the value {largest + self._first}, and the model has {classes} classes; give --ignore "
                "the value of pixels that do not count, --first-class the value of the first class"
            )
        return numbers

    def scorer(self, session: Session, labels: Mapping[int, str] | None) -> Overlaps:
        """Return the scorer for a segmenter. Errors as in :class:`~na_deploy.runtime.evaluation.figures.DataSet`."""
        answer, metadata = answer_of(session.outputs, session.metadata), session.metadata
        if metadata is None or not (answer.has_queries or answer.task == "semantic"):
            raise UsageError(
                f"{session.path.name} answers with {answer.task}, and --maps is for semantic segmenters; "
                "leave it out for classifiers, give --coco for detectors"
            )
        names = metadata.labels if labels is None else labels
        count = metadata.num_classes or len(names)
        if not count:
            raise UsageError(f"{session.path.name} does not say how many classes it has; give --labels")
        return Overlaps(self, session.path.name, [names.get(k, f"class {k}") for k in range(count)], labels)


class Overlaps:
    """The scorer of a semantic segmenter."""

    notes: tuple[str, ...] = ()

    def __init__(self, data: IdMaps, model: str, names: Sequence[str], labels: Mapping[int, str] | None) -> None:
        self.options = ResultOptions(task="semantic", labels=labels)
        self._data, self._model, self._names = data, model, names
        self._confusion = np.zeros((len(names), len(names) + 1), np.int64)

    def add(self, index: int, result: Result) -> None:
        """Count one picture's pixels."""
        if not isinstance(result, Segmentation):
            raise NaDeployError(f"{self._model} gave no segments")
        there, found = self._data.truth(index, len(self._names)), result.class_map()
        if there.shape != found.shape:
            sizes = [f"{shape[1]}×{shape[0]}" for shape in (there.shape, found.shape)]
            raise UsageError(
                f"{self._data.maps[index]} has {sizes[0]} pixels and its picture {sizes[1]}; make them equal"
            )
        self._confusion += confusion(there, found, len(self._names))

    def figures(self) -> Figures:
        """Return the mean intersection over union of the classes that occur, and the shares of right pixels."""
        overlaps = intersection_over_union(self._confusion)
        right, there = np.diagonal(self._confusion), self._confusion.sum(1)
        recalls = right[there > 0] / there[there > 0]
        whole = there.sum()
        shares = {
            "mIoU": _mean(overlaps[~np.isnan(overlaps)]),
            "pixel accuracy": float(right.sum() / whole) if whole else None,
            "class accuracy": _mean(recalls),
        }
        classes = {
            name: None if np.isnan(value) else float(value) for name, value in zip(self._names, overlaps, strict=True)
        }
        return Figures({"": shares}, {"": classes})


def confusion(there: NDArray[np.integer], found: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """Return (classes, classes + 1): pixels of each class there, by the class found; the last column is none (-1).

    Pixels that are -1 in ``there`` do not count.
    """
    counted = there >= 0
    columns = np.where(found[counted] < 0, classes, found[counted]).astype(np.int64)
    pairs = there[counted].astype(np.int64) * (classes + 1) + columns
    return np.bincount(pairs, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def intersection_over_union(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each class's intersection over union of :func:`confusion`; NaN for one that neither is there nor found."""
    shared = np.diagonal(counts)
    union = counts.sum(1) + counts[:, :-1].sum(0) - shared
    overlaps: NDArray[np.float64] = np.full(len(counts), np.nan)
    np.divide(shared, union, out=overlaps, where=union > 0)
    return overlaps


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None


def _key(path: Path, folder: Path) -> str:
    stem = path.relative_to(folder).with_suffix("").as_posix()
    for role in _ROLES:
        stem = stem.removesuffix(role)
    return stem


def _read(path: Path) -> IdMap:
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P", "1", "I", "I;16"):
                raise UsageError(
                    f"{path} is a picture in colours ({image.mode}); an id map is greyscale or has a palette"
                )
            return np.asarray(image).astype(np.int32)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise NaDeployError(f"{path} is not an id map that can be read ({str(error)[:100]})") from None
