"""Packages that register further methods, networks, data sets ...: found by their entry point, imported when needed."""

from __future__ import annotations

import warnings
from importlib.metadata import entry_points
from threading import RLock

from ratherthan.errors import first_line

GROUP = "ratherthan.plugins"
_LOCK = RLock()  # another thread waits until all are there; a plug-in that looks up a name itself does not
_seen = set[str]()


def load_plugins() -> None:
    """Import every package that names itself in the entry points `ratherthan.plugins`, each once.

    Called when a name is not known, or when names are listed. A plug-in that cannot be imported is warned about, once.
    """
    with _LOCK:
        for each in entry_points(group=GROUP):
            if each.value not in _seen:
                _seen.add(each.value)
                try:
                    each.load()
                except Exception as error:  # whatever a stranger's module does when it is imported
                    warnings.warn(f"plug-in {each.value} cannot be loaded: {first_line(error)}", stacklevel=2)
