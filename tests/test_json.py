"""What every --json prints is what its schema says, failures and all kinds of input and output included."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator, ValidationError
from PIL import Image, ImageDraw
from torch import nn
from typer.testing import CliRunner

import nets
import ratherthan as rt
from ratherthan.app import answer
from ratherthan.app.cli import app
from ratherthan.search.solver import Status

SCHEMAS = Path(answer.__file__).parent / "schemas"
COMMANDS = (
    "explain", "counterfactual", "pertinent-positive", "evaluate", "bench", "audit", "check", "doctor", "verify",
    "reviews", "bundle", "study", "study-key", "study-answers",
)  # fmt: skip


def schema(name: str) -> dict[str, Any]:
    return json.loads((SCHEMAS / f"{name}.json").read_text())


def valid(name: str, told: Any) -> Any:
    Draft202012Validator(schema(name)).validate(told)
    assert told["schema_version"] == 1
    return told


def ask(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == code, result.stderr
    return valid(str(arguments[0]), json.loads(result.stdout))


@pytest.fixture
def drawings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two that are digits, and one that is no image."""
    monkeypatch.chdir(tmp_path)
    for name, line in {"one": (14, 4, 14, 24), "two": (6, 20, 21, 5)}.items():
        image = Image.new("L", (28, 28))
        ImageDraw.Draw(image).line(line, fill=255, width=3)
        image.save(f"{name}.png")
    Path("broken.png").write_text("no image")
    return [Path("one.png"), Path("two.png"), Path("broken.png")]


def test_there_is_a_schema_of_each() -> None:
    assert sorted(path.stem for path in SCHEMAS.glob("*.json")) == sorted(COMMANDS)
    for name in COMMANDS:
        Draft202012Validator.check_schema(schema(name))


# --------------------------------------------------------------------------------------------- what commands print
@pytest.mark.parametrize(
    "options",
    [(), ("--foil", "each"), ("--contrast", "all"), ("--method", "ixg"), ("--fact", "each", "--contrast", "none")],
)
def test_explain(drawings: list[Path], options: Any) -> None:
    told = ask("explain", *drawings, "-m", "zoo:mnist", *options, code=2)
    assert {row["sample"] for row in told["explanations"]} == {"one.png", "two.png"}
    assert [each["image"] for each in told["failures"]] == ["broken.png"]


def test_where_nothing_could_be_explained(drawings: list[Path]) -> None:
    told = ask("explain", "broken.png", "nowhere.png", "-m", "zoo:mnist", code=2)
    assert (told["explanations"], len(told["failures"])) == ([], 2)


@pytest.mark.parametrize(
    ("output", "rows"),
    [("value", {"foil": "0.75"}), ("labels", {"foil": "not class 1"})],
)
def test_values_and_labels(drawings: list[Path], output: str, rows: dict[str, str]) -> None:
    classes = 1 if output == "value" else 3
    Path("net.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), "
        f"nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32, {classes}))\n"
    )
    asked = ("--foil", "0.75") if output == "value" else ("--fact", "1")
    told = ask("explain", "one.png", "-m", "net.py:make", "--output", output, "--method", "ixg", *asked)
    (row,) = told["explanations"]
    assert row.items() >= rows.items()
    assert ("p_fact" in row) == (output == "labels")


@pytest.mark.parametrize("kind", ["images", "volumes", "signals", "table", "text"])
def test_every_kind_of_input(kind: str) -> None:
    """The command line reads images and texts; the others go through what it prints with."""
    model, inputs = nets.of_kind(kind, 2)
    why = rt.explain(model, inputs, foil=[0, 1], method="ixg")
    told = answer._as_json(model, answer.EXPLAIN, [why], [("it", "cannot be read")], [Path("why.html")])
    rows = valid("explain", json.loads(json.dumps({"schema_version": 1} | told)))["explanations"]
    assert [row["foil"] for row in rows] == 2 * ["class 0", "class 1"]


def test_searches_of_texts() -> None:
    model, ids = nets.of_kind("text", 2)
    for verb, found in (
        (answer.COUNTERFACTUAL, rt.counterfactual(model, ids, foil=[0, 1], method="words")),
        (answer.POSITIVE, rt.pertinent_positive(model, ids, method="words")),
    ):
        name = verb.result.kind.replace(" ", "-")
        told = {"schema_version": 1} | answer._as_json(model, verb, [found], [], [])
        assert valid(name, json.loads(json.dumps(told)))[f"{name.replace('-', '_')}s"]


@pytest.mark.parametrize("method", ["cdeepex", "cem", "cem-maf"])
def test_counterfactual(drawings: list[Path], method: str) -> None:
    model = "zoo:fashion_mnist" if method == "cem-maf" else "zoo:mnist"
    told = ask("counterfactual", *drawings[1:], "-m", model, "--method", method, code=2)
    assert len(told["counterfactuals"]) == 1


