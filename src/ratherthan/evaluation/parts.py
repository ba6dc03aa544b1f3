"""What a run leaves on disk: a manifest and Parquet parts, each whole or absent, each knowing the run it belongs to."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ratherthan.errors import InputError, first_line
from ratherthan.evaluation.experiment import Rows
from ratherthan.render.files import write_atomically

MANIFEST = "manifest.json"
_KEY = b"ratherthan"


class BadPart(Exception):
    """A part that cannot be used, and why."""


@dataclass(frozen=True)
class Parts:
    """The folder of a run.

    Attributes:
        folder: Where.
        settings: All that the numbers depend on, fit for JSON.
    """

    folder: Path
    settings: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Parts:
        """The run in a folder.

        Raises:
            InputError: If there is none.
        """
        try:
            return cls(folder, json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["settings"])
        except FileNotFoundError as error:
            raise InputError(f"{folder} holds no run: there is no {MANIFEST}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder / MANIFEST} cannot be read: {first_line(error)}") from error

    def claim(self, resume: bool, about: Mapping[str, Any]) -> None:
        """Begin the run, or go on with it if it is this one.

        Args:
            resume: Whether an existing run may be continued.
            about: What else is worth knowing in the manifest.

        Raises:
            InputError: If the folder holds a run with other settings (the message says which), or any while `resume`
                is false.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / MANIFEST).exists():
            if not resume:
                raise InputError(
                    f"{self.folder} holds a run already: resume it (resume=True, --resume) or name another"
                )
            self._compare(Parts.open(self.folder).settings)
        else:
            text = json.dumps({"settings": self.settings, **about}, indent=2)
            write_atomically(self.folder / MANIFEST, [text.encode()])

    def clean(self) -> None:
        """Remove drafts that a killed process left."""
        for kind in (".part-*", f".{MANIFEST}*"):
            for draft in self.folder.glob(kind):
                draft.unlink(missing_ok=True)

    def _compare(self, before: Mapping[str, Any]) -> None:
        old, new = dict(_flat(before)), dict(_flat(json.loads(json.dumps(self.settings))))
        differing = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
        if differing:
            key = differing[0]
            more = f" (and {', '.join(differing[1:4])})" if differing[1:] else ""
            raise InputError(
                f"{self.folder} holds a run with another {key}: {old.get(key)!r} then, {new.get(key)!r} now{more}; "
                "results are not mixed: name another folder"
            )

    # ----------------------------------------------------------------------------------------- parts
    @property
    def size(self) -> int:
        """Samples per part."""
        return int(self.settings["part_size"])

    @property
    def samples(self) -> int:
        """Samples in all."""
        return int(self.settings["data"]["samples"])

    @property
    def count(self) -> int:
        """Parts in all."""
        return -(-self.samples // self.size)

    def path(self, number: int) -> Path:
        """The file of a part."""
        return self.folder / f"part-{number:05d}.parquet"

    def positions(self, number: int) -> range:
        """The samples of a part."""
        return range(number * self.size, min(self.samples, (number + 1) * self.size))

    def write(self, number: int, blocks: Sequence[Rows], skipped: Sequence[tuple[str, str]]) -> None:
        """Write a part: its rows in the order of the samples, and the samples that were skipped."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, list[Any]] = {}
        for block in blocks:
            for name, values in block.items():
                columns.setdefault(name, []).extend(values)
        places = columns.get("position", [])
        order = sorted(range(len(places)), key=places.__getitem__)
        table = pa.table({name: [values[i] for i in order] for name, values in columns.items()})
        note = {"run": self._mark, "part": number, "skipped": list(skipped)}
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata({_KEY: json.dumps(note)}), sink, write_page_checksum=True)
        write_atomically(self.path(number), [sink.getvalue()])

    def read(self, number: int) -> tuple[Any, list[tuple[str, str]]]:
        """A part's table (pyarrow) and what was skipped.

        Raises:
            BadPart: If it is missing, damaged, or belongs to another run or place.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.path(number)
        try:
            table = pq.read_table(pa.BufferReader(path.read_bytes()), page_checksum_verification=True)
            note = json.loads((table.schema.metadata or {}).get(_KEY, b"{}"))
        except FileNotFoundError as error:
            raise BadPart(f"{path.name} is missing") from error
        except (pa.ArrowException, OSError, ValueError) as error:
            raise BadPart(f"{path.name} is truncated or damaged ({first_line(error)})") from error
        if (note.get("run"), note.get("part")) != (self._mark, number):
            raise BadPart(f"{path.name} does not belong to this run")
        return table, [(name, reason) for name, reason in note["skipped"]]

    @property
    def _mark(self) -> str:
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:32]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing here, where the system offers file locks; a killed process holds none.

        Raises:
            InputError: If another process is at it.
        """
        try:
            import fcntl
        except ImportError:
            yield
            return
        with (self.folder / MANIFEST).open("r+b") as file:
            for attempt in range(20, -1, -1):
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if not attempt:
                        raise InputError(f"another process is writing to {self.folder}") from error
                    time.sleep(0.05)
            yield


def _flat(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(settings, Mapping) and settings:
        for key, value in settings.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, settings
