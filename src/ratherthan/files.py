"""Write a file whole or not at all, and by one process at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from ratherthan.errors import InputError


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
    except OSError as error:
        error.filename = str(target)  # a full disk names no file, others the draft
        raise
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes out of what is written at a place; a process that is killed holds no lock.

    Raises:
        InputError: If another process is at it.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    try:
        with FileLock(lock, timeout=0):
            try:
                yield
            finally:
                with suppress(OSError):  # not everywhere while it is open
                    lock.unlink()
    except Timeout as error:
        raise InputError(f"another process is writing to {path}") from error
