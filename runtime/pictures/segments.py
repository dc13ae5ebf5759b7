"""A drawing of segments over their picture: coloured masks, outlines, boxes and names. Needs Pillow alone.

Reading :func:`draw_segments` from top to bottom gives the picture from back to front.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from na_deploy.runtime.results.segments import Segment, Segmentation

Colour = tuple[int, int, int]
Corners = tuple[float, float, float, float]
T = TypeVar("T", np.int32, np.bool_)

SMALLEST = 480
"""Pixels of the longer side below which a picture is drawn larger, so that names can be read on it."""
OPACITY = 0.52
BAND = 128
"""Rows tinted at a time."""
_COARSE = 192
"""Pixels of the longer side of the map in which places for names are looked for."""


def draw_segments(image: Image.Image, result: Segmentation) -> Image.Image:
    """Return the picture with its segments drawn over it, enlarged if it is small.

    Args:
        image: the picture.
        result: its segments.
    """
    times = min(max(-(-SMALLEST // max(*image.size, 1)), 1), 8)
    picture = image.convert("RGB").resize((image.width * times, image.height * times), Image.Resampling.BICUBIC)
    colours = segment_colours(result)
    size = max(13, round(min(picture.size) ** 0.5 * 0.75))
    line = max(1, round(size / 8))
    table = np.zeros((max(colours, default=0) + 1, 3), np.float32)
    for number, colour in colours.items():
        table[number] = colour
    ids = _enlarged(result.ids, times)
    pixels = np.array(picture)
    for top in range(0, len(pixels), BAND):
        band, own = pixels[top : top + BAND], ids[top : top + BAND]
        band[own > 0] = _tinted(band, table[own])[own > 0]
    edges = _edges(ids, line)
    pixels[edges] = 0.25 * table[ids[edges]] + 0.75 * 255
    for segment in reversed(result.segments if result.crops else ()):  # hidden parts of an object show faintly
        rows, columns = result.crops[segment.id].place
        around = (slice(max(rows.start - 1, 0), rows.stop + 1), slice(max(columns.start - 1, 0), columns.stop + 1))
        hidden = _edges(_enlarged(result.mask(segment)[around].astype(np.int32), times), line)
        place = tuple(slice(part.start * times, part.stop * times) for part in around)
        hidden &= ~edges[place]
        pixels[place][hidden] = 0.5 * table[segment.id] + 0.5 * 255
    drawn = Image.fromarray(pixels)
    if result.task == "detection":
        _boxes(drawn, result, colours, times, line)
    _names(drawn, result, colours, size)
    return drawn


def _boxes(drawn: Image.Image, result: Segmentation, colours: dict[int, Colour], times: int, line: int) -> None:
    """Outline objects' boxes in their colours on a dark edge, the best on top."""
    pen = ImageDraw.Draw(drawn, "RGBA")
    for segment in reversed(result.segments):
        x, y, width, height = (side * times for side in segment.box)
        corners = (x, y, max(x + width - 1, x), max(y + height - 1, y))
        pen.rounded_rectangle(corners, radius=2 * line, outline=(0, 0, 0, 110), width=line + 2)
        inner = (corners[0] + 1, corners[1] + 1, max(corners[2] - 1, x + 1), max(corners[3] - 1, y + 1))
        pen.rounded_rectangle(inner, radius=2 * line, outline=colours[segment.id], width=line)


def _tinted(pixels: NDArray[np.uint8], colours: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return pixels under masks: they keep their light and half of their colour."""
    own = pixels.astype(np.float32)
    own = 0.5 * own + 0.5 * own.mean(2, keepdims=True)
    mixed: NDArray[np.float32] = (1 - OPACITY) * own + OPACITY * colours
    return mixed


def segment_colours(result: Segmentation) -> dict[int, Colour]:
    """Return an RGB colour for every segment: its class's, varied between things of one class."""
    seen: dict[int, int] = {}
    colours = {}
    for segment in result.segments:
        base = class_colour(segment.class_index, result.palette)
        turn = seen.get(segment.class_index, 0)
        seen[segment.class_index] = turn + 1
        varied = result.task != "semantic" and segment.is_thing
        colours[segment.id] = _varied(base, turn) if varied else base
    return colours


def class_colour(index: int, palette: Sequence[Colour] = ()) -> Colour:
    """Return a class's colour in the palette, or one that differs from its neighbours' where there is none."""
    if index < len(palette):
        return palette[index]
    hue = (0.58 + index * 0.61803398875) % 1.0  # the golden ratio spreads any number of hues
    channels = colorsys.hsv_to_rgb(hue, (0.75, 0.55, 0.9)[index % 3], (0.95, 0.85, 0.7)[index // 3 % 3])
    return _colour(255 * np.array(channels))


def _varied(base: Colour, turn: int) -> Colour:
    """Return ``base`` for the first object of a class, and colours near it for the others."""
    if not turn:
        return base
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in base))
    step = (-1) ** turn * (turn + 1) // 2
    hue = (hue + 0.055 * step) % 1.0
    saturation = min(max(saturation + 0.12 * (turn % 3 - 1), 0.35), 1.0)
    value = min(max(value + 0.1 * ((turn + 1) % 3 - 1), 0.55), 1.0)
    return _colour(255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value)))


