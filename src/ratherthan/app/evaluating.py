"""What `ratherthan evaluate` prints and leaves beside the numbers of a run: the table, for reading and for a paper."""

from __future__ import annotations

import json

from ratherthan.app.terminal import warn
from ratherthan.evaluation import Run
from ratherthan.files import write_atomically
from ratherthan.render import figure_png


def as_text(run: Run) -> str:
    """Write table.md, table.tex and plot.png into the run's folder; return the table and where they are."""
    folder = run.shards.folder
    for path, content in (
        (folder / "table.md", run.to_markdown().encode()),
        (folder / "table.tex", run.to_latex().encode()),
        (folder / "plot.png", figure_png(run.plot())),
    ):
        write_atomically(path, [content])
    _name_skipped(run)
    files = f"run      {folder}\ntables   {folder}/table.md, {folder}/table.tex\nplot     {folder}/plot.png"
    return f"{run.to_markdown(intervals=False).rstrip()}\n\n{files}"


def as_json(run: Run) -> str:
    """The summary: a row for each method, contrast, setting and measure."""
    _name_skipped(run)
    rows: str = run.summary().to_json(orient="records")
    skipped = [{"image": name, "reason": reason} for name, reason in run.skipped]
    return json.dumps({"folder": str(run.shards.folder), "summary": json.loads(rows), "skipped": skipped}, indent=1)


def _name_skipped(run: Run) -> None:
    for name, reason in run.skipped:
        warn(f"skipped {name}: {reason}")
