"""Classifiers on a folder of class folders: the share of pictures whose class is the first answer, or among five."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from na_deploy.errors import NaDeployError, UsageError
from na_deploy.model_file.answers import answer_of
from na_deploy.runtime.evaluation.figures import Figures
from na_deploy.runtime.evaluation.pictures import check_folder, pictures_in, spread
from na_deploy.runtime.results.predict import Classification, Result, ResultOptions
from na_deploy.runtime.session import Session

TOP = 5


class ClassFolders:
    """Pictures in one folder for each class.

    Args:
        folder: the folder of class folders.
        limit: pictures to take, spread evenly over all; ``None`` for all.

    Raises:
        UsageError: there is no such folder, or it holds no class folders with pictures.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        check_folder(folder, "--images", "class folders")
        self.folders = sorted(
            entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
        )
        pairs = [(name, path) for name in self.folders for path in pictures_in(folder / name)]
        if not pairs:
            loose = f"; the {len(found)} pictures beside them have no class" if (found := pictures_in(folder)) else ""
            raise UsageError(f"{folder} holds no class folders with pictures; expected {folder}/CLASS/*.jpg{loose}")
        chosen = spread(pairs, limit)
        self.name = f"{len(chosen)} pictures of {len(self.folders)} classes in {folder}"
        self.pictures: Sequence[Path] = [path for _, path in chosen]
        self.owners: Sequence[str] = [name for name, _ in chosen]

    def scorer(self, session: Session, labels: Mapping[int, str] | None) -> TopClasses:
        """Return the scorer for a classifier. Errors as in :class:`~na_deploy.runtime.evaluation.figures.DataSet`."""
        answer = answer_of(session.outputs, session.metadata, labelled=labels is not None)
        if answer.scores is None:
            given = "give --maps or --coco" if answer.has_segments else "give a classifier"
            raise UsageError(
                f"{session.path.name} answers with {answer.task}, and class folders are for classifiers; {given}"
            )
        names = labels if labels is not None else session.metadata.labels if session.metadata is not None else {}
        count = answer.class_count or (session.metadata.num_classes if session.metadata is not None else 0)
        numbers, rule = match_folders(self.folders, names, count or len(names))
        notes = (f"Folders are the model's classes {rule}",)
        more = (count or len(names)) > TOP
        return TopClasses(session.path.name, self.owners, numbers, ResultOptions(top=TOP, labels=labels), notes, more)


class TopClasses:
    """The scorer of a classifier.

    Attributes:
        options: five classes are asked for.
        notes: the rule that gave folders their class numbers.
    """

    def __init__(
        self,
        model: str,
        owners: Sequence[str],
        numbers: Mapping[str, int],
        options: ResultOptions,
        notes: tuple[str, ...],
        more: bool,
    ) -> None:
        self.options, self.notes = options, notes
        self._model, self._owners, self._numbers, self._more = model, owners, numbers, more
        self._answers: dict[int, int] = {}
        self._first: Counter[str] = Counter()
        self._among = 0

    def add(self, index: int, result: Result) -> None:
        """Count one picture."""
        if not isinstance(result, Classification):
            raise NaDeployError(f"{self._model} gave no classes")
        found = [each.index for each in result.predictions]
        owner = self._owners[index]
        wanted = self._numbers[owner]
        self._answers[index] = found[0]
        self._first[owner] += found[0] == wanted
        self._among += wanted in found

    def figures(self) -> Figures:
        """Return top-1 and, of models with more than five classes, top-5."""
        count = len(self._answers)
        shares = {"top-1": self._first.total() / count}
        if self._more:
            shares[f"top-{TOP}"] = self._among / count
        sizes = Counter(self._owners[index] for index in self._answers)
        classes = {name: self._first[name] / sizes[name] if sizes[name] else None for name in self._numbers}
        return Figures({"": shares}, {"": classes}, tuple(self._answers[index] for index in sorted(self._answers)))


def match_folders(folders: Sequence[str], labels: Mapping[int, str], count: int) -> tuple[dict[str, int], str]:
    """Return the class number of each folder, and the rule that gave it, in words.

    Folders are class names where all are; class numbers where all are; else the classes in alphabetical order, where
    there is one for each class, as in torchvision's ``ImageFolder``.

    Args:
        folders: names, sorted.
        labels: the model's class names; one may hold several with commas between.
        count: the number of the model's classes, 0 where it is not known.

    Raises:
        UsageError: none of this fits.
    """
    numbers: dict[str, int | None] = {}
    for index, label in labels.items():
        for name in {_plain(label), *(_plain(part) for part in label.split(","))}:
            numbers[name] = None if name in numbers else index  # a name of two classes tells neither
    named = {folder: numbers.get(_plain(folder)) for folder in folders}
    if all(index is not None for index in named.values()):
        return {folder: index for folder, index in named.items() if index is not None}, "by name"
    if count and all(folder.isdecimal() and int(folder) < count for folder in folders):
        return {folder: int(folder) for folder in folders}, "by number"
    if count and len(folders) == count:
        return {folder: index for index, folder in enumerate(folders)}, "in alphabetical order"
    unknown = next(folder for folder, index in named.items() if index is None)
    raise UsageError(
        f"there are {len(folders)} class folders, the model has {count or 'an unknown number of'} classes, and none is "
        f"named {unknown!r}; name folders by the model's class names or numbers, or give a folder for each class"
    )


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
