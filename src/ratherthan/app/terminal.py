"""What all commands share: lines, complaints, progress, and reading lists off the command line."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from ratherthan.errors import InputError

KINDS = {".html": "page", ".png": "figure", ".safetensors": "numbers"}
"""What the answers of a search can be written as, by the ending of the file."""

_PICTURES = {".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".pdf", ".svg"}
_FILES = _PICTURES | {
    ".html",
    ".htm",
    ".json",
    ".csv",
    ".txt",
    ".md",
    ".npy",
    ".npz",
    ".parquet",
    ".pt",
    ".safetensors",
}


def say(line: str) -> None:
    """Print a line for the user."""
    typer.echo(line)


def complain(line: str) -> None:
    """Print a line about what went wrong, on stderr."""
    typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(" ".join(line.split()), err=True)


def warn(line: str) -> None:
    """Print a line about what the user should know, on stderr."""
    typer.secho("warning: ", fg="yellow", bold=True, nl=False, err=True)
    typer.echo(" ".join(line.split()), err=True)


def printable(name: str) -> str:
    r"""A file name as text that fits on one line: bytes that are no text and control characters become \x.. escapes."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Draw a bar on stderr if that is a terminal.

    Args:
        what: What is going on.
        total: Steps in all, if known.

    Yields:
        What is called with the number of newly finished steps, or with (finished, in all).
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=console, transient=True, redirect_stdout=False, disable=not console.is_terminal)
    with bar:
        task = bar.add_task(what, total=total)

        def finished(steps: int, of: int | None = None) -> None:
            if of is None:
                bar.advance(task, steps)
            else:
                bar.update(task, completed=steps, total=of)

        yield finished


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


def target(out: Path | None, usual: str, as_json: bool, *, one_file: bool = False) -> Path | None:
    """Where to write to, checked before anything is computed.

    Args:
        out: The folder, or perhaps file, that was named; None: none was.
        usual: The folder to write to where none was named; with `as_json` that is nowhere.
        as_json: Whether the answer is printed as JSON.
        one_file: Whether a file of one of `KINDS` may be named instead of a folder.

    Returns:
        A folder, a file (see `is_one_file`), or None.

    Raises:
        InputError: If a folder is named that is a file, lies below one, or ends like one.
    """
    if out is None:
        if as_json:
            return None
        out = Path(usual)
    if one_file and is_one_file(out):
        return out
    instead = " or a file ending in " + ", ".join(KINDS) if one_file else ""
    there = next((path for path in (out, *out.parents) if path.exists()), out)
    if there.exists() and not there.is_dir():
        raise InputError(f"--out {out}: {there} is a file: name a folder{instead}")
    if out.suffix.lower() in _FILES and not out.is_dir():
        raise InputError(f"--out {out} ends in {out.suffix}: name a folder{instead}")
    return out


def is_one_file(out: Path) -> bool:
    """Whether what is named to write to is a file, of one of `KINDS`, and not a folder."""
    return out.suffix in KINDS and not out.is_dir()


def words(text: str) -> list[str]:
    """Read "gradcam, la" into its parts."""
    return [part.strip() for part in text.split(",") if part.strip()]


def pairs(texts: Sequence[str] | None) -> dict[str, Any]:
    """Read NAME=VALUE pairs; a value is a Python literal (50, 0.1, True, None) where it is one, else text.

    Raises:
        InputError: If one has another form.
    """
    read = {}
    for text in texts or ():
        name, sign, value = text.partition("=")
        if not sign or not name.strip().isidentifier():
            raise InputError(f"--set takes NAME=VALUE, e.g. n_steps=50; not {text!r}")
        try:
            read[name.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            read[name.strip()] = value.strip()
    return read


def check_device(device: str) -> None:
    """Refuse a device that cannot compute here.

    Raises:
        InputError: If so.
    """
    import torch

    from ratherthan.inference import to_device

    to_device(torch.empty(1), device)
