"""A set of labelled images, decoded when asked for, and batches of it that name what they had to skip."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Thread
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ratherthan.data.images import CorruptImage, to_tensor
from ratherthan.errors import InputError
from ratherthan.settings import AtLeastOne, Interval, Settings


class Reader(Protocol):
    """Where the images come from."""

    def read(self, index: int) -> Image.Image | Tensor:
        """The image at a position: a Pillow image, or float32 (C, H, W) in [0, 1]."""

    def stamp(self, index: int) -> str:
        """What changes when that image changes: its size in bytes, or a hash."""


Transform = Callable[[Any], Tensor]


@dataclass(frozen=True, eq=False)
class Dataset(TorchDataset[tuple[Tensor, int]]):
    """Labelled images. An item is an image, float32 (C, H, W) in [0, 1], and its label.

    Attributes:
        name: What it is called in tables.
        class_names: Names in the order of the labels.
        ids: One stable name per image: a path inside the set, or split and number.
        labels: One label per image, known without decoding; an index into `class_names`.
        reader: Where the images come from.
        transform: Applied to what the reader gives (a Pillow image, or a tensor for sets that hold tensors), in the
            worker processes; by default images stay as large as they are. A model's preprocessing goes here.
        positions: For each image its position in the reader.
        numbered: Whether the labels are numbers that a network shares which was made for the set, as those of published
            sets are. Those of folders and tables are not: there classes are sorted by name.
    """

    name: str
    class_names: tuple[str, ...]
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    reader: Reader
    transform: Transform | None = None
    positions: tuple[int, ...] = ()
    numbered: bool = True

    def __post_init__(self) -> None:
        if not self.ids:
            raise InputError(f"{self.name}: no images")
        if not all(-1 <= label < len(self.class_names) for label in self.labels):  # -1: not known
            raise InputError(f"{self.name}: a label is none of its {len(self.class_names)} classes")
        if not self.positions:
            object.__setattr__(self, "positions", tuple(range(len(self.ids))))

    def __repr__(self) -> str:
        return f"Dataset({self.name}, {len(self)} images, {len(self.class_names)} classes)"

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Decode one image.

        Raises:
            CorruptImage: It cannot be decoded.
        """
        image = self.reader.read(self.positions[index])
        if self.transform is not None:
            return self.transform(image), self.labels[index]
        return (image if isinstance(image, Tensor) else to_tensor(image)), self.labels[index]

    def subset(self, indices: Sequence[int]) -> Dataset:
        """The same set with only some of its images, in the order given."""
        columns: tuple[tuple[Any, ...], ...] = (self.ids, self.labels, self.positions)
        ids, labels, positions = (tuple(column[index] for index in indices) for column in columns)
        return replace(self, ids=ids, labels=labels, positions=positions)

    def spread(self, limit: int | None) -> Dataset:
        """So many of its images, evenly spread; None: all."""
        count = min(limit or len(self), len(self))
        return self.subset([index * len(self) // count for index in range(count)])

    def with_transform(self, transform: Transform | None) -> Dataset:
        """The same set with another transform."""
        return replace(self, transform=transform)

    def fingerprint(self) -> str:
        """A hash of names, labels and what the reader knows of the content; independent of where the set lies."""
        digest = hashlib.sha256(repr((self.name, self.class_names)).encode())
        for name, label, position in zip(self.ids, self.labels, self.positions, strict=True):
            digest.update(f"{name}\0{label}\0{self.reader.stamp(position)}\n".encode())
        return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Skipped:
    """An image that was left out."""

    id: str
    reason: str


@dataclass
class Batches(Settings):
    """Batches of a set, as (indices (B,), images (B, C, H, W), labels (B,)); corrupt images are left out and listed.

    Raises an InputError for a batch size or workers that cannot be, and where images of two sizes meet.

    Attributes:
        dataset: The set.
        batch_size: Images per batch; corrupt ones make a batch smaller, an empty batch is not given.
        workers: Processes that decode; 0 decodes in this one.
        order: The indices to visit; by default all, in order.
        skipped: What was left out, filled while iterating.
    """

    name = "batches"
    dataset: Dataset
    batch_size: AtLeastOne
    workers: Annotated[int, Interval(0)] = 0
    order: Sequence[int] | None = None
    skipped: list[Skipped] = field(default_factory=list)

    def __len__(self) -> int:
        return -(-len(self.dataset if self.order is None else self.order) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        self.skipped.clear()
        order: Any = range(len(self.dataset)) if self.order is None else self.order
        loader = DataLoader(  # it deals indices out, to its workers too; what collates them decodes
            order, self.batch_size, num_workers=self.workers, collate_fn=partial(_decoded, self.dataset),
            worker_init_fn=partial(ending_with, os.getpid()),
            generator=torch.Generator(),  # else iterating would draw from the global random numbers
        )  # fmt: skip
        for items, skipped in loader:
            self.skipped += skipped
            if items:
                indices, images, labels = zip(*items, strict=True)
                yield torch.tensor(indices), self._stack(images), torch.tensor(labels)

    def _stack(self, images: Sequence[Tensor]) -> Tensor:
        sizes = {" x ".join(map(str, image.shape)) for image in images}
        if len(sizes) > 1:
            few = " and ".join(sorted(sizes)[:2]) + f" and {len(sizes) - 2} more sizes" * (len(sizes) > 2)
            given = f"{self.dataset.name}: images of {few} pixels cannot share a batch"
            raise InputError(f"{given}; give the set a transform that brings them to one size")
        return torch.stack(list(images))


def ending_with(parent: int, worker: int = 0) -> None:
    """End a worker when its parent is gone; torch's own watch misses a parent that is killed as workers begin."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _decoded(dataset: Dataset, indices: list[int]) -> tuple[list[tuple[int, Tensor, int]], list[Skipped]]:
    """The images that can be read, with index and label; and those that cannot."""
    items, skipped = [], []
    for index in indices:
        try:
            items.append((index, *dataset[index]))
        except CorruptImage as error:
            skipped.append(Skipped(dataset.ids[index], str(error)))
    return items, skipped


@dataclass(frozen=True)
class ArrayReader:
    """Images that lie in memory as uint8 (N, H, W) or (N, H, W, C)."""

    array: np.ndarray[Any, np.dtype[np.uint8]]

    def read(self, index: int) -> Tensor:
        """The image as a tensor."""
        pixels = torch.from_numpy(np.atleast_3d(self.array[index]).copy())
        return pixels.permute(2, 0, 1).contiguous().float() / 255

    def stamp(self, index: int) -> str:
        """A hash of the pixels."""
        return hashlib.blake2b(self.array[index].tobytes(), digest_size=8).hexdigest()
