"""Things known by name: methods, contrasts, experiments. A name belongs to one thing; a wrong one is told its likes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from ratherthan.errors import InputError, unknown

T = TypeVar("T")
Kind = TypeVar("Kind", bound=type)


class Registry(dict[str, T]):
    """Things by name, in the order they were registered.

    Args:
        kind: What they are, for messages, e.g. "contrast".
        known: The first of them.
    """

    def __init__(self, kind: str, known: Iterable[tuple[str, T]] = ()) -> None:
        super().__init__(known)
        self.kind = kind

    def add(self, name: str, thing: T) -> None:
        """Register it.

        Raises:
            InputError: If the name is taken by another.
        """
        if self.setdefault(name, thing) is not thing:
            raise InputError(f"{_a(self.kind)} named {name!r} exists already; choose another name")

    def find(self, name: str) -> T:
        """The thing with this name.

        Raises:
            InputError: If there is none.
        """
        if name not in self:
            raise InputError(unknown(self.kind, name, self))
        return self[name]


class Kinds(Registry[type[T]], Generic[T]):
    """Classes by their `name`, whose objects are asked for by name or handed in with settings of their own.

    Args:
        kind: What they are, for messages.
        base: The class they derive from.
        example: How one is written, for messages, e.g. "GradCAM()".
    """

    def __init__(self, kind: str, base: Any, example: str) -> None:
        super().__init__(kind)
        self.base, self.example = base, example

    def register(self, each: Kind) -> Kind:
        """Register a class; usable as a decorator."""
        self.add(each.name, each)  # type: ignore[attr-defined]
        return each

    def make(self, given: str | T) -> T:
        """A name (with default settings) or an object, as an object.

        Raises:
            InputError: If the name is not registered or the object is none of them.
        """
        if isinstance(given, str):
            return self.find(given)()
        if isinstance(given, self.base):
            return given  # type: ignore[no-any-return]
        raise InputError(f"{_a(self.kind)} is a name or an object such as {self.example}, not {type_name(given)}")


def type_name(given: object) -> str:
    """What to call something that is not what was asked for."""
    return f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def unique_name(name: str, taken: Callable[[str], bool], numbered: str) -> str:
    """The name, or the first numbered form of it that is not taken.

    Args:
        name: The name.
        taken: Whether a name is.
        numbered: How one is numbered, from 2 on, e.g. "{}-{}".
    """
    names = itertools.chain([name], (numbered.format(name, number) for number in itertools.count(2)))
    return next(each for each in names if not taken(each))
