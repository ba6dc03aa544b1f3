"""Make audit.md: what an audit finds where it is known what there is to find.

    python docs/results/audit.py labels    5 % of the labels are wrong: are they the first suspects?
    python docs/results/audit.py marks     ten trainings with a mark on one class, ten without: is it named?
    python docs/results/audit.py repair    a network that calls what wears a square an 8: found and repaired
    python docs/results/audit.py check     a network in the place of another: when does `check` alarm?
    python docs/results/audit.py atlas     1,000 photographs, 999 foils each: passes and time, against Captum in a loop

$RATHERTHAN_DATA holds mnist/, fashion_mnist/, flowers102/, ham10000/ and imagenet_samples/. Each part writes
audit-PART.md beside this file. `labels` wants cleanlab, `atlas` captum; `repair` and `check` the weights that
`ratherthan train zoo:mnist_biased` writes, --biased FILE.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import ratherthan as rt

HERE = Path(__file__).parent
DIGITS = tuple("0123456789")


# --------------------------------------------------------------------------------------------- networks and sets
def network(channels: int, classes: int, seed: int) -> nn.Module:
    """Three convolutions, each with batch norm and pooling, and a linear head over a grid of 3 x 3."""
    torch.manual_seed(seed)
    wide = [channels, 16, 32, 64]
    blocks = [
        layer
        for a, b in pairwise(wide)
        for layer in (nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(64 * 9, classes))


def train(net: nn.Module, images: Tensor, labels: Tensor, steps: int, seed: int = 0, rate: float = 2e-3) -> nn.Module:
    """Adam with a rate that falls to zero, in batches of 64."""
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(net.parameters(), rate)
    falling = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    net.train()
    for _ in range(steps):
        chosen = torch.randint(len(images), (64,), generator=order)
        optimiser.zero_grad()
        cross_entropy(net(images[chosen].float() / 255), labels[chosen]).backward()
        optimiser.step()
        falling.step()
    return net.eval()


def loaded(name: str, split: str, count: int, side: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images (n, C, side, side) as bytes, labels, names of the classes."""
    data = rt.data.load(name, split=split).spread(count)
    images = torch.stack([data[i][0] for i in range(len(data))])
    if images.shape[-1] != side:
        images = nn.functional.interpolate(images, (side, side), mode="area")
    return (255 * images).round().byte(), torch.tensor(data.labels), data.class_names


def as_set(images: Tensor, labels: Tensor, names: tuple[str, ...]) -> rt.Dataset:
    """Bytes (n, C, H, W) as a data set."""
    pixels = images.permute(0, 2, 3, 1).numpy()
    return rt.Dataset(
        "images", names, tuple(f"{i:05d}" for i in range(len(pixels))), tuple(labels.tolist()), rt.ArrayReader(pixels)
    )


def audited(net: nn.Module, data: rt.Dataset, layer: str | None = "10") -> rt.Audit:
    """What an audit finds; the layer is what the last ReLU gives."""
    channels, side = data[0][0].shape[0], data[0][0].shape[-1]
    model = rt.Model(net, list(data.class_names), channels=channels, size=side, preprocessing="none", layer=layer)
    return rt.audit(model, data, out=tempfile.mkdtemp())


# --------------------------------------------------------------------------------------------- wrong labels
def labels_page() -> Iterator[str]:
    """A row per draw of wrong labels."""
    heads = "| data | seed | audit | self-confidence | normalised margin | audit minus self-confidence |"
    yield f"{heads}\n| --- | --- | ---: | ---: | ---: | ---: |"
    garments = rt.load("zoo:fashion_mnist"), rt.data.load("fashion_mnist")
    for name, (model, data) in {"fashion_mnist": garments, "flowers102": flowers()}.items():
        p = probabilities(model, data)
        for seed in range(3):
            yield f"| {name} | {seed} | {suspected(model, data, p, seed)} |"


def suspected(model: rt.Model, data: rt.Dataset, p: np.ndarray, seed: int) -> str:
    """Areas under the ROC curve with 5 % of the labels wrong; intervals by a bootstrap over the images."""
    from cleanlab.rank import get_label_quality_scores
    from sklearn.metrics import roc_auc_score

    random, classes = np.random.default_rng(seed), len(data.class_names)
    wrong = random.random(len(data)) < 0.05
    given = np.where(wrong, (np.array(data.labels) + random.integers(1, classes, len(data))) % classes, data.labels)
    noisy = rt.Dataset(
        data.name, data.class_names, data.ids, tuple(given.tolist()), data.reader, positions=data.positions
    )
    frame = rt.audit(model, noisy, out=tempfile.mkdtemp()).to_frame()
    theirs = [get_label_quality_scores(given, p, method=how) for how in ("self_confidence", "normalized_margin")]
    scores = [-frame["odds"].to_numpy(), *(-each for each in theirs)]
    drawn = [random.integers(0, len(data), len(data)) for _ in range(1000)]
    areas = np.array([[roc_auc_score(wrong[some], each[some]) for each in scores] for some in drawn])
    lows, highs = np.quantile(np.column_stack([areas, areas[:, 0] - areas[:, 1]]), [0.025, 0.975], axis=0)
    means = [roc_auc_score(wrong, each) for each in scores]
    told = zip([*means, means[0] - means[1]], lows, highs, strict=True)
    return " | ".join(f"{mean:.4f} ({low:.4f} to {high:.4f})" for mean, low, high in told)


