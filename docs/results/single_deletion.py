"""Make single-deletion.md: does a map foretell what each part of the image is worth to the contrast?

    python docs/results/single_deletion.py [NETWORK ...] [--zoo runs/zoo] [--out runs/single-deletion]

$RATHERTHAN_DATA holds fashion_mnist/, imagenet_samples/ and, for flowers102, flowers102/; --zoo holds the weights of
that (`ratherthan train zoo:flowers102 --out runs/zoo`); the package of EfficientNet-Lite0 is installed. Each network is
fine-tuned on images with patches deleted, then asked. The same command goes on with what lies in --out.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ratherthan as rt
from ratherthan import zoo
from ratherthan.evaluation.bench.contestants import RandomMaps
from ratherthan.zoo.training.recipes import Learner

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


class Imitator(Calm):
    """The targets are images, and what the network said of them before."""

    def __init__(self, recipe: rt.Recipe, network: nn.Module) -> None:
        super().__init__(recipe, network)
        self.teacher = deepcopy(network).eval().requires_grad_(False)

    def step(self, images: Tensor, targets: Tensor, batch: int) -> float:
        """Learn to say of images with patches deleted what was said of them whole."""
        return super().step(images, self.teacher(targets).softmax(1), batch)


@dataclass(frozen=True)
class Imitation(Short):
    """A fine-tuning on every other photograph of a set that has one of each class: their labels would teach too little.

    Attributes:
        network: The network, which is its own teacher.
    """

    network: str = ""

    def open(self, root: str | Path | None, split: str) -> rt.Dataset:
        """The one half, or the other."""
        return half(rt.data.load(self.dataset, root), split == self.train)

    def examples(self, images: Tensor, labels: Tensor, generator: torch.Generator, training: bool) -> Any:
        """With patches deleted, and whole."""
        whole = zoo.get(self.network).inputs.normalise(images)
        return (self.augmentation(images, generator), whole) if training else (images, labels)

    def learner(self, network: nn.Module) -> Learner:
        """What takes the steps."""
        return Imitator(self, network)


def half(images: rt.Dataset, first: bool) -> rt.Dataset:
    """Every other image."""
    return images.subset(range(not first, len(images), 2))


@dataclass(frozen=True)
class Study:
    """A network, how it is fine-tuned, and what is asked about how many images.

    Attributes:
        recipe: Of the fine-tuning.
        told: The same in words.
        methods: What is compared.
        data: What is asked about, and its split.
        images: How many images `single-deletion` asks about.
        others: The methods that are asked about all other classes.
        fewer: How many images the costlier experiments ask about.
    """

    recipe: Short
    told: str
    methods: Sequence[Any]
    images: int
    others: Sequence[Any]
    data: tuple[str, str | None]
    fewer: int = 0


def methods(steps: int, window: int) -> list[Any]:
    """All that are compared: windows of occlusion lie side by side."""
    covered = rt.Occlusion(size=window, stride=window, baseline="model-mean")
    return ["gradcam", "la", "ixg", rt.IntegratedGradients(n_steps=steps), "lrp", "deeplift", covered, RandomMaps()]


def deletion(name: str, **more: Any) -> rt.PatchDeletion:
    """Up to a quarter of 4 x 4 or 8 x 8 patches, in the colour that the network subtracts."""
    return rt.PatchDeletion(ground=zoo.get(name).inputs.mean, **more)


QUICK = {"irof": {"count": 32}, "f-fidelity": {"shares": (0.25, 0.5, 0.75), "draws": 3}}
FEW = ["gradcam", "ixg", RandomMaps()]
STUDIES = {
    "fashion_mnist": Study(
        Short("fashion_mnist", 2, 1e-3, augmentation=deletion("fashion_mnist", flips="h"), samples=20000),
        "20,000 training images for two epochs", methods(16, 4), 500, methods(16, 4), ("fashion_mnist", "test"), 150,
    ),
    "flowers102": Study(
        Short(
            "flowers102", 1, 2e-5, 16, 0.02, frozen=tuple(f"features.{index}" for index in range(9)),
            augmentation=deletion("flowers102", flips="h"),
            tests=("valid",), samples=1000,
        ),
        "1,000 training images for an epoch, the last modules only", methods(4, 45), 60, FEW, ("flowers102", "test"),
    ),
    LITE: Study(
        Imitation("imagenet_samples", 3, 2e-5, 10, 0.0, augmentation=deletion(LITE), tests=("others",), network=LITE),
        "500 photographs for three epochs, after what it said of them whole", methods(4, 45), 60, FEW,
        ("imagenet_samples", None),
    ),
}  # fmt: skip
WEIGHTS: dict[str, Path] = {}
"""Weights of networks that come without."""


@cache
def original(name: str) -> rt.Model:
    """The network as it is."""
    return rt.load(f"zoo:{name}", weights=WEIGHTS.get(name))


def tuned(name: str, out: Path) -> rt.Model:
    """The network, fine-tuned on images with patches deleted."""
    there = out / f"{name}_deleted.safetensors"
    if not there.exists():
        start = WEIGHTS.get(name) or zoo.get(name).weights
        recipe = replace(STUDIES[name].recipe, start=str(Path(str(start)).resolve()))
        zoo.register_zoo_model(
            replace(zoo.get(name), name=f"{name}_deleted", shipped=None, package=None, recipe=recipe)
        )
        rt.train(f"zoo:{name}_deleted", os.environ["RATHERTHAN_DATA"], out, progress=True)
    return rt.load(f"zoo:{name}", weights=there)


# --------------------------------------------------------------------------------------------- asking
def asked(study: Study) -> rt.Dataset:
    """The images that nothing was learnt from."""
    images = rt.data.load(study.data[0], split=study.data[1])
    return half(images, False) if isinstance(study.recipe, Imitation) else images


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
    study = STUDIES[name]
    images = asked(study)
    plan: list[tuple[str, str, rt.Model, dict[str, Any], int, Sequence[Any]]] = [
        (f"single-{foil}", "single-deletion", tuned(name, out), {"foil": foil}, study.images, compared)
        for foil, compared in (("others", study.others), ("runner-up", study.methods))
    ]
    plan.append(("before", "single-deletion", original(name), {"foil": "runner-up"}, study.images, FEW))
    for experiment, settings in QUICK.items() if study.fewer else ():
        settings = {"foil": "runner-up", **settings}
        plan.append((experiment, experiment, tuned(name, out), settings, study.fewer, study.methods))
    for label, experiment, model, settings, limit, compared in plan:
        yield label, rt.evaluate(
            experiment, model, images, methods=compared, limit=limit, out=out / f"{name}-{label}", resume=True,
            shard_size=8 if model.inputs.size == (224, 224) else 100, progress=True, **settings,
        )  # fmt: skip


# --------------------------------------------------------------------------------------------- the page
def cell(row: Any) -> str:
    """A mean with its interval."""
    return f"{row['mean']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


def beside(run: rt.Run, measure: str) -> dict[str, list[str]]:
    """By method: why P; why P rather than the foil; the paired difference."""
    summed, apart = run.summary(), run.difference()
    found: dict[str, list[str]] = {}
    for frame in (*(summed[summed["contrast"] == each] for each in ("none", "weighted")), apart):
        for row in frame[frame["measure"] == measure].to_dict("records"):
            found.setdefault(row["method"], []).append(cell(row))
    return found


def verdicts(run: rt.Run, measure: str) -> str:
    """Where the contrast is better, and where it is worse, by an interval of the difference without 0."""
    rows = [row for row in run.difference().to_dict("records") if row["measure"] == measure]
    words = {
        "better": [row["method"] for row in rows if row["low"] > 0],
        "worse": [row["method"] for row in rows if row["high"] < 0],
        "no difference that can be told": [row["method"] for row in rows if row["low"] <= 0 <= row["high"]],
    }
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in words.items() if names)


def lines(name: str, out: Path) -> Iterator[str]:
    """The part of the page about a network."""
    study = STUDIES[name]
    images = asked(study).spread(1000 if study.fewer else 300)
    yield f"## {name}\n\nFine-tuned on {study.told}. Share that is right of {len(images):,} images:\n"
    yield "| network | whole | one of 4 x 4 patches deleted | four deleted |\n| --- | ---: | ---: | ---: |"
    for words, model in (("as it was", original(name)), ("fine-tuned", tuned(name, out))):
        yield f"| {words} | {' | '.join(f'{each:.1%}' for each in accuracies(model, images, name))} |"
    done = dict(runs(name, out))
    for foil, words in (("runner-up", "the runner-up"), ("others", "all other classes")):
        run = done[f"single-{foil}"]
        plain, lead = beside(run, "own"), beside(run, "lead")
        yield f"\n`single-deletion`, {study.images} images, the foil is {words}:\n"
        yield "| method | why P, of y_P | why P, of the lead | why P rather than the foil, of the lead | difference |"
        yield "| --- | ---: | ---: | ---: | ---: |"
        yield from (f"| {each} | {plain[each][0]} | {' | '.join(cells)} |" for each, cells in lead.items())
        yield f"\nOf the lead, the contrast is {verdicts(run, 'lead')}."
    for label, measure in (("before", "lead"), ("irof", "area"), ("f-fidelity", "gap")):
        if label in done:
            settings = "".join(f", {key} {value}" for key, value in QUICK.get(label, {}).items())
            what = (
                f"`{label}`, `{measure}`, {study.fewer} images"
                if label in QUICK
                else "The network as it was, of the lead"
            )
            yield f"\n{what}, the foil is the runner-up{settings}:\n"
            yield "| method | why P | why P rather than the foil | difference |\n| --- | ---: | ---: | ---: |"
            yield from (f"| {each} | {' | '.join(cells)} |" for each, cells in beside(done[label], measure).items())
            yield f"\nThe contrast is {verdicts(done[label], measure)}."
    yield ""


def main() -> None:
    """Train, ask, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=", ".join(STUDIES))
    parser.add_argument("--zoo", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--out", type=Path, default=Path("runs/single-deletion"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    WEIGHTS["flowers102"] = given.zoo / "flowers102.safetensors"
    text = [TEXT, *(each for name in given.networks or STUDIES for each in lines(name, given.out))]
    (HERE / "single-deletion.md").write_text("\n".join(text).rstrip() + "\n")


TEXT = """# Single deletion, IROF and F-Fidelity of contrasts

Written by `python docs/results/single_deletion.py`. Does a map foretell what each part of the image is worth? One of
4 x 4 patches is deleted at a time; scored is the rank correlation of the map's sums in the patches with the fall of
what is asked (`single-deletion`; in Hesse et al. 2024 of y_P); noise has 0. "The lead" is the weighted contrast of the
predicted class P with the foil, its weights held. For `irof` and `f-fidelity` see [experiments](../experiments.md).
Means with 95 % bootstrap intervals over images; the difference is paired.

Networks are fine-tuned on images with up to a quarter of 4 x 4 or 8 x 8 patches deleted (`ratherthan.PatchDeletion`),
so that such images are nothing new to them. Of EfficientNet-Lite0's photographs there is one of each class, too few to
learn from their labels: on every other of them it learns what it said of them whole, and it is asked about the others.
`flowers102` is the SqueezeNet of `ratherthan train zoo:flowers102 --epochs 4`.

Occlusion covers windows of a seventh or a fifth of the side with the same colour that patches are deleted with, so it
measures nearly what is asked. Patches of photographs become grey, while `ixg`, `ig` and `deeplift` compare with black.
"""

if __name__ == "__main__":
    main()
