"""Handwritten digits as pictures: scikit-learn's 1,797, of which every fourth is held out of training.

python examples/digits/pictures.py folder     # the 450 held-out ones, in a folder for each class, for na-deploy eval
python examples/digits/pictures.py folder --part training    # the others, for na-deploy quantize

Needs scikit-learn (pip install scikit-learn), which brings the digits with it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 64
"""Pixels of a picture's side; the scans have 8."""

Part = Literal["training", "held-out"]


def read(part: Part) -> tuple[list[Image.Image], NDArray[np.int64]]:
    """Return pictures, white on black, and their digits (N,)."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    held_out = np.arange(len(digits.target)) % 4 == 0
    chosen = held_out if part == "held-out" else ~held_out
    return [picture(scan) for scan in digits.images[chosen]], digits.target[chosen]


def picture(scan: NDArray[np.float64]) -> Image.Image:
    """Return a scan (8, 8) of 0 to 16 as a picture."""
    small = Image.fromarray((scan * (255 / 16)).astype(np.uint8))
    return small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")


def write(folder: Path, part: Part) -> None:
    """Write pictures into a folder for each class, made if it is not there."""
    for index, (drawn, digit) in enumerate(zip(*read(part), strict=True)):
        own = folder / CLASSES[digit]
        own.mkdir(parents=True, exist_ok=True)
        drawn.save(own / f"{index:04d}.png")


def main() -> None:
    """Write one part into a folder."""
    parser = argparse.ArgumentParser(description="Write handwritten digits as pictures.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", choices=("training", "held-out"), default="held-out")
    options = parser.parse_args()
    write(options.folder, options.part)


if __name__ == "__main__":
    main()
