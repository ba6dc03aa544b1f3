"""Sheets of pictures with matplotlib, which is loaded on first use and never touches a display."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ratherthan.errors import InputError
from ratherthan.files import write_atomically
from ratherthan.render.colours import AGAINST, FOR, SIDES, as_rgb, diverging, overlay, shared_limit
from ratherthan.render.encode import encode
from ratherthan.render.panel import Heatmap, Panel, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# All lengths in inches: the sheet grows with its rows and the text keeps its size.
_CELL, _GAP, _MARGIN = 1.75, 0.14, 0.22
_HEADING, _LEGEND, _BAR, _PERCENT = 0.56, 0.62, 1.25, 0.65
INK, FAINT = "#24292f", "#8b949e"
_LARGEST = 2**16 - 1  # px: more the renderer behind matplotlib refuses


def figure(cases: Sequence[Panel], *, max_maps: int = 6, sides: tuple[str, str] = SIDES) -> Figure:
    """Draw one row per case: the input, an overlay per map, and the probabilities; below all, the colour bar.

    Maps of the same contrast in a row share one scale, so that its foils can be compared.

    Args:
        cases: What to draw, at least one.
        max_maps: Of a case with more maps the first so many are drawn, and the heading says so.
        sides: What blue and what red-orange mean, for the colour bar.

    Returns:
        The figure, in no window; save it with `figure.savefig(path)`.

    Raises:
        InputError: There is no case, or an image or a map cannot be drawn.
    """
    if not cases:
        raise InputError("a figure needs at least one case; got none")
    longest = max((len(shorten(name, 22)) for case in cases for name, _ in case.probabilities), default=0)
    across = 1 + max(min(len(case.maps), max_maps) for case in cases)
    images_end = _MARGIN + across * (_CELL + _GAP)
    bars_at = images_end + longest * 0.072 + 0.12
    width = max(bars_at + _BAR + _PERCENT if longest else images_end - _GAP + _MARGIN, 5.4)
    heights = [_row_height(case) for case in cases]
    sheet = Sheet(width, sum(heights) + len(cases) * _HEADING + _LEGEND)
    top = 0.0
    for case, height in zip(cases, heights, strict=True):
        _draw_row(sheet, case, case.maps[:max_maps], top + _HEADING, height)
        if case.probabilities:
            _draw_bars(sheet.axes(bars_at, top + _HEADING, _BAR, height), case, height)
        top += _HEADING + height
    _draw_colour_bar(sheet, top + 0.18, sides)
    return sheet.figure


def grid(images: Sequence[tuple[str, ArrayLike]], columns: int, *, title: str = "", cell: float = _CELL) -> Figure:
    """Draw a contact sheet.

    Args:
        images: Titles, of one or several lines, with images as `colours.as_rgb` takes them, row by row.
        columns: Images a row.
        title: A heading for the sheet.
        cell: Width of an image in inches.

    Returns:
        The figure.

    Raises:
        InputError: There is no image, or one cannot be drawn.
    """
    if not images:
        raise InputError("a contact sheet needs at least one image; got none")
    pictures = [as_rgb(image) for _, image in images]
    height = cell * max(picture.shape[0] / picture.shape[1] for picture in pictures)
    lines = max(name.count("\n") + 1 for name, _ in images) * 0.17 + 0.1
    start = 0.5 if title else 0.1
    rows = math.ceil(len(images) / columns)
    width = 2 * _MARGIN + columns * (cell + _GAP) - _GAP
    sheet = Sheet(width, start + rows * (height + lines) + 0.15)
    sheet.text(_MARGIN, 0.3, shorten(title, int(width * 10)), size=12, weight="bold")
    for number, ((name, _), picture) in enumerate(zip(images, pictures, strict=True)):
        row, column = divmod(number, columns)
        top = start + row * (height + lines) + lines
        axes = sheet.axes(_MARGIN + column * (cell + _GAP), top, cell, height)
        short = "\n".join(shorten(line, int(cell * 15)) for line in name.split("\n"))
        draw_image(axes, picture, short)
    return sheet.figure


def figure_png(sheet: Figure) -> bytes:
    """Encode a figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    sheet.savefig(buffer, format="png")
    return buffer.getvalue()


