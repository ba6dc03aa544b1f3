"""The classes of a data set as those of a model: by name, never by position."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

from ratherthan.data.dataset import Dataset
from ratherthan.errors import InputError, see, told_as, unknown
from ratherthan.files import read_text
from ratherthan.words import told_apart

LabelMap = Mapping[str, Any] | str | Path | None
"""What classes of a set are called in a model: name (or, for a model without names, index) by name; or a file of it."""


def match_labels(
    data: Dataset, class_names: Sequence[str] | None, label_map: LabelMap = None, strict: bool = True
) -> Dataset:
    """The same set with labels that are a model's.

    Names agree where they are equal but for case, spaces, underscores and hyphens; of a name with commas, as "tabby,
    tabby cat", a part is enough where no other class has it. Numbers that a set is published with are kept where the
    model has no names, or the set no others.

    Args:
        data: The set.
        class_names: Of the model.
        label_map: What a class of the set is in the model, for those whose names differ; or a file that says so, a
            `.json` of an object or a `.csv` of two columns.
        strict: Whether every label must be a class; if not, those that are none become -1.

    Returns:
        The set.

    Raises:
        InputError: An image's class is none of the model's, or the map does not fit.
    """
    own, told = told_apart(data.class_names), _read(label_map)
    numbers = own == tuple(map(str, range(len(own))))
    if not told and data.numbered and (class_names is None or numbers):
        return data
    place, within = _finder(class_names or ()), _finder(own)
    found = [*map(place, own), -1]  # the last is that of images whose class is not known
    for word, wanted in told.items():
        by_index = type(wanted) is int or (not class_names and len(str(wanted)) < 9 and str(wanted).isdecimal())
        label, index = within(word), int(wanted) if by_index else place(str(wanted))
        if min(label, index) < 0:
            kind, name, names = ("the model", wanted, class_names or ()) if index < 0 else (data.name, word, own)
            raise InputError(f"label map: {unknown(f'class of {kind}', name, names)}")
        found[label] = index
    lost = [own[label] for label in sorted({*data.labels} - {-1}) if found[label] < 0]
    if lost and strict:
        raise InputError(f"{data.name}: {_lost(lost, class_names)}")
    labels = tuple(found[label] for label in data.labels)
    known = tuple(class_names or map(str, range(max(labels) + 1)))
    return replace(data, labels=labels, class_names=known, numbered=True)


def _forms(name: str) -> list[list[tuple[int, str]]]:
    """A name as it can be compared with others, each way by its number: the strictest first."""
    return [[(0, name)], [(1, _folded(name))], [(2, _folded(part)) for part in name.split(",")]]


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.casefold()).strip()


def _finder(names: Sequence[str]) -> Callable[[str], int]:
    """What finds the one place of a name, in its strictest form that has one; -1: nowhere."""
    table = defaultdict[tuple[int, str], set[int]](set)
    for place, name in enumerate(names):
        for form in chain(*_forms(name)):
            table[form].add(place)

    def find(name: str) -> int:
        for forms in _forms(name):
            places = set[int]().union(*(table.get(form, ()) for form in forms))
            if len(places) == 1:
                return places.pop()
        return -1

    return find


def _lost(words: Sequence[str], class_names: Sequence[str] | None) -> str:
    """What to say of classes that the model has not."""
    by_folded = {_folded(name): name for name in class_names or ()}
    near = {word: get_close_matches(_folded(word), by_folded, 1) for word in words[:3]}
    listed = [f"{word!r} (close: {by_folded[c[0]]!r})" if c else repr(word) for word, c in near.items()]
    more = f" and {len(words) - 3} more" if len(words) > 3 else ""
    names = "no class of the model is called" if class_names else "the model has no class names to compare with"
    remedy = "" if class_names else "give it names (class_names=, --classes FILE), or "
    remedy += "say what they are by label_map= (--label-map FILE)" + see("labels-match-no-class")
    return f"{names} {', '.join(listed)}{more}; {remedy}"


def _read(given: LabelMap) -> dict[str, Any]:
    if given is None or isinstance(given, Mapping):
        return dict(given or {})
    with told_as(InputError, f"label map: cannot read {str(given)!r}", ValueError, RecursionError, csv.Error):
        text = read_text(given)
        told = json.loads(text) if str(given).endswith(".json") else dict(csv.reader(io.StringIO(text)))
    if not isinstance(told, dict):
        raise InputError(f"label map: {str(given)!r} should hold an object, or rows, of a name and a class")
    return {str(word).strip(): each for word, each in told.items()}
