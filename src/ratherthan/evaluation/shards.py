"""What a run leaves on disk: a manifest and Parquet shards, each whole or absent and of a known run."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ratherthan.errors import InputError, first_line
from ratherthan.evaluation.experiment import Rows
from ratherthan.files import write_atomically

MANIFEST = "manifest.json"
_KEY = b"ratherthan"


class BadShard(Exception):
    """A shard that cannot be used, and why."""


@dataclass(frozen=True)
class Shards:
    """The folder of a run.

    Attributes:
        folder: Where.
        settings: All that the numbers depend on, as JSON has it.
    """

    folder: Path
    settings: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Shards:
        """The run in a folder.

        Raises:
            InputError: If there is none.
        """
        try:
            content = (folder / MANIFEST).read_bytes()
        except OSError as error:
            raise InputError(f"{folder} holds no run: there is no {MANIFEST} that can be read") from error
        return cls(folder, _settings(folder, content))

    @contextmanager
    def claimed(self, resume: bool, about: Mapping[str, Any]) -> Iterator[None]:
        """Begin the run, or go on with it if it is this one, and keep other processes out meanwhile.

        Drafts that a killed process left are removed. The lock is the system's (where it has one), so a killed process
        holds none.

        Args:
            resume: Whether an existing run may be continued. One without a single shard is none yet.
            about: What else is worth knowing in the manifest.

        Raises:
            InputError: If the folder holds a run with other settings (the message says which), or any while `resume`
                is false, or if another process is at it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / MANIFEST).open("a+b") as file:
            self._lock(file)
            if any(self.folder.glob("shard-*.parquet")):
                if not resume:
                    raise InputError(f"{self.folder} holds a run: resume it (resume=True, --resume) or name another")
                file.seek(0)
                self._compare(_settings(self.folder, file.read()))
            else:
                file.truncate(0)
                file.write(json.dumps({"settings": self.settings, **about}, indent=2).encode())
                file.flush()
                os.fsync(file.fileno())
            for draft in self.folder.glob(".shard-*"):
                draft.unlink(missing_ok=True)
            yield

    def _lock(self, file: BinaryIO) -> None:
        try:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass  # this system has no such lock
        except OSError as error:
            raise InputError(f"another process is writing to {self.folder}") from error

    def _compare(self, before: Mapping[str, Any]) -> None:
        old, new = dict(_flat(before)), dict(_flat(self.settings))
        differing = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
        if differing:
            key = differing[0]
            more = f" (and {', '.join(differing[1:4])})" if differing[1:] else ""
            raise InputError(
                f"{self.folder} holds a run with another {key}: {old.get(key)!r} then, {new.get(key)!r} now{more}; "
                "results are not mixed: name another folder"
            )

    # ----------------------------------------------------------------------------------------- shards
    @property
    def positions(self) -> list[range]:
        """The samples of each shard."""
        size, samples = self.settings["shard_size"], self.settings["data"]["samples"]
        return [range(start, min(samples, start + size)) for start in range(0, samples, size)]

    def path(self, number: int) -> Path:
        """The file of a shard."""
        return self.folder / f"shard-{number:05d}.parquet"

    def missing(self) -> list[int]:
        """The numbers of the shards that are still to be computed; of one that is damaged there is a warning."""
        missing = []
        for number in range(len(self.positions)):
            try:
                self.read(number)
            except BadShard as reason:
                missing.append(number)
                if self.path(number).exists():
                    warnings.warn(f"{reason}; it is computed again", stacklevel=4)  # where `evaluate` was called
        return missing

    def write(self, number: int, blocks: Sequence[Rows], skipped: Sequence[tuple[str, str]]) -> None:
        """Write a shard: its rows in the order of the samples, and the samples that were skipped."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.concat_tables(map(pa.table, blocks)).sort_by("position") if blocks else pa.table({})
        note = {"run": self._mark, "shard": number, "skipped": list(skipped)}
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata({_KEY: json.dumps(note)}), sink, write_page_checksum=True)
        write_atomically(self.path(number), [sink.getvalue()])

    def read(self, number: int) -> tuple[Any, list[tuple[str, str]]]:
        """A shard's table (pyarrow) and what was skipped.

        Raises:
            BadShard: If it is missing, damaged, or belongs to another run or place.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.path(number)
        try:
            table = pq.read_table(pa.BufferReader(path.read_bytes()), page_checksum_verification=True)
            note = json.loads((table.schema.metadata or {}).get(_KEY, b"{}"))
        except FileNotFoundError as error:
            raise BadShard(f"{path.name} is missing") from error
        except (pa.ArrowException, OSError, ValueError) as error:
            raise BadShard(f"{path.name} is truncated or damaged ({first_line(error)})") from error
        if (note.get("run"), note.get("shard")) != (self._mark, number):
            raise BadShard(f"{path.name} does not belong to this run")
        return table, [(name, reason) for name, reason in note["skipped"]]

    @property
    def _mark(self) -> str:
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:32]


def _settings(folder: Path, manifest: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(manifest)["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / MANIFEST} is damaged: {first_line(error)}") from error


def _flat(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(settings, Mapping) and settings:
        for key, value in settings.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, settings
