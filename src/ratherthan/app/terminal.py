"""Lines on the terminal: what is found on stdout, what goes wrong on stderr. Nothing else writes there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import typer

from ratherthan.errors import InputError
from ratherthan.words import printable

SCHEMA_VERSION = 1
"""Of what `--json` prints; another one has other fields."""


def say(text: str) -> None:
    """Print lines for the user.

    Raises:
        InputError: If nobody takes them: the disk is full, the pipe is closed.
    """
    try:
        typer.echo("\n".join(map(printable, text.split("\n"))))
    except OSError as error:
        raise InputError(f"standard output: {error.strerror}") from error


def say_json(told: Mapping[str, Any]) -> None:
    """Print what `--json` gives, as app/schemas describes it."""
    say(json.dumps({"schema_version": SCHEMA_VERSION} | dict(told), indent=1))


def complain(line: str) -> None:
    """Print a line about what went wrong, on stderr."""
    _note("error: ", "red", line)


def warn(line: str) -> None:
    """Print a line about what the user should know, on stderr."""
    _note("warning: ", "yellow", line)


def _note(kind: str, colour: str, line: str) -> None:
    typer.secho(kind, fg=colour, bold=True, nl=False, err=True)
    typer.echo(printable(" ".join(line.split())), err=True)