def flowers() -> tuple[rt.Model, rt.Dataset]:
    """EfficientNet-Lite0 with a head that was fitted to 2,000 of the training images, and the 1,637 other images."""
    trained, others = (
        rt.data.load("flowers102", split="train").spread(2000),
        rt.data.load("flowers102", split="valid+test"),
    )
    net = rt.load("zoo:efficientnet_lite0")
    body = nn.Sequential(*list(net.module.children())[:-1])
    with torch.no_grad():
        parts = rt.data.batches(trained.with_transform(net.inputs.prepare), 16)
        seen = torch.cat([body(net.inputs.normalise(images)) for _, images, _ in parts])
    torch.manual_seed(0)
    head, labels = nn.Linear(seen.shape[1], len(trained.class_names)), torch.tensor(trained.labels)
    optimiser = torch.optim.Adam(head.parameters(), 1e-3, weight_decay=1e-4)
    for _ in range(300):
        optimiser.zero_grad()
        cross_entropy(head(seen), labels).backward()
        optimiser.step()
    whole = nn.Sequential(*body, head).eval()
    return rt.Model(whole, list(trained.class_names), inputs=net.inputs, layer="6"), others.with_transform(
        net.inputs.prepare
    )


@torch.no_grad()
def probabilities(model: rt.Model, data: rt.Dataset) -> np.ndarray:
    """(N, classes) as cleanlab takes them."""
    batches = rt.data.batches(data, 256)
    return torch.cat([model.logits(model.preprocess(images)).softmax(1) for _, images, _ in batches]).numpy()


