"""Make counterfactual-measures.md: are counterfactuals of digits more than adversarial examples?

    python docs/results/measures.py [--images 100]

$RATHERTHAN_DATA holds mnist/. Answers and the distilled network are kept in runs/results/measures, and not made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
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


TEXT = """\
zoo:mnist, {n} test digits evenly spread, foil: the runner-up. The second network is `zoo:mnist_paper` (trained
by itself); the distilled one was taught the probabilities of zoo:mnist on {taught:,} training digits in
{epochs} views each, shifted by up to 3 pixels and blurred, and says the same as it of {alike:.1%} of the test
digits. Searches on a manifold use `mnist_vae`. PGD climbs the log-probability of the foil by 100 steps of 0.01
along the sign of the gradient, at most 0.3 from the image in any pixel; it ends where the foil leads, or goes
on "to the end". Means with 95 % bootstrap intervals over the digits. What the measures are:
[experiments](../experiments.md).

![Input, and what each search makes of it](counterfactual-measures.png)"""
READ = """\
Mean and covariance of {layer} are compared with those of real training digits of the same foils, twenty for
each answer. {n} digits are few for 50 features: the last two lines tell what is near and far.

## What it says

- **Plain gradient descent is found out by the distilled network, and by the second.** Of PGD's answers that end
  where the foil leads they follow 5 % and 1 %, of CDeepEx's 33 % and 28 %, though those end on the boundary,
  where even the model itself says the foil of 13 % only.
- **So is CEM** with its default margin of 0.5 logits: 6 % and 2 %. On this network its few pixels are an
  adversarial example.
- **Confidence buys votes.** PGD to the end, at a probability of 1 and an l2 of 4.5, is followed in 78 % and 44
  %, more than any search. Rates of answers of unlike confidence cannot be compared.
- **Label variation does not find PGD out.** It is lowest where little changes, and PGD changes least: 0.000,
  CDeepEx 0.008. Hvilshoj et al. made it for data with several labels; digits have one, and on the way between
  two of them others grow a little likelier. Read it beside `second`.
- **`cout` is about confidence, too.** On the way to an answer on the boundary the fact leads, so it is below 0.
  Among answers inside the foil that of the manifold has 0.50 and CEM's 0.21.
- **im1 and im2** do not find out PGD to the end: it has the lowest of both. The autoencoders are linear.
- **Frechet distances:** no answer comes near to real images of the foils (8). Those of the searches lie about
  as far as the digits themselves (36), PGD to the end farthest (59)."""


def table(run: rt.Run, measures: tuple[str, ...], names: dict[str, str]) -> str:
    """A row per search, a column per measure: means with their intervals."""
    lines = [f"| search | {' | '.join(measures)} |", "| --- " * (len(measures) + 1) + "|"]
    for method, rows in run.summary().groupby("method", sort=False):
        told = rows.set_index("measure").loc[list(measures)]
        cells = [f"{each['mean']:.3f} ({each['low']:.3f} to {each['high']:.3f})" for _, each in told.iterrows()]
        lines.append(f"| {names[method]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def beside(run: rt.Run, names: dict[str, str]) -> str:
    """The mean paired difference of each search to PGD that ends where the foil leads."""
    lines = ["| search - PGD | non_adversarial | second | label_variation |", "| --- | --- | --- | --- |"]
    rows = run.to_frame().assign(search=lambda frame: frame["method"].map(names))
    draw = np.random.default_rng(0)
    for name in SEARCHED:
        cells = []
        for measure in ("non_adversarial", "second", "label_variation"):
            values = rows.pivot(index="sample", columns="search", values=measure)
            gap = (values[name] - values["PGD"]).dropna().to_numpy()
            low, high = np.quantile(draw.choice(gap, (1000, len(gap))).mean(1), [0.025, 0.975])
            cells.append(f"{gap.mean():+.3f} ({low:+.3f} to {high:+.3f})")
        if name != "PGD":
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def drawn(found: dict[str, rt.Counterfactual]) -> Figure:
    """Some digits and what each search makes of them."""
    first = next(iter(found.values()))
    rows = list(range(0, len(first), max(1, len(first) // 5)))[:5]
    figure = Figure((1.25 * (1 + len(found)), 1.25 * len(rows) + 0.3), layout="constrained")
    for k, (i, axes) in enumerate(zip(rows, figure.subplots(len(rows), 1 + len(found)), strict=True)):
        shown = [("input", first.images[i], first.fact[i])]
        shown += [(name, each.example[i], each.reached[i, 0]) for name, each in found.items()]
        for panel, (name, picture, label) in zip(axes, shown, strict=True):
            panel.imshow(picture[0], cmap="gray", vmin=0, vmax=1)
            panel.set_title(f"{name}\n{int(label)}" if k == 0 else str(int(label)), fontsize=8)
            panel.set_axis_off()
    return figure


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
    with torch.no_grad():
        both = [
            (model.logits(x).argmax(1), student.logits(x).argmax(1))
            for _, x, _ in data.batches(data.load("mnist"), 1000)
        ]
    alike = torch.cat([a == b for a, b in both]).double().mean().item()
    seen = TEXT.format(n=len(digits), taught=TAUGHT, epochs=EPOCHS, alike=alike, layer=LAYER)
    parts = [f"# Counterfactuals of digits, and plain gradient descent\n\n`python docs/results/measures.py`. {seen}"]
    parts += [f"## {title}\n\n{table(run, measures, names)}" for title, measures in MEASURES.items()]
    parts += [f"## Beside PGD, on the same digits\n\n{beside(run, names)}"]
    parts += [
        f"## Of all answers together\n\n{distances(found, (pixels, labels), judge)}",
        READ.format(layer=LAYER, n=len(digits)),
    ]
    (HERE / "counterfactual-measures.md").write_text("\n\n".join(parts) + "\n")
    drawn(found).savefig(HERE / "counterfactual-measures.png", dpi=80)


if __name__ == "__main__":
    main()
