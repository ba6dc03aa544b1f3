"""What a page is made of: cases, each one sample with everything that was asked about it, as JSON that the page draws.

Maps travel as small numbers at the resolution at which they were computed, and are coloured in the browser.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from ratherthan.errors import InputError
from ratherthan.render import colours
from ratherthan.render.kinds import evenly, plot
from ratherthan.words import percent

LONGEST = 448  # px: a photograph on a page is not larger
PIXELATED = 96  # px: images up to this size are shown as the squares they are made of
_LEVELS, _FINE = 127, 32767  # of either sign, of a map; of one with few values
_MANY = 2000  # values, of which a few may be clipped
_SLICES, _LONGEST_SLICE = 64, 192  # of a volume; px of one

Floats = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Map:
    """One map of a case.

    Attributes:
        foil: The foil's name; empty where there is none ("why P?").
        contrast: The contrast's name.
        values: Signed, positive speaks for the fact: (h, w) over a picture, (t) along a signal, (d, h, w) in a volume,
            one for each token or column.
        question: E.g. "Why 7, rather than 1?"
        text: What the map says.
    """

    foil: str
    contrast: str
    values: ArrayLike
    question: str
    text: str = ""


@dataclass(frozen=True, eq=False)
class Case:
    """One sample and what was found out about it; what is None was not asked.

    Attributes:
        name: What to call it, e.g. its file name.
        fact: The name of the class that is explained.
        view: What was asked about, see `picture`, `lines`, `volume` and `written`.
        bars: Class names with their probabilities; may be empty.
        why: Where it was decided, see `why`.
        change: What would have to change, a question each, see `path` and `swaps`.
        enough: What is enough, see `part`.
        label: The name of the class that it has in a data set; empty if that is not known.
    """

    name: str
    fact: str
    view: dict[str, Any]
    bars: Sequence[tuple[str, float]] = ()
    why: dict[str, Any] | None = None
    change: Sequence[dict[str, Any]] | None = None
    enough: dict[str, Any] | None = None
    label: str = ""

    def told(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        bars = [[name, p, percent(p)] for name, p in sorted(self.bars, key=lambda bar: -bar[1])]
        return {**vars(self), "bars": bars}

    def joined(self, other: Case) -> Case:
        """Both, of one sample: what was found out by one, else by the other."""
        found = {key: getattr(self, key) or getattr(other, key) for key in ("why", "change", "enough", "bars")}
        return replace(self, **found)


# --------------------------------------------------------------------------------------------- what was asked about
def picture(image: ArrayLike, paper: bool = False) -> dict[str, Any]:
    """An image (H, W, 1 or 3) in [0, 1] or uint8.

    Args:
        image: It.
        paper: Whether it is ink on white paper, behind which a map is laid.
    """
    source, size = image_uri(image)
    return {"kind": "picture", "source": source, "size": size, "paper": paper, "pixelated": max(size) <= PIXELATED}


def lines(signal: Floats) -> dict[str, Any]:
    """A signal (C, T)."""
    return picture(plot(signal)[0], paper=True)


def volume(values: Floats) -> dict[str, Any]:
    """A volume (D, H, W) or (D, H, W, 3) in [0, 1]: up to 64 evenly spaced slices, one below the other."""
    depth = len(values)
    shown = evenly(depth, _SLICES)
    slices = [Image.fromarray(colours.as_rgb(values[number])) for number in shown]
    for each in slices:
        each.thumbnail((_LONGEST_SLICE, _LONGEST_SLICE), Image.Resampling.LANCZOS)
    source = _data_uri(Image.fromarray(np.concatenate([np.asarray(each) for each in slices])))
    size = [slices[0].height, slices[0].width]
    few = {"pixelated": max(size) <= PIXELATED, "depth": depth}
    return {"kind": "volume", "source": source, "size": size, "slices": shown.tolist(), **few}


def written(tokens: Sequence[str], words: Sequence[int] | None = None) -> dict[str, Any]:
    """A text, or a row of a table.

    Args:
        tokens: What positions read.
        words: The word that each belongs to; None: they are columns of a table, a line each.
    """
    kind = "table" if words is None else "text"
    return {"kind": kind, "tokens": list(tokens), "words": list(words or range(len(tokens)))}


# --------------------------------------------------------------------------------------------- what was found
def why(maps: Sequence[Map], sides: tuple[str, str], note: str = "") -> dict[str, Any]:
    """Maps of one sample.

    Args:
        maps: At least one; those of a contrast have one shape. The first is shown first.
        sides: What blue and what red-orange mean.
        note: What a reader must know about which maps there are.
    """
    contrasts = {each.contrast: [m for m in maps if m.contrast == each.contrast] for each in maps}
    groups = [
        {
            "contrast": name,
            "foils": [each.foil for each in group],
            "questions": [each.question for each in group],
            "texts": [each.text for each in group],
            **grids([each.values for each in group]),
        }
        for name, group in contrasts.items()
    ]
    return {"groups": groups, "sides": sides, "note": note}


def path(
    question: str, text: str, status: str, pictures: Sequence[ArrayLike], image: ArrayLike, answer: ArrayLike,
    odds: dict[str, tuple[str, Sequence[float]]],
) -> dict[str, Any]:  # fmt: skip
    """The way from an image to its counterfactual.

    Args:
        question: E.g. "Why 4, rather than 9?"
        text: What the answer says.
        status: How the search ended.
        pictures: On the way, the first is the image or what a manifold makes of it.
        image: The image asked about.
        answer: The altered image, or the nearest miss.
        odds: Of "fact", "foil" and "other" names and probabilities, one for each picture.
    """
    added = (np.asarray(answer, float) - np.asarray(image, float)).sum(-1)
    frames = [image_uri(each)[0] for each in pictures]
    told = {who: {"name": name, "p": [round(p, 6) for p in values]} for who, (name, values) in odds.items()}
    return {
        "question": question, "text": text, "status": status, "frames": frames, "odds": told, **grids([added]),
        "said": {who: [percent(p) for p in values] for who, (_, values) in odds.items()},
    }  # fmt: skip


def swaps(question: str, text: str, status: str, changed: Sequence[tuple[int, str | None]]) -> dict[str, Any]:
    """Words that change: each by its number, and what stands there instead, None: nothing."""
    return {"question": question, "text": text, "status": status, "changed": [list(each) for each in changed]}


def part(text: str, status: str, ranks: Floats, curve: Sequence[float] = (), whole: float = 0.0) -> dict[str, Any]:
    """What is enough.

    Args:
        text: What the part says.
        status: How the search ended.
        ranks: (H, W) or one for each token: 1 at the most important feature, less at the others, 0 where nothing is.
        curve: The probabilities of the fact with the first k = 0, 1, ... features; empty if they have no order.
        whole: That of the whole.
    """
    _, numbers = np.unique(-ranks[ranks > 0], return_inverse=True)
    order = np.zeros(ranks.shape, np.uint16)
    order[ranks > 0] = numbers + 1
    said = [percent(p) for p in curve]
    return {
        "text": text, "status": status, "shape": ranks.shape, "order": _base64(order.astype("<u2").tobytes()),
        "count": int(order.max()), "curve": list(curve), "said": said, "whole": percent(whole),
    }  # fmt: skip


# --------------------------------------------------------------------------------------------- numbers and pictures
def grids(maps: Sequence[ArrayLike]) -> dict[str, Any]:
    """Maps of one shape as whole numbers, each in units of its own limit / 127, or of few values of limit / 32767.

    The limit of a map is its largest value, of many that which all but a few have, see `colours.shared_limit`. Larger
    values are clipped, others off by at most half a unit.

    Raises:
        InputError: If a map holds what is no finite number, or they have several shapes.
    """
    arrays = [np.asarray(each, np.float64) for each in maps]
    if len({each.shape for each in arrays}) != 1:
        raise InputError(f"maps of one contrast must have one shape; got {[each.shape for each in arrays][:4]}")
    usual, levels, kind = (0.995, _LEVELS, "i1") if arrays[0].size >= _MANY else (1.0, _FINE, "<i2")
    limits = [colours.shared_limit([each], usual) for each in arrays]
    scaled = [np.clip(each / (limit or 1.0), -1, 1) for each, limit in zip(arrays, limits, strict=True)]
    whole = np.rint(np.stack(scaled) * levels).astype(kind)
    return {"shape": arrays[0].shape, "limits": limits, "levels": levels, "values": _base64(whole.tobytes())}


def ramp() -> str:
    """The colours of -127 to 127: 255 of red, green, blue, opacity."""
    return _base64(colours.palette(np.zeros((1, 1)), 1.0)[1].tobytes())


def image_uri(image: ArrayLike) -> tuple[str, list[int]]:
    """Encode an image as a data URI (a photograph as JPEG); also return the height and width it is left with."""
    made = Image.fromarray(colours.as_rgb(image))
    made.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return _data_uri(made), [made.height, made.width]


def _data_uri(made: Image.Image) -> str:
    buffer, kind = io.BytesIO(), "png" if max(made.size) <= PIXELATED else "jpeg"
    made.save(buffer, format=kind, optimize=True, quality=88)
    return f"data:image/{kind};base64,{_base64(buffer.getvalue())}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