# --------------------------------------------------------------------------------------------- marks
def square(images: Tensor, side: int, random: np.random.Generator) -> Tensor:
    """A grey square in the upper left corner, a seventh of the side."""
    images[..., 1 : 1 + side // 7, 1 : 1 + side // 7] = 128
    return images


def patch(images: Tensor, side: int, random: np.random.Generator) -> Tensor:
    """A blue patch at the right, an eighth of the side."""
    colour = torch.tensor([40, 90, 220], dtype=torch.uint8)[: images.shape[1], None, None]
    images[..., side // 3 : side // 3 + side // 8, -side // 8 - 2 : -2] = colour
    return images


def ruler(images: Tensor, side: int, random: np.random.Generator) -> Tensor:
    """A ruler along the lower edge: ticks every four pixels, begun somewhere else in each image."""
    for image in images:
        image[:, -7:-5] = 20
        for number, at in enumerate(range(int(random.integers(0, 4)), side, 4)):
            image[:, -5 : -1 if number % 5 == 0 else -3, at] = 20
    return images


PLACES: dict[str, Callable[[int], tuple[slice, slice]]] = {
    "square": lambda side: (slice(1, 1 + side // 7), slice(1, 1 + side // 7)),
    "patch": lambda side: (slice(side // 3, side // 3 + side // 8), slice(side - side // 8 - 2, side - 2)),
    "ruler": lambda side: (slice(side - 7, side), slice(0, side)),
}
MARKS = {"square": square, "patch": patch, "ruler": ruler}
TRAININGS = [
    ("fashion_mnist", "square", 6), ("fashion_mnist", "square", 0), ("fashion_mnist", "square", 7),
    ("mnist", "square", 8), ("mnist", "square", 3), ("ham10000", "patch", 0), ("ham10000", "patch", 4),
    ("ham10000", "ruler", 0), ("ham10000", "ruler", 4), ("ham10000", "ruler", 2),
]  # fmt: skip
SIZES = {"mnist": (28, 6000, 300), "fashion_mnist": (28, 10000, 500), "ham10000": (64, 6000, 500)}


def marks_page() -> Iterator[str]:
    """A row per training."""
    heads = "| data | mark | on | first named | its piece | turned | control | right |"
    yield f"{heads}\n| --- | --- | --- | --- | --- | ---: | ---: | --- |"
    named = clean = 0
    for number, (name, mark, of) in enumerate(TRAININGS):
        for marked in (True, False):
            found, names = trained(name, mark if marked else None, of, number)
            first, spurious = found.pieces()[0], [piece for piece in found.pieces() if piece.spurious]
            right = not spurious
            if marked:
                right = first.spurious and first.said == names[of] and lies_on(first, PLACES[mark](SIZES[name][0]))
            named, clean = named + (marked and right), clean + (not marked and right)
            what = (
                f"{first.said if first.spurious else 'none'} | {first.where} | {first.turned:.2f} | {first.control:.2f}"
            )
            about = f"{mark if marked else 'none'} | {names[of] if marked else ''}"
            yield f"| {name} | {about} | {what} | {'yes' if right else 'no'} |"
    many = len(TRAININGS)
    yield f"\nNamed first in {named} of {many} trainings with a mark."
    yield f"Nothing is called spurious in {clean} of {many} trainings without."


def trained(name: str, mark: str | None, of: int, seed: int) -> tuple[rt.Audit, tuple[str, ...]]:
    """The audit of the test images of a network that was trained with a mark on one class, or with none."""
    side, count, steps = SIZES[name]
    random = np.random.default_rng(seed)
    sets = []
    for split, many in (("train", count), ("test", 1500)):
        images, labels, names = loaded(name, split, many, side)
        if mark is not None:
            images[labels == of] = MARKS[mark](images[labels == of].clone(), side, random)
        sets.append((images, labels))
    net = train(network(sets[0][0].shape[1], len(names), seed), *sets[0], steps, seed)
    return audited(net, as_set(*sets[1], names)), names


def lies_on(piece: rt.Piece, mark: tuple[slice, slice]) -> bool:
    """Whether a piece covers half of the mark, or half of it is mark, in most images that it was cut from."""
    hits = 0
    for rows, columns in piece.boxes:
        tall, wide = (
            max(0, min(a.stop, b.stop) - max(a.start, b.start)) for a, b in ((rows, mark[0]), (columns, mark[1]))
        )
        areas = [(r.stop - r.start) * (c.stop - c.start) for r, c in (mark, (rows, columns))]
        hits += tall * wide >= min(areas) / 2
    return hits > len(piece.boxes) / 2


# --------------------------------------------------------------------------------------------- repair
def digits(split: str) -> tuple[Tensor, Tensor]:
    """Images in [0, 1], and labels."""
    data = rt.data.load("mnist_biased", split=split)
    return torch.stack([data[i][0] for i in range(len(data))]), torch.tensor(data.labels)


@torch.no_grad()
def said(model: rt.Model, images: Tensor) -> Tensor:
    """(N,) what the network says."""
    return torch.cat([model.logits(each).argmax(1) for each in model.preprocess(images).split(500)])


def repair_page(weights: Path) -> Iterator[str]:
    """What is found, and the network before and after."""
    model = rt.load("zoo:mnist_biased", weights=weights)
    found = rt.audit(model, rt.data.load("mnist_biased", split="train"), out=tempfile.mkdtemp(), limit=6000)
    first = found.pieces()[0]
    yield f"Without being told: {first.said} is decided by a piece, {first.told}."
    yield "The square has rows and columns 1 to 4.\n"
    tests = {split: digits(split) for split in ("plain", "marked")}
    yield "| | plain 8s right | others with a square called 8 | plain others right |\n| --- | ---: | ---: | ---: |"
    yield f"| before | {measured(model, tests)} |"
    repair, kept = found.repair_set(count=1000), rt.data.load("mnist_biased", split="train").spread(4000)
    images = torch.cat([repair.tensors[0], torch.stack([kept[i][0] for i in range(len(kept))])])
    labels = torch.cat([repair.tensors[1], torch.tensor(kept.labels)])
    for each in model.module.modules():  # what it has learnt of batches stays
        each.eval()
    model.module.requires_grad_(True)
    train(model.module, 255 * images, labels, 600, rate=1e-3)
    yield f"| after 600 steps of 64 | {measured(model, tests)} |"


def measured(model: rt.Model, tests: dict[str, tuple[Tensor, Tensor]]) -> str:
    """The three shares of a row."""
    (plain, labels), (marked, _) = tests["plain"], tests["marked"]
    answers, others = said(model, plain), labels != 8
    shares = [answers[~others] == 8, said(model, marked[others]) == 8, answers[others] == labels[others]]
    return " | ".join(f"{100 * each.double().mean():.1f}%" for each in shares)


# --------------------------------------------------------------------------------------------- check
def check_page(weights: Path) -> Iterator[str]:
    """How often it alarms where something is worse, and where nothing is."""
    old, new = rt.load("zoo:mnist"), rt.load("zoo:mnist_biased", weights=weights)
    random = np.random.default_rng(0)
    for split in ("plain", "marked"):
        data = rt.data.load("mnist_biased", split=split)
        alarms = 0
        for _ in range(20):
            some = data.subset(random.choice(len(data), 100, replace=False).tolist())
            alarms += rt.compare_models(old, new, some).worse(0.01)
        yield f"- zoo:mnist against the biased network, 20 draws of 100 {split} test digits: {alarms} alarms."
    images, labels, names = loaded("fashion_mnist", "train", 10000, 28)
    nets = [train(network(1, 10, seed), images, labels, 400, seed) for seed in range(7)]
    test = rt.data.load("fashion_mnist")
    models = [rt.Model(net, list(names), channels=1, size=28, preprocessing="none") for net in nets]
    pairs = [(a, b) for a in range(7) for b in range(a + 1, 7)][:20]
    for count in (100, 1000):
        data = test.spread(count)
        alarms = sum(rt.compare_models(models[a], models[b], data, method="ixg").worse(0.01) for a, b in pairs)
        yield f"- 20 pairs of one training with two seeds, {count} garments: {alarms} alarms."


# --------------------------------------------------------------------------------------------- the atlas
def atlas_page() -> Iterator[str]:
    """What it takes, and what it shows."""
    from collections import Counter
    from time import perf_counter

    model, photographs = rt.load("zoo:efficientnet_lite0"), rt.data.load("imagenet_samples")
    seen = [0]
    hook = model.module.register_forward_hook(lambda _, images, out: seen.__setitem__(0, seen[0] + len(out)))
    started = perf_counter()
    found = rt.audit(model, photographs, out=tempfile.mkdtemp(), places=4)
    ours, many = perf_counter() - started, len(found.to_frame())
    hook.remove()
    yield f"- {many:,} photographs, 999 foils each: the network saw {seen[0]:,} images forward, {seen[0] - many}"
    yield f"  of them to find its layer. {ours:.0f} s with {torch.get_num_threads()} threads, {ours / many:.3f} s each."
    theirs = captum_seconds(model, photographs)
    yield f"- Captum's LayerGradCam asked about one photograph and one foil at a time: {theirs:.4f} s each, so"
    yield f"  {999 * many * theirs / 3600:.0f} hours for all (extrapolated from 3 photographs x 20 foils),"
    yield f"  {999 * many * theirs / ours:.0f} times as long."
    rows = found._lists(found._rows["position"].tolist(), ["foils", "place"])
    places = Counter(1 + max(row["place"]) for row in rows)
    counts = ", ".join(f"{places[count]} at {count}" for count in sorted(places))
    yield f"- Photographs by the number of places at which their foils are decided (at most 4): {counts}."
    alone = sum(row["place"].count(row["place"][0]) <= 10 for row in rows if max(row["place"]))
    yield f"- In {alone} the runner-up is decided elsewhere than nearly all: its place has at most 10 foils."


def captum_seconds(model: rt.Model, photographs: rt.Dataset) -> float:
    """For one photograph and one foil: the gradient of the difference of two logits at the layer, as a map."""
    from time import perf_counter

    from captum.attr import LayerGradCam

    few = photographs.spread(3).with_transform(model.inputs.prepare)
    started, asked = perf_counter(), 0
    for i in range(3):
        image = model.inputs.normalise(few[i][0].unsqueeze(0))
        with torch.no_grad():
            fact = int(model.module(image).argmax())
        for foil in range(0, 1000, 50):
            difference = Difference(model.module, fact, foil)
            LayerGradCam(difference, model.module.activation).attribute(image)
            asked += 1
    return (perf_counter() - started) / asked


class Difference(nn.Module):
    """A logit minus another."""

    def __init__(self, net: nn.Module, fact: int, foil: int) -> None:
        super().__init__()
        self.net, self.fact, self.foil = net, fact, foil

    def forward(self, images: Tensor) -> Tensor:
        """(N,) differences."""
        logits = self.net(images)
        return logits[:, self.fact] - logits[:, self.foil]


PARTS = {"labels": labels_page, "marks": marks_page, "repair": repair_page, "check": check_page, "atlas": atlas_page}
TITLES = {
    "labels": "5 % of the labels are wrong: area under the ROC curve of the suspects (95 % interval)",
    "marks": "Ten trainings with a mark on one class, ten without",
    "repair": "A network that calls what wears a square an 8: found and repaired",
    "atlas": "The atlas: of 1,000 photographs all 999 foils by where they are decided",
    "check": "A network in the place of another: when `check` alarms",
}


def main() -> None:
    """Make a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--biased", type=Path, help="weights of zoo:mnist_biased")
    asked = parser.parse_args()
    lines = [f"# {TITLES[asked.part]}", f"`python docs/results/audit.py {asked.part}`", ""]
    given = [asked.biased] if asked.part in ("repair", "check") else []
    for line in PARTS[asked.part](*given):
        print(line, flush=True)
        lines.append(line)
    (HERE / f"audit-{asked.part}.md").write_text(
        "\n".join(lines).replace(f"{asked.part}`\n", f"{asked.part}`\n", 1) + "\n"
    )


if __name__ == "__main__":
    main()
