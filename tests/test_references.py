"""What is cited: every registered name has a source, and the file is BibTeX."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ratherthan as rt
from ratherthan.attribution.method import METHODS
from ratherthan.contrast import _OURS
from ratherthan.evaluation.experiment import _EXPERIMENTS
from ratherthan.search.method import COUNTERFACTUAL_METHODS, PERTINENT_POSITIVE_METHODS

BIB = (Path(rt.__file__).parent / "references.bib").read_text()
NEEDED = {
    "software": {"author", "title", "year", "url"},
    "inproceedings": {"author", "title", "booktitle", "year"},
    "article": {"author", "title", "journal", "year"},
    "misc": {"author", "title", "eprint", "year"},
}


def parsed(text: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Kind and fields of each entry by its key, read letter by letter: braces are counted, nothing is skipped."""
    entries: dict[str, tuple[str, dict[str, str]]] = {}
    at = 0
    while at < len(text.rstrip()):
        head = re.compile(r"\s*@(\w+)\{([\w-]+)").match(text, at)
        assert head, text[at : at + 60]
        assert head[2] not in entries
        at, fields = head.end(), dict[str, str]()
        while more := re.compile(r",\s*(\w+) = \{").match(text, at):
            begin = at = more.end()
            depth = 1
            while depth:
                depth += {"{": 1, "}": -1}.get(text[at], 0)
                at += 1
            assert more[1] not in fields
            fields[more[1]] = text[begin : at - 1]
        end = re.compile(r"\s*\}").match(text, at)
        assert end, text[at : at + 60]
        at = end.end()
        entries[head[2]] = (head[1], fields)
    return entries


def ours(register: object) -> list[str]:
    """The names in a register that the package brings, not those of other tests."""
    assert isinstance(register, dict)
    return [name for name, each in register.items() if each.__module__.startswith("ratherthan.")]


def test_every_entry_parses_and_says_what_a_reader_needs() -> None:
    entries = parsed(BIB)
    assert len(entries) == BIB.count("@") > 20
    for key, (kind, fields) in entries.items():
        assert NEEDED[kind] <= fields.keys(), key
        assert re.fullmatch(r"(19|20)\d\d", fields["year"]), key
        assert all(value.strip() for value in fields.values()), key


def test_every_name_has_a_source() -> None:
    names = [each.name for each in _OURS]
    for register in (METHODS, COUNTERFACTUAL_METHODS, PERTINENT_POSITIVE_METHODS, _EXPERIMENTS):
        names += ours(register)
    assert len(names) > 30
    for name in names:
        cited = parsed(rt.cite(name))
        assert next(iter(cited)) == "ratherthan"
        assert all("keywords" not in fields for _, fields in cited.values())


def test_nothing_is_cited_for_names_that_do_not_exist() -> None:
    registers = (METHODS, COUNTERFACTUAL_METHODS, PERTINENT_POSITIVE_METHODS, _EXPERIMENTS)
    known = {each.name for each in _OURS}.union(*registers)
    told = {name for _, fields in parsed(BIB).values() for name in fields["keywords"].split(", ")}
    assert told - known == {"ratherthan"}


def test_entries_are_those_of_the_names_each_once() -> None:
    assert list(parsed(rt.cite())) == ["ratherthan"]
    assert list(parsed(rt.cite("gradcam", "weighted", "la"))) == [
        "ratherthan", "selvaraju2017gradcam", "wang2022whynot",
    ]  # fmt: skip
    assert list(parsed(rt.cite("xgem"))) == ["ratherthan", "feghahati2020cdeepex", "joshi2018xgems"]
    assert list(parsed(rt.cite("none"))) == ["ratherthan"]


def test_an_unknown_name_is_refused_with_those_that_are_like_it() -> None:
    with pytest.raises(rt.InputError, match=r"unknown name to cite 'grad-cam'; did you mean 'gradcam'"):
        rt.cite("weighted", "grad-cam")
    with pytest.raises(rt.InputError, match="names"):
        rt.cite(["gradcam"])  # type: ignore[arg-type]
