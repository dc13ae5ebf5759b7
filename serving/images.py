"""Photographs from strangers to model inputs: JPEG and PNG only, sizes checked before anything is decoded."""

from __future__ import annotations

import threading
import warnings
from contextlib import nullcontext
from io import BytesIO

from PIL import Image

from na_deploy.errors import NaDeployError
from na_deploy.models.preprocessing import Preprocessing
from na_deploy.runtime.images.prepare import FloatArray, ImageTooLargeError, decode_image, prepare
from na_deploy.serving.errors import InvalidRequestError, TooLargeError

FORMATS = ("JPEG", "PNG")

_LARGE = 8 << 20
"""Pixels from which on a picture is decoded alone: its copies, turned and converted, take up to 20 bytes each."""
_one_large = threading.Lock()
_MOST_SCANS = 100
"""Passes of a progressive JPEG; ten are usual, and each goes over the whole picture, however few bytes it has."""


def image_input(data: bytes, preprocessing: Preprocessing, max_pixels: int) -> FloatArray:
    """Decode an image, upright, and prepare it as the model was trained. In a thread: it takes milliseconds.

    Args:
        data: a JPEG or PNG file.
        preprocessing: the model's.
        max_pixels: larger images are refused before they are decoded.

    Returns:
        (1, 3, H, W) float32.

    Raises:
        InvalidRequestError: it is not such a file, or is damaged or truncated.
        TooLargeError: it has more pixels.
    """
    return prepare(decoded_image(data, max_pixels), preprocessing)


def decoded_image(data: bytes, max_pixels: int) -> Image.Image:
    """Decode an image, upright; arguments and errors as in :func:`image_input`."""
    if not data:
        raise InvalidRequestError("the request has no image; send the bytes of a JPEG or PNG file as its body")
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > _MOST_SCANS:
        raise InvalidRequestError(
            f"the image is a JPEG file of more than {_MOST_SCANS} scans; save it again, as other programs do"
        )
    try:
        with _one_large if _pixels(data) > _LARGE else nullcontext():
            return decode_image(data, formats=FORMATS, max_pixels=max_pixels)
    except ImageTooLargeError as error:
        raise TooLargeError(str(error)) from None
    except NaDeployError as error:
        raise InvalidRequestError(str(error)) from None


def _pixels(data: bytes) -> int:
    """Return the pixels that a picture's header states; 0 where it cannot be read, which decoding then says."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                return image.width * image.height
    except Exception:  # whatever Pillow makes of a damaged file
        return 0
