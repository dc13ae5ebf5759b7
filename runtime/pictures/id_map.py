"""Segments as a PNG of numbers: a pixel's value is its segment's id, and the file describes each id."""

from __future__ import annotations

import json
from io import BytesIO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from na_deploy.errors import UsageError
from na_deploy.runtime.pictures.segments import segment_colours
from na_deploy.runtime.results.segments import Segmentation


def id_map_png(result: Segmentation) -> bytes:
    """Return a PNG of the segments' ids, 0 for none.

    Up to 255 ids are 8-bit values with the segments' colours as the palette, so that viewers show them; more are 16-bit
    grey values. The text entry ``segments`` lists id, class, label, score, area and box as JSON.

    Raises:
        UsageError: the objects have boxes alone.
    """
    if not result.has_masks:
        raise UsageError("the model finds boxes without masks, so no pixel has an id; ask for JSON or a drawing")
    largest = max((segment.id for segment in result.segments), default=0)
    if largest < 256:
        image = Image.fromarray(result.ids.astype(np.uint8)).convert("L")
        image = Image.frombytes("P", image.size, image.tobytes())
        palette = np.zeros((256, 3), np.uint8)
        for number, colour in segment_colours(result).items():
            palette[number] = colour
        image.putpalette(palette.tobytes())
    else:
        image = Image.fromarray(result.ids.astype(np.uint16))
    about = PngInfo()
    entries = [
        {
            "id": segment.id,
            "class": segment.class_index,
            "label": segment.label,
            "score": round(segment.score, 6),
            "area": segment.area,
            "box": [round(side, 3) for side in segment.box],
            "isthing": int(segment.is_thing),
        }
        for segment in result.segments
    ]
    about.add_text("segments", json.dumps(entries))
    buffer = BytesIO()
    image.save(buffer, "PNG", pnginfo=about)
    return buffer.getvalue()
