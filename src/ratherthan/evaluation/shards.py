"""What a run leaves on disk: a manifest and Parquet shards, each whole or absent and of a known run."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, Literal

from ratherthan.errors import InputError, RatherThanError, told_as
from ratherthan.evaluation.experiment import Rows
from ratherthan.files import locked, read_text, write_atomically
from ratherthan.settings import AtLeastOne, Seed, check_value

MANIFEST = "manifest.json"
_KEY, _DIGEST = b"ratherthan", b"sha256"
_BLANK = b"0" * 64  # stands where the checksum of a shard will be, while it is computed
_NEEDED = {"experiment.name": str, "data.name": str, "data.samples": Seed, "shard_size": AtLeastOne, "seed": Seed}


_DAMAGE = (OSError, ValueError, KeyError, TypeError, RecursionError)


class BadShard(RatherThanError):
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
        with told_as(InputError, f"{folder} holds no run: its {MANIFEST} cannot be used", *_DAMAGE):
            settings = check_value("settings", Mapping[str, Any], json.loads(read_text(folder / MANIFEST))["settings"])
            for place, hint in _NEEDED.items():
                check_value(place, hint, reduce(getitem, place.split("."), settings))
        return cls(folder, settings)

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
        with locked(self.folder / MANIFEST):
            if any(self.folder.glob("shard-*.parquet")):
                if not resume:
                    raise InputError(f"{self.folder} holds a run: resume it (resume=True, --resume) or name another")
                self._compare(Shards.open(self.folder).settings)
            else:
                told = json.dumps({"settings": self.settings, **about}, indent=2)
                write_atomically(self.folder / MANIFEST, [told.encode()])
            for draft in [*self.folder.glob(".shard-*"), *self.folder.glob(f".{MANIFEST}.*[!k]")]:
                draft.unlink(missing_ok=True)
            yield

    def _compare(self, before: Mapping[str, Any]) -> None:
        old, new = dict(_flat(before)), dict(_flat(self.settings))
        differing = [key for key in old | new if old.get(key) != new.get(key)]
        if differing:
            (key, *others), what = differing, f"{self.folder} holds a run with another"
            more = f" (and {', '.join(others[:3])})" if others else ""
            then = f"{key}: {old.get(key)!r} then, {new.get(key)!r} now{more}"
            raise InputError(f"{what} {then}; results are not mixed: name another folder")

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
        note = {"run": self._mark, "shard": number, "rows": len(table), "skipped": list(skipped)}
        sink, marks = pa.BufferOutputStream(), {_KEY: json.dumps(note), _DIGEST: _BLANK}
        pq.write_table(table.replace_schema_metadata(marks), sink)
        content = sink.getvalue().to_pybytes()
        write_atomically(self.path(number), [content.replace(_BLANK, _digest(content))])

    def read(self, number: int) -> tuple[Any, list[tuple[str, str]]]:
        """A shard's table (pyarrow) and what was skipped.

        Raises:
            BadShard: If it is missing, damaged, or belongs to another run or place.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.path(number)
        if not path.is_file():
            raise BadShard(f"{path.name} is missing")
        with told_as(BadShard, f"{path.name} is truncated or damaged", pa.ArrowException, *_DAMAGE):
            content = path.read_bytes()
            file = pq.ParquetFile(pa.BufferReader(content))
            table, marks = file.read(), file.metadata.metadata or {}
            note = json.loads(marks.get(_KEY, b"{}"))
            check_value("what it says of itself", Mapping[str, Any], note)
            if (note.get("run"), note.get("shard")) != (self._mark, number):
                raise BadShard(f"{path.name} does not belong to this run")
            digest = marks.get(_DIGEST, b"")
            if _digest(content.replace(digest, _BLANK) if digest else content) != digest:
                raise InputError("its checksum is another")
            check_value("rows", Literal[len(table)], note["rows"])
            skipped = check_value("skipped", tuple[tuple[str, str], ...], tuple(map(tuple, note["skipped"])))
        return table, list(skipped)

    @property
    def _mark(self) -> str:
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:32]


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _flat(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(settings, Mapping) and settings:
        for key, value in settings.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, settings
