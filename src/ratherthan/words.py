"""How numbers and names are written in texts, figures and pages alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def percent(p: float) -> str:
    """Write a share of 1 as a percentage; neither a small share nor a last doubt is rounded away.

    Args:
        p: In [0, 1].

    Returns:
        E.g. "12.3%"; "< 0.1%" and "> 99.9%" where one decimal would say 0 or 1 of what is neither.
    """
    if 0 < p < 0.0005:
        return "< 0.1%"
    if 0.9995 <= p < 1:
        return "> 99.9%"
    return f"{p:.1%}"


def shorten(text: str, length: int) -> str:
    """Cut a text to at most `length` characters on one line, the cut marked by an ellipsis."""
    flat = " ".join(text.split())
    return flat if len(flat) <= length else flat[: length - 1].rstrip() + "…"


def printable(text: str) -> str:
    r"""A text on one line that means nothing to a terminal: what is no plain character becomes an escape, \x1b."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def told_apart(names: Sequence[str]) -> tuple[str, ...]:
    """Names of classes, those that occur more than once with their index: ImageNet has two cranes, 134 and 517."""
    count = Counter(names)
    return tuple(f"{name} ({index})" if count[name] > 1 else name for index, name in enumerate(names))
