"""Film strips: the way from an image to its counterfactual, what it adds and removes, and the odds along the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ratherthan.errors import InputError
from ratherthan.files import write_atomically
from ratherthan.render.colours import AGAINST, FADED, FILM_STRENGTH, FOR, as_rgb, css_gradient, overlay, shared_limit
from ratherthan.render.encode import PIXELATED, image_uri, map_uri
from ratherthan.render.figure import FAINT, INK, Sheet, draw_image, percent
from ratherthan.render.panel import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FACT, FOIL, OTHERS = "#6b4fa3", "#0e8f6e", "#a3abb5"
"""Colours of the curves; apart from each other under every common colour blindness, and from "add" and "remove"."""

_CELL, _GAP, _MARGIN, _HEADING, _CAPTION = 1.15, 0.1, 0.22, 0.72, 0.36
_CURVES = 2.6  # inches: width of the curves at the end of a strip
_ON_PAGE = 8  # pictures of the way on a page, where there is room for more than in a figure


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One question and the way to its answer; images are (H, W, 1 or 3) in [0, 1].

    Attributes:
        name: What to call the image.
        question: E.g. "Why 4, rather than 9?"
        text: What the answer says.
        status: How the search ended.
        image: The image asked about.
        reconstruction: What a manifold makes of it, or None.
        way: T images, from the first to the answer.
        answer: The altered image, or the nearest miss.
        fact: Its name and its T probabilities along the way.
        foil: Likewise.
        others: T probabilities of whatever third class is then the likeliest.
    """

    name: str
    question: str
    text: str
    status: str
    image: ArrayLike
    reconstruction: ArrayLike | None
    way: Sequence[ArrayLike]
    answer: ArrayLike
    fact: tuple[str, Sequence[float]]
    foil: tuple[str, Sequence[float]]
    others: Sequence[float]

    @property
    def change(self) -> np.ndarray[Any, Any]:
        """(H, W): what the answer adds (positive) and removes, summed over the channels."""
        added: np.ndarray[Any, Any] = (np.asarray(self.answer, float) - np.asarray(self.image, float)).sum(-1)
        return added

    def stops(self, count: int) -> list[int]:
        """Evenly spread places on the way, without its two ends."""
        places = np.linspace(0, len(self.way) - 1, count + 2).round().astype(int)[1:-1]
        return sorted(set(places.tolist()))


def draw_trajectories(films: Sequence[Trajectory], frames: int = 4) -> Figure:
    """Draw a row for each film: image, reconstruction, the way, the answer, its change, and the curves.

    Args:
        films: What to draw, at least one.
        frames: How many pictures of the way.

    Returns:
        The figure, in no window.

    Raises:
        InputError: There is no film, or an image cannot be drawn.
    """
    if not films:
        raise InputError("a figure needs at least one film; got none")
    shapes = [as_rgb(film.image).shape for film in films]
    heights = [_CELL * min(max(height / width, 0.5), 1.5) for height, width, _ in shapes]
    rows = [list(_frames(film, frames)) for film in films]
    curves_at = _MARGIN + max(map(len, rows)) * (_CELL + _GAP) + 0.3
    sheet = Sheet(curves_at + _CURVES + _MARGIN, sum(heights) + len(films) * (_HEADING + _CAPTION) + 0.1)
    top = 0.0
    for film, height, row in zip(films, heights, rows, strict=True):
        heading = f"{shorten(film.name, 26)}: {film.question}"
        sheet.text(_MARGIN, top + 0.3, shorten(heading, int(sheet.width * 9)), size=11, weight="bold")
        sheet.text(_MARGIN, top + 0.5, shorten(film.text, int(sheet.width * 15)), size=8.5, color=FAINT)
        top += _HEADING
        for place, (title, drawn, captions) in enumerate(row):
            left = _MARGIN + place * (_CELL + _GAP)
            draw_image(sheet.axes(left, top, _CELL, height), drawn, title)
            middle, below = left + _CELL / 2, top + height + 0.17
            for (words, colour), step, side in zip(captions, (-0.06, 0.06), ("right", "left"), strict=False):
                sheet.text(middle + step, below, words, size=7.5, color=colour, ha=side)
        _draw_curves(sheet.axes(curves_at, top, _CURVES, height), film)
        top += height + _CAPTION
    return sheet.figure


def draw_probabilities(film: Trajectory) -> Figure:
    """Draw the probabilities of fact, foil and the likeliest other along the way (CDeepEx, Fig. 5b)."""
    sheet = Sheet(4.8, 3.1)
    sheet.text(0.2, 0.3, shorten(film.question, 54), size=11, weight="bold")
    _draw_curves(sheet.axes(0.55, 0.75, 4.0, 1.85), film)
    return sheet.figure


