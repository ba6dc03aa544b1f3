"""How a long job says how far it is: by a bar, to a callable, or not at all. Nothing else in the library prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ratherthan.settings import check_value

Progress = bool | Callable[[float, int], object] | None
"""True draws a bar on stderr; a callable gets (done, in all), perhaps with a part of one; False and None: nothing."""


@contextmanager
def reporter(progress: Progress, label: str) -> Iterator[Callable[..., None]]:
    """Report how far a job is.

    Args:
        progress: To whom, see `Progress`.
        label: What is going on, written before the bar.

    Yields:
        What to call with (done, in all), and perhaps a note that the bar shows, e.g. the loss.
    """

    def told(done: float, total: int, note: str = "") -> None:
        if callable(progress):
            progress(done, total)

    check_value("progress", bool | Callable | None, progress)
    if progress is not True:
        yield told
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    seen = console.is_terminal or console.is_jupyter
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    with Bar(
        TextColumn(label), *columns, console=console, transient=True, redirect_stdout=False, disable=not seen
    ) as bar:
        task = bar.add_task(label, total=None, note="")
        yield lambda done, total, note="": bar.update(task, completed=done, total=total, note=note)
