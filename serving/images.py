"""Photographs from strangers to model inputs: JPEG and PNG only, sizes checked before anything is decoded."""

from __future__ import annotations

from PIL import Image

from na_deploy.errors import NaDeployError
from na_deploy.models.preprocessing import Preprocessing
from na_deploy.runtime.images.prepare import FloatArray, ImageTooLargeError, decode_image, prepare
from na_deploy.serving.errors import InvalidRequestError, TooLargeError

FORMATS = ("JPEG", "PNG")


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
    try:
        return decode_image(data, formats=FORMATS, max_pixels=max_pixels)
    except ImageTooLargeError as error:
        raise TooLargeError(str(error)) from None
    except NaDeployError as error:
        raise InvalidRequestError(str(error)) from None
