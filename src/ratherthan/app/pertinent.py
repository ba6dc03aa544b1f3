"""What `ratherthan pertinent-positive` does: a search over all images at once, a page, a figure and numbers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ratherthan.app.explaining import check_settings, classes, finite
from ratherthan.app.images import Failure, read_all
from ratherthan.app.terminal import KINDS, is_one_file, printable
from ratherthan.errors import InputError
from ratherthan.model import Model
from ratherthan.search.method import PertinentPositiveMethod, get_pertinent_positive_method
from ratherthan.search.pertinent_positive import PertinentPositive, pertinent_positive
from ratherthan.superpixels import DEFAULT_COUNT, Superpixels


def configured(
    name: str, settings: dict[str, Any], superpixels: str | None, count: int | None, off: str | None
) -> PertinentPositiveMethod:
    """Read the method off the command line.

    Raises:
        InputError: If the method or a setting does not exist, or the method has no superpixels.
    """
    method = get_pertinent_positive_method(name)
    known = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}  # type: ignore[arg-type]
    check_settings(name, settings, known)
    own = dict(settings)
    for key, value in (("superpixels", superpixels or count), ("baseline", off)):
        if value is not None and key not in known:
            raise InputError(f"method {name!r} has no {key}; its settings: {', '.join(known)}")
    if superpixels is not None or count is not None:
        own["superpixels"] = Superpixels(superpixels or "slic", count or DEFAULT_COUNT)  # type: ignore[arg-type]
    if off is not None:
        own["baseline"] = off if off == "mean" else _value(off)
    return dataclasses.replace(method, **own)  # type: ignore[type-var]


def _value(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"--off takes a value in [0, 1] or mean, not {text!r}") from error


def run(
    model: Model,
    paths: Sequence[Path],
    failures: list[Failure],
    fact: str | None,
    method: PertinentPositiveMethod,
    batch_size: int,
    finished: Callable[..., None],
) -> PertinentPositive | None:
    """Read the images and search; images that cannot be read are added to the failures. None: none could be."""
    images, names = read_all(paths, model, failures)
    if not images:
        return None
    asked = classes(fact, model)
    found = pertinent_positive(model, torch.stack(images), asked, method, batch_size=batch_size, progress=finished)
    return dataclasses.replace(found, names=tuple(printable(str(path)) for path in names[: len(found)]))


def files(out: Path | None) -> list[Path]:
    """The files to write: the one that is named, or all kinds in a folder; none where nothing is named."""
    if out is None or is_one_file(out):
        return [] if out is None else [out]
    return [out / f"enough{ending}" for ending in KINDS]


def summary(found: PertinentPositive, files: Sequence[Path]) -> list[str]:
    """What the terminal shows: a line for each image, and where the files are."""
    lines = [f"{name}: {found.text(i)}" for i, name in enumerate(found.names)]
    return [*lines, f"{'method':8} {found.method}", *(f"{KINDS[path.suffix]:8} {path}" for path in files)]


def as_json(model: Model, found: PertinentPositive | None, files: Sequence[Path], failures: Sequence[Failure]) -> str:
    """What a script wants to know: a row for each image, failures, files."""
    rows = [] if found is None else found.to_frame().to_dict("records")
    told = {
        "model": model.name,
        "pertinent_positives": [{key: finite(value) for key, value in row.items()} for row in rows],
        "failures": [dataclasses.asdict(failure) for failure in failures],
        "files": [str(path) for path in files],
    }
    return json.dumps(told, indent=1, allow_nan=False)
