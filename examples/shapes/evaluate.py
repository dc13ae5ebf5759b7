"""Compares exported segmenters of shapes on pictures that training did not see, by ``na-deploy eval``.

python examples/shapes/evaluate.py shapes.onnx [half.onnx ...] [--pictures 200]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from draw import draw_folder

from na_deploy.cli.main import run


def evaluate(models: list[str], pictures: int, height: int = 128, width: int = 128, *options: str) -> int:
    """Draw unseen pictures, run ``na-deploy eval`` on them and return its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        draw_folder(Path(folder), pictures, height, width)
        return run(["eval", *models, "--images", f"{folder}/images", "--maps", f"{folder}/maps", *options])


def main() -> None:
    """Evaluate files and print a line for each, and for every class."""
    parser = argparse.ArgumentParser(description="mIoU of exported segmenters of shapes.")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--pictures", type=int, default=200)
    options = parser.parse_args()
    sys.exit(evaluate(options.models, options.pictures))


if __name__ == "__main__":
    main()
