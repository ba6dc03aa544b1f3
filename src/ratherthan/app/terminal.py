"""Lines on the terminal: what is found on stdout, what goes wrong on stderr. Nothing else writes there."""

from __future__ import annotations

import json
import re
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
    _note("error: ", "red", spoken(line))


def warn(line: str) -> None:
    """Print a line about what the user should know, on stderr."""
    _note("warning: ", "yellow", spoken(line))


def note(line: str) -> None:
    """Print a line about what was chosen for the user, on stderr."""
    _note("note: ", "cyan", line)


def spoken(line: str) -> str:
    """A message of the library as the command line says it: weights=FILE as --weights FILE.

    What stands between the brackets of a call is Python and stays so, but for `load`, which is --model here.
    """

    def option(found: re.Match[str]) -> str:
        if found["loaded"]:
            return f"--model {found['loaded']}{spoken(found['more']).replace(',', '')}"
        if found["call"] or found["name"] not in _OPTIONS:
            return found[0]
        return f"--{_OPTIONS[found['name']]}" + (f" {found['value']}" if found["value"] else "")

    return _PYTHON.sub(option, line)


_OPTIONS = {each: each.replace("_", "-") for each in (
    "weights", "mean", "std", "size", "preprocessing", "output", "device", "data_root", "split", "label_map", "limit",
    "fact", "foil", "method", "layer", "contrast", "batch_size", "baseline", "restarts", "seed", "manifold",
)} | {"class_names": "classes"}  # fmt: skip
_PYTHON = re.compile(
    r"load\('(?P<loaded>[^']*)'(?P<more>[^()]*)\)|(?P<call>\w+\((?:[^()]|\([^()]*\))*\))"
    r"|(?<![-\w])(?P<name>[a-z_]+)='?(?P<value>(?<=')[^']*|[\w.-]*)'?"
)


def _note(kind: str, colour: str, line: str) -> None:
    typer.secho(kind, fg=colour, bold=True, nl=False, err=True)
    typer.echo(printable(" ".join(line.split())), err=True)
