"""Samples to calibrate on: pictures prepared as the model's file says, or arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from na_deploy.errors import UsageError
from na_deploy.model_file.answers import answer_of
from na_deploy.model_file.tensors import Array, check_inputs, numpy_type
from na_deploy.runtime.evaluation.class_folders import ClassFolders, match_folders
from na_deploy.runtime.evaluation.pictures import check_folder, pictures_in, spread
from na_deploy.runtime.images.arrays import read_either
from na_deploy.runtime.images.prepare import read_image
from na_deploy.runtime.results.predict import image_preprocessing, prepare_picture
from na_deploy.runtime.session import Session

Feeds = Mapping[str, Array]


class Samples:
    """Inputs of a model, one run each, prepared when they are asked for.

    Attributes:
        name: the samples in words.
        wanted: class numbers of a classifier's pictures, where folders name them; empty for others.
    """

    name: str
    wanted: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Return the number of samples."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Feeds]:
        """Yield each sample's inputs by name."""
        raise NotImplementedError


class Pictures(Samples):
    """Pictures in a folder and below; in a folder for each class, classifiers are scored on them.

    Raises:
        UsageError: there is no such folder, it holds no pictures, or the model takes none.
    """

    def __init__(self, folder: Path, session: Session, limit: int) -> None:
        check_folder(folder, "--images", "pictures")
        self.preprocessing = image_preprocessing(session)
        if not self.preprocessing.prepares_images:
            raise UsageError(
                f"{session.path.name} takes {session.inputs[0]} and does not say how pictures become it; give --data"
            )
        found = pictures_in(folder)
        if not found:
            raise UsageError(f"{folder} holds no pictures (.jpg, .png, …); give --images a folder that does")
        self.paths = spread(found, limit)
        self.session = session
        self.name = f"{len(self.paths)} pictures in {folder}"
        self.wanted = _classes(folder, session, self.paths)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.paths)

    def __iter__(self) -> Iterator[Feeds]:
        """Yield pictures as inputs; a model of a larger fixed batch gets each as often as it needs."""
        spec = self.session.inputs[0]
        batch = spec.shape[0] if isinstance(spec.shape[0], int) else 1
        for path in self.paths:
            pixels = prepare_picture(self.session, read_image(path), self.preprocessing)
            yield {spec.name: pixels.repeat(batch, axis=0) if batch > 1 else pixels}


def read_samples(session: Session, limit: int, *, images: Path | None, data: Path | None) -> Samples:
    """Return a model's samples: pictures of a folder, or arrays of a file where no folder is given."""
    if images is not None:
        return Pictures(images, session, limit)
    assert data is not None
    return Arrays(data, session, limit)


def _classes(folder: Path, session: Session, paths: list[Path]) -> tuple[int, ...]:
    """Return the class number of each picture of a classifier where the folder's folders are its classes."""
    answer = answer_of(session.outputs, session.metadata)
    if answer.scores is None or any(path.parent == folder for path in paths):
        return ()
    labels = session.metadata.labels if session.metadata is not None else {}
    try:
        folders = ClassFolders(folder).folders
        numbers, rule = match_folders(folders, labels, answer.class_count or len(labels))
    except UsageError:
        return ()
    if rule == "in alphabetical order":  # as likely a folder of other parts
        return ()
    return tuple(numbers[path.relative_to(folder).parts[0]] for path in paths)


class Arrays(Samples):
    """Arrays of a .npz file by input name, or of a .npy file for a model's only input; the first axis counts samples.

    Raises:
        UsageError: the file cannot be read, or its arrays are no inputs of the model.
        NaDeployError: the file is damaged.
    """

    def __init__(self, path: Path, session: Session, limit: int) -> None:
        names = [spec.name for spec in session.inputs]
        found = read_either(path)
        arrays = found if isinstance(found, dict) else {names[0] if len(names) == 1 else "one array": found}
        if set(arrays) != set(names):
            given, expected = ", ".join(sorted(arrays)) or "nothing", ", ".join(map(str, session.inputs))
            raise UsageError(f"{path} holds {given}; expected an array for each of the model's inputs: {expected}")
        counts = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
        if len(counts) != 1 or 0 in counts:
            raise UsageError(f"{path} must hold as many samples, at least one, for every input; got {sorted(counts)}")
        count = counts.pop()
        self.batches = []
        batch = next((spec.shape[0] for spec in session.inputs if spec.shape and isinstance(spec.shape[0], int)), 1)
        if count < batch:
            raise UsageError(f"{path} holds {count} samples, and the model runs {batch} at a time; give more")
        for start in spread(range(0, count - batch + 1, batch), limit):
            part = {name: array[start : start + batch] for name, array in arrays.items()}
            self.batches.append({s.name: part[s.name].astype(numpy_type(s.dtype), copy=False) for s in session.inputs})
        check_inputs(session.inputs, self.batches[0])
        if not all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f"):
            raise UsageError(f"{path} holds numbers that are not finite; calibrate on what the model is to see")
        self.name = f"{len(self.batches)} samples of {path}"

    def __len__(self) -> int:
        """Return the number of runs."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Feeds]:
        """Yield the samples."""
        yield from self.batches
