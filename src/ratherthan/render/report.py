"""One HTML page that needs nothing but itself: pictures, style and script are inside, and nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ratherthan.errors import InputError
from ratherthan.files import write_atomically
from ratherthan.render.colours import AGAINST, FADED, FILM_STRENGTH, FOR, SIDES, css_gradient
from ratherthan.render.encode import PIXELATED, image_uri, map_uri
from ratherthan.render.figure import percent
from ratherthan.render.panel import Panel


def write_report(
    cases: Sequence[Panel], path: str | Path, title: str, intro: str = "", *, sides: tuple[str, str] = SIDES
) -> Path:
    """Write a report in which the reader switches foil, contrast and view by clicking.

    The page is made and written case by case, so memory does not grow with their number.

    Args:
        cases: What to show, at least one. Every name and text in them is taken as text, never as HTML.
        path: Where to; replaced in one step when the page is complete.
        title: The page's heading.
        intro: A paragraph below it; an empty line starts another.
        sides: What blue and what red-orange mean, for the legend.

    Returns:
        The path.

    Raises:
        InputError: There is no case, or an image or a map cannot be drawn.
    """
    return write_atomically(path, (piece.encode() for piece in _pieces(cases, title, intro, sides)))


def report_html(cases: Sequence[Panel], title: str, intro: str = "", *, sides: tuple[str, str] = SIDES) -> str:
    """Return the page of `write_report` as text."""
    return "".join(_pieces(cases, title, intro, sides))


def _pieces(cases: Sequence[Panel], title: str, intro: str, sides: tuple[str, str]) -> Iterator[str]:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    if not cases:
        raise InputError("a report needs at least one case; got none")
    rooms = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return rooms.get_template("report.html.j2").generate(
        title=title,
        paragraphs=[part for part in intro.split("\n\n") if part.strip()],
        foils=list(dict.fromkeys(foil for case in cases for foil in case.foils)),
        contrasts=list(dict.fromkeys(contrast for case in cases for contrast in case.contrasts)),
        count=len(cases),
        cases=map(_card, cases),
        sides=sides,
        gradient=css_gradient(),
        strength=FILM_STRENGTH,
        faded=FADED,
        colours=(AGAINST, FOR),
    )


def _card(case: Panel) -> dict[str, Any]:
    source, shape = image_uri(case.image)
    limits = case.limits()
    maps = [
        {
            "foil": view.foil,
            "contrast": view.contrast,
            "question": case.question(view.foil),
            "text": view.text,
            "scale": f"{limits[view.contrast]:.2g}",
            "source": map_uri(view.values, limits[view.contrast], shape),
        }
        for view in case.maps
    ]
    bars = [
        {"name": name, "share": f"{100 * min(max(p, 0), 1):.2f}%", "percent": percent(p)}
        for name, p in case.bars(8, case.foils[:4])
    ]
    return {
        "name": case.name,
        "fact": case.fact,
        "source": source,
        "shape": shape,
        "pixelated": max(shape) <= PIXELATED,
        "foils": case.foils,
        "contrasts": case.contrasts,
        "maps": maps,
        "bars": bars,
    }
