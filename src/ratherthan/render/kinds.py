"""Inputs of every kind as pictures, so that figures and pages show them as they show images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ratherthan.render.colours import Bytes
from ratherthan.render.text import font, lay_out

Floats = np.ndarray[Any, Any]
Owner = np.ndarray[Any, Any] | None
_SLICES = 9  # of a sheet, at most
_CELL, _GAP, _LABEL = 144, 6, 26  # px of a slice, at least; between slices; for the number of one
_WIDTH, _STRIP, _CHANNELS = 640, 120, 12  # px of a signal; of one of its channels; of which so many are drawn
_FINE = 2  # how much finer a line is drawn first


def draw(values: Floats, tokens: Sequence[str] = (), columns: Sequence[int] | None = None) -> tuple[Floats, Owner]:
    """Draw an input that is no image.

    Args:
        values: (D, H, W) or (D, H, W, 3) in [0, 1], a volume; (C, T), a signal; (F,), what has tokens.
        tokens: What positions read.
        columns: Those that are written, a line each, as of a table; None: all, one after another, as of a text.

    Returns:
        A picture (h, w[, 3]), and the position, flattened, that each pixel belongs to, (h, w), -1 where there is none;
        or None where a map (1, T) is spread over the whole picture.
    """
    if tokens:
        return lay_out(tokens, columns)
    return plot(values) if values.ndim == 2 else contact_sheet(values)


def plot(signal: Floats) -> tuple[Bytes, Owner]:
    """A line for each channel (C, T), one below the other, each in its own range."""
    signal = signal[:_CHANNELS]
    wide, high = _WIDTH * _FINE, _STRIP * _FINE
    picture = Image.new("L", (wide, high * len(signal)), "white")
    pen = ImageDraw.Draw(picture)
    x = (np.arange(signal.shape[1]) + 0.5) * wide / signal.shape[1]
    ink = 36 if signal.shape[1] <= wide else 140  # of many steps the line fills its strip, and a map shines through
    for number, channel in enumerate(signal):
        top, least, most = number * high, channel.min(), channel.max()
        share = (channel - least) / (most - least) if most > least else np.full_like(channel, 0.5)
        y = top + high * (0.9 - 0.8 * share)
        if number:
            pen.line((0, top, wide, top), fill=208, width=_FINE)
        pen.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=ink, width=2 * _FINE, joint="curve")
    drawn = picture.resize((_WIDTH, _STRIP * len(signal)), Image.Resampling.BOX)
    return np.asarray(drawn), None


def evenly(depth: int, most: int) -> np.ndarray[Any, Any]:
    """The numbers of slices that are shown, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, depth - 1, min(depth, most)).round().astype(int))


def contact_sheet(volume: Floats) -> tuple[Floats, Owner]:
    """Up to nine evenly spaced slices, three a row, with their numbers."""
    depth, height, width = volume.shape[:3]
    shown = evenly(depth, _SLICES)
    columns = min(3, len(shown))
    times = max(1, -(-_CELL // max(height, width)))
    step = np.array([height * times + _LABEL + _GAP, width * times + _GAP])
    size = step * [-(-len(shown) // columns), columns] - [_GAP, _GAP]
    sheet, owner = Image.new("RGB", tuple(size[::-1].tolist()), "white"), np.full(size, -1)
    cells = np.arange(depth * height * width).reshape(depth, height, width)
    for place, number in enumerate(shown):
        top, left = step * divmod(place, columns) + [_LABEL, 0]
        ImageDraw.Draw(sheet).text((left + 1, top - _LABEL + 3), f"slice {number}", "#57606a", font(16))
        grown = [each.repeat(times, 0).repeat(times, 1) for each in (volume[number], cells[number])]
        sheet.paste(Image.fromarray((grown[0] * 255).round().astype(np.uint8)), (int(left), int(top)))
        owner[top : top + height * times, left : left + width * times] = grown[1]
    return np.asarray(sheet), owner
