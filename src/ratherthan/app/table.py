"""What answers look like on a terminal: the sentence of a single one, a short table of several."""

from __future__ import annotations

import shutil
from io import StringIO
from typing import TYPE_CHECKING, Any

from ratherthan.words import percent

if TYPE_CHECKING:
    import ratherthan as rt

ROWS = 10
"""A table has at most so many."""
_WIDTH = 100  # where there is no terminal


def lines(result: rt.Result) -> list[str]:
    """The answers that are worth printing, and how many there are."""
    asked = len(result) * result.questions
    if asked == 1 or result.tokens:  # of texts the words say it
        return result[: max(1, ROWS // min(result.questions, 5))].lines()
    each = max(1, ROWS // len(result))
    shown = result[:ROWS].likeliest(each)
    frame = shown.to_frame()
    frame = frame[frame["answer"] == 0] if "answer" in frame else frame
    rows = [
        _cells(row, title)
        for i, title in enumerate(map(shown.title, range(len(shown))))
        for q, row in enumerate(frame[i * shown.questions : (i + 1) * shown.questions].to_dict("records")[:each])
        if not shown.idle(i, q)
    ]
    which = f", the {result.leading}" if each < result.questions else ""
    return [*_drawn(rows), *([f"({len(rows)} of {asked} questions{which})"] if len(rows) < asked else [])]


def _cells(row: dict[str, Any], title: str) -> dict[str, str]:
    """What is told of one answer, by the heads of the columns."""
    told = {"": title, "fact": row["fact"]}
    if "p_fact_whole" in row:  # what is enough
        return told | {
            "whole": percent(row["p_fact_whole"]), "kept": f"{row['features']} of {row['feature_count']}",
            "alone": percent(row["p_fact"]), "ended": row["status"],
        }  # fmt: skip
    if "status" in row:  # what would have to change
        return told | {
            "then": percent(row["p_fact"]), "foil": row["reached"] if row["foil"] == "any" else row["foil"],
            "then ": percent(row["p_foil"]), "ended": row["status"],
        }  # fmt: skip
    odds = {"p": percent(row["p_fact"]), "foil": row["foil"], "p ": percent(row["p_foil"])} if "p_fact" in row else {}
    score = "log-odds" if row["contrast"] == "weighted" and odds else row["contrast"]
    return told | (odds or {"foil": row["foil"]}) | {score: f"{row['score']:+.2f}"}


def _drawn(rows: list[dict[str, str]]) -> list[str]:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for head in rows[0]:
        right = head.strip() in ("p", "then", "whole", "alone", "log-odds")
        table.add_column(head.strip(), justify="right" if right else "left", no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*map(Text, row.values()))
    wide = shutil.get_terminal_size((_WIDTH, 24)).columns
    paper = Console(file=StringIO(), width=wide, color_system=None)
    paper.print(table)
    return [line.rstrip() for line in paper.file.getvalue().splitlines()]  # type: ignore[attr-defined]
