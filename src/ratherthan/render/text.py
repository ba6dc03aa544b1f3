"""Texts as pictures, so that figures and pages show them as they show images: a map lies over the words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ratherthan.render.colours import Bytes
from ratherthan.words import printable

_WIDTH, _HEIGHT, _COLUMNS, _MARGIN = 13, 30, 24, 8  # px of a letter; letters of a line; px
_LETTERS = 21


def lay_out(tokens: Sequence[str], lines: Sequence[int] | None = None) -> tuple[Bytes, np.ndarray[Any, Any]]:
    """Write tokens in lines.

    Args:
        tokens: What they read; those that begin a word begin with a space. A word that fits on no line is broken.
        lines: The tokens that are written, each on a line of its own; None: all, as many as fit on a line.

    Returns:
        A picture (H, W, 3), uint8, and the token that each pixel belongs to, (H, W), -1 where there is none.
    """
    places, line, column = list[tuple[int, int, int, str]](), 0, 0
    for number in range(len(tokens)) if lines is None else lines:
        text = printable(tokens[number] if lines is None else tokens[number].strip())
        if column and (lines is not None or column + len(text.rstrip()) > _COLUMNS):
            line, column, text = line + 1, 0, text.lstrip()
        for start in range(0, max(1, len(text)), _COLUMNS):
            part = text[start : start + _COLUMNS]
            line += start > 0
            column = 0 if start else column
            places.append((number, line, column, part))
            column += len(part)
    size = (_COLUMNS * _WIDTH + 2 * _MARGIN, (line + 1) * _HEIGHT + 2 * _MARGIN)
    picture, owner = Image.new("RGB", size, "white"), np.full(size[::-1], -1)
    draw = ImageDraw.Draw(picture)
    for number, row, left, text in places:
        x, y = _MARGIN + left * _WIDTH, _MARGIN + row * _HEIGHT
        for i, letter in enumerate(text):
            draw.text((x + i * _WIDTH, y), letter, "#24292f", font(_LETTERS))
        spaces = len(text) - len(text.lstrip())
        owner[y : y + _HEIGHT - 2, x + spaces * _WIDTH : x + len(text) * _WIDTH] = number
    return np.asarray(picture), owner


@cache
def font(size: int) -> Any:
    """Letters of one width, so many px high."""
    from matplotlib.font_manager import findfont

    return ImageFont.truetype(findfont("DejaVu Sans Mono"), size)