def overlay_png(path: str | Path, image: ArrayLike, values: ArrayLike, limit: float | None = None) -> Path:
    """Write an overlay as a PNG; small images are enlarged by a whole factor.

    Args:
        path: Where to.
        image: As in `colours.overlay`.
        values: As in `colours.overlay`.
        limit: As in `colours.diverging`; by default the map's own `shared_limit`.

    Returns:
        The path.

    Raises:
        InputError: The image or the map cannot be drawn.
    """
    from PIL import Image

    drawn = overlay(image, values, shared_limit([values]) if limit is None else limit)
    factor = max(1, 224 // max(drawn.shape[:2]))
    enlarged = np.repeat(np.repeat(drawn, factor, axis=0), factor, axis=1)
    return write_atomically(path, [encode(Image.fromarray(enlarged), "png")])


class Sheet:
    """A figure measured in inches from its upper left corner; in no window."""

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.figure import Figure

        dpi = min(150, int(_LARGEST / max(width, height)))
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """A place to draw in."""
        below = self.height - top - height
        box = (left / self.width, below / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def text(self, left: float, top: float, words: str, **style: Any) -> None:
        """Words as they are: a dollar sign begins no formula."""
        place = (left / self.width, 1 - top / self.height)
        self.figure.text(*place, words, parse_math=False, **{"color": INK, "va": "baseline", **style})


def _row_height(case: Panel) -> float:
    height, width, _ = as_rgb(case.image).shape
    return _CELL * min(max(float(height / width), 0.55), 1.35)


def _draw_row(sheet: Sheet, case: Panel, shown: tuple[Heatmap, ...], top: float, height: float) -> None:
    foils = {view.foil for view in shown if view.foil}
    contrasts = {view.contrast for view in shown}
    heading = case.question(*foils) if len(foils) == 1 else case.question()
    if len(contrasts) == 1 and len(foils) > 1:
        heading += f"  ({contrasts.copy().pop()})"
    if len(shown) < len(case.maps):
        heading += f"  (the first {len(shown)} of {len(case.maps)} maps)"
    sheet.text(_MARGIN, top - 0.3, shorten(heading, int(sheet.width * 10)), size=11, weight="bold")
    draw_image(sheet.axes(_MARGIN, top, _CELL, height), as_rgb(case.image), shorten(case.name, 26), FAINT)
    limits = case.limits()
    for column, view in enumerate(shown, start=1):
        axes = sheet.axes(_MARGIN + column * (_CELL + _GAP), top, _CELL, height)
        words = [view.foil and f"rather than {view.foil}"] * (len(foils) > 1)
        words += [view.contrast] * (len(contrasts) > 1 or len(foils) < 2)
        draw_image(
            axes, overlay(case.image, view.values, limits[view.contrast]), shorten(" · ".join(filter(None, words)), 28)
        )


def draw_image(axes: Axes, picture: np.ndarray[Any, Any], title: str, colour: str = INK) -> None:
    """Fill axes with a picture under its title."""
    axes.imshow(picture, interpolation="nearest" if max(picture.shape) < 200 else "antialiased")
    axes.set_title(title, fontsize=8, color=colour, pad=4, parse_math=False)
    _frame(axes)


def _draw_bars(axes: Axes, case: Panel, height: float) -> None:
    slots = height / 0.26
    bars = case.bars(int(slots), case.foils)
    colours = [FOR if name == case.fact else AGAINST if name in case.foils else "#c4cbd3" for name, _ in bars]
    axes.barh(range(len(bars)), [1.0] * len(bars), color="#f1f3f5", height=0.62)
    axes.barh(range(len(bars)), [p for _, p in bars], color=colours, height=0.62)
    for row, (name, p) in enumerate(bars):
        bold = "bold" if name == case.fact else "normal"
        style: dict[str, Any] = {"va": "center", "fontsize": 8, "color": INK, "parse_math": False}
        axes.text(-0.05, row, shorten(name, 22), ha="right", weight=bold, **style)
        axes.text(1.04, row, percent(p), ha="left", **style)
    axes.set(xlim=(0, 1), ylim=((len(bars) - 1 + slots) / 2, (len(bars) - 1 - slots) / 2))
    axes.set_axis_off()


def _draw_colour_bar(sheet: Sheet, top: float, sides: tuple[str, str]) -> None:
    width = 1.6
    left = (sheet.width - width) / 2
    axes = sheet.axes(left, top, width, 0.13)
    axes.imshow(diverging(np.linspace(-1, 1, 255)[None], 1.0), aspect="auto")
    _frame(axes)
    said = "one scale per row and contrast, shared by the foils compared"
    axes.set_xlabel(said, fontsize=7.5, color=FAINT, labelpad=5)
    sheet.text(left - 0.1, top + 0.11, sides[0], size=8, ha="right", color=AGAINST)
    sheet.text(left + width + 0.1, top + 0.11, sides[1], size=8, ha="left", color=FOR)


def _frame(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color="#d0d7de", linewidth=0.6)


def percent(p: float) -> str:
    """Write a probability as a percentage that neither hides a small one nor rounds a sure one to certainty."""
    if 0 < p < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= p < 1:
        return "> 99.9 %"
    return f"{100 * p:.1f} %"
