"""Pictures as data URIs, the form in which a page holds them."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from ratherthan.render.colours import as_rgb, palette, resample

LONGEST = 448  # px: a photograph on a page is not larger
PIXELATED = 96  # px: images up to this size are shown as the squares they are made of


def image_uri(image: ArrayLike) -> tuple[str, tuple[int, int]]:
    """Encode an image as a data URI (a photograph as JPEG); also return the height and width it is left with."""
    picture = Image.fromarray(as_rgb(image))
    picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return _data_uri(picture, "png" if max(picture.size) <= PIXELATED else "jpeg"), (picture.height, picture.width)


def map_uri(values: ArrayLike, limit: float, shape: tuple[int, int]) -> str:
    """Encode a signed map as a transparent PNG to lay over an image of this shape.

    A map coarser than its photograph stays coarse, for the browser smooths it; others take the image's size.
    """
    coarse = max(shape) > PIXELATED and max(np.shape(values)) < max(shape)
    index, colours = palette(values if coarse else resample(values, shape), limit)
    picture = Image.fromarray(index)
    picture.putpalette(colours.tobytes(), "RGBA")
    return _data_uri(picture, "png")


def _data_uri(picture: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, optimize=True, quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
