"""Lines on the terminal: what is found on stdout, what goes wrong on stderr."""

from __future__ import annotations

import typer


def say(line: str) -> None:
    """Print a line for the user."""
    typer.echo(line)


def complain(line: str) -> None:
    """Print a line about what went wrong, on stderr."""
    _note("error: ", "red", line)


def warn(line: str) -> None:
    """Print a line about what the user should know, on stderr."""
    _note("warning: ", "yellow", line)


def _note(kind: str, colour: str, line: str) -> None:
    typer.secho(kind, fg=colour, bold=True, nl=False, err=True)
    typer.echo(" ".join(line.split()), err=True)


def printable(name: str) -> str:
    r"""A file name as text that fits on one line: bytes that are no text and control characters become \x.. escapes."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
