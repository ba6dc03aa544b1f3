"""What can go wrong, in words a user can act on: each message says what was given and what would work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

from ratherthan.words import shorten

TROUBLESHOOTING = "https://github.com/ratherthan/ratherthan/blob/main/docs/troubleshooting.md"


class RatherThanError(Exception):
    """The common parent: catch this to catch everything `ratherthan` raises on purpose."""


class InputError(RatherThanError, ValueError):
    """An argument, a file or an image that cannot be used."""


class ModelError(RatherThanError, ValueError):
    """A network that cannot be loaded, or whose output is not what was promised."""


class LayerError(ModelError):
    """A layer that does not exist, or that cannot carry the explanation that was asked for."""


class UnsupportedError(RatherThanError, NotImplementedError):
    """A network or a combination for which the method would be silently wrong, and is refused instead."""


def see(anchor: str) -> str:
    """Where more is said, to end a message with.

    Args:
        anchor: A heading of `docs/troubleshooting.md`, as addresses spell it.
    """
    return f" (more: {TROUBLESHOOTING}#{anchor})"


def unknown(kind: str, given: object, known: Iterable[str]) -> str:
    """Compose the message for a name that does not exist, with the nearest ones that do.

    Args:
        kind: What the name should have named, e.g. "contrast".
        given: What was given.
        known: The names that exist.

    Returns:
        One line of text.
    """
    names, given = list(known), shorten(str(given), 80)
    by_folded = {name.casefold(): name for name in names}
    close = [by_folded[match] for match in get_close_matches(given.casefold(), by_folded, n=3, cutoff=0.5)]
    if close:
        return f"unknown {kind} {given!r}; did you mean {' or '.join(repr(name) for name in close)}?"
    shown = ", ".join(names[:12]) + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
    return f"unknown {kind} {given!r}; known: {shown}"


@contextmanager
def told_as(kind: type[RatherThanError], what: str, *errors: type[BaseException], then: str = "") -> Iterator[None]:
    """Whatever goes wrong in another library, in one line of ours.

    Args:
        kind: What to raise.
        what: What could not be done; the first line of the error follows.
        *errors: What is caught.
        then: What comes after it.
    """
    try:
        yield
    except errors as error:
        let_stop(error)
        raise kind(f"{what}: {first_line(error)}{then}") from error


def let_stop(error: BaseException) -> None:
    """Raise KeyboardInterrupt if it lies behind an error: native code that calls Python makes another one of it."""
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        behind = behind.__cause__ or behind.__context__


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line that is not too long."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= 240 else f"{line[:240].rpartition(' ')[0]} ..."