def _frames(film: Trajectory, count: int) -> Iterator[tuple[str, Any, list[tuple[str, str]]]]:
    """Title, picture, and up to two captions in colours: mostly the odds of fact and foil."""
    odds = [[(percent(p), FACT), (percent(q), FOIL)] for p, q in zip(film.fact[1], film.foil[1], strict=True)]
    yield "image", as_rgb(film.image), odds[0]
    if film.reconstruction is not None:
        yield "reconstruction", as_rgb(film.reconstruction), []
    for number, stop in enumerate(film.stops(count)):
        yield "" if number else "the way", as_rgb(film.way[stop]), odds[stop]
    yield "answer" if film.status == "found" else shorten(film.status, 18), as_rgb(film.answer), odds[-1]
    drawn = overlay(film.image, film.change, shared_limit([film.change]))
    yield "change", drawn, [("add", FOR), ("remove", AGAINST)]


def _draw_curves(axes: Axes, film: Trajectory) -> None:
    from matplotlib.ticker import PercentFormatter

    (fact, of_fact), (foil, of_foil) = film.fact, film.foil
    lines = (("other", film.others, OTHERS, "--"), (fact, of_fact, FACT, "-"), (foil, of_foil, FOIL, "-"))
    for label, values, colour, dashes in lines:
        axes.plot(values, dashes, color=colour, linewidth=1.6, label=shorten(label, 12), solid_capstyle="round")
    axes.set(xlim=(0, len(of_fact) - 1), ylim=(-0.03, 1.03), xticks=[], yticks=[0, 0.5, 1])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.tick_params(labelsize=7, labelcolor=FAINT, length=0)
    axes.grid(axis="y", color="#e6e9ed", linewidth=0.6)
    axes.set_xlabel("from the image to the answer", fontsize=7.5, color=FAINT, labelpad=4)
    for side, spine in axes.spines.items():
        spine.set(color="#d0d7de", linewidth=0.6, visible=side == "bottom")
    handles, labels = axes.get_legend_handles_labels()
    key = axes.legend(
        handles[1:] + handles[:1], labels[1:] + labels[:1], loc="lower right", bbox_to_anchor=(1.02, 0.98), ncols=3,
        frameon=False, fontsize=7.5, handlelength=1.2, columnspacing=1.0, handletextpad=0.4, borderaxespad=0.1,
    )  # fmt: skip
    for text in key.get_texts():
        text.set(color=INK, parse_math=False)


# ------------------------------------------------------------------------------------------------------- the page
def write_trajectories(films: Sequence[Trajectory], path: str | Path, title: str, intro: str = "") -> Path:
    """Write a page with a card for each film; a slider walks along its way.

    Args:
        films: What to show, at least one. Every name and text in them is taken as text, never as HTML.
        path: Where to; replaced in one step when the page is complete.
        title: The page's heading.
        intro: A paragraph below it.

    Returns:
        The path.

    Raises:
        InputError: There is no film, or an image cannot be drawn.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    if not films:
        raise InputError("a page needs at least one film; got none")
    rooms = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pieces = rooms.get_template("trajectory.html.j2").generate(
        title=title,
        intro=intro,
        cards=map(_card, films),
        gradient=css_gradient(),
        strength=FILM_STRENGTH,
        faded=FADED,
        colours={"fact": FACT, "foil": FOIL, "others": OTHERS, "add": FOR, "remove": AGAINST},
    )
    return write_atomically(path, (piece.encode() for piece in pieces))


def _card(film: Trajectory) -> dict[str, Any]:
    source, shape = image_uri(film.image)
    stops = [0, *film.stops(_ON_PAGE - 2), len(film.way) - 1]
    return {
        "film": film,
        "shape": shape,
        "pixelated": max(shape) <= PIXELATED,
        "image": source,
        "reconstruction": None if film.reconstruction is None else image_uri(film.reconstruction)[0],
        "change": map_uri(film.change, shared_limit([film.change]), shape),
        "answer": image_uri(film.answer)[0],
        "way": [
            {
                "source": image_uri(film.way[stop])[0],
                "at": f"{100 * stop / max(1, len(film.way) - 1):.2f}",
                "fact": percent(film.fact[1][stop]),
                "foil": percent(film.foil[1][stop]),
            }
            for stop in stops
        ],
        "lines": {name: _points(line) for name, line in
                  (("others", film.others), ("fact", film.fact[1]), ("foil", film.foil[1]))},
    }  # fmt: skip


def _points(values: Sequence[float]) -> str:
    """A curve as SVG points in a box of 100 x 100."""
    across = np.linspace(0, 100, len(values))
    return " ".join(f"{x:.2f},{100 * (1 - y):.2f}" for x, y in zip(across, values, strict=True))
