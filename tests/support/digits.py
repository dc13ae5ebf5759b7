"""The trained reader of digits from examples/digits: exported once for all processes that test, and its pictures."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
sys.path.insert(0, str(DIGITS))

import pictures  # noqa: E402

CLASSES: tuple[str, ...] = pictures.CLASSES


def exported(factory: pytest.TempPathFactory, dtype: str = "fp32") -> Path:
    """Return the committed checkpoint as an ONNX file of free batch."""
    import na_deploy

    folder = factory.getbasetemp()
    shared = folder.parent if folder.name.startswith("popen-") else folder  # processes of one run have one parent
    path = shared / f"digits_{dtype}.onnx"
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            na_deploy.export(DIGITS / "digits.pth", path, dtype=dtype, dynamic="batch")
    return path


@cache
def read(part: str) -> tuple[list[Image.Image], NDArray[np.int64]]:
    """Return the pictures of a part, "training" or "held-out", and their digits."""
    found: tuple[list[Image.Image], NDArray[np.int64]] = pictures.read(part)
    return found


@cache
def inputs(part: str) -> NDArray[np.float32]:
    """Return a part's pictures as the exported model takes them (N, 3, 32, 32)."""
    from na_deploy.models import load_model
    from na_deploy.runtime.images.prepare import prepare

    preparation = load_model(DIGITS / "digits.pth").metadata.preprocessing
    return np.concatenate([prepare(each, preparation) for each in read(part)[0]])


def write_class_folders(folder: Path, part: str, count: int) -> Path:
    """Write the first pictures of a part into a folder for each class."""
    drawn, digits = read(part)
    for index, (picture, digit) in enumerate(zip(drawn[:count], digits[:count], strict=True)):
        own = folder / CLASSES[digit]
        own.mkdir(parents=True, exist_ok=True)
        picture.save(own / f"{index}.png")
    return folder
