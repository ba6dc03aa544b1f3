"""Data sets made up by code: heart beats, digits that drift, scenes of digits and garments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ratherthan.data.dataset import ArrayReader, Dataset
from ratherthan.data.sources import GARMENTS, Root, chosen_splits, load, register_dataset

Made = np.ndarray[Any, Any]
Maker = Callable[[str, int, np.random.Generator], Made]
BEATS = ("healthy", "no P wave", "wide QRS")
WAYS = {"left": (0, -2), "right": (0, 2), "up": (-2, 0), "down": (2, 0)}
_WORN = (1, 2, 3, 7, 8)  # the garments in scenes: trouser, pullover, dress, sneaker, bag
_INK = 0.15  # from where on a pixel belongs to what is pasted


@dataclass(frozen=True)
class MadeReader:
    """Samples made by code, each from random numbers that its name decides.

    Attributes:
        ids: The names, "SPLIT/NUMBER".
        make: Makes a sample of its split, its number and a generator of random numbers.
    """

    ids: tuple[str, ...]
    make: Maker

    def made(self, index: int) -> Tensor:
        """All that is made for a sample, float32."""
        split, number = self.ids[index].split("/")
        random = np.random.default_rng(list(self.ids[index].encode()))
        return torch.from_numpy(self.make(split, int(number), random)).float()

    def read(self, index: int) -> Tensor:
        """The sample."""
        return self.made(index)

    def stamp(self, index: int) -> str:
        """A hash of its numbers."""
        return ArrayReader(self.read(index).numpy()[None]).stamp(0)


class SceneReader(MadeReader):
    """Scenes, of which is known what every pixel belongs to. What is pasted lies in a quarter of its own."""

    def read(self, index: int) -> Tensor:
        """The scene, (1, 64, 64) in [0, 1]."""
        return self.made(index)[:1]

    def classes(self, index: int) -> Tensor:
        """The class of every pixel, int64 (64, 64); 0 is the ground."""
        return self.made(index)[1].long()


def _set(name: str, classes: tuple[str, ...], counts: Mapping[str, int], split: str | None, make: Maker) -> Dataset:
    """A set of signals or films: each class in turn."""
    ids = tuple(f"{part}/{i:05d}" for part in chosen_splits(name, split, counts) for i in range(counts[part]))
    labels = tuple(int(each.split("/")[1]) % len(classes) for each in ids)
    return Dataset(name, classes, ids, labels, MadeReader(ids, make))


def _beats(root: Root, split: str | None) -> Dataset:
    """Heart beats in two leads, 2 seconds at 150 Hz, in millivolts: (2, 300)."""
    return _set("beats", BEATS, {"train": 3000, "test": 600}, split, _beat)


def _beat(split: str, number: int, random: np.random.Generator) -> Made:
    time, kind = np.arange(300) / 150, BEATS[number % len(BEATS)]
    leads = random.normal(0, 0.03, (2, 300))
    for peak in np.arange(random.uniform(0.1, 0.4), 2.2, random.uniform(0.7, 0.9)):

        def bump(at: float, width: float, peak: float = peak) -> Any:
            return np.exp(-0.5 * ((time - peak - at) / width) ** 2)

        p, t = 0.15 * bump(-0.16, 0.02) * (kind != "no P wave"), 0.3 * bump(0.25, 0.04)
        qrs = bump(0, 0.035 if kind == "wide QRS" else 0.012)
        leads += np.stack([p + qrs + t, 0.7 * p - 0.5 * qrs + 0.6 * t])
    return leads


def _drifts(root: Root, split: str | None) -> Dataset:
    """Digits that drift, six frames of 40 x 40 pixels: (1, 6, 40, 40) in [0, 1]. No frame alone tells which way."""
    digits = {part: load("mnist", root, part) for part in chosen_splits("drifts", split, ("train", "test"))}

    def film(part: str, number: int, random: np.random.Generator) -> Made:
        digit = digits[part][int(random.integers(len(digits[part])))][0][0].numpy()
        frames, step = np.zeros((1, 6, 40, 40)), np.array(list(WAYS.values())[number % len(WAYS)])
        for time, frame in enumerate(frames[0]):
            top, left = 6 + step * (time - 2) - step // 2
            frame[top : top + 28, left : left + 28] = digit
        return frames

    return _set("drifts", tuple(WAYS), {"train": 3000, "test": 400}, split, film)


def _scenes(root: Root, split: str | None) -> Dataset:
    """Two to four digits and garments on a blurred, noisy ground: (1, 64, 64) in [0, 1]; see `SceneReader`."""
    things = dict[str, tuple[Dataset, Dataset]]()
    for part in chosen_splits("scenes", split, ("train", "test")):
        worn = load("fashion_mnist", root, part)
        chosen = [index for index, label in enumerate(worn.labels) if label in _WORN]
        things[part] = load("mnist", root, part), worn.subset(chosen)

    def scene(part: str, number: int, random: np.random.Generator) -> Made:
        coarse = torch.from_numpy(random.uniform(0, random.uniform(0.1, 0.5), (1, 1, 8, 8)))
        image = torch.nn.functional.interpolate(coarse, (64, 64), mode="bilinear")[0, 0].numpy()
        image += random.normal(0, random.uniform(0, 0.08), image.shape)
        classes = np.zeros_like(image)
        for quarter in random.permutation(4)[: random.integers(2, 5)]:
            worn = int(random.random() < 1 / 3)
            thing, label = things[part][worn][int(random.integers(len(things[part][worn])))]
            top, left = (int(32 * place + random.integers(5)) for place in divmod(quarter, 2))
            here, ink = (slice(top, top + 28), slice(left, left + 28)), thing[0].numpy()
            image[here] += ink * (random.uniform(0.7, 1) - image[here])
            classes[here][ink > _INK] = 11 + _WORN.index(label) if worn else 1 + label
        return np.stack([image.clip(0, 1), classes])

    names = ("ground", *"0123456789", *(GARMENTS[kind] for kind in _WORN))
    made = _set("scenes", names, {"train": 5000, "test": 400}, split, scene)
    return replace(made, labels=(-1,) * len(made), reader=SceneReader(made.ids, scene))


register_dataset("beats", _beats)
register_dataset("drifts", _drifts)
register_dataset("scenes", _scenes)
