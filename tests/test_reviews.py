"""Verdicts of several people: the table, how far they agree against closed forms, and files that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from jsonschema import validate
from sklearn.metrics import cohen_kappa_score
from typer.testing import CliRunner

from ratherthan.app import reviews as merging
from ratherthan.app.cli import app


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["reviews", "merge", *map(str, arguments)])


def saved(path: Path, verdicts: str, comments: dict[int, str] | None = None, **changes: Any) -> Path:
    """A file as the page's script writes it: a for agree, d for disagree, u for unsure, a blank for no verdict."""
    words = {"a": "agree", "d": "disagree", "u": "unsure", " ": ""}
    reviews = {
        f"case-{i + 1}": {"name": f"{i}.png", "fact": f"class {i % 3}", "verdict": words[letter],
                          "comment": (comments or {}).get(i, "")}
        for i, letter in enumerate(verdicts)
    }  # fmt: skip
    told = {"kind": "ratherthan reviews", "schema_version": 1, "page": "Why?", "saved": "2026-11-30T00:00:00.000Z"}
    path.write_text(json.dumps(told | {"reviews": reviews} | changes, indent=1))
    return path


def test_the_table_holds_every_review(tmp_path: Path) -> None:
    text = 'a "quoted", comma;\nand a line: \N{SNOWMAN}'
    anna, ben = saved(tmp_path / "anna.json", "ad ua" + "a" * 6, {1: text}), saved(tmp_path / "ben.json", "aa")
    result = call(anna, ben, "--out", tmp_path / "reviews.csv")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"table    {tmp_path}/reviews.csv"
    table = pd.read_csv(tmp_path / "reviews.csv", keep_default_na=False)
    assert list(table) == ["case", "name", "fact", "reviewer", "verdict", "comment"]
    assert len(table) == 11 + 2
    assert table.loc[0].tolist() == ["case-1", "0.png", "class 0", "anna", "agree", ""]
    assert table.loc[2].tolist() == ["case-2", "1.png", "class 1", "anna", "disagree", text]
    assert table.loc[3].tolist() == ["case-2", "1.png", "class 1", "ben", "agree", ""]
    assert list(table["case"])[-3:] == ["case-9", "case-10", "case-11"]


@pytest.mark.parametrize(
    ("one", "other"),
    [("aaaaaddddd", "aaaaaddddd"), ("aaddu", "adadu"), ("aadduuaa d", "aaduduad a"), ("ad", "da"), ("aaaa", "aaad")],
)
def test_kappa_of_two(one: str, other: str, tmp_path: Path) -> None:
    files = saved(tmp_path / "anna.json", one), saved(tmp_path / "ben.json", other)
    assert call(*files, "--out", tmp_path / "it.json").exit_code == 0
    told = json.loads((tmp_path / "it.json").read_text())
    validate(told, json.loads((Path(merging.__file__).parent / "schemas" / "reviews.json").read_text()))
    both = [(a, b) for a, b in zip(one, other, strict=True) if " " not in a + b]
    n, same = len(both), sum(a == b for a, b in both)
    chance = sum(sum(a == k for a, _ in both) * sum(b == k for _, b in both) for k in "adu") / n**2
    assert (told["agreement"]["cases"], told["agreement"]["same_verdict"]) == (n, same)
    assert told["agreement"]["kappa"] == pytest.approx((same / n - chance) / (1 - chance))
    assert told["agreement"]["kappa"] == pytest.approx(cohen_kappa_score(*zip(*both, strict=True)))
    assert told["agreement"]["reviewers"] == ["anna", "ben"]
    assert len(told["reviews"]) == len(one) + len(other)


def test_kappa_of_a_textbook(tmp_path: Path) -> None:
    """Two readers of 50 grant applications, 20 and 15 alike, 5 and 10 not: kappa 0.4."""
    files = (
        saved(tmp_path / "a.json", "a" * 25 + "d" * 25),
        saved(tmp_path / "b.json", "a" * 20 + "d" * 5 + "a" * 10 + "d" * 15),
    )
    line = call(*files).stdout.splitlines()[-1]
    assert line == "cases with a verdict of each reviewer: 50; the same verdict: 35 (70%); Cohen's kappa 0.40"


