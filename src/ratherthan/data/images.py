"""From bytes to images in image space: bounded decoding, resizing, cropping."""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ratherthan.errors import InputError, first_line

Fit = Literal["resize", "crop"]

IMAGE_ENDINGS = frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN)
"""Lower-case endings of the files that Pillow can read."""

MAX_PIXELS = 100_000_000
"""Larger images are refused: a few kilobytes can unpack to gigabytes (a decompression bomb)."""


class CorruptImage(InputError):
    """A file that should hold an image but does not: empty, truncated, too large, or something else."""


def open_image(source: str | Path | bytes, name: str | None = None) -> Image.Image:
    """Decode one image completely, as it should be looked at: greyscale or RGB, turned as its EXIF tag says.

    Args:
        source: A path, or the encoded bytes.
        name: What to call it in an error; by default the path.

    Returns:
        An image of mode "L" or "RGB". Transparent pixels are laid over white.

    Raises:
        CorruptImage: It cannot be read or decoded, or has more than 100 million pixels.
    """
    name = name or ("image" if isinstance(source, bytes) else str(source))
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise CorruptImage(f"{name}: cannot be read ({error.strerror or error})") from error
    if not data:
        raise CorruptImage(f"{name}: the file is empty (zero bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width} x {image.height}")
            return plain(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:  # Pillow has a limit of its own, too
        raise CorruptImage(f"{name}: over {MAX_PIXELS:,} pixels ({first_line(error)})") from error
    except UnidentifiedImageError as error:
        raise CorruptImage(f"{name}: not an image that Pillow can read") from error
    except Exception as error:  # damaged bytes bring out far more kinds of error than Pillow documents
        raise CorruptImage(f"{name}: damaged image ({first_line(error)})") from error


def plain(image: Image.Image) -> Image.Image:
    """Bring any mode to "L" or "RGB" (16-bit greys are scaled, transparency laid over white)."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if values.max(initial=0.0) > 255 else 255.0
        return Image.fromarray((values.clip(0, top) * (255.0 / top)).round().astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def to_tensor(image: Image.Image, channels: int | None = None) -> Tensor:
    """Turn an 8-bit image into float32 (C, H, W) in [0, 1].

    Args:
        image: The image, of any mode.
        channels: 1 (greyscale) or 3 (RGB); by default what the image has.

    Returns:
        The tensor; it shares no memory with the image.

    Raises:
        InputError: Another number of channels is wanted.
    """
    if channels not in (None, 1, 3):
        raise InputError(f"images have 1 or 3 channels, not {channels}")
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
