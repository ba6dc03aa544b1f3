"""Lines on the terminal: what is found on stdout, what goes wrong on stderr. Nothing else writes there."""

from __future__ import annotations

import typer

from ratherthan.errors import InputError
from ratherthan.words import printable


def say(text: str) -> None:
    """Print lines for the user.

    Raises:
        InputError: If nobody takes them: the disk is full, the pipe is closed.
    """
    try:
        typer.echo("\n".join(map(printable, text.split("\n"))))
    except OSError as error:
        raise InputError(f"standard output: {error.strerror}") from error


def complain(line: str) -> None:
    """Print a line about what went wrong, on stderr."""
    _note("error: ", "red", line)


def warn(line: str) -> None:
    """Print a line about what the user should know, on stderr."""
    _note("warning: ", "yellow", line)


def _note(kind: str, colour: str, line: str) -> None:
    typer.secho(kind, fg=colour, bold=True, nl=False, err=True)
    typer.echo(printable(" ".join(line.split())), err=True)
