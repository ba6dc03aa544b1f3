"""Make counterfactual-measures.md: are counterfactuals of digits more than adversarial examples?

    python docs/results/measures.py [--images 100] [--zoo runs/zoo]

$RATHERTHAN_DATA holds mnist/. Answers and the distilled network are kept in runs/results/measures, and not made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

import ratherthan as rt
from ratherthan import Counterfactuals, data

HERE, KEPT = Path(__file__).parent, Path("runs/results/measures")
LAYER = "head.2"  # of zoo:mnist_paper: 50 features
TAUGHT = 20_000  # training images that the distilled network sees, in each of EPOCHS views
EPOCHS = 6


# --------------------------------------------------------------------------------------------- plain PGD
@dataclass(frozen=True)
class PGD(rt.CounterfactualMethod):
    """Projected gradient descent (Madry et al., 2018) towards the foil, in a box of a radius around the image."""

    name: ClassVar[str] = "pgd"
    radius: float = 0.3
    step: float = 0.01
    steps: int = 100
    at_once: bool = True  # whether an image is left as it is from where the foil leads

    def search(self, question: rt.SearchQuestion) -> rt.Counterfactual:
        """Ascend the log-probability of the foil by the sign of its gradient."""
        asked, row = question.asked, torch.arange(len(question.asked))
        x = asked.clone()
        for _ in range(self.steps):
            x.requires_grad_()
            gain = question.look(x).log_softmax(1)[row, question.foil]
            (slope,) = torch.autograd.grad(gain.sum(), x)
            moved = asked + (x.detach() + self.step * slope.sign() - asked).clamp(-self.radius, self.radius)
            led = question.look(x.detach()).argmax(1) == question.foil
            x = torch.where((led & self.at_once).view(-1, 1, 1, 1), x.detach(), moved.clamp(0, 1))
        ends = [[(rt.Status.FOUND, "")]] * len(x)
        distance = (x - asked).abs().flatten(1).amax(1)
        return rt.Counterfactual.of(self, question, x.unsqueeze(1), ends, distance.unsqueeze(1))


@dataclass(frozen=True)
class Kept(rt.CounterfactualMethod):
    """What another search found, out of a file."""

    name: ClassVar[str] = "kept"
    file: Path = Path()

    def search(self, question: rt.SearchQuestion) -> rt.Counterfactual:
        """Its answers about these images."""
        found = read(self.file)
        return rt.Counterfactual.joined([found[i] for i in question.positions])


read = cache(rt.Counterfactual.load)


# --------------------------------------------------------------------------------------------- a network that is taught
def views(images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images, each shifted by up to three pixels and blurred by up to a pixel, with what is said of them."""
    for rows in torch.randperm(len(images)).split(100):
        down, right = torch.randint(-3, 4, (2,)).tolist()
        sigma = 8 * (0.2 + 0.8 * torch.rand(()).item())  # in pixels of an image eight times as large
        yield rt.baseline_images(images[rows].roll((down, right), (2, 3)), "blur", sigma), labels[rows]


def distilled(model: rt.Model, images: Tensor) -> rt.Model:
    """A network of another shape, taught the probabilities that the model gives to other views of images."""
    file, sizes = KEPT / "distilled.pt", (24, 48)
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(1, sizes[0], 5, 2), nn.ReLU(), nn.Conv2d(*sizes, 5, 2), nn.ReLU())
    student = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(sizes[1] * 16, 64), nn.ReLU(), nn.Linear(64, 10))
    if not file.is_file():
        optimiser = torch.optim.AdamW(student.parameters(), 2e-3)
        for _ in range(EPOCHS):
            for seen, _ in views(images, torch.zeros(len(images))):
                with torch.no_grad():
                    said = model.logits(seen).softmax(1)
                loss = nn.functional.cross_entropy(student(seen), said)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        torch.save(student.state_dict(), file)
    student.load_state_dict(torch.load(file, weights_only=True))
    return rt.Model(student.eval(), model.class_names, channels=1)


