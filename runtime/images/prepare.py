"""From photographs to the array a model takes: decoding, resizing, cropping, normalising.

The steps are data (``models/preprocessing.py``, recorded in every exported file), carried out here with Pillow.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from na_deploy.errors import NaDeployError, UsageError
from na_deploy.models.preprocessing import Placement, Preprocessing
from na_deploy.runtime.images.png import SIGNATURE, only_pixels

FloatArray = NDArray[np.float32]


def read_image(path: Path) -> Image.Image:
    """Decode an image file upright (by its EXIF orientation) and in RGB.

    Transparent pixels are laid over white, 16-bit greyscale is scaled to 8 bits, CMYK is converted; of an
    animation the first frame is taken.

    Raises:
        UsageError: the file does not exist or cannot be read.
        NaDeployError: it is not an image, is truncated, or is too large to be meant.
    """
    return _decode(path, str(path))


def decode_image(
    data: bytes, name: str = "the image", *, formats: tuple[str, ...] | None = None, max_pixels: int | None = None
) -> Image.Image:
    """Decode an image file that is in memory, as :func:`read_image` does.

    Args:
        data: the file's content.
        name: the image's name in errors.
        formats: the only formats to take, by Pillow's names; all by default.
        max_pixels: larger images are refused before they are decoded; Pillow's own limit by default.

    Raises:
        ImageTooLargeError: it has more pixels.
        NaDeployError: it is not an image, or is truncated.
    """
    return _decode(BytesIO(data), name, formats, max_pixels)


class ImageTooLargeError(NaDeployError):
    """An image has more pixels than are taken (exit code 1)."""


def _decode(
    source: Path | BytesIO, name: str, formats: tuple[str, ...] | None = None, max_pixels: int | None = None
) -> Image.Image:
    try:
        return _decode_as_it_is(source, name, formats, max_pixels)
    except ImageTooLargeError:
        raise
    except NaDeployError:
        data = source.getvalue() if isinstance(source, BytesIO) else _png_in(source)
        if not data.startswith(SIGNATURE):
            raise
        stripped = only_pixels(data)
        if stripped == data:
            raise
        return _decode_as_it_is(BytesIO(stripped), name, formats, max_pixels)


def _png_in(path: Path) -> bytes:
    """Return a file's content if it is a PNG file that can be read."""
    try:
        with path.open("rb") as file:
            start = file.read(len(SIGNATURE))
            return start + file.read() if start == SIGNATURE else b""
    except OSError:
        return b""


def _decode_as_it_is(
    source: Path | BytesIO, name: str, formats: tuple[str, ...] | None = None, max_pixels: int | None = None
) -> Image.Image:
    most = max_pixels or Image.MAX_IMAGE_PIXELS or 2**31
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ignore large images and metadata that is not used here
            with Image.open(source, formats=formats) as image:
                if image.width * image.height > most:
                    raise ImageTooLargeError(
                        f"{name} has {image.width}×{image.height} pixels, at most {most} are taken; scale it down first"
                    )
                image.load()
                return _to_rgb(_upright(image))
    except UnidentifiedImageError:
        taken = " or ".join(formats) if formats else "JPEG, PNG, WebP, BMP or TIFF"
        raise NaDeployError(f"{name} is not an image that can be read; give a {taken} file") from None
    except Image.DecompressionBombError:
        raise ImageTooLargeError(f"{name} has more than {most} pixels; scale it down first") from None
    except FileNotFoundError:
        raise UsageError(f"{name} does not exist; give an image") from None
    except (IsADirectoryError, PermissionError) as error:
        raise UsageError(f"cannot read the image {name}: {error.strerror}") from None
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:  # the errors of Pillow's decoders
        raise NaDeployError(f"{name} is a damaged or truncated image ({str(error)[:100]})") from None


_SCALED_WHOLE = 16
"""Multiple of the crop's pixels up to which the whole picture is scaled before it is cropped."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that undoes each value of EXIF's orientation."""


