"""What somebody else adds takes one short file that imports from `ratherthan` alone; other tests run what is in it."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from size import code_lines

OUTSIDE = Path(__file__).parent / "outside"
MOST = {"contrasts": 1, "layercam": 10, "scorecam": 17, "wachter": 12, "average_drop": 22, "lenet": 60}


def test_every_addition_has_its_bound() -> None:
    assert {path.stem for path in OUTSIDE.glob("*.py")} - {"__init__"} == set(MOST)


@pytest.mark.parametrize("name", MOST)
def test_an_addition_is_short(name: str) -> None:
    """Imports and all, but for the contrast, whose one line follows one import."""
    imports = 1 if name == "contrasts" else 0
    assert code_lines(OUTSIDE / f"{name}.py") - imports <= MOST[name]


@pytest.mark.parametrize("name", MOST)
def test_an_addition_imports_from_ratherthan_alone(name: str) -> None:
    tree = ast.parse((OUTSIDE / f"{name}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert all(each.name == "ratherthan" or not each.name.startswith("ratherthan") for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not str(node.module).startswith("ratherthan.")
