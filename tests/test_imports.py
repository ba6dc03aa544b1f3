"""Who may lean on whom: the rooms of the package and the arrows between their imports, read from the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import ratherthan

SOURCE = Path(ratherthan.__file__).parent


def modules() -> dict[str, Path]:
    """Dotted names below the package and their files."""
    named = {path.relative_to(SOURCE).with_suffix("").parts: path for path in SOURCE.rglob("*.py")}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for parts, path in named.items()}


def imported(path: Path, anywhere: bool) -> Iterator[str]:
    """What a file imports of the package when it is loaded, or, if `anywhere`, also inside functions."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree) if anywhere else at_load(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{each.name}" for each in node.names]
        for name in names:
            if name.split(".")[0] == "ratherthan":
                yield name.removeprefix("ratherthan").strip(".")


def at_load(node: ast.AST) -> Iterator[ast.AST]:
    """Statements that run when the module is loaded: not those in functions, not those for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from at_load(child)


@cache
def arrows(anywhere: bool = False) -> dict[str, set[str]]:
    """Which module imports which."""
    known = modules()
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        graph[name] = set()
        for target in imported(path, anywhere):
            while target not in known:  # a function or class: its module
                target = target.rpartition(".")[0]
            graph[name].add(target)
    return graph


def room(module: str) -> str:
    return module.split(".")[0]


def test_the_import_graph_is_read() -> None:
    graph = arrows()
    assert "contrast" in graph["attribution.method"]
    assert len(graph) > 60


def test_no_circle() -> None:
    """A package's __init__ only gathers its modules, so it is left out."""
    graph = {name: {each for each in to if each not in ("", room(each))} for name, to in arrows().items()}
    gathers = {name for name, path in modules().items() if path.name == "__init__.py"}
    order = TopologicalSorter({name: to - gathers for name, to in graph.items() if name not in gathers})
    list(order.static_order())  # raises CycleError and names the circle


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("attribution", "search"),
        ("search", "attribution"),
        ("attribution", "evaluation"),
        ("search", "evaluation"),
        *((each, "app") for each in ("attribution", "search", "evaluation", "render", "zoo", "data", "replication")),
        *(("zoo", each) for each in ("attribution", "search", "evaluation", "model")),
        *(("data", each) for each in ("attribution", "search", "evaluation", "model", "zoo")),
        *(("render", each) for each in ("attribution", "search", "evaluation", "model", "zoo", "data")),
    ],
)
def test_rooms_that_do_not_import_each_other(one: str, other: str) -> None:
    """Not even inside a function."""
    found = {f"{name} -> {each}" for name, to in arrows(anywhere=True).items() if room(name) == one for each in to}
    assert not {each for each in found if room(each.split(" -> ")[1]) == other}


def test_nothing_imports_the_replication_of_papers_or_the_command_line() -> None:
    for name, to in arrows(anywhere=True).items():
        assert room(name) == "replication" or "replication" not in set(map(room, to)), name
        assert room(name) == "app" or "app" not in set(map(room, to)) or name == "__main__", name


def test_contrast_is_pure_tensor_code() -> None:
    assert set(map(room, arrows(anywhere=True)["contrast"])) <= {"errors", "registry", "settings"}
