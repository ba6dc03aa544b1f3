"""Excerpts: the part of an image that is enough by itself, and how the confidence grows with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from numpy.typing import ArrayLike

from ratherthan.render.colours import FACT, OTHERS, as_rgb, overlay
from ratherthan.render.figure import CAPTION, FAINT, Picture, Row, draw_curves, draw_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Excerpt:
    """An image and the part of it that keeps the fact; images are (H, W, 1 or 3) in [0, 1].

    Attributes:
        name: What to call the image.
        fact: The name of the class that is kept.
        text: What the part says.
        status: How the search ended.
        image: The image asked about.
        part: The part by itself.
        dimmed: The image, what is left out dimmed.
        ranks: (H, W): 1 at the most important feature, less at the others, 0 where nothing is kept.
        whole: The probability of the fact in the whole image.
        curve: Its probabilities with the first k = 0, 1, ... features present; empty if the features have no order.
    """

    name: str
    fact: str
    text: str
    status: str
    image: ArrayLike
    part: ArrayLike
    dimmed: ArrayLike
    ranks: ArrayLike
    whole: float
    curve: Sequence[float] = ()


def draw_excerpts(excerpts: Sequence[Excerpt]) -> Figure:
    """Draw a row for each: the image, the part by itself, where it lies, its features in order, the confidence.

    Args:
        excerpts: What to draw, at least one.

    Returns:
        The figure, in no window.

    Raises:
        InputError: There is no excerpt, or an image cannot be drawn.
    """
    return draw_rows([_row(each) for each in excerpts], chart=2.2 if any(each.curve for each in excerpts) else 0.0)


def _row(excerpt: Excerpt) -> Row:
    pictures = (
        Picture(excerpt.name, as_rgb(excerpt.image), colour=FAINT),
        Picture("enough" if excerpt.status == "found" else excerpt.status, as_rgb(excerpt.part)),
        Picture("the rest dimmed", as_rgb(excerpt.dimmed)),
        Picture("the first strongest", overlay(excerpt.image, excerpt.ranks, 1.0)),
    )
    whole = [excerpt.whole] * len(excerpt.curve)
    curves = (("whole image", whole, OTHERS, "--"), ("the part", excerpt.curve, FACT, "-"))
    chart = partial(draw_curves, curves, f"with the first 0 to {len(whole) - 1} features") if whole else None
    return Row(pictures, f"What is enough for {excerpt.fact}?", excerpt.text, chart, CAPTION)
