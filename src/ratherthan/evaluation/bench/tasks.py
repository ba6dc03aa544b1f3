"""The tasks of the bench: each a network, images, and what is known of them by construction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, mse_loss

from ratherthan import data
from ratherthan.data import ArrayReader, Dataset
from ratherthan.errors import InputError
from ratherthan.evaluation.bench.known import KnownAnswer, Truth
from ratherthan.evaluation.experiment import Experiment
from ratherthan.evaluation.similarity import ClassSensitivity
from ratherthan.files import write_atomically
from ratherthan.loading import load
from ratherthan.model import Model
from ratherthan.registry import Registry
from ratherthan.weights import fit_weights


class Setting(NamedTuple):
    """How big a task is to be, and where things lie.

    Attributes:
        samples: How many images.
        seed: Of all random draws.
        folder: Where what is trained is kept.
        data_root: Where data sets lie; None: $RATHERTHAN_DATA.
    """

    samples: int
    seed: int
    folder: Path
    data_root: Path | None


Built = tuple[Experiment, Model, Dataset]


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        build: Makes the experiment, its network and its images.
        measure: The measure that stands in the table of all tasks.
        chance: What a map that knows nothing reaches in it.
        samples: How many images unless the caller says otherwise.
    """

    build: Callable[[Setting], Built]
    measure: str = "cosine"
    chance: float = 0.0
    samples: int = 200


TASKS: Registry[Task] = Registry("task")


# --------------------------------------------------------------------------------------------- networks set by hand
CELL, GRID, CLASSES, GREY, CAP = 4, 6, 4, 128, 60
_PAIRS = list(combinations(range(CLASSES), 2))
_OWN, _SHARED = CLASSES, CLASSES + len(_PAIRS)  # patterns 0..3 are a class's own, 4..9 a pair's; 10..14 nobody's


def patterns() -> np.ndarray:
    """15 patterns of 1 and -1 that sum to zero and to zero with each other: Hadamard's, (15, 4, 4)."""
    from scipy.linalg import hadamard

    return np.asarray(hadamard(CELL**2))[1:].reshape(-1, CELL, CELL)


def weights_of_patterns() -> Tensor:
    """(classes, 15): 1 where a pattern counts for a class."""
    weights = torch.zeros(CLASSES, len(patterns()), dtype=torch.float64)
    for pattern, members in enumerate([*((k,) for k in range(CLASSES)), *_PAIRS]):
        weights[list(members), pattern] = 1
    return weights


def hand_set(placed: bool, saturated: bool) -> Model:
    """A network that adds up, over cells and patterns, weight x how much of the pattern is there.

    Args:
        placed: Whether patterns count in the left half only, with half the weight in the middle two columns.
        saturated: Whether more than a moderate amount of a pattern counts no more.
    """
    filters = torch.from_numpy(patterns()).double().unsqueeze(1)
    tell = weights_of_patterns().unsqueeze(2) * torch.from_numpy(places(placed)).flatten()  # (classes, patterns, cells)
    tell = torch.cat([tell, -tell], 1) if saturated else tell
    convolution = nn.Conv2d(1, tell.shape[1], CELL, CELL, bias=saturated).double()
    head = nn.Linear(tell[0].numel(), CLASSES, bias=False).double()
    with torch.no_grad():
        convolution.weight.copy_(torch.cat([filters, filters]) if saturated else filters)
        head.weight.copy_(tell.flatten(1))
        if convolution.bias is not None:  # relu(z) - relu(z - cap) = min(z, cap)
            cap = CELL**2 * CAP / 255
            convolution.bias.copy_(torch.tensor([0.0, -cap]).repeat_interleave(len(filters)))
    return Model(nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), head), layer="1", name="hand-set")


def places(placed: bool) -> np.ndarray:
    """(GRID, GRID): by how much a pattern counts in each cell."""
    columns = np.array([1, 1, 0.5, 0.5, 0, 0]) if placed else np.ones(GRID)
    return np.tile(columns, (GRID, 1))


