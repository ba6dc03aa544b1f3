"""What `ratherthan evaluate` prints and leaves beside the numbers of a run: the table, for reading and for a paper."""

from __future__ import annotations

import json
from pathlib import Path

from ratherthan.app.terminal import say, warn
from ratherthan.evaluation.tables import Run
from ratherthan.files import write_atomically
from ratherthan.render import figure_png


def show(run: Run, folder: Path, as_json: bool) -> None:
    """Print the summary as JSON; or the table, after writing table.md, table.tex and plot.png into the run's folder."""
    for name, reason in run.skipped:
        warn(f"skipped {name}: {reason}")
    if as_json:
        summary = json.loads(run.summary().to_json(orient="records"))
        skipped = [{"image": name, "reason": reason} for name, reason in run.skipped]
        say(json.dumps({"folder": str(folder), "summary": summary, "skipped": skipped}, indent=1))
        return
    write_atomically(folder / "table.md", [run.to_markdown().encode()])
    write_atomically(folder / "table.tex", [run.to_latex().encode()])
    write_atomically(folder / "plot.png", [figure_png(run.plot())])
    say(run.to_markdown(intervals=False).rstrip() + "\n")
    say(f"run      {folder}\ntables   {folder}/table.md, {folder}/table.tex\nplot     {folder}/plot.png")
