"""From bytes to images in image space: bounded decoding, resizing, cropping."""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ratherthan.errors import InputError, first_line, let_stop
from ratherthan.files import regular

Fit = Literal["resize", "crop"]

_RASTER = (
    "AVIF", "BMP", "DDS", "DIB", "FITS", "GIF", "HEIF", "ICNS", "ICO", "IM", "JPEG", "JPEG2000", "MPO", "PCX", "PNG",
    "PPM", "PSD", "QOI", "SGI", "SPIDER", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM",
)  # fmt: skip
"""What Pillow decodes by itself. Others start programs: it hands EPS to Ghostscript."""

_ENDINGS = Image.registered_extensions()  # fills Image.OPEN too
FORMATS = tuple(kind for kind in _RASTER if kind in Image.OPEN)
"""The formats that are opened, of those that this Pillow knows."""

IMAGE_ENDINGS = frozenset(ending for ending, kind in _ENDINGS.items() if kind in FORMATS)
"""Lower-case endings of the files that are taken for images."""

MAX_PIXELS = 100_000_000
"""Larger images are refused: a few kilobytes can unpack to gigabytes (a decompression bomb)."""

MAX_BYTES = 8 * MAX_PIXELS
"""Larger files are refused: more than so many pixels take uncompressed, with four channels of 16 bits."""


class CorruptImage(InputError):
    """A file that should hold an image but does not: empty, truncated, too large, or something else."""


def open_image(source: str | Path | bytes, name: str | None = None) -> Image.Image:
    """Decode one image completely, as it should be looked at: greyscale or RGB, turned as its EXIF tag says.

    Args:
        source: A path, or the encoded bytes.
        name: What to call it in an error; by default the path.

    Returns:
        An image of mode "L", "RGB" or "F", see `plain`.

    Raises:
        CorruptImage: It cannot be read or decoded, is no regular file, has more than 100 million pixels or 800 million
            bytes, or its numbers have no known range.
    """
    name = name or ("image" if isinstance(source, bytes) else str(source))
    try:
        file: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else regular(source).open("rb")
        with file, warnings.catch_warnings():
            size = file.seek(0, io.SEEK_END)
            if size == 0:
                raise InputError("the file is empty (zero bytes)")
            if size > MAX_BYTES:
                raise InputError(f"{size:,} bytes, over the limit of {MAX_BYTES:,}")
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width} x {image.height}")
            return plain(image)
    except Exception as error:  # damaged bytes bring out far more kinds of error than Pillow documents
        let_stop(error)
        raise CorruptImage(f"{name}: {_reason(error).removeprefix(f'{name}: ')}") from error


def _reason(error: Exception) -> str:
    """Why an image cannot be read."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):  # Pillow has a limit of its own, too
        return f"over {MAX_PIXELS:,} pixels ({first_line(error)})"
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow can read"
    refused = getattr(error, "strerror", None)  # by the system
    return f"cannot be read ({refused})" if refused else f"damaged image ({first_line(error)})"


def plain(image: Image.Image) -> Image.Image:
    """Bring any mode to "L", "RGB", or "F" with values in [0, 1], turned as an EXIF tag says.

    The mode alone says what numbers mean: those of 16 bits go up to 65535, floats are in [0, 1] already. Both stay as
    exact as floats are. Transparent pixels are laid over white.

    Raises:
        InputError: Floats lie outside [0, 1], or the range of whole numbers (signed, or of 32 bits) is not known.
    """
    # Pillow opens 16 bits of some files with mode "I"
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    image = ImageOps.exif_transpose(image)
    if deep:
        return Image.fromarray(np.asarray(image, np.float32) / np.float32(65535))
    if image.mode == "F":
        return Image.fromarray(checked(np.asarray(image)))
    if image.mode == "I":
        raise InputError("its whole numbers have no known range: save it with 8 or 16 bits, or hand in [0, 1]")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGB", image.size, "white")
        ground.paste(image, mask=image.getchannel("A"))
        return ground
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def checked(values: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Pixels as float32.

    Raises:
        InputError: They are no finite numbers in [0, 1].
    """
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        span = f"[{values.min():.3g}, {values.max():.3g}]"
        raise InputError(f"pixels range over {span}: they are uint8, uint16, or finite numbers in [0, 1]")
    return values.astype(np.float32)


