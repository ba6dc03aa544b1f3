"""Settings of methods, searches and experiments: fields of a dataclass, checked in one place by their types.

    @dataclass(frozen=True)
    class SmoothGrad(Settings):
        name = "smoothgrad"
        samples: Annotated[int, Interval(1)] = 25

`SmoothGrad(samples=0)` is refused: "samples of smoothgrad is a whole number of at least 1, not 0".
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from ratherthan.errors import InputError, unknown
from ratherthan.words import shorten


@dataclass(frozen=True)
class Interval:
    """The numbers that a setting may take: low <= value <= high, or low < value where `above` is set.

    Attributes:
        low: The smallest.
        high: The largest.
        above: Whether `low` itself is excluded.
        below: Whether `high` itself is excluded.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        over = value > self.low if self.above else value >= self.low
        return over and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.above else f"of at least {self.low:g}"
        high = f"below {self.high:g}" if self.below else f"at most {self.high:g}"
        sides = [text for text, bound in ((low, self.low), (high, self.high)) if math.isfinite(bound)]
        return " and ".join(sides)


class NotEmpty(Interval):
    """For a setting that is a tuple: at least one element."""

    def __contains__(self, value: Any) -> bool:
        return len(value) > 0

    def __str__(self) -> str:
        return "with at least one element"


AtLeastOne = Annotated[int, Interval(1)]
NotNegative = Annotated[float, Interval(0)]
Positive = Annotated[float, Interval(0, above=True)]
Share = Annotated[float, Interval(0, 1, above=True, below=True)]
Seed = Annotated[int, Interval(0)]


class Settings:
    """What has a name and settings. A subclass that is a dataclass has its fields checked when it is made."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        """Check every setting against its type.

        Raises:
            InputError: If one does not fit; the message says what would.
        """
        kind: Any = type(self)
        for key, hint in types_of(kind).items():
            object.__setattr__(self, key, check_value(f"{key} of {self.name}", hint, getattr(self, key)))

    def settings(self) -> dict[str, Any]:
        """The settings by name, as they are written into results and manifests."""
        return fields_to_jsonable(self) if dataclasses.is_dataclass(self) else {}


def check_value(what: str, hint: Any, value: Any) -> Any:
    """A setting, an argument of a verb or a field of a file, if it fits its type; a list as a tuple where one is due.

    Raises:
        InputError: If it does not; the message says what would.
    """
    if _fits(hint, value):
        return value
    if isinstance(value, list) and _fits(hint, frozen := _frozen(value)):
        return frozen
    words = _words(hint)
    others = [each for each in get_args(hint) if get_origin(each) is Annotated or each in (int, float)]
    if words and not others and isinstance(value, str):
        raise InputError(unknown(what, value, words))
    plain = isinstance(value, (str, int, float, tuple, list, Mapping, NoneType))
    beyond = isinstance(value, Integral) and not _finite(value)
    shown = "one beyond 64 bits" if beyond else repr(value) if plain else type_name(value)
    raise InputError(f"{what} is {_wanted(hint)}, not {shorten(shown, 100)}")


def check_names(kind: type, given: Mapping[str, Any]) -> None:
    """Refuse settings that a class does not have.

    Raises:
        InputError: If so.
    """
    known = [each.name for each in dataclasses.fields(kind) if each.init] if dataclasses.is_dataclass(kind) else []
    for key in given:
        if key not in known:
            raise InputError(unknown(f"setting of {getattr(kind, 'name', kind.__name__)}", key, known))


@cache
def types_of(kind: Any) -> dict[str, Any]:
    """Types of the fields; one that cannot be read (a name imported for type checkers only) is left out."""
    found: dict[str, Any] = {}
    for each in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
        owner = next(base for base in kind.__mro__ if each.name in vars(base).get("__annotations__", ()))
        with suppress(NameError):
            scope = vars(sys.modules[owner.__module__])
            found[each.name] = eval(each.type, scope) if isinstance(each.type, str) else each.type
    return found


def _fits(hint: Any, value: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if isinstance(value, (list, tuple)) and (hint is Any or origin is Sequence):
        return all(_fits(args[0] if args else Any, each) for each in value)
    if hint is Any:
        return not isinstance(value, Real) or _finite(value)
    if origin is Annotated:
        return _fits(args[0], value) and all(value in each for each in args[1:] if isinstance(each, Interval))
    if origin in (Union, UnionType):
        return any(_fits(each, value) for each in args)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in args)
    if hint in (int, float):
        number = Integral if hint is int else Real
        return isinstance(value, number) and not isinstance(value, bool) and _finite(value)
    if origin is tuple:
        parts = args[:1] * len(value) if isinstance(value, tuple) and args[-1] is Ellipsis else args
        return isinstance(value, tuple) and len(parts) == len(value) and all(map(_fits, parts, value))
    if origin is Mapping:
        return isinstance(value, Mapping) and all(_fits(args[0], k) and _fits(args[1], v) for k, v in value.items())
    kind = origin or hint
    return not isinstance(kind, type) or (isinstance(value, kind) and not (isinstance(value, str) and kind is not str))


def _frozen(value: Any) -> Any:
    """Lists as tuples, those inside too."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _finite(value: Any) -> bool:
    """Whether a number is one that torch and numpy can hold."""
    return abs(int(value)) < 2**63 if isinstance(value, Integral) else math.isfinite(value)


def _words(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return [each for each in get_args(hint) if isinstance(each, str)]
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else ()
    return [word for each in members for word in _words(each)]


def _wanted(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return " ".join([_wanted(args[0]), *map(str, args[1:])])
    if origin in (Union, UnionType, Literal):
        return " or ".join(repr(each) if origin is Literal else _wanted(each) for each in args)
    if origin is Mapping:
        return f"a mapping of {_wanted(args[0])} to {_wanted(args[1])}"
    if origin is tuple:
        kinds = dict.fromkeys(_wanted(each) for each in args if each is not Ellipsis)
        return f"a tuple of {'' if Ellipsis in args else f'{len(args)} values, each '}{' or '.join(kinds)}"
    plain = {int: "a whole number", float: "a number", str: "text", bool: "True or False", NoneType: "None"}
    return plain.get(hint) or f"a {getattr(origin or hint, '__name__', hint)}"


# --------------------------------------------------------------------------------------------- writing them down
def type_name(given: object) -> str:
    """What to call something in a message: its type, or the class itself."""
    return f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__


def to_jsonable(value: Any) -> Any:
    """A setting as it is stored: text, numbers, lists, dicts, tensors; of other things the name, never the address."""
    import numpy as np
    import torch

    if callable(settings := getattr(value, "settings", None)):
        return settings()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return fields_to_jsonable(value)
    if isinstance(value, (list, tuple)):
        return [to_jsonable(each) for each in value]
    if isinstance(value, np.ndarray):
        return torch.as_tensor(value)
    if isinstance(value, partial):
        bound = [to_jsonable(value.args), to_jsonable(list(value.keywords.items()))]
        return {"function": to_jsonable(value.func), "with": bound}
    if isinstance(value, torch.nn.Module):
        return type(value).__qualname__
    if isinstance(value, (str, int, float, bool, NoneType, torch.Tensor, dict)):
        return value
    shown = getattr(value, "__qualname__", None) or repr(value)
    return type(value).__qualname__ if " at 0x" in shown else shown


def fields_to_jsonable(thing: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, each `to_jsonable`."""
    return {each.name: to_jsonable(getattr(thing, each.name)) for each in dataclasses.fields(thing)}
