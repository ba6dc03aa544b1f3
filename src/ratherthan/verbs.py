"""What every verb does before and around its own work: prepare the samples, cut them into batches, report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ratherthan.data import load, match_labels
from ratherthan.errors import InputError
from ratherthan.model import Model
from ratherthan.settings import AtLeastOne, check_value


@dataclass(frozen=True, eq=False)
class Samples:
    """Some images and what is asked about them.

    Attributes:
        images: (N, C, H, W) in image space, on the model's device.
        names: What to call them.
        fact: The fact as it was given, see `contrast.resolve`; what is given per sample is of these samples.
        foil: The same of the foil.
        start: Position of the first among all samples of the call.
        labels: What a data set says that they are, -1 where it does not; empty: they come from none.
    """

    images: Tensor
    names: tuple[str, ...]
    fact: Any = None
    foil: Any = None
    start: int = 0
    labels: tuple[int, ...] = ()

    @staticmethod
    def of(
        model: Model, images: Any, fact: Any = None, foil: Any = None, names: Sequence[str] | None = None
    ) -> Samples:
        """Prepare what a verb was called with.

        Args:
            model: The network.
            images: What `Model.preprocess` takes; or a data set, or a loader of one; or what this has made of one.
            fact: The fact, one or one per sample.
            foil: The foil or foils, the same for all samples or one row per sample.
            names: What to call the samples; None: their paths, or names in the data set, or numbers.

        Raises:
            InputError: If there is something that is no image, or facts, foils or names for another number of samples.
        """
        if isinstance(images, Samples):  # some of many that are asked about elsewhere
            return replace(images, fact=fact, foil=foil)
        images, names, labels = _opened(model, images, names)
        batch = model.preprocess(images).clone()  # results keep them, whatever becomes of the caller's
        for what, spec in (("fact", fact), ("foil", foil)):
            if _per_sample(spec) and len(spec) != len(batch):
                raise InputError(f"{len(spec)} {what}s for {len(batch)} samples; give one per sample")
        if names is not None and (isinstance(names, str) or len(names) != len(batch)):
            raise InputError(f"names is a list of {len(batch)}, one per sample")
        names = _names(images, len(batch), model.inputs.one) if names is None else names
        return Samples(batch, tuple(map(str, names)), fact, foil, labels=labels)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def positions(self) -> range:
        """Of these samples among all of the call."""
        return range(self.start, self.start + len(self))

    def __getitem__(self, rows: slice) -> Samples:
        """Some of the samples."""
        fact, foil = (spec[rows] if _per_sample(spec) else spec for spec in (self.fact, self.foil))
        images = self.images[rows]
        if images.dtype == torch.int64:  # token ids, filled up to the longest of all
            images = images[:, : int(_lengths(images).max())]
        return Samples(images, self.names[rows], fact, foil, self.positions[rows].start, self.labels[rows])

    def sharing(self, report: Callable[[float, int], object], total: int) -> Callable[[float], None]:
        """What to tell the share that is done of a batch; it never goes back, and leaves the last step to `batches`."""
        furthest = float(self.start)

        def told(share: float) -> None:
            nonlocal furthest
            reached = self.start + share * len(self)
            if furthest < reached < self.start + len(self):
                furthest = reached
                report(furthest, total)

        return told

    def batches(self, size: int, report: Callable[[int, int], object]) -> Iterator[Samples]:
        """Cut them into batches, texts also by their length, and report (samples done, samples in all) after each.

        What lies before the first of these samples counts as done.

        Raises:
            InputError: If the size is none.
        """
        check_value("batch_size", AtLeastOne, size)
        start, lengths = 0, _lengths(self.images).tolist() if self.images.dtype == torch.int64 else [0] * len(self)
        while start < len(self):
            end = start + sum(1 for _ in takewhile(lengths[start].__eq__, lengths[start : start + size]))
            yield self[start:end]
            report(self.start + end, self.positions.stop)
            start = end


def _lengths(ids: Tensor) -> Tensor:
    return (ids >= 0).sum(1)


def _per_sample(spec: Any) -> bool:
    if isinstance(spec, (list, tuple)):
        return any(isinstance(each, (list, tuple)) for each in spec)
    return isinstance(spec, (Tensor, np.ndarray)) and np.ndim(spec) > 0


def _opened(
    model: Model, images: Any, names: Sequence[str] | None
) -> tuple[Any, Sequence[str] | None, tuple[int, ...]]:
    """What a data set or a loader holds, with names, and labels of a set; anything else as it is."""
    if isinstance(images, DataLoader):
        parts = [batch[0] if isinstance(batch, (list, tuple)) else batch for batch in images]
        if not parts or not all(isinstance(part, Tensor) for part in parts):
            raise InputError("a DataLoader gives batches of images (N, C, H, W), or of images and labels")
        return torch.cat(parts), names, ()
    if isinstance(images, Dataset):
        data = load(images)
        data = data if data.transform is not None else data.with_transform(model.inputs.prepare)
        items = [data[i][0].unsqueeze(0) for i in range(len(data))]
        return items, data.ids if names is None else names, match_labels(data, model.class_names, strict=False).labels
    return images, names, ()


def _names(images: Any, samples: int, one: str) -> list[str]:
    """Paths where they were given, else numbers."""
    given = images if isinstance(images, (list, tuple)) else [images]
    named = [str(each) if isinstance(each, (str, Path)) else f"{one} {i}" for i, each in enumerate(given)]
    return named if len(named) == samples else [f"{one} {i}" for i in range(samples)]
