"""Finding and decoding the images that are named on the command line; what cannot be read is listed, not raised."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ratherthan.app.options import AskOptions
from ratherthan.data import Dataset, FileReader, ItemReader, batches, load, match_labels, names
from ratherthan.data.images import IMAGE_ENDINGS
from ratherthan.errors import InputError
from ratherthan.files import read_text, regular
from ratherthan.inference import preserve_state
from ratherthan.inputs import Arrays, Images, Text
from ratherthan.model import Model
from ratherthan.words import printable, shorten

_OWN = (".why.png", ".how.png", ".enough.png")  # figures of earlier runs
ARRAY_ENDINGS = (".npy", ".npz")


def gather(given: AskOptions, model: Model) -> tuple[Dataset | tuple[str, ...] | None, list[tuple[str, str]]]:
    """The images that a command was given: files, folders and globs, or a set of labelled images; texts as they are.

    Args:
        given: What to `find`; or the set, and which of it: those that the model gets wrong or right, and so many.
        model: Who judges, and whose classes the labels are then matched to.

    Returns:
        The images that were found, if any, and what was named in vain, with the reason.

    Raises:
        InputError: Neither or both are given, or the set cannot be opened.
    """
    if isinstance(model.inputs, Text):
        return _texts(given), []
    if given.text or given.continuation:
        raise InputError(f"{model.name} takes {model.inputs.name}: leave --text and --continuation out")
    if bool(given.images) == bool(given.data):
        raise InputError(f"give {model.inputs.name}, or a set of them by --data")
    if given.data is None:
        if any((given.data_root, given.split, given.label_map, given.limit, given.only)):
            raise InputError("--data-root, --split, --label-map, --limit and --only belong to --data")
        if isinstance(model.inputs, Arrays):
            return _arrays(*find(given.images or (), ARRAY_ENDINGS), model.inputs)
        paths, failures = find(given.images or ())
        return (_of_files(paths) if paths else None), failures
    data = match_labels(given.dataset(), model.class_names, given.label_map, bool(given.only))
    data = data.with_transform(model.inputs.prepare)
    return (_judged(data, model, given.only == "wrong") if given.only else data).spread(given.limit), []


def read_bank(named: str, root: Path | None) -> Dataset:
    """The images of files, a folder or a glob; else the training part of a set.

    Raises:
        InputError: There is none.
    """
    if named in names():
        with suppress(InputError):
            return load(named, root, "train")
        return load(named, root)  # a set without parts; or what it lacks is said
    paths, failures = find([named])
    if not paths:
        raise InputError(f"--bank {named}: {failures[0][1]}")
    return _of_files(paths)


def _of_files(paths: Sequence[Path]) -> Dataset:
    named = tuple(map(str, paths))
    return Dataset("images", (), named, (-1,) * len(named), FileReader(tuple(paths)))


def _arrays(
    paths: Sequence[Path], failures: list[tuple[str, str]], inputs: Arrays
) -> tuple[Dataset | None, list[tuple[str, str]]]:
    """The samples in files of arrays, each of one or of a batch, and what could not be read."""
    rows, names = list[tuple[Tensor]](), list[str]()
    for path in paths:
        try:
            loaded = np.load(regular(path), allow_pickle=False)
            arrays = [loaded] if isinstance(loaded, np.ndarray) else list(loaded.values())
            found = [(row,) for each in arrays for row in inputs.batch(each)]
        except InputError as error:
            failures.append((printable(str(path)), str(error).removeprefix(f"{path}: ")))
        except Exception:  # whatever damaged files raise; of others NumPy's words advise to run what lies in them
            failures.append((printable(str(path)), f"no .npy or .npz of {inputs.name} ({inputs.axes})"))
        else:
            rows += found
            names += [f"{path}[{number}]" for number in range(len(found))] if len(found) > 1 else [str(path)]
    reader = ItemReader(rows, 0)
    return Dataset(inputs.name, (), tuple(names), (-1,) * len(names), reader) if rows else None, failures


def _texts(given: AskOptions) -> tuple[str, ...]:
    """The texts that a command was given, a line each of files and of what comes in."""
    if given.data or bool(given.images) == bool(given.text):
        raise InputError("this model takes text: give --text, or files of a text a line; - reads what comes in")
    lines = list[str]()
    for each in given.images or given.text or ():
        if each == "-":
            lines += sys.stdin.read().splitlines()
        else:
            lines += read_text(Path(each)).splitlines() if given.images else [each]
    texts = tuple(line for line in lines if line.strip())
    if not texts:
        raise InputError("there is no text in what was given")
    return texts


def _judged(data: Dataset, model: Model, wrong: bool) -> Dataset:
    """Those that the model gets wrong, or right; what cannot be read is kept, to be named."""
    found = dict.fromkeys(range(len(data)), wrong)
    with preserve_state(model.module), torch.no_grad():
        for indices, images, labels in batches(data, 16 if getattr(model.inputs, "size", None) else 1):
            missed = model.logits(model.preprocess(images)).argmax(1).cpu() != labels
            found |= dict(zip(indices.tolist(), missed.tolist(), strict=True))
    chosen = [index for index, missed in found.items() if missed is wrong]
    if not chosen:
        raise InputError(f"{data.name}: the model gets none of {len(data)} {'wrong' if wrong else 'right'}")
    return data.subset(chosen)


def find(patterns: Sequence[str], endings: Collection[str] = IMAGE_ENDINGS) -> tuple[list[Path], list[tuple[str, str]]]:
    """Expand files, folders and globs.

    Args:
        patterns: As given on the command line. Folders are searched to the bottom. Figures that an earlier run has
            written are left out unless they are named one by one.
        endings: Of the files that are taken from folders, in lower case.

    Returns:
        The files, each once, in the order given (those of a folder or glob sorted); and the patterns that match none,
        each with the reason.
    """
    found: dict[Path, None] = {}
    failures = []
    for pattern in patterns:
        path = Path(pattern)
        if os.path.isdir(pattern):  # of a name beyond what the system takes, `path` would raise
            images = (each for each in path.rglob("[!.]*") if each.suffix.lower() in endings)
            what = "image" if endings is IMAGE_ENDINGS else " or ".join(sorted(endings))
            files, reason = _others_files(images), f"no {what} in this folder"
        elif os.path.exists(pattern) or not glob.has_magic(pattern):
            files, reason = [path], ""
        else:
            files, reason = _others_files(map(Path, glob.glob(pattern, recursive=True))), "no file matches"
        if not files:
            failures.append((printable(pattern), reason))
        found |= dict.fromkeys(files)
    return list(found), failures


def _others_files(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.is_file() and not path.name.endswith(_OWN))


def read_file(path: Path, model: Model, name: str) -> Any:
    """The one sample in a file, as `Model.preprocess` gives it, without its first axis.

    Args:
        path: The file.
        model: Who says what it takes.
        name: What to call the file in an error.

    Raises:
        InputError: If it cannot be read.
    """
    samples, failures = gather(AskOptions(model=model.name, images=[glob.escape(str(path))]), model)
    read = read_all(samples, [0], model, failures) if samples else []
    if not read:
        raise InputError(f"{name}: {failures[0][1]}")
    return read[0][0]


def read_all(
    data: Dataset | tuple[str, ...],
    indices: Iterable[int],
    model: Model,
    failures: list[tuple[str, str]],
    shape: Sequence[int] | None = None,
) -> list[tuple[Any, str]]:
    """Decode what can be decoded; the rest is added to the failures.

    Args:
        data: The images, or texts.
        indices: Which of them.
        model: Who says which size.
        failures: What could not be read before, and why.
        shape: The shape that all must have, (C, H, W); None: that of the first.

    Returns:
        The images, (C, H, W) each, all of one shape, or texts, with their names.
    """
    if isinstance(data, tuple):
        return [(data[index], shorten(data[index], 60)) for index in indices]
    found = list[tuple[Any, str]]()
    opened = data.with_transform(data.transform or model.inputs.prepare)
    for index in indices:
        name = data.ids[index]
        try:
            image = model.preprocess(opened[index][0].unsqueeze(0))[0]
            shape = image.shape if shape is None else shape
            if image.shape != torch.Size(shape):
                raise InputError(_unlike(image.shape, shape, model))
        except InputError as error:
            failures.append((printable(name), str(error).rpartition(f"{name}: ")[2]))
        else:
            found.append((image, name))
    return found


def _unlike(shape: Sequence[int], first: Sequence[int], model: Model) -> str:
    """What to say of an input whose shape is not that of the first."""
    if not isinstance(model.inputs, Images):
        return f"shape {tuple(shape)}, the first {model.inputs.one} {tuple(first)}; {model.inputs.remedy}"
    (h, w), (height, width) = shape[1:], first[1:]
    return f"{w} x {h} pixels, the first image {width} x {height}; give one --size for all"
