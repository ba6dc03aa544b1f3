"""Count lines of code per room: without docstrings, comments and blank lines. The last line is the total.

python benchmarks/size.py [FOLDER]
"""

from __future__ import annotations

import ast
import sys
import tokenize
from collections import Counter
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "ratherthan"
RULES = ("operations", "rules")
_SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(path: Path) -> int:
    """Lines that hold at least one token that is neither a comment nor part of a docstring."""
    with path.open("rb") as file:
        tokens = [each for each in tokenize.tokenize(file.readline) if each.type not in _SILENT | {tokenize.ENCODING}]
    lines = {line for each in tokens for line in range(each.start[0], each.end[0] + 1)}
    return len(lines - _documented(ast.parse(path.read_bytes())))


def _documented(tree: ast.AST) -> set[int]:
    """The lines of all docstrings, those under a variable too."""
    lines = set[int]()
    for node in ast.walk(tree):
        for each in getattr(node, "body", ()) if not isinstance(node, (ast.Lambda, ast.IfExp)) else ():
            if (
                isinstance(each, ast.Expr)
                and isinstance(each.value, ast.Constant)
                and isinstance(each.value.value, str)
            ):
                lines |= set(range(each.lineno, (each.end_lineno or each.lineno) + 1))
    return lines


def room_of(path: Path, source: Path) -> str:
    """The first folder below the package, or "top"; LRP and DeepLIFT, which are mostly tables, by themselves."""
    inside = path.relative_to(source).parts
    if inside[0] == "attribution" and path.stem in RULES:
        return "rules"
    return inside[0] if len(inside) > 1 else "top"


def main(source: Path = SOURCE) -> None:
    """Print the table."""
    lines, files = Counter[str](), Counter[str]()
    for path in sorted(source.rglob("*.py")):
        lines[room_of(path, source)] += code_lines(path)
        files[room_of(path, source)] += 1
    for room, count in sorted(lines.items(), key=lambda item: -item[1]):
        print(f"{room:<14}{files[room]:>4} files {count:>7,}")
    print(f"{'total':<14}{files.total():>4} files {lines.total():>7,}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
