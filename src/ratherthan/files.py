"""Read files that are files, and no larger than they may be; write a file whole or not at all."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

from ratherthan.errors import InputError

MAX_TEXT = 2**26
"""Larger texts (lists of names, tables of paths) are refused: 64 MiB."""


def regular(path: str | Path, limit: int | None = None) -> Path:
    """A file that can be read to its end: no folder, and nothing that waits or never ends, as FIFOs and devices do.

    Args:
        path: Where it lies.
        limit: The largest number of bytes; looked at before anything is read.

    Returns:
        The path.

    Raises:
        InputError: There is none, it is none, or it is larger.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a path that holds a zero byte
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path}: not a regular file")
    if limit is not None and found.st_size > limit:
        raise InputError(f"{path}: {found.st_size:,} bytes, over the limit of {limit:,}")
    return Path(path)


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, with or without a byte-order mark; lines end in a newline.

    Raises:
        InputError: There is none, it is no text, or it is larger than `MAX_TEXT`.
    """
    try:
        return io.TextIOWrapper(io.BytesIO(regular(path, MAX_TEXT).read_bytes()), "utf-8-sig").read()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text in UTF-8 ({error})") from error


def write_atomically(path: str | Path, pieces: Iterable[bytes]) -> Path:
    """Write a file under another name first, so that no reader ever meets half of it; missing folders are made."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name[:40]}.{uuid4().hex}")
    try:
        with draft.open("xb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        return draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
