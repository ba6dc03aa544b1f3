"""Make single-deletion.md: does a map foretell what each part of the image is worth to the contrast?

    python docs/results/single_deletion.py --zoo runs/zoo [--out runs/single-deletion] [--only NETWORK]

$RATHERTHAN_DATA holds fashion_mnist/, flowers102/ and imagenet_samples/, --zoo holds flowers102.safetensors
(`ratherthan train zoo:flowers102 --out runs/zoo`), and the package of EfficientNet-Lite0 is installed. Each network is
fine-tuned on images with patches deleted, then asked. What lies in --out is gone on from; --only stops before the page.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import ratherthan as rt
from ratherthan import zoo
from ratherthan.evaluation.bench.contestants import RandomMaps
from ratherthan.zoo.training.recipes import Examples, Learner

HERE = Path(__file__).parent
LITE = "efficientnet_lite0"


# --------------------------------------------------------------------------------------------- fine-tuning
class Calm(Learner):
    """Batch norm and dropout stay as in use."""

    def step(self, images: Tensor, targets: Tensor, batch: int) -> float:
        """As ever, in evaluation mode."""
        self.network.eval()
        return super().step(images, targets, batch)


@dataclass(frozen=True)
class Short(rt.Recipe):
    """A fine-tuning of a trained network on some of its images, evenly spread over the training part.

    Attributes:
        samples: How many.
    """

    samples: int = 1000

    def open(self, root: str | Path | None, split: str) -> rt.Dataset:
        """The images of a split, of the training part some."""
        whole = super().open(root, split)
        return whole.spread(self.samples) if split == self.train else whole

    def learner(self, network: nn.Module) -> Learner:
        """What takes the steps."""
        return Calm(self, network)


@dataclass(frozen=True)
class Distilled(Short):
    """Where there is one photograph of each class: say with patches deleted what was said without.

    Four of five photographs are trained on, the fifth are the test part.
    """

    def open(self, root: str | Path | None, split: str) -> rt.Dataset:
        """Photographs of one part or the other."""
        whole = rt.data.load(self.dataset, root)
        return whole.subset([i for i in range(len(whole)) if (i % 5 == 0) == (split == "test")])

    def examples(self, images: Tensor, labels: Tensor, generator: torch.Generator, training: bool) -> Examples:
        """Photographs with patches deleted, and the probabilities of the whole ones."""
        if not training:
            return images, labels
        teacher = original(LITE)
        with torch.no_grad():
            targets = teacher.module(teacher.normalise(images)).softmax(1)
        return self.augmentation(images, generator), targets


@dataclass(frozen=True)
class Study:
    """A network, how it is fine-tuned, and what is asked about how many images.

    Attributes:
        recipe: Of the fine-tuning.
        told: The same in words.
        methods: What is compared.
        split: The part that is asked about; None: what the recipe holds out.
        images: How many of it `single-deletion` asks about.
        fewer: How many the costlier experiments ask about.
        cheap: The methods that are asked there.
        settings: Of those experiments.
    """

    recipe: Short
    told: str
    methods: Sequence[Any]
    images: int
    fewer: int
    cheap: Sequence[Any]
    split: str | None = None
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)


def methods(steps: int, window: int) -> list[Any]:
    """All that are compared: windows of occlusion lie side by side."""
    covered = rt.Occlusion(size=window, stride=window, baseline="model-mean")
    return ["gradcam", "la", "ixg", rt.IntegratedGradients(n_steps=steps), "lrp", "deeplift", covered, RandomMaps()]


def deletion(name: str, **more: Any) -> rt.PatchDeletion:
    """Up to a quarter of 4 x 4 or 8 x 8 patches, in the colour that the network subtracts."""
    return rt.PatchDeletion(ground=zoo.get(name).inputs.mean, **more)


QUICK = {"irof": {"count": 32}, "f-fidelity": {"shares": (0.25, 0.5, 0.75), "draws": 3}}
CHEAP = ["gradcam", "ixg", RandomMaps()]
STUDIES = {
    "fashion_mnist": Study(
        Short("fashion_mnist", 2, 1e-3, augmentation=deletion("fashion_mnist", flips="h"), samples=20000),
        "20,000 of the training images, two epochs", methods(16, 4), 500, 150, methods(16, 4), "test", QUICK,
    ),
    "flowers102": Study(
        Short(
            "flowers102", 1, 1e-4, 32, 0.02, frozen=tuple(f"features.{index}" for index in range(9)),
            augmentation=deletion("flowers102", crop=160 / 224, flips="h", padding="reflection"),
            tests=("valid",), samples=1000,
        ),
        "1,000 of the training images, one epoch, the last modules", methods(5, 45), 32, 0, (), "test",
    ),
    LITE: Study(
        Distilled(
            "imagenet_samples", 1, 3e-4, 32, frozen=("_conv_stem", "_bn0", *(f"_blocks.{i}" for i in range(15))),
            augmentation=deletion(LITE, flips="h"),
        ),
        "800 of the samples, one epoch, last block and head, towards what it says of the whole photograph",
        methods(5, 45), 32, 0, (),
    ),
}  # fmt: skip
WEIGHTS: dict[str, Path] = {}
"""What the networks start from."""


@cache
def original(name: str) -> rt.Model:
    """The network as it is."""
    return rt.load(f"zoo:{name}", weights=WEIGHTS[name])


def tuned(name: str, out: Path) -> rt.Model:
    """The network, fine-tuned on images with patches deleted."""
    there = out / f"{name}_deleted.safetensors"
    if not there.exists():
        recipe = replace(STUDIES[name].recipe, start=str(WEIGHTS[name].resolve()))
        zoo.register_zoo_model(replace(zoo.get(name), name=f"{name}_deleted", shipped=None, package=None, recipe=recipe))
        rt.train(f"zoo:{name}_deleted", os.environ["RATHERTHAN_DATA"], out, progress=True)
    return rt.load(f"zoo:{name}", weights=there)


# --------------------------------------------------------------------------------------------- asking
def held_out(study: Study) -> rt.Dataset:
    """The images that are asked about."""
    if study.split:
        return rt.data.load(study.recipe.dataset, split=study.split)
    return study.recipe.open(None, "test")


@torch.no_grad()
def accuracies(model: rt.Model, images: rt.Dataset, name: str) -> list[float]:
    """The share that is right of whole images, with one of 4 x 4 patches deleted, and with a quarter of them."""
    numbers, right = torch.Generator().manual_seed(0), torch.zeros(3)
    labels = torch.tensor(rt.data.match_labels(images, model.class_names).labels)
    ground = torch.tensor(zoo.get(name).inputs.mean).view(-1, 1, 1)
    for places, batch, _ in rt.data.batches(images.with_transform(model.inputs.prepare), 32):
        order = torch.rand(len(batch), 16, generator=numbers).argsort(1)
        for turn, count in enumerate((0, 1, 4)):
            gone = (order < count).float().view(-1, 1, 4, 4)
            gone = nn.functional.interpolate(gone, batch.shape[2:]) > 0
            said = model.logits(torch.where(gone, ground, batch)).argmax(1)
            right[turn] += (said == labels[places]).sum()
    return (right / len(images)).tolist()


def runs(name: str, out: Path) -> Iterator[tuple[str, rt.Run]]:
    """What was measured, by the name of its folder."""
    study, images = STUDIES[name], held_out(STUDIES[name])
    plan: list[tuple[str, str, rt.Model, dict[str, Any], int, Sequence[Any]]] = []
    for foil in ("others", "runner-up"):
        plan.append((f"single-{foil}", "single-deletion", tuned(name, out), {"foil": foil}, study.images, study.methods))
    plan.append(("before", "single-deletion", original(name), {"foil": "runner-up"}, study.images, CHEAP))
    for experiment in ("irof", "f-fidelity") if study.fewer else ():
        settings = {"foil": "runner-up", **study.settings.get(experiment, {})}
        plan.append((experiment, experiment, tuned(name, out), settings, study.fewer, study.cheap))
    for label, experiment, model, settings, limit, compared in plan:
        yield label, rt.evaluate(
            experiment, model, images, methods=compared, limit=limit, out=out / f"{name}-{label}", resume=True,
            shard_size=8 if model.inputs.size == (224, 224) else 100, progress=True, **settings,
        )  # fmt: skip
