"""Read files that are files, and no larger than they may be; write a file whole or not at all, and by one at a time."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from mimetypes import guess_type
from pathlib import Path
from shutil import rmtree
from uuid import uuid4

from ratherthan.errors import InputError, told_as
from ratherthan.registry import unique_name

_WEIGHTS = (".ckpt", ".pt", ".pth", ".safetensors")  # what is no type of files to the system
_LONGEST = 200  # bytes: systems take names of 255, and an ending follows
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
    with told_as(InputError, f"{path}: cannot be read as text in UTF-8", OSError, UnicodeDecodeError):
        return regular(path, MAX_TEXT).read_text("utf-8-sig")


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


def file_stems(names: Iterable[str]) -> list[str]:
    """Names of files for some names: no folders, not too long, and all different, by case, too."""
    taken, stems = set[str](), list[str]()
    for name in names:
        short = re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", name).encode()[:_LONGEST].decode(errors="ignore")
        stems.append(unique_name(short, lambda each: each.casefold() in taken, "{}-{}"))
        taken.add(stems[-1].casefold())  # names that differ in case alone are one file on some systems
    return stems


def check_free(folder: Path) -> None:
    """Refuse a folder that cannot be written anew.

    Raises:
        InputError: If there is a file in its place, or something in it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "holds something already" if folder.is_dir() else "is a file"
        raise InputError(f"{folder} {what}: name a new folder")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Fill a folder under another name first; it takes its own when the block is left, and is gone if that raises.

    Raises:
        InputError: If there is something in its place.
    """
    check_free(folder)
    draft = folder.with_name(f".{folder.name[:40]}.{uuid4().hex}")
    draft.mkdir(parents=True)
    try:
        yield draft
        if folder.exists():  # empty; not everywhere can one be put over it
            folder.rmdir()
        draft.rename(folder)
    finally:
        rmtree(draft, ignore_errors=True)


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
    with told_as(InputError, f"another process is writing to {path}", Timeout), FileLock(lock, timeout=0):
        try:
            yield
        finally:
            with suppress(OSError):  # not everywhere while it is open
                lock.unlink()
