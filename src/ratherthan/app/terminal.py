"""What all commands share: lines, complaints, progress, and reading lists off the command line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from ratherthan.errors import InputError


def say(line: str) -> None:
    """Print a line for the user."""
    typer.echo(line)


def complain(line: str) -> None:
    """Print a line about what went wrong, on stderr."""
    typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(" ".join(line.split()), err=True)


def printable(name: str) -> str:
    r"""A file name as text that fits on one line: bytes that are no text and control characters become \x.. escapes."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Draw a bar on stderr if that is a terminal; what it yields is called with the number of newly finished steps."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=console, transient=True, redirect_stdout=False, disable=not console.is_terminal)
    with bar:
        task = bar.add_task(what, total=total)
        yield lambda steps: bar.advance(task, steps)


def numbers(text: str | None, option: str) -> list[float] | None:
    """Read "0.485,0.456,0.406".

    Raises:
        InputError: If it is no list of finite numbers.
    """
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise InputError(f"{option} takes numbers separated by commas, e.g. 0.5,0.5,0.5; not {text!r}")
    return values


def words(text: str) -> list[str]:
    """Read "gradcam, la" into its parts."""
    return [part.strip() for part in text.split(",") if part.strip()]


def check_device(device: str) -> str:
    """Refuse a device that cannot compute here.

    Raises:
        InputError: If so.
    """
    import torch

    from ratherthan.errors import first_line

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used here: {first_line(error)}") from error
    return device
