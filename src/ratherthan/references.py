"""BibTeX of what was used, by the names under which it is registered."""

from __future__ import annotations

import re
from importlib.resources import files

from ratherthan.errors import InputError, unknown
from ratherthan.settings import check_value

_ENTRY = re.compile(r"^@.+?^}$", re.MULTILINE | re.DOTALL)
_KEYWORDS = re.compile(r"^  keywords = \{(.*)\},\n", re.MULTILINE)
"""The field of an entry that says which registered names it is the source of; those of our own are of `ratherthan`."""


def cite(*names: str) -> str:
    """BibTeX entries of ratherthan, and of methods, contrasts, searches and experiments.

    Args:
        *names: Registered names, e.g. "gradcam", "weighted"; none: only what ratherthan itself is cited as. What has no
            paper of its own, such as the contrast `none`, is ratherthan.

    Returns:
        The entries, that of ratherthan first, each once.

    Raises:
        InputError: If a name is unknown, or that of a plug-in; the message names close ones.

    Example:
        >>> print(cite("gradcam", "weighted"))
    """
    check_value("names", tuple[str, ...], names)
    entries = _ENTRY.findall((files("ratherthan") / "references.bib").read_text(encoding="utf-8"))
    by_name: dict[str, list[str]] = {}
    for entry in entries:
        for name in _KEYWORDS.findall(entry)[0].split(", "):
            by_name.setdefault(name, []).append(_KEYWORDS.sub("", entry))
    lost = next((name for name in names if name not in by_name), None)
    if lost is not None:
        raise InputError(unknown("name to cite", lost, by_name))
    return "\n\n".join(dict.fromkeys(entry for name in ("ratherthan", *names) for entry in by_name[name]))
