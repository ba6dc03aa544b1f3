"""Figures with matplotlib, which is loaded on first use and never touches a display: rows of pictures and charts."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ratherthan.errors import InputError
from ratherthan.render.colours import AGAINST, FOR, Bytes, as_rgb, diverging, overlay
from ratherthan.render.panel import Heatmap, Panel
from ratherthan.words import percent, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, _EDGE = "#24292f", "#8b949e", "#d0d7de"
# All lengths in inches: the canvas grows with its rows and the text keeps its size.
_CELL, _GAP, _MARGIN, _LINE = 1.75, 0.14, 0.22, 0.17
_HEADING, _NOTE, _LEGEND, CAPTION = 0.26, 0.2, 0.62, 0.36
_LABELLED = 0.3  # left of a chart, for the labels of its axis
_BAR, _PERCENT, _LETTER = 1.25, 0.43, 0.072
_LARGEST = 2**16 - 1  # px: more the renderer behind matplotlib refuses


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture of a row.

    Attributes:
        title: Above it; may have several lines.
        image: As `colours.as_rgb` gives it.
        captions: Up to two below it, with their colours: left and right of its middle.
        colour: Of the title.
    """

    title: str
    image: Bytes
    captions: Sequence[tuple[str, str]] = ()
    colour: str = INK


@dataclass(frozen=True, eq=False)
class Row:
    """Pictures side by side.

    Attributes:
        pictures: From left to right; as high as the highest of them needs.
        heading: Above them.
        note: A line below the heading.
        chart: Draws into the axes at the end of the row.
        below: Inches left free below, for captions and for the labels of the chart.
    """

    pictures: Sequence[Picture]
    heading: str = ""
    note: str = ""
    chart: Callable[[Axes], None] | None = None
    below: float = 0.0

    @property
    def above(self) -> float:
        """Inches that its heading, its note and the titles of its pictures take."""
        lines = max((picture.title.count("\n") + 1 for picture in self.pictures), default=1)
        return _HEADING * bool(self.heading) + _NOTE * bool(self.note) + lines * _LINE + 0.13

    def height(self, cell: float) -> float:
        """Inches that pictures of this width take; a chart needs some, whatever they need."""
        tallest = max((picture.image.shape[0] / picture.image.shape[1] for picture in self.pictures), default=1.0)
        return cell * min(max(tallest, 0.55 if self.chart else 0.0), 1.5)


def draw_rows(
    rows: Sequence[Row], *, cell: float = _CELL, chart: float = 0.0, sides: tuple[str, str] | None = None
) -> Figure:
    """Draw rows of pictures below each other.

    Args:
        rows: At least one.
        cell: Width of a picture in inches.
        chart: Width of the charts at the end of the rows in inches.
        sides: What blue and what red-orange mean, for a colour bar below all; None: no colour bar.

    Returns:
        The figure, in no window; save it with `figure.savefig(path)`.

    Raises:
        InputError: There is no row, or a picture cannot be drawn.
    """
    from matplotlib.figure import Figure

    if not rows:
        raise InputError("a figure needs at least one image; got none")
    charts_at = _MARGIN + max(len(row.pictures) for row in rows) * (cell + _GAP) + _LABELLED
    width = charts_at + chart + _MARGIN if chart else charts_at - _LABELLED - _GAP + _MARGIN
    heights = [row.above + row.height(cell) + row.below for row in rows]
    size = (max(width, 5.4 if sides else 0), sum(heights) + (_LEGEND if sides else _GAP))
    drawn, top = Figure(size, dpi=min(150, int(_LARGEST / max(size))), facecolor="white"), 0.0
    drawn._repr_png_ = partial(figure_png, drawn)  # type: ignore[attr-defined]  # no window, so a notebook must ask
    for row, height in zip(rows, heights, strict=True):
        _draw_row(drawn, row, top, cell)
        if row.chart is not None:
            row.chart(_axes(drawn, charts_at, top + row.above, chart, row.height(cell)))
        top += height
    if sides:
        _draw_colour_bar(drawn, top + 0.18, sides)
    return drawn


