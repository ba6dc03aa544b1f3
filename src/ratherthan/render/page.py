"""One HTML page that needs nothing but itself: pictures, style and script are inside, and nothing is fetched."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from ratherthan.errors import InputError
from ratherthan.files import write_atomically
from ratherthan.render import colours
from ratherthan.render.panel import Panel
from ratherthan.render.searches import Trajectory
from ratherthan.words import percent

LONGEST = 448  # px: a photograph on a page is not larger
PIXELATED = 96  # px: images up to this size are shown as the squares they are made of
_TEMPLATES = {Panel: "panels.html.j2", Trajectory: "trajectories.html.j2"}


def write_page(shown: Sequence[Panel] | Sequence[Trajectory], path: str | Path, title: str, intro: str = "") -> Path:
    """Write a page with a card for each panel or trajectory.

    On panels the reader switches foil, contrast and view by clicking; along a trajectory a slider walks.
    The page is made and written card by card, so memory does not grow with their number.

    Args:
        shown: What to show, at least one. Every name and text in them is taken as text, never as HTML.
        path: Where to; replaced in one step when the page is complete.
        title: The page's heading.
        intro: A paragraph below it; an empty line starts another.

    Returns:
        The path.

    Raises:
        InputError: There is nothing to show, or an image or a map cannot be drawn.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    if not shown:
        raise InputError("a page needs at least one image; got none")
    rooms = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    pieces = rooms.get_template(_TEMPLATES[type(shown[0])]).generate(
        title=title, intro=intro, shown=shown, colours=colours, image_uri=image_uri, map_uri=map_uri,
        PIXELATED=PIXELATED, percent=percent, points=_points, sha256=_sha256,
    )  # fmt: skip
    return write_atomically(path, (piece.encode() for piece in pieces))


def _sha256(text: str) -> str:
    """What names a style or script in the page's policy; no other is followed."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _points(values: Sequence[float]) -> str:
    """A curve as SVG points in a box of 100 x 100."""
    across = np.linspace(0, 100, len(values))
    return " ".join(f"{x:.2f},{100 * (1 - y):.2f}" for x, y in zip(across, values, strict=True))


def image_uri(image: ArrayLike) -> tuple[str, tuple[int, int]]:
    """Encode an image as a data URI (a photograph as JPEG); also return the height and width it is left with."""
    picture = Image.fromarray(colours.as_rgb(image))
    picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return _data_uri(picture, "png" if max(picture.size) <= PIXELATED else "jpeg"), (picture.height, picture.width)


def map_uri(values: ArrayLike, limit: float, shape: tuple[int, int]) -> str:
    """Encode a signed map as a transparent PNG to lay over an image of this shape.

    A map coarser than its photograph stays coarse, for the browser smooths it; others take the image's size.
    """
    coarse = max(shape) > PIXELATED and max(np.shape(values)) < max(shape)
    index, ramp = colours.palette(values if coarse else colours.resample(values, shape), limit)
    picture = Image.fromarray(index)
    picture.putpalette(ramp.tobytes(), "RGBA")
    return _data_uri(picture, "png")


def _data_uri(picture: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, optimize=True, quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