def _upright(image: Image.Image) -> Image.Image:
    """Return the image as its EXIF orientation says; metadata that cannot be read leaves a sound image as it is."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow's EXIF reader raises many kinds for damaged blocks
        return image
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def prepare(image: Image.Image, preprocessing: Preprocessing) -> FloatArray:
    """Return an RGB image as the model's input.

    Args:
        image: from :func:`read_image`, or any Pillow image.
        preprocessing: the model's own.

    Returns:
        (1, C, H, W) float32: three channels, or one where the model takes greyscale.

    Raises:
        UsageError: the model takes other channels, or does not say how images become its input.
    """
    if not preprocessing.prepares_images:
        raise UsageError(
            f"the model takes {len(preprocessing.mean)} channels and does not say how images become them; "
            "give a .npy array"
        )
    image = _to_rgb(image)
    if len(preprocessing.mean) == 1:
        image = image.convert("L")
    placement = preprocessing.placement(image.height, image.width)
    height, width = placement.size
    image = _resized(image, preprocessing, placement)
    pixels = np.asarray(image, np.float32)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if preprocessing.channel_order == "BGR":
        pixels = pixels[..., ::-1]
    pixels = pixels * np.float32(preprocessing.scale)
    mean, std = (np.array(values, np.float32) for values in (preprocessing.mean, preprocessing.std))
    pixels = (pixels - mean) / std
    below, beside = height - pixels.shape[0], width - pixels.shape[1]
    # Room below or beside is zero after normalising.
    padded: FloatArray = np.pad(pixels, ((0, below), (0, beside), (0, 0)))
    return np.ascontiguousarray(padded.transpose(2, 0, 1)[None])


def _resized(image: Image.Image, preprocessing: Preprocessing, placement: Placement) -> Image.Image:
    """Return the part of the scaled image that the network sees.

    Of very long pictures only that part is computed: one of 1×60,000 pixels, scaled to cover a square, has billions.
    The whole is scaled otherwise, to the same bits as torchvision and timm do; the other way differs by rounding.
    """
    method = _RESAMPLING[preprocessing.interpolation]
    if preprocessing.mode != "resize-then-crop":
        return image.resize(placement.scaled[::-1], method)
    if math.prod(placement.scaled) <= _SCALED_WHOLE * math.prod(placement.size):
        (height, width), (top, left) = placement.size, placement.cut
        return image.resize(placement.scaled[::-1], method).crop((left, top, left + width, top + height))
    (scaled_height, scaled_width), (height, width) = placement.scaled, placement.size
    top, left = placement.cut
    first_row, first_column = max(top, 0), max(left, 0)
    rows = min(top + height, scaled_height) - first_row
    columns = min(left + width, scaled_width) - first_column
    down, across = image.height / scaled_height, image.width / scaled_width
    box = (
        first_column * across,
        first_row * down,
        min((first_column + columns) * across, image.width),
        min((first_row + rows) * down, image.height),
    )
    seen = image.resize((columns, rows), method, box=box)
    if (rows, columns) == (height, width):
        return seen
    whole = Image.new(image.mode, (width, height))  # black around a picture that is smaller than the crop
    whole.paste(seen, (first_column - left, first_row - top))
    return whole


def prepare_files(paths: Sequence[Path], preprocessing: Preprocessing) -> FloatArray:
    """Read and prepare several images into one batch (N, 3, H, W). Errors as in :func:`read_image`.

    Raises:
        UsageError: the preprocessing keeps proportions, and the images have several.
    """
    images = [prepare(read_image(path), preprocessing) for path in paths]
    sizes = sorted({f"{image.shape[2]}×{image.shape[3]}" for image in images})
    if len(sizes) > 1:
        raise UsageError(f"the images come out in several sizes ({', '.join(sizes[:4])}); run them one at a time")
    return np.concatenate(images)


_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
}
"""Pillow's filters antialias when they shrink."""


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16 or 32 bits; Pillow's own conversion clips to 255
        return _eight_bits(image).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale greyscale of 16 bits to 8, some rows at a time: in float64 a whole picture takes eight times its size."""
    values = np.asarray(image)
    scaled = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), _ROWS):
        rows = values[top : top + _ROWS].astype(np.float64)
        scaled[top : top + _ROWS] = np.clip(rows / 257, 0, 255).round()
    return Image.fromarray(scaled)


_ROWS = 64