def figure(panels: Sequence[Panel], *, max_maps: int = 6) -> Figure:
    """Draw one row per panel: the input, an overlay per map, and the probabilities; below all, the colour bar.

    Maps of the same contrast in a row share one scale, so that its foils can be compared.

    Args:
        panels: What to draw, at least one.
        max_maps: Of a panel with more maps the first so many are drawn, and the heading says so.

    Returns:
        The figure, in no window.

    Raises:
        InputError: There is no panel, or an image or a map cannot be drawn.
    """
    longest = max((len(shorten(name, 22)) for panel in panels for name, _ in panel.probabilities), default=0)
    names = longest * _LETTER
    rows = [_panel_row(panel, panel.maps[:max_maps], names) for panel in panels]
    sides = panels[0].sides if panels else None
    return draw_rows(rows, chart=names + _BAR + _PERCENT if longest else 0.0, sides=sides)


def grid(images: Sequence[tuple[str, ArrayLike]], columns: int, *, title: str = "", cell: float = _CELL) -> Figure:
    """Draw a contact sheet.

    Args:
        images: Titles, of one or several lines, with images as `colours.as_rgb` takes them, row by row.
        columns: Images a row.
        title: A heading for all.
        cell: Width of an image in inches.

    Returns:
        The figure.

    Raises:
        InputError: There is no image, or one cannot be drawn.
    """
    pictures = [Picture(name, as_rgb(image)) for name, image in images]
    starts = range(0, len(pictures), columns)
    return draw_rows([Row(pictures[at : at + columns], "" if at else title) for at in starts], cell=cell)


