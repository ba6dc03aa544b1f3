"""One HTML page that needs nothing but itself: pictures, style and script are inside, and nothing is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ratherthan.errors import InputError
from ratherthan.files import write_atomically
from ratherthan.render import colours, encode
from ratherthan.render.panel import Panel
from ratherthan.render.trajectory import Trajectory
from ratherthan.words import percent

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
        title=title, intro=intro, shown=shown, colours=colours, encode=encode, percent=percent, points=_points
    )
    return write_atomically(path, (piece.encode() for piece in pieces))


def _points(values: Sequence[float]) -> str:
    """A curve as SVG points in a box of 100 x 100."""
    across = np.linspace(0, 100, len(values))
    return " ".join(f"{x:.2f},{100 * (1 - y):.2f}" for x, y in zip(across, values, strict=True))