# --------------------------------------------------------------------------------------------- the page
SEARCHED = {
    "CDeepEx": lambda makes: rt.CDeepEx(makes),
    "xGEM": lambda makes: rt.XGEM(makes),
    "xGEM, penalty": lambda makes: rt.XGEM(makes, objective="penalty"),
    "CEM": lambda makes: rt.CEM(),
    "PGD": lambda makes: PGD(),
    "PGD, to the end": lambda makes: PGD(at_once=False),
}
MEASURES = {
    "validity": ("found", "foil", "p_foil", "second", "non_adversarial"),
    "what else changes": ("label_variation", "cout", "l2", "sparsity", "im1", "im2"),
}


def table(run: rt.Run, measures: tuple[str, ...], names: dict[str, str]) -> str:
    """A row per search, a column per measure: means with their intervals."""
    lines = [f"| search | {' | '.join(measures)} |", "| --- " * (len(measures) + 1) + "|"]
    for method, rows in run.summary().groupby("method", sort=False):
        told = rows.set_index("measure").loc[list(measures)]
        cells = [f"{each['mean']:.3f} ({each['low']:.3f} to {each['high']:.3f})" for _, each in told.iterrows()]
        lines.append(f"| {names[method]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def of_foils(foils: Tensor, images: Tensor, labels: Tensor, each: int, first: int = 0) -> Tensor:
    """Real images of these classes, `each` for every foil, none twice."""
    taken, chosen = dict.fromkeys(range(10), first), []
    for foil in foils.tolist():
        own = images[labels == foil]
        chosen.append(own[taken[foil] : taken[foil] + each])
        taken[foil] += each
    return torch.cat(chosen)


def distances(found: dict[str, rt.Counterfactual], train: tuple[Tensor, Tensor], judge: rt.Model) -> str:
    """The Frechet distance of each search's answers to real images of their foils, and what else to look at."""
    pixels, labels = train
    lines = [f"| images | n | Frechet distance ({judge.name}, {LAYER}) |", "| --- | ---: | ---: |"]
    first = next(iter(found.values()))
    foils = first.reached[:, 0]
    real = of_foils(foils, pixels, labels, 20)
    shown = {f"answers of {name}": each.example[each.found] for name, each in found.items()}
    shown |= {
        "the images themselves": first.images,
        "other real images of the foils": of_foils(foils, pixels.flip(0), labels.flip(0), 1),
    }
    for name, images in shown.items():
        lines.append(f"| {name} | {len(images)} | {rt.frechet_distance(images, real, judge, LAYER):.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Search, measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    KEPT.mkdir(parents=True, exist_ok=True)
    model, judge, makes = rt.load("zoo:mnist"), rt.load("zoo:mnist_paper"), rt.Manifold.load("mnist_vae")
    digits = data.load("mnist").spread(asked.images)
    known = data.load("mnist", split="train").spread(TAUGHT)
    columns = [(images, labels) for _, images, labels in data.batches(known, 1000)]
    pixels, labels = (torch.cat(column) for column in zip(*columns, strict=True))
    student = distilled(model, pixels)
    found = {}
    for name, make in SEARCHED.items():
        file = KEPT / f"{name}-{asked.images}.safetensors"
        if not file.is_file():
            rt.counterfactual(model, digits, foil="runner-up", method=make(makes)).save(file)
        found[name] = read(file)
        print(name, found[name].found.double().mean().item(), flush=True)
    methods = [Kept(KEPT / f"{name}-{asked.images}.safetensors") for name in SEARCHED]
    experiment = Counterfactuals(second=judge, distilled=student, reference=known)
    run = rt.evaluate(experiment, model, digits, out=KEPT / f"run-{asked.images}", methods=methods, resume=True)
    names = dict(zip(run.summary()["method"].unique(), SEARCHED, strict=True))
    test = data.load("mnist")
    with torch.no_grad():
        both = [(model.logits(x).argmax(1), student.logits(x).argmax(1)) for _, x, _ in data.batches(test, 1000)]
    alike = torch.cat([a == b for a, b in both]).double().mean()
    print(alike)
    for title, measures in MEASURES.items():
        print(title, table(run, measures, names), sep="\n")
    print(distances(found, (pixels, labels), judge))


if __name__ == "__main__":
    main()
