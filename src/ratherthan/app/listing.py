"""What there is to choose from, by name, for `ratherthan list` and for the shell that completes a name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, Literal

Topic = Literal["methods", "contrasts", "experiments", "models", "data"]
VERBS = ("explain", "counterfactual", "pertinent-positive")


def listed(topic: Topic) -> list[dict[str, str]]:
    """What there is of a topic: names, each with a line about it and, of methods, the command that takes it."""
    return list(_ROWS[topic]())


def completion(topic: Topic, verb: str = "") -> Callable[[str], list[tuple[str, str]]]:
    """What a shell is told that completes an option.

    Args:
        topic: What the option names, also several with commas.
        verb: Of methods, the command.
    """

    def completed(incomplete: str) -> list[tuple[str, str]]:
        before, comma, begun = incomplete.rpartition(",")
        rows = [row for row in listed(topic) if not verb or row["command"] == verb]
        return [(before + comma + row["name"], row["help"]) for row in rows if row["name"].startswith(begun)]

    return completed


def _line(thing: Any) -> str:
    """The first line of what is written about a class, a function, or one with some arguments filled in."""
    return (inspect.getdoc(getattr(thing, "func", thing)) or "").partition("\n")[0]


def _methods() -> Iterator[dict[str, str]]:
    from ratherthan.attribution.method import METHODS
    from ratherthan.search.method import COUNTERFACTUAL_METHODS, PERTINENT_POSITIVE_METHODS

    for command, known in zip(VERBS, (METHODS, COUNTERFACTUAL_METHODS, PERTINENT_POSITIVE_METHODS), strict=True):
        for name in known.names():  # type: ignore[attr-defined]
            yield {"command": command, "name": name, "help": _line(known[name])}  # type: ignore[index]


def _contrasts() -> Iterator[dict[str, str]]:
    import ratherthan as rt

    for name in rt.contrasts():
        yield {"name": name, "help": _line(type(rt.get_contrast(name)))}


def _experiments() -> Iterator[dict[str, str]]:
    import ratherthan as rt
    from ratherthan.evaluation.experiment import find_experiment

    for name in rt.experiments():
        yield {"name": name, "help": _line(find_experiment(name))}


def _models() -> Iterator[dict[str, str]]:
    from ratherthan.zoo.registry import ZOO

    for name in ZOO.names():
        entry = ZOO[name]
        here = entry.weights is not None and entry.weights.is_file()
        yield {"name": f"zoo:{name}", "help": _line(entry.build) + " (no weights here: see doctor)" * (not here)}


def _data() -> Iterator[dict[str, str]]:
    from ratherthan.data.sources import DATASETS

    for name in DATASETS.names():
        yield {"name": name, "help": _line(DATASETS[name])}


_ROWS: dict[str, Callable[[], Iterator[dict[str, str]]]] = {
    "methods": _methods, "contrasts": _contrasts, "experiments": _experiments, "models": _models, "data": _data,
}  # fmt: skip