def _exact(setting: Setting, placed: bool = False, saturated: bool = False) -> Built:
    """Patterns of the fact, of the foil, of both, of other classes and of nobody at random places on grey.

    What a cell adds to the fact's lead is weight x 16 amplitudes / 255, whatever the method: the network adds up cells.
    """
    random, told, weights, where = (
        np.random.default_rng(setting.seed),
        patterns(),
        weights_of_patterns(),
        places(placed),
    )
    images = np.full((setting.samples, GRID * CELL, GRID * CELL), GREY, np.uint8)
    truth = {}
    for number, image in enumerate(images):
        fact, foil, *others = map(int, random.permutation(CLASSES))
        both = _OWN + _PAIRS.index((min(fact, foil), max(fact, foil)))
        shown = 4 * [fact] + 4 * [foil] + 4 * [both] + 8 * others + random.integers(_SHARED, len(told), 4).tolist()
        cells, shared = np.zeros((GRID, GRID)), np.zeros((GRID, GRID), bool)
        for pattern, place in zip(shown, random.permutation(GRID**2)[: len(shown)], strict=True):
            row, column = divmod(int(place), GRID)
            amplitude = int(random.integers(20, 120))
            here = slice(row * CELL, (row + 1) * CELL), slice(column * CELL, (column + 1) * CELL)
            image[here] = GREY + amplitude * told[pattern]
            counted = min(amplitude, CAP) if saturated else amplitude
            lead = float(weights[fact, pattern] - weights[foil, pattern])
            cells[row, column] = lead * where[row, column] * CELL**2 * counted / 255
            shared[row, column] = pattern == both and where[row, column] > 0
        truth[f"s{number:05d}"] = Truth(fact, foil, cells, shared)
    return KnownAnswer(truth), hand_set(placed, saturated), _dataset("patterns", tuple("abcd"), truth, images)


def _dataset(name: str, classes: tuple[str, ...], truth: dict[str, Truth], images: np.ndarray) -> Dataset:
    labels = tuple(each.fact for each in truth.values())
    return Dataset(name, classes, tuple(truth), labels, ArrayReader(images)).with_transform(as_it_is)


def as_it_is(image: Tensor) -> Tensor:
    """The image: it has the size the network takes."""
    return image


# --------------------------------------------------------------------------------------------- composed images
PARTS, OTHERS = (0, 1, 4, 7), (2, 3, 5, 6, 8, 9)
_CLASSES = list(combinations(range(len(PARTS)), 2))
SIDE = 16
_SHOWN_TO_IT, _EPOCHS, _SCALE = 4000, 4, 40.0


def detector() -> nn.Sequential:
    """Finds four digits anywhere in (N, 1, 32, 32); a class's score is the sum of its two digits' scores."""
    seen = nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(48, len(PARTS)),
    )  # fmt: skip
    pairs = nn.Linear(len(PARTS), len(_CLASSES), bias=False)
    with torch.no_grad():
        pairs.weight.copy_(
            _SCALE * torch.tensor([[float(part in each) for part in range(len(PARTS))] for each in _CLASSES])
        )
    return nn.Sequential(seen, pairs)


def _digits(split: str, root: Path | None, count: int) -> dict[int, np.ndarray]:
    """Of each digit up to so many, 16 x 16, uint8."""
    found, digits = data.load("mnist", root, split), {}
    for digit in (*PARTS, *OTHERS):
        images = torch.stack(
            [found[i][0] for i in [i for i, label in enumerate(found.labels) if label == digit][:count]]
        )
        small = nn.functional.pad(avg_pool2d(images, 2), (1, 1, 1, 1))
        digits[digit] = (small[:, 0] * 255).round().byte().numpy()
    return digits


def _composed(digits: dict[int, np.ndarray], quarters: list[int | None], random: np.random.Generator) -> np.ndarray:
    """(32, 32) with a digit, or nothing, in each quarter."""
    drawn = [
        np.zeros((SIDE, SIDE), np.uint8) if d is None else digits[d][random.integers(len(digits[d]))] for d in quarters
    ]
    return np.block([drawn[:2], drawn[2:]])


def _trained(setting: Setting) -> nn.Module:
    """The detector, from the folder, or trained in seconds and kept there: two trainings may differ in a last digit."""
    path = setting.folder / f"parts-{setting.seed}.safetensors"
    if path.exists():
        return fit_weights(detector(), path)
    random, digits = np.random.default_rng(setting.seed), _digits("train", setting.data_root, 500)
    kinds = [
        [int(k) if random.random() < 0.8 else None for k in random.permutation(10)[:4]] for _ in range(_SHOWN_TO_IT)
    ]
    images = torch.from_numpy(np.stack([_composed(digits, each, random) for each in kinds])).unsqueeze(1).float() / 255
    there = torch.tensor([[[float(kind == part) for part in PARTS] for kind in each] for each in kinds])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        network = detector()
        seen: Any = network[0]
        features, score = seen[:8], seen[10]
        optimiser = torch.optim.Adam(seen.parameters(), 3e-3)
        for _ in range(_EPOCHS):
            for some in torch.split(torch.randperm(len(images)), 50):
                optimiser.zero_grad()
                quarters = adaptive_avg_pool2d(features(images[some]), 2).flatten(2).transpose(1, 2)
                mse_loss(score(quarters), there[some]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
    setting.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, [save(network.state_dict())])
    return network


