"""Compares exported models of shapes on pictures that training did not see, by ``na-deploy eval``.

python examples/shapes/evaluate.py shapes.onnx [half.onnx ...] [--pictures 200]
python examples/shapes/evaluate.py boxes.onnx --objects
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from draw import draw_folder

from na_deploy.cli.main import run


def evaluate(
    models: list[str], pictures: int, height: int = 128, width: int = 128, *options: str, objects: bool = False
) -> int:
    """Draw unseen pictures, run ``na-deploy eval`` on them and return its exit code.

    Args:
        models: segmenters; detectors with ``objects``.
        pictures: number of pictures.
        height: of each.
        width: of each.
        options: further arguments of ``na-deploy eval``.
        objects: compare with COCO's annotations instead of maps.
    """
    with tempfile.TemporaryDirectory() as folder:
        draw_folder(Path(folder), pictures, height, width)
        answers = ["--coco", f"{folder}/annotations.json"] if objects else ["--maps", f"{folder}/maps"]
        return run(["eval", *models, "--images", f"{folder}/images", *answers, *options])


def main() -> None:
    """Evaluate files and print a line for each, and for every class."""
    parser = argparse.ArgumentParser(description="mIoU of exported segmenters, average precision of detectors.")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--objects", action="store_true", help="the models are detectors")
    options = parser.parse_args()
    sys.exit(evaluate(options.models, options.pictures, objects=options.objects))


if __name__ == "__main__":
    main()
