"""Draws pictures of shapes on textured ground, with the class of every pixel: data that anyone can make again.

Five classes: ground, disc, square, triangle and star. Shapes have textures, outlines, any turn and size, soft shadows,
and hide each other; the ground has spots, waves and light from one side. A seed gives one picture, whatever the order.

python examples/shapes/draw.py picture.png [--seed 1000009] [--size 192x256]
python examples/shapes/draw.py folder --count 200 [--size 128x128]    # pictures and answers, for eval
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from na_deploy.runtime.results.rle import encode_mask

CLASSES = ("ground", "disc", "square", "triangle", "star")
PALETTE = ((90, 98, 110), (230, 75, 53), (0, 114, 178), (0, 158, 115), (240, 180, 41))
UNSEEN = 1_000_000
"""Seed of the first picture that training does not see."""
KIND = 0.7
"""Share of a shape's colour that is its class's own; the rest, and all of the ground's, is chance."""
LEAST = 40
"""Pixels of a shape that must show for it to count as an object."""
FINER = 3
"""Shapes are drawn this many times larger, so that their edges are smooth."""


def draw_picture(seed: int, height: int = 128, width: int = 128) -> tuple[Image.Image, NDArray[np.uint8]]:
    """Return a picture and the class number of each of its pixels (H, W)."""
    picture, numbers, kinds = draw_objects(seed, height, width)
    return picture, np.array([0, *kinds], np.uint8)[numbers]


def draw_objects(
    seed: int, height: int = 128, width: int = 128
) -> tuple[Image.Image, NDArray[np.uint8], tuple[int, ...]]:
    """Return a picture, the number of the shape of each of its pixels (H, W), 0 for none, and the shapes' classes."""
    random = np.random.default_rng(seed)
    pixels = _texture(random, height, width, float(random.uniform(8, 35)), random.uniform(30, 225, 3))
    numbers = np.zeros((height, width), np.uint8)
    kinds: list[int] = []
    for _ in range(int(random.integers(2, 6))):
        kind = int(random.integers(1, len(CLASSES)))
        kinds.append(kind)
        mask = _shape(random, kind, height, width)
        shadow = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(4))
        dark = np.pad(np.asarray(shadow, np.float32) / 255, ((3, 0), (4, 0)))[:height, :width, None]
        dark = dark * random.uniform(0, 0.5)
        pixels = pixels * (1 - dark)
        colour = KIND * np.array(PALETTE[kind]) + (1 - KIND) * random.uniform(0, 255, 3)
        own = _texture(random, height, width, float(random.uniform(0, 25)), colour)
        pixels = pixels * (1 - mask[..., None]) + own * mask[..., None]
        numbers[mask >= 0.5] = len(kinds)
    light = np.linspace(*random.uniform(0.8, 1.2, 2), width)[None, :, None]
    pixels = pixels * light + random.normal(0, random.uniform(0, 6), pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), numbers, tuple(kinds)


def _texture(
    random: np.random.Generator, height: int, width: int, contrast: float, colour: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return (H, W, 3): a colour with spots of several sizes and waves over it."""
    spots = np.zeros((height, width), np.float32)
    for cells in (4, 9, 27):
        coarse = random.normal(0, 1, (cells, cells)).astype(np.float32)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        spots += np.asarray(smooth) * random.uniform(0, 1)
    rows, columns = np.mgrid[:height, :width]
    angle, length = random.uniform(0, math.pi), random.uniform(6, 40)
    waves = np.sin((rows * math.sin(angle) + columns * math.cos(angle)) * 2 * math.pi / length)
    pattern = spots / max(float(np.abs(spots).max()), 1e-6) + random.uniform(0, 1) * waves
    tint = random.uniform(0.5, 1, 3)
    return (colour + contrast * pattern[..., None] * tint).astype(np.float32)


def _shape(random: np.random.Generator, kind: int, height: int, width: int) -> NDArray[np.float32]:
    """Return the coverage (H, W) of 0 to 1 of one shape."""
    radius = float(random.uniform(0.15, 0.3)) * min(height, width)
    centre = random.uniform(0.1, 0.9, 2) * (width, height)
    turn = float(random.uniform(0, 2 * math.pi))
    corners = {1: 60, 2: 4, 3: 3, 4: 10}[kind]
    points = []
    for index in range(corners):
        angle = turn + index * 2 * math.pi / corners
        reach = radius * (0.45 if kind == 4 and index % 2 else 1.0)
        points.append(tuple(FINER * (centre + reach * np.array([math.cos(angle), math.sin(angle)]))))
    canvas = Image.new("L", (FINER * width, FINER * height))
    ImageDraw.Draw(canvas).polygon(points, fill=255)
    return np.asarray(canvas.resize((width, height), Image.Resampling.BOX), np.float32) / 255


def draw_folder(folder: Path, count: int, height: int = 128, width: int = 128, first: int = UNSEEN) -> None:
    """Draw pictures into ``folder/images``, and the answers: ``folder/maps`` and ``folder/annotations.json``.

    Maps hold the class of every pixel; annotations are COCO's, of the shapes that show enough of themselves.

    Args:
        folder: made if it is not there.
        count: pictures.
        height: of each.
        width: of each.
        first: seed of the first.
    """
    for part in ("images", "maps"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for seed in range(first, first + count):
        picture, numbers, kinds = draw_objects(seed, height, width)
        picture.save(folder / "images" / f"{seed}.png")
        Image.fromarray(np.array([0, *kinds], np.uint8)[numbers]).save(folder / "maps" / f"{seed}.png")
        images.append({"id": seed, "file_name": f"{seed}.png", "height": height, "width": width})
        for number, kind in enumerate(kinds, 1):
            mask = numbers == number
            box = box_of(mask)
            if box is None:
                continue
            left, top, right, bottom = box
            entry = {"image_id": seed, "category_id": kind, "bbox": [left, top, right - left, bottom - top]}
            entry |= {"id": len(annotations) + 1, "iscrowd": 0, "area": int(mask.sum())}
            annotations.append({**entry, "segmentation": encode_mask(mask)})
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES) if number]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")


def box_of(mask: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """Return left, top, right and bottom of a shape, ``None`` where fewer pixels than :data:`LEAST` show."""
    if mask.sum() < LEAST:
        return None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def main() -> None:
    """Draw one picture into a file, or many into a folder."""
    parser = argparse.ArgumentParser(description="Draw shapes on textured ground.")
    parser.add_argument("target", type=Path)
    parser.add_argument(
        "--seed", type=int, help="picture's seed, or the first one's; training has seen those below 1000"
    )
    parser.add_argument("--size", default="192x256", help="height and width")
    parser.add_argument("--count", type=int, help="draw so many, with answers, into a folder")
    options = parser.parse_args()
    height, width = (int(side) for side in options.size.split("x"))
    if options.count is not None:
        draw_folder(options.target, options.count, height, width, UNSEEN if options.seed is None else options.seed)
    else:
        draw_picture(UNSEEN + 9 if options.seed is None else options.seed, height, width)[0].save(options.target)


if __name__ == "__main__":
    main()
