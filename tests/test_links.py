"""Every link of README, docs, CHANGELOG and CONTRIBUTING leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ratherthan as rt

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def anchors(page: Path) -> set[str]:
    """What headings are called in an address."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.S)
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            lost.append(target)
    assert lost == []


def test_messages_lead_to_headings_that_exist() -> None:
    sources = (ROOT / "src").rglob("*.py")
    named = [anchor for each in sources for anchor in re.findall(r'\bsee\("([^"]*)"\)', each.read_text())]
    assert 5 <= len(named) <= 10
    assert set(named) <= anchors(ROOT / "docs" / "troubleshooting.md")
    with pytest.raises(rt.InputError) as told:
        rt.Manifold.of(rt.load("zoo:beats"))
    text, _, address = str(told.value).partition(" (more: ")
    assert text.startswith("zoo:beats names no manifold: give one")
    assert address == "https://github.com/ratherthan/ratherthan/blob/main/docs/troubleshooting.md#no-manifold)"
