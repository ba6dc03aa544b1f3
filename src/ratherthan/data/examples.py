"""Photographs to try things on, which come with scikit-image."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ratherthan.data.images import open_image
from ratherthan.errors import InputError, unknown

EXAMPLES = {"chelsea": "chelsea.png", "coffee": "coffee.png", "rocket": "rocket.jpg", "astronaut": "astronaut.png"}
"""Names and files; all are in the public domain, or CC0."""


def example(name: str = "chelsea") -> Image.Image:
    """A photograph to try things on.

    Args:
        name: "chelsea" (a cat), "coffee", "rocket" or "astronaut".

    Returns:
        The photograph, in colour.

    Raises:
        InputError: If there is none of this name.
    """
    import skimage.data

    if name not in EXAMPLES:
        raise InputError(unknown("example", name, EXAMPLES))
    return open_image(Path(skimage.data.__file__).parent / EXAMPLES[name])
