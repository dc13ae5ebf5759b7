"""From photographs to the array a model takes: decoding, resizing, cropping, normalising.

What to do is data (``models/preprocessing.py``, recorded in every exported file); this file does it with
Pillow.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from na_deploy.errors import NaDeployError, UsageError
from na_deploy.models.preprocessing import Preprocessing

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


def decode_image(data: bytes, name: str = "the image") -> Image.Image:
    """Decode an image file that is in memory, as :func:`read_image` does.

    Args:
        data: the file's content.
        name: what to call it in errors.

    Raises:
        NaDeployError: it is not an image, is truncated, or is too large to be meant.
    """
    return _decode(BytesIO(data), name)


def _decode(source: Path | BytesIO, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise NaDeployError(
            f"{name} is not an image that can be read; give a JPEG, PNG, WebP, BMP or TIFF file"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise NaDeployError(f"{name} has more than {limit} million pixels; scale it down first") from None
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UsageError(f"cannot read the image {name}: {error.strerror}") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's decoders raise
        raise NaDeployError(f"{name} is a damaged or truncated image ({error})") from None


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
    image = image.resize(placement.scaled[::-1], _RESAMPLING[preprocessing.interpolation])
    if preprocessing.mode == "resize-then-crop":
        top, left = placement.cut
        image = image.crop((left, top, left + width, top + height))
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


def prepare_files(paths: Sequence[Path], preprocessing: Preprocessing) -> FloatArray:
    """Read and prepare several images into one batch (N, 3, H, W). Errors as in :func:`read_image`."""
    return np.concatenate([prepare(read_image(path), preprocessing) for path in paths])


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
        values = np.asarray(image, np.float64)
        return Image.fromarray(np.clip(values / 257, 0, 255).round().astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