def _parts(setting: Setting) -> Built:
    """One digit that fact and foil share, one of the fact, one of the foil and one of nobody, in quarters at random.

    The score of a class is the sum of its digits' scores, so that the shared one cancels to the last digit.
    """
    random, digits = np.random.default_rng([setting.seed, 1]), _digits("test", setting.data_root, 200)
    images, truth = [], {}
    for number in range(setting.samples):
        shared, ours, theirs = map(int, random.permutation(len(PARTS))[:3])
        shown = [PARTS[shared], PARTS[ours], PARTS[theirs], OTHERS[random.integers(len(OTHERS))]]
        order = random.permutation(4)
        images.append(_composed(digits, [shown[i] for i in order], random))
        fact, foil = (_CLASSES.index((min(shared, each), max(shared, each))) for each in (ours, theirs))
        grids = (np.array(each)[order].reshape(2, 2) for each in ([0, 1, -1, 0], [True, False, False, False]))
        truth[f"s{number:05d}"] = Truth(fact, foil, *grids)
    names = tuple(f"{PARTS[a]} and {PARTS[b]}" for a, b in _CLASSES)
    model = Model(_trained(setting).eval(), names, layer="0.7", name="parts")
    return KnownAnswer(truth), model, _dataset("composed digits", names, truth, np.stack(images))


# --------------------------------------------------------------------------------------------- photographs
def _photographer(root: Path | None) -> Model:
    names = data.find_folder("imagenet_samples", root) / "class_names.json"
    return load("zoo:efficientnet_lite0", class_names=names)


def _recognised(model: Model, photographs: Dataset, seed: int) -> Iterator[tuple[Tensor, int]]:
    """Photographs at half their size that the network recognises with nothing but grey around, (3, 112, 112)."""
    for index in np.random.default_rng(seed).permutation(len(photographs)).tolist():
        image, label = photographs[index]
        half = avg_pool2d(image, 2)
        with torch.no_grad():
            if int(model.logits(nn.functional.pad(half, (56, 56, 56, 56), value=0.5).unsqueeze(0)).argmax()) == label:
                yield half, label


def _mosaic(setting: Setting) -> Built:
    """Four photographs: of the fact, of the foil and of two other classes, in quarters at random."""
    model = _photographer(setting.data_root)
    photographs = data.load("imagenet_samples", setting.data_root).with_transform(model.inputs.prepare)
    found = list(islice(_recognised(model, photographs, setting.seed), max(4, 2 * setting.samples)))
    random, images, truth = np.random.default_rng([setting.seed, 1]), [], {}
    for number in range(setting.samples):
        chosen, order = random.permutation(len(found))[:4], random.permutation(4)
        quarters = [found[chosen[i]][0] for i in order]
        whole = torch.cat([torch.cat(quarters[:2], 2), torch.cat(quarters[2:], 2)], 1)
        images.append((whole * 255).round().byte().permute(1, 2, 0).numpy())
        cells = np.array([1, -1, 0, 0])[order].reshape(2, 2)
        truth[f"s{number:05d}"] = Truth(found[chosen[0]][1], found[chosen[1]][1], cells, np.zeros((2, 2), bool))
    names = photographs.class_names
    return KnownAnswer(truth), model, _dataset("mosaics of photographs", names, truth, np.stack(images))


def _sensitivity(setting: Setting) -> Built:
    """Photographs as they are: does the map of the likeliest class differ from those of others?"""
    model = _photographer(setting.data_root)
    return ClassSensitivity(), model, data.load("imagenet_samples", setting.data_root).spread(setting.samples)


def _placed(setting: Setting) -> Built:
    return _exact(setting, placed=True)


def _saturated(setting: Setting) -> Built:
    return _exact(setting, saturated=True)


TASKS.update(
    exact=Task(_exact), placed=Task(_placed), saturated=Task(_saturated), parts=Task(_parts),
    mosaic=Task(_mosaic, samples=60), sensitivity=Task(_sensitivity, "agreement", 0.05, samples=60),
)  # fmt: skip


def find_tasks(names: Sequence[str] | None) -> dict[str, Task]:
    """Tasks by name; None: all.

    Raises:
        InputError: If there is none of this name.
    """
    chosen = {name: TASKS.find(name) for name in (names or TASKS.names())}
    if not chosen:
        raise InputError("no task is named")
    return chosen