def to_tensor(image: Image.Image, channels: int | None = None) -> Tensor:
    """Turn an image into float32 (C, H, W) in [0, 1].

    Args:
        image: The image, of any mode; "F" holds values in [0, 1].
        channels: 1 (greyscale) or 3 (RGB); by default what the image has.

    Returns:
        The tensor; it shares no memory with the image.

    Raises:
        InputError: Another number of channels is wanted.
    """
    if channels not in (None, 1, 3):
        raise InputError(f"images have 1 or 3 channels, not {channels}")
    if image.mode == "F":  # resizing may overshoot
        return torch.from_numpy(np.array(image, dtype=np.float32)).clamp(0, 1).repeat(channels or 1, 1, 1)
    mode = "L" if channels == 1 or (channels is None and image.mode == "L") else "RGB"
    pixels = np.array(image if image.mode == mode else image.convert(mode), dtype=np.uint8)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).contiguous().float() / 255


def fit_image(
    image: Image.Image, size: tuple[int, int], fit: Fit = "resize", crop_fraction: float = 1.0,
    channels: int | None = None, interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear",
) -> Tensor:  # fmt: skip
    """Bring an image to a given size, as torchvision's Resize and CenterCrop do, in one step.

    Args:
        image: The image.
        size: Height and width wanted.
        fit: "resize" changes height and width and not the content; "crop" keeps the aspect and takes the centre.
        crop_fraction: The share of its tighter side that is kept; the margin is cut off.
        channels: 1 or 3; by default what the image has.
        interpolation: How pixels are computed.

    Returns:
        float32 (C, height, width) in [0, 1], resized with antialiasing.
    """
    (height, width), (rows, columns) = size, _resized(image.height, image.width, size, fit, crop_fraction)
    top, left = round((rows - height) / 2), round((columns - width) / 2)
    down, across = image.height / rows, image.width / columns
    right, bottom = min(image.width, (left + width) * across), min(image.height, (top + height) * down)
    box = (left * across, top * down, right, bottom)
    return to_tensor(image.resize((width, height), Image.Resampling[interpolation.upper()], box), channels)


def fit_tensor(
    image: Tensor,
    size: tuple[int, int],
    fit: Fit = "resize",
    crop_fraction: float = 1.0,
    interpolation: str = "bilinear",
) -> Tensor:
    """The same for an image that is a tensor already, (C, H, W); one of the right size is left as it is.

    Raises:
        InputError: For "lanczos", which torch has not.
    """
    if tuple(image.shape[1:]) == tuple(size):
        return image
    modes = {"nearest": "nearest-exact", "bilinear": "bilinear", "bicubic": "bicubic"}
    if interpolation not in modes:
        raise InputError(f"tensors cannot be resized by {interpolation}: hand them in as {size[0]} x {size[1]} pixels")
    (height, width), whole = size, _resized(image.shape[1], image.shape[2], size, fit, crop_fraction)
    mode, smooth = modes[interpolation], interpolation != "nearest"
    resized = torch.nn.functional.interpolate(image[None], whole, mode=mode, antialias=smooth)[0]
    top, left = round((whole[0] - height) / 2), round((whole[1] - width) / 2)
    return resized[:, top : top + height, left : left + width].clamp(0, 1)


def _resized(height: int, width: int, size: tuple[int, int], fit: Fit, crop_fraction: float) -> tuple[int, int]:
    """Rows and columns of the whole image, of which `size` is the middle."""
    rows, columns = (math.floor(side / crop_fraction + 1e-6) for side in size)
    if fit == "crop":  # the tighter side becomes this long, the other follows the aspect
        rows, columns = max(rows, int(columns * height / width)), max(columns, int(rows * width / height))
    return rows, columns
