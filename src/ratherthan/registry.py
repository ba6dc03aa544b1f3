"""Things known by name: methods, contrasts, searches, networks, data sets; plug-ins that register more of them."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from threading import RLock
from typing import Any, Generic, TypeVar

from ratherthan.errors import InputError, first_line, unknown
from ratherthan.settings import check_names, type_name

T = TypeVar("T")
Class = TypeVar("Class", bound=type)
PLUGINS = "ratherthan.plugins"
_LOCK = RLock()  # another thread waits until all are there; a plug-in that looks up a name itself does not
_seen = set[str]()


class Registry(dict[str, T]):
    """Things by name, in the order they were registered.

    Args:
        kind: What they are, for messages, e.g. "contrast".
        known: The first of them.
    """

    def __init__(self, kind: str, known: Iterable[tuple[str, T]] = ()) -> None:
        super().__init__(known)
        self.kind = kind
        self.article = "an" if kind[0] in "aeiou" else "a"

    def add(self, name: str, thing: T) -> None:
        """Register it.

        Raises:
            InputError: If the name is taken by another.
        """
        if self.setdefault(name, thing) is not thing:
            raise InputError(f"{self.article} {self.kind} named {name!r} exists already; choose another name")

    def find(self, name: str) -> T:
        """The thing with this name.

        Raises:
            InputError: If there is none; the message names close ones.
        """
        if name not in self:
            load_plugins()
        if name not in self:
            raise InputError(unknown(self.kind, name, self))
        return self[name]

    def names(self) -> list[str]:
        """All names, those of plug-ins too, in the order they were registered."""
        load_plugins()
        return list(self)


class Classes(Registry[type[T]], Generic[T]):
    """Classes by their `name`, whose objects are asked for by name or handed in with settings of their own.

    Args:
        kind: What they are, for messages.
        base: The class they derive from.
        example: How one is written, for messages, e.g. "GradCAM()".
    """

    def __init__(self, kind: str, base: Any, example: str) -> None:
        super().__init__(kind)
        self.base, self.example = base, example

    def register(self, each: Class) -> Class:
        """Register a class; usable as a decorator."""
        self.add(each.name, each)  # type: ignore[attr-defined]
        return each

    def make(self, given: str | T, /, **settings: Any) -> T:
        """A name with settings (default where none are given), or an object, as an object.

        Raises:
            InputError: If the name is not registered, the object is none of them, or a setting does not exist.
        """
        if isinstance(given, str):
            kind = self.find(given)
            check_names(kind, settings)
            return kind(**settings)
        if not isinstance(given, self.base):
            shown = type_name(given)
            raise InputError(f"{self.article} {self.kind} is a name or an object such as {self.example}, not {shown}")
        if settings:
            raise InputError(f"give the settings {', '.join(settings)} to {type(given).__name__}(...) itself")
        return given  # type: ignore[no-any-return]


def unique_name(name: str, taken: Callable[[str], bool], numbered: str) -> str:
    """The name, or the first numbered form of it that is not taken.

    Args:
        name: The name.
        taken: Whether a name is.
        numbered: How one is numbered, from 2 on, e.g. "{}-{}".
    """
    names = itertools.chain([name], (numbered.format(name, number) for number in itertools.count(2)))
    return next(each for each in names if not taken(each))


def load_plugins() -> None:
    """Import every package that names itself in the entry points `ratherthan.plugins`, each once.

    Called when a name is not known, or when names are listed. A plug-in that cannot be imported is warned about, once.
    """
    with _LOCK:
        for each in entry_points(group=PLUGINS):
            if each.value not in _seen:
                _seen.add(each.value)
                try:
                    each.load()
                except Exception as error:  # whatever a stranger's module does when it is imported
                    warnings.warn(f"plug-in {each.value} cannot be loaded: {first_line(error)}", stacklevel=2)
