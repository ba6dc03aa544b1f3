"""Finding and decoding the images that are named on the command line; what cannot be read is listed, not raised."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ratherthan.data import CorruptImage
from ratherthan.data.images import IMAGE_ENDINGS
from ratherthan.errors import InputError
from ratherthan.model import Model
from ratherthan.words import printable

_OWN = (".why.png", ".how.png", ".enough.png")  # figures of earlier runs


def find(patterns: Sequence[str]) -> tuple[list[Path], list[tuple[str, str]]]:
    """Expand files, folders and globs.

    Args:
        patterns: As given on the command line. Folders are searched to the bottom for files with an image's ending.
            Figures that an earlier run has written are left out unless they are named one by one.

    Returns:
        The files, each once, in the order given (those of a folder or glob sorted); and the patterns that match none,
        each with the reason.
    """
    found: dict[Path, None] = {}
    failures = []
    for pattern in patterns:
        path = Path(pattern)
        if os.path.isdir(pattern):  # of a name beyond what the system takes, `path` would raise
            images = (each for each in path.rglob("[!.]*") if each.suffix.lower() in IMAGE_ENDINGS)
            files, reason = _others_files(images), "no image in this folder"
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


def read_all(
    paths: Sequence[Path], model: Model, failures: list[tuple[str, str]], shape: Sequence[int] | None = None
) -> tuple[list[Tensor], list[Path]]:
    """Decode what can be decoded; the rest is added to the failures.

    Args:
        paths: The files.
        model: Who says which size.
        failures: What could not be read before, and why.
        shape: The shape that all must have, (C, H, W); None: that of the first.

    Returns:
        The images, (C, H, W) each, all of one shape, and their paths.
    """
    images: list[Tensor] = []
    found: list[Path] = []
    for path in paths:
        try:
            images.append(read(path, model, shape))
            found.append(path)
            shape = images[0].shape
        except InputError as error:
            failures.append((printable(str(path)), str(error)))
    return images, found


def read(path: Path, model: Model, shape: Sequence[int] | None = None) -> Tensor:
    """Decode an image and bring it to the size the model wants.

    Args:
        path: The file.
        model: Who says which size.
        shape: The shape it must have in the end, (C, H, W), or None.

    Returns:
        (C, H, W) in image space.

    Raises:
        InputError: If it cannot be decoded or has another shape; the message does not repeat the path.
    """
    if os.path.exists(path) and not path.is_file():
        raise InputError("not a regular file")
    try:
        image = model.preprocess([path])[0]
    except CorruptImage as error:
        raise InputError(str(error).removeprefix(f"{path}: ")) from error
    if shape is not None and image.shape != torch.Size(shape):
        (h, w), (height, width) = image.shape[1:], shape[1:]
        raise InputError(f"{w} x {h} pixels, the first image {width} x {height}; give one --size for all")
    return image