def test_counterfactual_of_a_fact_that_is_none(drawings: list[Path]) -> None:
    told = ask("counterfactual", "one.png", "-m", "zoo:mnist", "--fact", "1", "--foil", "1,8", "--method", "cem")
    assert told["counterfactuals"][0]["status"] == "foil equals fact"


@pytest.mark.parametrize("method", ["cem", "cem-maf"])
def test_pertinent_positive(drawings: list[Path], method: str) -> None:
    told = ask("pertinent-positive", *drawings[1:], "-m", "zoo:mnist", "--method", method, code=2)
    assert len(told["pertinent_positives"]) == 1


@pytest.mark.parametrize("name", ["counterfactual", "pertinent-positive"])
def test_every_end_of_a_search_is_known(name: str) -> None:
    rows = schema(name)["properties"][f"{name.replace('-', '_')}s"]["items"]
    assert sorted(rows["properties"]["status"]["enum"]) == sorted(map(str, Status))


@pytest.mark.parametrize(
    ("experiment", "options"),
    [
        ("insertion", ()),
        ("sanity", ("--set", "stages=2")),
        ("confidence-drop", ()),
        ("counterfactuals", ("--methods", "cem")),
    ],
)
def test_evaluate(drawings: list[Path], experiment: str, options: Any) -> None:
    for name in "18":
        (Path("set") / name).mkdir(parents=True)
        drawings[int(name == "8")].rename(Path("set") / name / "it.png")
    Path("set/1/broken.png").write_text("no image")
    asked = ("-m", "zoo:mnist", "--data", "set", "--out", "run", *options)
    told = ask("evaluate", experiment, *asked)
    assert told["summary"]
    assert [each["image"] for each in told["skipped"]] == ["1/broken.png"]


def test_bench(tmp_path: Path) -> None:
    asked = ("--tasks", "exact", "--methods", "random,ixg", "--samples", "2", "--out", tmp_path / "it")
    told = ask("bench", *asked)
    assert [(row["method"], row["contrast"]) for row in told["summary"][3:]] == [
        ("ixg", "none"), ("ixg", "weighted"), ("ixg", "any_other"),
    ]  # fmt: skip
    assert [row["method"] for row in told["gains"]] == ["random", "ixg"]
    assert ask("bench", *asked) == told


def test_doctor() -> None:
    assert "torch" in ask("doctor")["versions"]


def test_verify_and_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = rt.load("zoo:mnist")
    random = np.random.default_rng(0).random((1, 1, 28, 28), np.float32)
    why = rt.explain(model, torch.from_numpy(random), method="ixg")
    rt.bundle(why, model, "it", counterfactual=None, pertinent_positive="cem", seeds=1)
    valid("bundle", json.loads(Path("it/manifest.json").read_text()))
    assert ask("verify", "it", "-m", "zoo:mnist")["agrees"]
    told = ask("verify", "it", "-m", "zoo:fashion_mnist", code=1)
    assert not told["agrees"]
    assert told["differences"]
    assert told["deviations"] == {}


# --------------------------------------------------------------------------------------------- the schemas themselves
@pytest.mark.parametrize(
    "wrong",
    [
        lambda told: told.pop("schema_version"),
        lambda told: told.__setitem__("schema_version", 2),
        lambda told: told.__setitem__("more", 1),
        lambda told: told["explanations"][0].pop("score"),
        lambda told: told["explanations"][0].__setitem__("score", "high"),
        lambda told: told["explanations"][0].__setitem__("p_fact", 2),
        lambda told: told["failures"].append("one.png"),
    ],
)
def test_a_schema_refuses_what_is_otherwise(wrong: Any) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    model = rt.Model(module)
    why = rt.explain(model, torch.rand(1, 3, 2, 2), method="ixg")
    told = {"schema_version": 1} | answer._as_json(model, answer.EXPLAIN, [why], [], [])
    valid("explain", told)
    wrong(told)
    with pytest.raises(ValidationError):
        Draft202012Validator(schema("explain")).validate(told)


def table(told: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The rows of the docs about a schema, depth first."""
    for name, each in told.get("properties", {}).items():
        kinds = each.get("type", "one of" if "enum" in each else json.dumps(each.get("const")))
        kind = kinds if isinstance(kinds, str) else " or ".join(kinds)
        optional = "" if name in told["required"] else ", not always"
        yield f"| `{prefix}{name}` | {kind}{optional} | {each['description']} |"
        yield from table(each, f"{prefix}{name}.")
        yield from table(each.get("items", {}), f"{prefix}{name}[].")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_of_the_docs_tells_every_field(name: str) -> None:
    page = (Path(__file__).parent.parent / "docs" / "json.md").read_text()
    (section,) = [each for each in page.split("\n## ") if each.startswith(f"`{name}.json`")]
    assert [line for line in section.splitlines() if line.startswith("| `")] == list(table(schema(name)))
