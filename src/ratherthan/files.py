"""Write a file whole or not at all, and by one process at a time."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from mimetypes import guess_type
from pathlib import Path
from uuid import uuid4

from ratherthan.errors import InputError

_WEIGHTS = (".ckpt", ".pt", ".pth", ".safetensors")  # what is no type of files to the system


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
        if error.errno:  # a full disk names no file, others name the draft
            error.filename = str(target)
        raise
    finally:
        draft.unlink(missing_ok=True)


def check_place(place: Path, kinds: Collection[str] = ()) -> None:
    """Refuse a place to write to that is taken, or that looks like a file of a kind that is not written.

    Args:
        place: A folder, or a file of one of the kinds.
        kinds: Their endings.

    Raises:
        InputError: If so.
    """
    instead = "name a folder" + f" or a file ending in {', '.join(kinds)}" * bool(kinds)
    there, known = next((path for path in (place, *place.parents) if path.exists()), Path()), place.suffix in kinds
    if not there.is_dir() and not (known and there == place):
        raise InputError(f"--out {place}: {there} is a file: {instead}")
    if (guess_type(place)[0] or place.suffix in _WEIGHTS) and not known and not place.is_dir():
        raise InputError(f"--out {place} ends in {place.suffix}: {instead}")


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
