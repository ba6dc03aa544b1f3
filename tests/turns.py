"""Checks that take minutes for all networks of the libraries take turns."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import date


def of_today(names: Iterable[str], parts: int = 6) -> list[str]:
    """One of so many parts of them, another each day; all where RATHERTHAN_ALL is set."""
    every = list(names)
    return every if os.environ.get("RATHERTHAN_ALL") else every[date.today().toordinal() % parts :: parts]