def figure_png(drawn: Figure) -> bytes:
    """Encode a figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png")
    return buffer.getvalue()


def draw_curves(curves: Sequence[tuple[str, Sequence[float], str, str]], across: str, axes: Axes) -> None:
    """Draw probabilities as curves over one another.

    Args:
        curves: Label, values in [0, 1], colour and dashes of each; the first lies below all and is named last.
        across: What the axis below says.
        axes: Where to.
    """
    from matplotlib.ticker import PercentFormatter

    style: dict[str, Any] = {"linewidth": 1.6, "solid_capstyle": "round"}
    lines = [
        axes.plot(ys, dashes, color=colour, label=shorten(name, 12), **style)[0] for name, ys, colour, dashes in curves
    ]
    axes.set(xlim=(0, max(1, len(curves[0][1]) - 1)), xticks=[], ylim=(-0.03, 1.03), yticks=[0, 0.5, 1])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.tick_params(labelsize=7, labelcolor=FAINT, length=0)
    axes.grid(axis="y", color="#e6e9ed", linewidth=0.6)
    axes.set_xlabel(across, fontsize=7.5, color=FAINT, labelpad=4)
    for side, spine in axes.spines.items():
        spine.set(color=_EDGE, linewidth=0.6, visible=side == "bottom")
    key = axes.legend(
        handles=lines[1:] + lines[:1], loc="lower right", bbox_to_anchor=(1.02, 0.98), ncols=len(lines), frameon=False,
        fontsize=7.5, handlelength=1.2, columnspacing=1.0, handletextpad=0.4, borderaxespad=0.1,
    )  # fmt: skip
    for text in key.get_texts():
        text.set(color=INK, parse_math=False)


# ------------------------------------------------------------------------------------------------- the parts of a row
def _axes(drawn: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """A place to draw in, in inches from the upper left corner."""
    across, down = drawn.get_size_inches()
    return drawn.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def _text(drawn: Figure, left: float, top: float, words: str, **style: Any) -> None:
    """Words as they are: a dollar sign begins no formula."""
    across, down = drawn.get_size_inches()
    drawn.text(left / across, 1 - top / down, words, parse_math=False, **{"color": INK, "va": "baseline", **style})


def _draw_row(drawn: Figure, row: Row, top: float, cell: float) -> None:
    width = drawn.get_figwidth()
    _text(drawn, _MARGIN, top + _HEADING, shorten(row.heading, int(width * 9)), size=11, weight="bold")
    note = shorten(row.note, int(width * 15))
    _text(drawn, _MARGIN, top + _HEADING + _NOTE, note, size=8.5, color=FAINT)
    for column, picture in enumerate(row.pictures):
        left = _MARGIN + column * (cell + _GAP)
        axes = _axes(drawn, left, top + row.above, cell, row.height(cell))
        axes.imshow(picture.image, interpolation="nearest" if max(picture.image.shape) < 200 else "antialiased")
        title = "\n".join(shorten(line, int(cell * 15)) for line in picture.title.split("\n"))
        axes.set_title(title, fontsize=8, color=picture.colour, pad=4, parse_math=False)
        _frame(axes)
        captioned = top + row.above + row.height(cell) + _LINE
        for (words, colour), step, side in zip(picture.captions, (-0.06, 0.06), ("right", "left"), strict=False):
            _text(drawn, left + cell / 2 + step, captioned, words, size=7.5, color=colour, ha=side)


def _panel_row(panel: Panel, shown: Sequence[Heatmap], names: float) -> Row:
    foils = {view.foil for view in shown if view.foil}
    contrasts = list(dict.fromkeys(view.contrast for view in shown))
    heading = panel.question(*foils) if len(foils) == 1 else panel.question()
    if len(contrasts) == 1 and len(foils) > 1:
        heading += f"  ({contrasts[0]})"
    if len(shown) < len(panel.maps):
        heading += f"  (the first {len(shown)} of {len(panel.maps)} maps)"
    pictures, limits = [Picture(panel.name, as_rgb(panel.image), colour=FAINT)], panel.limits()
    for view in shown:
        words = [view.foil and f"rather than {view.foil}"] * (len(foils) > 1)
        words += [view.contrast] * (len(contrasts) > 1 or len(foils) < 2)
        drawn = overlay(panel.image, view.values, limits[view.contrast], panel.paper)
        pictures.append(Picture(" · ".join(filter(None, words)), drawn))
    return Row(pictures, heading, chart=partial(_draw_bars, panel, names) if panel.probabilities else None)


def _draw_bars(panel: Panel, names: float, axes: Axes) -> None:
    """Draw the probabilities; the names take so many inches left of the bars."""
    slots = axes.bbox.height / axes.figure.dpi / 0.26
    bars = panel.bars(int(slots), panel.foils)
    colours = [FOR if name == panel.fact else AGAINST if name in panel.foils else "#c4cbd3" for name, _ in bars]
    axes.barh(range(len(bars)), [1.0] * len(bars), color="#f1f3f5", height=0.62)
    axes.barh(range(len(bars)), [p for _, p in bars], color=colours, height=0.62)
    for row, (name, p) in enumerate(bars):
        bold = "bold" if name == panel.fact else "normal"
        style: dict[str, Any] = {"va": "center", "fontsize": 8, "color": INK, "parse_math": False}
        axes.text(-0.05, row, shorten(name, 22), ha="right", weight=bold, **style)
        axes.text(1.04, row, percent(p), ha="left", **style)
    ends = (len(bars) - 1 + slots) / 2, (len(bars) - 1 - slots) / 2
    axes.set(xlim=(-names / _BAR, 1 + _PERCENT / _BAR), ylim=ends)
    axes.set_axis_off()


def _draw_colour_bar(drawn: Figure, top: float, sides: tuple[str, str]) -> None:
    width = 1.6
    left = (drawn.get_figwidth() - width) / 2
    axes = _axes(drawn, left, top, width, 0.13)
    axes.imshow(diverging(np.linspace(-1, 1, 255)[None], 1.0), aspect="auto")
    _frame(axes)
    said = "one scale per row and contrast, shared by the foils compared"
    axes.set_xlabel(said, fontsize=7.5, color=FAINT, labelpad=5)
    _text(drawn, left - 0.1, top + 0.11, sides[0], size=8, ha="right", color=AGAINST)
    _text(drawn, left + width + 0.1, top + 0.11, sides[1], size=8, ha="left", color=FOR)


def _frame(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=_EDGE, linewidth=0.6)
