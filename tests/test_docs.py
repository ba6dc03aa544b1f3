"""What stands around the code: every page, name and command of the site; metadata that other programs read."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ratherthan.attribution.method import METHODS
from ratherthan.evaluation.experiment import _EXPERIMENTS
from ratherthan.search.method import COUNTERFACTUAL_METHODS, PERTINENT_POSITIVE_METHODS

ROOT = Path(__file__).parents[1]
TEXTS = {page: page.read_text() for page in (ROOT / "docs").rglob("*.md")}
yaml = pytest.importorskip("yaml", reason="needs pyyaml, which transformers brings: pip install -e '.[hf]'")


def directives(text: str) -> list[str]:
    return re.findall(r"^::: ratherthan\.(\w+)$", text, re.MULTILINE)


def read(path: str) -> Any:
    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Reads what only mkdocs makes something of as nothing."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python", lambda *_: None)
    return yaml.load((ROOT / path).read_text(), Loader)


def test_every_method_search_and_experiment_is_told_once() -> None:
    told = Counter(name for text in TEXTS.values() for name in directives(text))
    assert set(told.values()) == {1}
    registers = (METHODS, COUNTERFACTUAL_METHODS, PERTINENT_POSITIVE_METHODS, _EXPERIMENTS)
    ours = {each.__name__ for register in registers for each in register.values() if _ours(each)}
    assert len(ours) > 25
    assert told.keys() == ours


def test_every_attribution_method_has_its_page() -> None:
    for name, method in METHODS.items():
        if _ours(method):
            page = TEXTS[ROOT / "docs" / "methods" / f"{name}.md"]
            assert directives(page) == [method.__name__]
            assert re.match(rf"# .+: `{name}`\n", page)
            assert f"(methods/{name}.md)" in TEXTS[ROOT / "docs" / "methods.md"]


def _ours(kind: type) -> bool:
    return kind.__module__.startswith("ratherthan.")


def test_all_modules_of_public_names_have_a_page_of_the_reference() -> None:
    hook = (ROOT / "docs" / "hooks.py").read_text()
    table = re.findall(r'^    "[\w ]+": \((.+)\),$', hook, re.MULTILINE)
    listed = Counter(re.findall(r'"(\w+)"', " ".join(table)))
    stub = (ROOT / "src/ratherthan/__init__.pyi").read_text()
    assert listed.keys() == set(re.findall(r"^from \.(\w+)", stub, re.MULTILINE))
    assert set(listed.values()) == {1}


def test_the_navigation_names_every_page() -> None:
    """Strict mkdocs asks the same, and where links of the site lead; it is not always installed."""

    def leaves(node: Any) -> list[str]:
        if isinstance(node, str):
            return [node]
        return [leaf for each in (node.values() if isinstance(node, dict) else node) for leaf in leaves(each)]

    config = read("mkdocs.yml")
    named = Counter(leaf for leaf in leaves(config["nav"]) if "://" not in leaf)
    assert set(named.values()) == {1}
    assert {str(page.relative_to(ROOT / "docs")) for page in TEXTS} <= named.keys()
    assert config["theme"]["font"] is False, "no font is fetched"


def test_the_citation_file_has_what_its_schema_asks_for() -> None:
    told = read("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= told.keys(), "required by the schema of 1.2.0"
    assert told["cff-version"] == "1.2.0"
    assert told["type"] in ("software", "dataset")
    assert all(isinstance(each, dict) and each.keys() <= {"name", "website", "email"} for each in told["authors"])
    assert all(isinstance(each, str) for each in told["keywords"])
    optional = {"type", "license", "repository-code", "url", "keywords"}
    assert told.keys() <= {"cff-version", "message", "title", "authors"} | optional
    assert told["title"].startswith("ratherthan")


def test_the_workflow_and_hooks_call_what_developers_call() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    job = read(".github/workflows/ci.yml")["jobs"]["make"]
    assert set(job["strategy"]["matrix"]["target"]) == {"lint", "test", "test-page", "docs"} <= targets
    assert {"run": "make ${{ matrix.target }}"} in job["steps"]
    (local,) = read(".pre-commit-config.yaml")["repos"]
    lint = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    assert local["repo"] == "local"
    for hook in local["hooks"]:
        assert hook["entry"].removeprefix(".venv/bin/").removesuffix(" --fix") in lint


def test_the_forms_for_issues_are_forms() -> None:
    forms = [each for each in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if each.stem != "config"]
    assert {each.stem for each in forms} == {"bug", "question", "idea"}
    for form in forms:
        told = read(str(form.relative_to(ROOT)))
        assert {"name", "description", "body"} <= told.keys()
        identifiers = [each["id"] for each in told["body"] if each["type"] != "markdown"]
        assert len(set(identifiers)) == len(identifiers) > 0


def test_the_skill_says_when_to_use_it() -> None:
    _, head, body = TEXTS[ROOT / "docs" / "skill" / "SKILL.md"].split("---\n", 2)
    told = yaml.safe_load(head)
    assert told.keys() == {"name", "description"}
    assert re.fullmatch(r"[a-z0-9-]{1,64}", told["name"])
    assert 50 < len(told["description"]) <= 1024
    assert body.count("```sh") >= 5


def test_addresses_for_assistants_name_files_that_exist() -> None:
    text = (ROOT / "docs" / "llms.txt").read_text()
    assert text.startswith("# ratherthan\n\n> ")
    named = re.findall(r"/blob/main/([^)#\s]+)", text)
    assert len(named) > 8
    assert [each for each in named if not (ROOT / each).is_file()] == []
