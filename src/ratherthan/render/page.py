"""One HTML page that needs nothing but itself: pictures, numbers, style and script are inside."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ratherthan.errors import InputError
from ratherthan.files import write_atomically
from ratherthan.render import colours
from ratherthan.render.case import Case, ramp

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Part:
    """What a page says of all its cases: a table, a picture, or both.

    Attributes:
        title: Its heading.
        text: A paragraph below it.
        table: HTML of a table, its texts escaped.
        picture: A figure as PNG.
        says: What the picture shows, for those who do not see it.
    """

    title: str
    text: str = ""
    table: str = ""
    picture: bytes = b""
    says: str = ""

    @property
    def source(self) -> str:
        """The picture as a data URI."""
        return f"data:image/png;base64,{base64.b64encode(self.picture).decode()}"


def write_page(
    cases: Sequence[Case],
    path: str | Path,
    title: str,
    intro: str = "",
    about: Sequence[tuple[str, str]] = (),
    parts: Sequence[Part] = (),
) -> Path:
    """Write a page of cases.

    It is made and written case by case, so memory does not grow with their number.

    Args:
        cases: What to show; none where there are parts. Every name and text in them is taken as text, never as HTML.
        path: Where to; replaced in one step when the page is complete.
        title: The page's heading.
        intro: A paragraph below it; an empty line starts another.
        about: Names and values for the foot of the page: what made it.
        parts: What is said of all cases, above them.

    Returns:
        The path.

    Raises:
        InputError: There is nothing to show, or an image or a map cannot be drawn.
    """
    if not cases and not parts:
        raise InputError("a page needs at least one image; got none")
    told = (each.told() for each in cases)
    return write_atomically(path, (piece.encode() for piece in render(told, title, intro, about, parts=parts)))


def render(
    cases: Iterable[dict[str, Any]],
    title: str,
    intro: str,
    about: Sequence[tuple[str, str]],
    live: Any = None,
    parts: Sequence[Part] = (),
) -> Iterator[str]:
    """The page, piece by piece.

    Args:
        cases: What `Case.told` gives.
        title: The page's heading.
        intro: A paragraph below it.
        about: Names and values for the foot of the page.
        live: What can be asked, for a page that asks; None: it is complete in itself.
        parts: What is said of all cases.
    """
    rooms = _rooms()
    style = rooms.from_string((_HERE / "page.css").read_text()).render(colours=colours)
    scripts = ["page.js"] if live is None else ["page.js", "live.js"]
    script = "\n".join((_HERE / each).read_text() for each in scripts)
    yield from rooms.get_template("page.html.j2").generate(
        title=title, intro=intro, about=about, style=style, script=script, sha256=_sha256, data=_data, ramp=ramp(),
        cases=cases, live=live, parts=parts,
    )  # fmt: skip


def filled(template: str, **names: Any) -> str:
    """A page of another kind, from a template of this folder; `sha256` and `data` are there as in the page of cases."""
    return str(_rooms().get_template(template).render(sha256=_sha256, data=_data, **names))


def _rooms() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined)


@dataclass(frozen=True)
class Frame:
    """A page inside another: what a notebook shows of it.

    Attributes:
        page: Its text.
        height: Of the frame in pixels.
    """

    page: str = field(repr=False)
    height: int

    def _repr_html_(self) -> str:
        held = html.escape(self.page)
        style = f"width:100%;height:{self.height}px;border:1px solid #d0d7de"
        return f'<iframe title="A page of ratherthan" srcdoc="{held}" style="{style}"></iframe>'


def _data(told: Any) -> str:
    """JSON that ends no element of HTML."""
    return json.dumps(told, separators=(",", ":")).replace("<", "\\u003c")


def _sha256(text: str) -> str:
    """What names a style or script in the page's policy; no other is followed."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
