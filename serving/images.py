"""Photographs from strangers to model inputs: JPEG and PNG only, sizes checked before anything is decoded."""

from __future__ import annotations

import warnings
from io import BytesIO

from PIL import Image, ImageOps, UnidentifiedImageError

from na_deploy.models.preprocessing import Preprocessing
from na_deploy.runtime.images.prepare import FloatArray, prepare
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
    if not data:
        raise InvalidRequestError("the request has no image; send the bytes of a JPEG or PNG file as its body")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise TooLargeError(
                        f"the image has {image.width}×{image.height} pixels; at most {max_pixels} are taken"
                    )
                image.load()
                upright = ImageOps.exif_transpose(image)
                return prepare(upright, preprocessing)
    except UnidentifiedImageError:
        raise InvalidRequestError("the body is not a JPEG or PNG file") from None
    except Image.DecompressionBombError:
        raise TooLargeError(f"the image has more than {max_pixels} pixels") from None
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:  # what Pillow's decoders raise
        raise InvalidRequestError(f"the image is damaged or truncated ({str(error)[:100]})") from None