def _colour(channels: NDArray[np.float64]) -> Colour:
    red, green, blue = (round(float(channel)) for channel in channels)
    return red, green, blue


def _enlarged(ids: NDArray[np.int32], times: int) -> NDArray[np.int32]:
    """Enlarge an id map; its edges become smooth where that makes a small picture large."""
    if times == 1:
        return ids
    size = (ids.shape[1] * times, ids.shape[0] * times)
    best = np.full(size[::-1], -1.0, np.float32)
    large = np.zeros(size[::-1], np.int32)
    for number in np.unique(ids).tolist():
        mask = Image.fromarray((ids == number).astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
        share = np.asarray(mask, np.float32)
        better = share > best
        best[better], large[better] = share[better], number
    return large


def _edges(ids: NDArray[np.int32], line: int) -> NDArray[np.bool_]:
    """Return the pixels of segments within ``line`` pixels of another one, but not at the picture's own edge."""
    edges = np.zeros(ids.shape, np.bool_)
    for step in range(1, line + 1):
        for axis in (0, 1):
            near, far = _split(ids, axis, step)
            differ = near != far
            for part in _split(edges, axis, step):
                part[differ] = True
    return edges & (ids > 0)


def _split(array: NDArray[T], axis: int, step: int) -> tuple[NDArray[T], NDArray[T]]:
    if axis == 0:
        return array[:-step], array[step:]
    return array[:, :-step], array[:, step:]


def _names(drawn: Image.Image, result: Segmentation, colours: dict[int, Colour], size: int) -> None:
    """Write each segment's name in it, the first first; one that would cover another is left out."""
    font = ImageFont.load_default(size)
    pen = ImageDraw.Draw(drawn, "RGBA")
    margin = max(2, size // 4)
    taken: list[Corners] = []
    least = (size * size) / (drawn.width * drawn.height)
    height, width = result.size
    for segment in result.segments:
        if segment.area / (height * width) < least:
            continue
        text = _caption(segment, result)
        left, top, right, bottom = font.getbbox(text)
        wide, tall = right - left + 2 * margin, bottom - top + 2 * margin
        for x, y in _places(result, segment, drawn.width / width, wide, tall):
            x = min(max(x, 1), drawn.width - wide - 1)
            y = min(max(y, 1), drawn.height - tall - 1)
            box = (x, y, x + wide, y + tall)
            if x < 0 or y < 0 or any(_overlap(box, other) for other in taken):
                continue
            taken.append(box)
            dark = tuple(int(channel * 0.35) for channel in colours[segment.id])
            pen.rounded_rectangle(box, radius=margin, fill=(*dark, 215), outline=(255, 255, 255, 150))
            pen.text((x + margin - left, y + margin - top), text, fill=(255, 255, 255, 255), font=font)
            break


def _places(
    result: Segmentation, segment: Segment, times: float, wide: float, tall: float
) -> Iterator[tuple[float, float]]:
    """Yield left and top of places for a name, in the drawing's pixels: where a segment is widest, or at a box."""
    if result.task != "detection":
        row, column = _widest_place(result, segment)
        yield column * times - wide / 2, row * times - tall / 2
        return
    x, y, width, height = (side * times for side in segment.box)
    yield from ((x, y - tall), (x, y), (x + width - wide, y), (x, y + height - tall), (x, y + height))


def _caption(segment: Segment, result: Segmentation) -> str:
    return segment.label if result.task == "semantic" else f"{segment.label} {segment.score:.0%}"


def _widest_place(result: Segmentation, segment: Segment) -> tuple[float, float]:
    """Return row and column inside a segment that are about farthest from its edge."""
    step = max(-(-max(result.size) // _COARSE), 1)
    mask = (result.ids[step // 2 :: step, step // 2 :: step] == segment.id) if max(result.size) else None
    if mask is None or not mask.any():
        x, y, width, height = segment.box
        return y + height / 2, x + width / 2
    left = np.pad(mask, 1)
    while True:
        # The picture's edge counts as the segment's own.
        core = left[1:-1, 1:-1]
        smaller = core & left[:-2, 1:-1] & left[2:, 1:-1] & left[1:-1, :-2] & left[1:-1, 2:]
        if not smaller.any():
            places = np.argwhere(core)
            row, column = places[np.abs(places - places.mean(0)).sum(1).argmin()]
            return float(row * step + step / 2), float(column * step + step / 2)
        left = np.pad(smaller, 1)


def _overlap(one: Corners, other: Corners) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