def test_of_three_reviewers_and_of_one_there_is_no_kappa(tmp_path: Path) -> None:
    files = [
        saved(tmp_path / f"{name}.json", verdicts) for name, verdicts in {"a": "aad", "b": "add", "c": "aau"}.items()
    ]
    assert call(*files).stdout.splitlines()[-1] == "cases with a verdict of each reviewer: 3; the same verdict: 1 (33%)"
    assert "kappa" not in call(files[0]).stdout
    alike = [saved(tmp_path / f"{name}.json", "aaa") for name in "xy"]
    assert "kappa" not in call(*alike).stdout  # it is 0 / 0
    nothing = [saved(tmp_path / f"{name}.json", "   ") for name in "vw"]
    assert call(*nothing).stdout.splitlines()[-1] == "cases with a verdict of each reviewer: 0; the same verdict: 0"


def test_without_a_file_the_table_is_printed(tmp_path: Path) -> None:
    result = call(saved(tmp_path / "anna.json", "ad", {0: "the ear"}))
    assert result.stdout.splitlines()[0].split() == ["case", "name", "fact", "reviewer", "verdict", "comment"]
    assert "the ear" in result.stdout


def test_two_files_of_one_name_are_two_reviewers(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    files = saved(tmp_path / "a" / "reviews.json", "ad"), saved(tmp_path / "b" / "reviews.json", "aa")
    call(*files, "--out", tmp_path / "it.csv")
    assert sorted(set(pd.read_csv(tmp_path / "it.csv")["reviewer"])) == ["reviews", "reviews (2)"]


def changed(**changes: Any) -> dict[str, Any]:
    return {"name": "0.png", "fact": "class 0", "verdict": "agree", "comment": "", **changes}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "bad.json: cannot be read (No such file or directory)"),
        ("{", "cannot be used: Expecting property name"),
        (b"\xff\xfe", "cannot be read as text in UTF-8"),
        ("[" * 100_000, "cannot be used"),
        ("[]", "what it holds is a mapping"),
        ({"kind": "ratherthan bundle"}, "it holds no reviews that a page of ratherthan saved"),
        ({"schema_version": 2}, "it holds no reviews that a page of ratherthan saved"),
        ({"reviews": []}, "reviews is a mapping"),
        ({"reviews": {"case-1": "agree"}}, "reviews is a mapping"),
        ({"reviews": {"case-1": changed(verdict="yes")}}, "verdict of case-1"),
        ({"reviews": {"case-1": changed(comment=None)}}, "comment of case-1 is text, not None"),
        ({"reviews": {"case-1": changed(name="dog.jpg")}}, "its case-1 is 'dog.jpg', that of others '0.png'"),
        ({"reviews": {"case-1": changed(fact="class 9")}}, "about another page: its case-1"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line(content: Any, message: str, tmp_path: Path) -> None:
    good, bad = saved(tmp_path / "good.json", "ad"), tmp_path / "bad.json"
    if isinstance(content, dict):
        saved(bad, "ad", **content)
    elif content is not None:
        bad.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = call(good, bad, "--out", tmp_path / "it.csv")
    assert result.exit_code == 2
    line, last = result.stderr.splitlines()
    assert line.startswith(f"error: {bad}")
    assert message in line
    assert last == "error: 1 not merged, 1 merged"
    assert len(pd.read_csv(tmp_path / "it.csv")) == 2
    alone = call(bad, "--out", tmp_path / "none.csv")
    if "case-1" not in message or "of case-1" in message:
        assert (alone.exit_code, alone.stdout) == (2, "")
        assert not (tmp_path / "none.csv").exists()


@pytest.mark.parametrize("out", ["folder", "it.txt", "it.html"])
def test_it_is_written_as_a_table_only(out: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    result = call(saved(tmp_path / "a.json", "a"), "--out", tmp_path / out)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "it.txt").exists()


def test_the_script_of_the_page_writes_what_is_read_here() -> None:
    script = (Path(merging.__file__).parent.parent / "render" / "page.js").read_text()
    assert 'kind: "ratherthan reviews", schema_version: 1' in script
    assert "{ name: data.name, fact: data.fact, verdict: verdict.value, comment: comment.value }" in script
    assert '["", "agree", "disagree", "unsure"]' in script
