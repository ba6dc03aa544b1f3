"""Make why-not-other-classes.md and contrastive-explanations.md: two papers, table by table and figure by figure.

    python docs/results/papers.py why-not-other-classes --data-root DIR --zoo runs/zoo

What a function finds stands on the page below its docstring. `--only FUNCTION` makes one anew; the others are taken
from runs/results/papers. Runs lie in runs/results and are resumed. Needed: mnist, fashion_mnist, flowers102,
imagenet_samples, squeezenet and contrastive_examples in DIR; the package of EfficientNet-Lite0; zoo:flowers102, here by
`ratherthan train zoo:flowers102 --epochs 4 --out runs/zoo`. Photographs that may not be passed on are shown by their
maps alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import getdoc
from pathlib import Path
from typing import Any

import numpy as np
import searches
import torch
from make import FOUR, PAPER, Study, measured
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

import ratherthan as rt
from ratherthan import data
from ratherthan.baselines import baseline_images
from ratherthan.evaluation.bench.tasks import TASKS, Setting
from ratherthan.evaluation.tables import written
from ratherthan.render.colours import diverging, overlay, resample, sequential, shared_limit
from ratherthan.render.figure import grid
from ratherthan.replication.distortions import distort
from ratherthan.replication.quality import compare_quality

HERE, RUNS = Path(__file__).parent, Path("runs/results")
mean = partial(searches.mean, digits=3)
BASELINES = {"blur": "blur", "model-mean": "zeros", "mean": "mean colour"}
EQUAL = {  # Table 3, Flower-102 on VGG-16, in the order of make.PAPER
    ("LA", "t1"): {"VGG-16": "715 756 830 367 243 655 746 353 252 647 752 371 269"},
    ("LA", "t2"): {"VGG-16": "285 646 748 391 145 667 751 444 243 651 728 435 232"},
    ("Grad-CAM", "t1"): {"VGG-16": "715 799 878 361 176 748 844 322 149 751 840 339 166"},
    ("Grad-CAM", "t2"): {"VGG-16": "285 596 812 358 120 651 825 398 160 619 818 388 153"},
}
SETS = {  # the set of a network, and the part that is asked about
    "squeezenet1_0": ("imagenet_samples", None), "efficientnet_lite0": ("imagenet_samples", None),
    "flowers102": ("flowers102", "test"), "VGG-shaped": ("fashion_mnist", "test"),
    "AlexNet-shaped": ("fashion_mnist", "test"),
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where things lie."""

    root: Path
    zoo: Path

    def model(self, name: str) -> rt.Model:
        """A network by what it is called here."""
        if name in SHAPES:
            return shaped(self, name)
        if name == "flowers102":
            return rt.load("zoo:flowers102", weights=self.zoo / "flowers102.safetensors")
        weights = self.root / "squeezenet/squeezenet1_0_caffe.safetensors" if name == "squeezenet1_0" else None
        return rt.load(f"zoo:{name}", weights=weights, class_names=self.root / "imagenet_samples/class_names.json")

    def data(self, name: str) -> data.Dataset:
        """The images that a network is asked about."""
        return data.load(SETS[name][0], self.root, SETS[name][1])

    def images(self, name: str, count: int) -> Tensor:
        """(n, C, H, W), evenly spread over its set, as the network sees them."""
        model, chosen = self.model(name), self.data(name).spread(count)
        return torch.stack([model.inputs.prepare(chosen[i][0]) for i in range(len(chosen))])

    def photograph(self, model: rt.Model, name: str) -> Tensor:
        """(1, 3, H, W), one of the photographs of the loss contrast's authors."""
        return model.preprocess([self.root / "contrastive_examples" / name])


# --------------------------------------------------------------------------------------------- helpers
def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown; numbers stand to the right."""
    lines = [list(map(str, row)) for row in rows]
    rule = ["---:" if lines[0][i].strip("*-+.(")[:1].isdecimal() else "---" for i in range(len(heads))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(heads), rule, *lines])


def alike(one: Tensor, other: Tensor) -> Tensor:
    """Cosine of maps (n, ...), (n, ...): (n,)."""
    return cosine_similarity(one.flatten(1).double(), other.flatten(1).double())


def off(one: Tensor, other: Tensor) -> str:
    """The largest difference of maps, relative to the largest value."""
    return f"{((one - other).abs().max() / other.abs().max()).item():.1e}"


def sheet(name: str, panels: Sequence[tuple[str, Any]], columns: int, cell: float) -> str:
    """Write a picture; returns the line that shows it."""
    path = HERE / f"{name}.png"
    grid(panels, columns, cell=cell).savefig(path, dpi=80)
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)
    return f"![{name}]({path.name})"


def coloured(values: Tensor, maps: Any = None, colours: Any = diverging) -> Any:
    """A map by itself, on the scale of `maps`."""
    return colours(resample(values.numpy(), (96, 96)), shared_limit([(values if maps is None else maps).numpy()]))


def tinted(picture: Any, values: Tensor) -> Any:
    """A photograph below its map."""
    return overlay(picture, values.numpy(), shared_limit([values.numpy()]))


@torch.no_grad()
def logits(model: rt.Model, images: Tensor) -> Tensor:
    """(n, classes)."""
    return torch.cat([model.logits(part) for part in images.split(8)])


def in_doubt(model: rt.Model, images: Tensor) -> Tensor:
    """Those whose second class is likelier than 0.1, as everywhere in section 5.2."""
    return images[logits(model, images).softmax(1).topk(2).values[:, 1] > 0.1]


def top(model: rt.Model, images: Tensor, count: int, methods: Sequence[str], contrasts: Sequence[str]) -> list[Any]:
    """Explanations of the likeliest classes, by method and contrast: attribution (n, count, h, w)."""
    return rt.compare(model, images, f"top{count}", None, methods, contrasts, batch_size=8)


# --------------------------------------------------------------------------------------------- networks trained here
def alexnet() -> nn.Sequential:
    """AlexNet in small, for 28 x 28 pixels: five convolutions, three linear maps; the last grid is 7 x 7."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(24, 48, 5, padding=2), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(48, 96, 3, padding=1), nn.ReLU(), nn.Conv2d(96, 64, 3, padding=1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), *_linear(),
    )  # fmt: skip


def vgg() -> nn.Sequential:
    """VGG in small: blocks of 3 x 3 convolutions, pooling behind each, three linear maps; the last grid is 7 x 7."""
    layers, before = list[nn.Module](), 1
    for channels in (16, 16, 0, 32, 32, 0, 64, 64, 64, 0):
        layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()] if channels else [nn.MaxPool2d(2)]
        before = channels or before
    return nn.Sequential(*layers, nn.Flatten(), *_linear())


def _linear() -> list[nn.Module]:
    return [nn.Linear(576, 256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]


SHAPES: dict[str, tuple[Callable[[], nn.Sequential], str]] = {
    "AlexNet-shaped": (alexnet, "11"), "VGG-shaped": (vgg, "15"),
}  # fmt: skip


def shaped(place: Place, name: str) -> rt.Model:
    """One of them, trained on half of Fashion-MNIST for an epoch, or as it was trained before."""
    build, layer = SHAPES[name]
    path, garments = RUNS / f"papers/{name}.safetensors", data.load("fashion_mnist", place.root, "train")
    if not path.exists():
        ((_, images, labels),) = data.batches(garments.spread(30_000), 30_000)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = build().to(memory_format=torch.channels_last)
            optimiser = torch.optim.Adam(network.parameters())
            steps = torch.randperm(len(images)).split(128)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=len(steps) + 1)
            for some in steps:
                optimiser.zero_grad()
                loss = nn.functional.cross_entropy(network(images[some]), labels[some])
                loss.backward()
                optimiser.step()
                schedule.step()
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    network = build().eval()
    network.load_state_dict(load_file(path))
    names = garments.class_names
    return rt.Model(network, names, channels=1, size=28, layer=layer, preprocessing="none", name=name)


# --------------------------------------------------------------------------------------------- weighted contrast
def figure_1(place: Place) -> str:
    """*Chelsea the cat* by Stefan van der Walt (CC0) instead of the paper's albatross.

    EfficientNet-Lite0, Gaussian blur of sigma 15. What is left when the negative part of a class's map is blurred
    should speak for that class, and what is left when the positive part is blurred should not. The original maps have
    no negative part here, so nothing is blurred. The weighted map of the second class does what the paper shows: p of
    t2 rises, that of t1 falls. That of the first does not: p of t1 falls a little. Over many images: Table 1.
    """
    model = place.model("efficientnet_lite0")
    image = model.preprocess(rt.example("chelsea"))
    blurred, picture = baseline_images(image, "blur"), image[0].permute(1, 2, 0).numpy()
    panels, rows, names = list[tuple[str, Any]](), list[list[str]](), ("", "")
    for why in top(model, image, 2, ["gradcam"], ["none", "weighted"]):
        names, p = tuple(why.fact_name(0, q) for q in range(2)), why.probabilities()[0, why.fact[0]]
        rows += [] if rows else [["as it is", "", *(f"{each:.3f}" for each in p)]]
        panels.append(("", np.ones_like(picture)) if panels else ("the photograph", picture))
        for name, values in zip(names, why.heatmap()[0], strict=True):
            panels.append((f"{written(why.contrast)}: {name}", tinted(picture, values)))
            for sign, gone in (("negative", values < 0), ("positive", values > 0)):
                altered = torch.where(gone, blurred, image)
                after = logits(model, altered).softmax(1)[0, why.fact[0]]
                rows.append([f"{written(why.contrast)} map of {name}", sign, *(f"{each:.3f}" for each in after)])
                panels.append((f"{sign} blurred:\n{after[0]:.2f}, {after[1]:.2f}", altered[0].permute(1, 2, 0).numpy()))
    heads = ["map", "sign that is blurred", f"p of t1, {names[0]}", f"p of t2, {names[1]}"]
    return f"{sheet('papers-figure-1', panels, 7, 1.3)}\n\n{table(heads, rows)}"


def proposition_1(place: Place) -> str:
    """w1 - w2 (softmax) are equivalent to w (sigmoid) under gradient descent: true at half the rate.

    The two rows move apart by twice the step. At the same rate, 0.1, the first step is off by as much as itself.
    Float64, 400 samples of 8 features, from zero; tests/test_contrast.py holds it.
    """
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(400, 8, generator=draw, dtype=torch.float64)
    told = x @ torch.randn(8, generator=draw, dtype=torch.float64)
    u, rows = (told + torch.randn(400, generator=draw, dtype=torch.float64) > 0).long(), []
    for rate in (0.1, 0.05):
        one, two = (torch.zeros(count, 8, dtype=torch.float64, requires_grad=True) for count in (1, 2))
        for step in range(1, 1001):
            by_sigmoid = nn.functional.binary_cross_entropy_with_logits((x @ one.T)[:, 0], u.double())
            by_softmax = nn.functional.cross_entropy(x @ two.T, 1 - u)
            one.data -= 0.1 * torch.autograd.grad(by_sigmoid, one)[0]
            two.data -= rate * torch.autograd.grad(by_softmax, two)[0]
            if step in (1, 10, 1000):
                rows.append([rate, step, f"{((two[0] - two[1] - one[0]).norm() / one.norm()).item():.1e}"])
    return table(["rate of the softmax network", "steps", "relative difference of w1 - w2 from w"], rows)


def doubled(place: Place, name: str) -> tuple[rt.Model, Tensor]:
    """A network of digits that ships, and 100 test digits, in float64."""
    model, digits = rt.load(f"zoo:{name}"), data.load("mnist", place.root, "test").spread(100)
    model.module.double()
    return model, torch.stack([digits[i][0] for i in range(len(digits))]).double()


def propositions_2_and_3(place: Place) -> str:
    """zoo:mnist in float64, 100 test digits.

    Integrated gradients are linear only while the foils' weights are held at the image. Towards p they change along the
    path, and that is another map.
    """
    model, images = doubled(place, "mnist")
    x = images.clone().requires_grad_()
    p = model.logits(x).softmax(1)
    t = p.argmax(1)
    p_t = p.gather(1, t[:, None])[:, 0]
    (by_autograd,) = torch.autograd.grad(p_t.sum(), x)
    weighted = rt.explain(model, images, method="gradient").attribution
    scaled = (p_t * (1 - p_t)).detach().view(-1, 1, 1, 1) * weighted
    head = "gradient of p_t by autograd, and p_t (1 - p_t) times the weighted gradient"
    rows = [["2", head, off(by_autograd, scaled)]]
    seed = nn.functional.one_hot(t, 10) - p.detach().scatter(1, t[:, None], 0) / (1 - p_t.detach())[:, None]
    for name in ("lrp", "la", "gradcam"):
        each = rt.explain(model, images, "each", method=name, contrast="none").attribution
        told = rt.explain(model, images, method=name).attribution
        summed = torch.einsum("nk,nk...->n...", seed, each)
        rows.append(["3", f"{name}: weighted map, and weighted sum of the ten classes' maps", off(told, summed)])
    methods = [rt.IntegratedGradients(n_steps=64, foil_weights=how) for how in ("frozen", "live")]
    frozen, live = (each.attribution for each in rt.compare(model, images, methods=methods))
    rows.append(["", "integrated gradients, weights held and not: mean cosine", mean(alike(frozen, live))])
    return table(["proposition", "compared", "largest relative difference"], rows)


def section_4(place: Place) -> str:
    """LRP = IxG in ReLU networks, and LRP = DeepLIFT = IxG = IG without biases: both hold, in float64, on 100 digits.

    With biases only the first does.
    """
    methods = {"LRP (z)": rt.LRP("z"), "DeepLIFT": rt.DeepLift(), "IG, 64 steps": rt.IntegratedGradients(n_steps=64)}
    rows = []
    for name, biases in (("mnist", "none"), ("mnist_paper", "in every layer")):
        model, images = doubled(place, name)
        told = rt.compare(model, images, None, None, ["ixg", *methods.values()], ["none", "weighted"])
        for i, label in enumerate(methods, 1):
            gaps = (off(told[2 * i + c].attribution, told[c].attribution) for c in range(2))
            rows.append([f"zoo:{name}", biases, label, *gaps])
    heads = ["network", "biases", "beside IxG", "largest relative difference, original maps", "weighted maps"]
    return table(heads, rows)


def figure_3(place: Place) -> str:
    """Epsilon 0.001, t the true class; SqueezeNet on 500 of the ImageNet samples, EfficientNet-Lite0 on 200.

    The paper has nine networks, 50,000 images, and bars without numbers. As there: weighted raises p_t and accuracy
    most, and y_t less than the original does. Then come max, mean and the original on SqueezeNet; on EfficientNet-Lite0
    max raises p_t least. Ten steps, too, on 64 photographs: [imagenet](imagenet-sign-perturbation.md). Flowers and
    digits: [flowers102](flowers102-sign-perturbation.md), [mnist](mnist-sign-perturbation.md).
    """
    rows, study, shown = [], Study("sign-perturbation", settings={"iterations": (1, 2)}), list[str]()
    for name, every, picture in (
        ("squeezenet1_0", 2, "papers-figure-3.png"), ("efficientnet_lite0", 5, "papers-figure-3e.png"),
    ):  # fmt: skip
        chosen = place.data(name).subset(range(0, 1000, every))
        run = measured(f"papers-sign-{name}", study, place.model(name), chosen, None)
        means = run.summary().set_index(["iterations", "measure", "contrast"])["mean"]
        gaps = [run.difference("weighted", other).set_index(["iterations", "measure"]) for other in ("none", "max")]
        for step in (1, 2):
            for measure, sign in (("probability", "p_t"), ("accuracy", "accuracy"), ("logit", "y_t")):
                changes = [f"{means[step, measure, contrast]:.3f}" for contrast in FOUR]
                best = None if measure == "logit" else max(changes)
                bold = [f"**{each}**" if each == best else each for each in changes]
                paired = (gap.loc[(step, measure)] for gap in gaps)
                told = [f"{each['mean']:+.3f} ({each['low']:+.3f} to {each['high']:+.3f})" for each in paired]
                rows.append([f"{name}, {len(chosen)}", step, sign, *bold, *told])
        run.plot().savefig(HERE / picture, dpi=75)
        shown.append(f"![Changes in y_t, p_t and accuracy]({picture})")
    ours = [*map(written, FOUR), "weighted - original, paired", "weighted - max, paired"]
    heads = ["network, photographs", "n", "change in", *ours]
    return "\n\n".join([table(heads, rows), *shown])


def figure_4(place: Place) -> str:
    """Flower-102 instead of birds, so this is Fig. 8, too; SqueezeNet, fine-tuned for four epochs, see Table 1.

    The table is about all of 500 test photographs (250 of the ImageNet samples) whose second class is likelier than
    0.1; six flowers are drawn, by their maps alone, the two maps of a pair on one scale. The original maps of the two
    classes are alike, most so on EfficientNet-Lite0, where the weighted ones are as often alike as opposed; that its
    other classes had more of the probability is not the reason (0.31 on average, SqueezeNet 0.30).
    """
    panels, rows = list[tuple[str, Any]](), []
    for name, count, methods in (
        ("flowers102", 500, ("gradcam", "la")), ("squeezenet1_0", 250, ("gradcam", "la")),
        ("efficientnet_lite0", 250, ("gradcam",)),
    ):  # fmt: skip
        model = place.model(name)
        images = in_doubt(model, place.images(name, count))
        found = top(model, images, 2, methods, ["none", "weighted"])
        panels = panels or sides(found)
        for why in found:
            same = alike(why.attribution[:, 0], why.attribution[:, 1])
            against = f"{(same < 0).double().mean():.0%}"
            rows.append([name, written(why.method), written(why.contrast), len(images), mean(same), against])
    heads = ["network", "method", "contrast", "photographs", "cosine of t1 and t2", "pairs with a negative one"]
    return f"{table(heads, rows)}\n\n{sheet('papers-figure-4', panels, 8, 0.95)}"


def sides(found: Sequence[Any]) -> list[tuple[str, Any]]:
    """The maps of t1 and t2 of six photographs, by each method and contrast."""
    panels = []
    for i, (why, q) in ((i, each) for i in range(6) for each in ((why, q) for why in found for q in range(2))):
        head = "" if i else f"{written(why.method)},\n{written(why.contrast)}\n"
        p, maps = why.probabilities()[i, why.fact[i, q]], why.attribution[i]
        panels.append((f"{head}t{q + 1}, {p:.2f}", coloured(maps[q], maps)))
    return panels


def cells(run: Any, paper: dict[tuple[str, str], dict[str, str]], contrasts: Sequence[str]) -> str:
    """A mask run: contrasts side by side, the best in bold, and the paper's original and weighted."""
    rows, summary, keys = [], run.summary(), ["method", "target", "baseline", "keep"]
    means = summary[summary["measure"] == "relative"].set_index([*keys, "contrast"])["mean"]
    networks = list(next(iter(paper.values()), {}))
    for method, target, baseline, keep in dict.fromkeys(key[:4] for key in means.index):
        shown = [f"{means[method, target, baseline, keep, contrast]:.3f}" for contrast in contrasts]
        best = (max if keep == "positive" else min)(shown)
        at = 1 + 4 * list(BASELINES).index(baseline) + 2 * (keep == "negative")
        theirs = (f".{n}" for name in networks for n in paper[written(method), target][name].split()[at : at + 2])
        ours = (f"**{each}**" if each == best else each for each in shown)
        rows.append([written(method), target, BASELINES[baseline], keep, *ours, *theirs])
    beside = (f"{name}, {which}" for name in networks for which in ("original", "weighted"))
    return table(["method", "class", "filled with", "kept", *map(written, contrasts), *beside], rows)


def counted(run: Any, other: str) -> str:
    """In how many cells of a mask run weighted is better than another contrast, by the paired interval."""
    found = run.difference("weighted", other)
    found = found[found["measure"] == "relative"]
    kept = found["keep"] == "positive"
    gap = found["mean"].where(kept, -found["mean"])
    low, high = found["low"].where(kept, -found["high"]), found["high"].where(kept, -found["low"])
    return (
        f"than {written(other)} in {(gap > 0).sum()} of {len(found)} cells ({(low > 0).sum()} with a paired interval "
        f"above zero, {(high < 0).sum()} below; mean gain {gap.mean():+.3f})"
    )


def masked(place: Place, name: str, limit: int, paper: Any = None, **settings: Any) -> str:
    """One network of Tables 1 and 2, with all four contrasts."""
    methods = ["gradcam"] if name == "efficientnet_lite0" else ["gradcam", "la"]
    study, model, images = Study("mask", settings={"preset": "paper"} | settings), place.model(name), place.data(name)
    run = measured(f"papers-mask-{name}", study, model, images, limit, contrasts=FOUR, methods=methods)
    right = logits(model, place.images(name, limit)).argmax(1) == torch.tensor(images.spread(limit).labels)
    took = run.to_frame()["position"].nunique()
    told = (
        f"**{name}**; {limit} images of {images.name}, of which it gets {right.double().mean():.1%} right, and {took} "
    )
    told += "have a second class likelier than 0.1."
    better = "; ".join(counted(run, other) for other in ("none", "mean", "max"))
    return f"{told} Weighted is better {better}.\n\n{cells(run, paper or {}, FOUR)}"


def table_1(place: Place) -> str:
    """VGG-16's place is taken by SqueezeNet, EfficientNet-Lite0, and a small network shaped like VGG.

    The latter, for 28 x 28 pixels, was trained here on 30,000 garments of Fashion-MNIST, once through. CUB-200, FGVC,
    Food-101 and Stanford Cars cannot be had here. With two contrasts and all images of Flower-102:
    [flowers102-mask](flowers102-mask.md) (another training, to the end of the recipe); here it was fine-tuned for four
    epochs, `ratherthan train zoo:flowers102 --epochs 4`. Of skin lesions: [ham10000-mask](ham10000-mask.md).
    EfficientNet-Lite0 ends in a mean and a linear map, so LA is Grad-CAM.

    On the two networks of photographs the weighted contrast does what the paper says, and max does it as well or
    better: the measure sets t1 against t2 alone, which is what max asks. On the small network the paper's result does
    not hold: weighted is better for the second class, filled with blur or the mean colour, most so under LA; for the
    first class the original is better in every cell.
    """
    flowers = masked(place, "flowers102", 400, PAPER)
    return "\n\n".join([flowers, masked(place, "efficientnet_lite0", 100), masked(place, "VGG-shaped", 1000)])


def table_2(place: Place) -> str:
    """AlexNet's place is taken by a small network of its shape for 28 x 28 pixels, trained here likewise.

    The paper's AlexNet on Flower-102 stands beside SqueezeNet in Table 1. Here the paper's result does not hold
    throughout: filled with blur or the mean colour, weighted is better for the second class; filled with zeros, which
    in a garment is black ground, it is often worse. Why Grad-CAM fits such networks badly: "Reversed" in the
    [README](README.md).
    """
    return masked(place, "AlexNet-shaped", 2000)


def table_3(place: Place) -> str:
    """Equal numbers of pixels, counted as appendix G says, and as the published code does; Flower-102, SqueezeNet.

    Keep positive replaces the n lowest pixels, n the larger number of negative ones of both maps; keep negative the n
    highest, n the smaller number of positive ones (`paper`). The code counts the sign that is kept, replaces from the
    other end, and draws the blur at random (`reference`, here with the threshold 0.1, too); both filled with blur.
    `sound`, which never replaces a pixel of the wrong sign, with all three fillings:
    [flowers102-equal-mask](flowers102-equal-mask.md).
    """
    parts, name = [], "flowers102"
    for preset, paper in (("paper", EQUAL), ("reference", {})):
        settings = {"preset": preset, "threshold": 0.1, "baselines": ("blur",)}
        study = Study("equal-mask", settings=settings)
        run = measured(f"papers-equal-mask-{preset}", study, place.model(name), place.data(name), 400)
        told = f"**Preset `{preset}`**, {run.to_frame()['position'].nunique()} of 400 test photographs."
        parts += [f"{told} Weighted is better {counted(run, 'none')}.", cells(run, paper, ["none", "weighted"])]
    return "\n\n".join(parts)


def section_5_3(place: Place) -> str:
    """Grad-CAM of the three likeliest classes of photographs whose second class is likelier than 0.1; cosines of maps.

    That the max maps of t1 and t2 are each other's negative is true by construction: each is the other's strongest
    foil. The map of t3 under max heeds t1 alone, under weighted every class by its probability. As the paper says, the
    mean map is the original one; max and weighted differ, and most for EfficientNet-Lite0 and where a third class is
    likely. On *Chelsea the cat* (CC0) the weighted map of the second class says nothing of the left eye, where max is
    against it.
    """
    rows, names = [], ("efficientnet_lite0", "squeezenet1_0")
    for name in names:
        model = place.model(name)
        seen = in_doubt(model, place.images(name, 250))
        none, average, most, weighted = (why.attribution for why in top(model, seen, 3, ["gradcam"], FOUR))
        third = logits(model, seen).softmax(1).topk(3).values[:, 2] > 0.1
        turned = f"{(alike(most[:, 0], -most[:, 1]) > 0.9999).double().mean():.0%}"
        told = [mean(alike(weighted[:, 0], -weighted[:, 1])), mean(alike(average[:, 0], none[:, 0]))]
        told += [mean(alike(most[:, q], weighted[:, q])) for q in range(3)]
        told += [f"{mean(alike(most[third, q], weighted[third, q]))}, {int(third.sum())}" for q in (0, 2)]
        rows.append([name, len(seen), turned, *told])
    model = place.model(names[0])
    image = model.preprocess(rt.example("chelsea"))
    picture, panels, found = image[0].permute(1, 2, 0).numpy(), [], top(model, image, 3, ["gradcam"], FOUR)
    for q in range(3):
        p = found[0].probabilities()[0, found[0].fact[0, q]]
        panels += [
            (f"{written(why.contrast)}:\n{why.fact_name(0, q)}, {p:.2f}", tinted(picture, why.heatmap()[0, q]))
            for why in found
        ]
    heads = [
        "network", "photographs", "max: t1 is the negative of t2", "weighted: t1 and the negative of t2",
        "mean and original, t1", "max and weighted, t1", "t2", "t3", "t1, where p_t3 > 0.1", "t3, where p_t3 > 0.1",
    ]  # fmt: skip
    return f"{table(heads, rows)}\n\n{sheet('papers-figure-5', panels, 4, 1.5)}"


def conclusion(place: Place) -> str:
    """y-based explanations localise better, p-based ones contrast better: with parts that are known by construction.

    [FoilBench](../bench.md)'s images: 60 mosaics of four photographs (EfficientNet-Lite0, Grad-CAM; P and Q are two of
    the four), and 200 pictures of four digits (a small network, LA; P's part is its own digit and the one that it
    shares with Q). Foils are all other classes. A map that knows nothing has 0.25 in the columns of shares; 0.5 in P's
    part of the digits. The first half of the claim holds for the digits by a little, and not for the photographs, where
    the weighted map localises better. The second half holds for the digits; in the mosaics the weighted map's negative
    relevance is shared out among all three other photographs, as its foils are all classes, and what it shows is in the
    last column.
    """
    rows = []
    for task, samples, method in (("mosaic", 60, "gradcam"), ("parts", 200, "la")):
        known, model, images = TASKS.find(task).build(Setting(samples, 0, RUNS / "papers", place.root))
        truth: Any = [known.truth[name] for name in images.ids]
        seen = torch.stack([images[i][0] for i in range(len(images))])
        pair = torch.tensor([[each.fact, each.foil] for each in truth])
        parts = np.stack([[(each.cells > 0) | each.shared, each.cells < 0] for each in truth])
        parts = np.kron(parts, np.ones((seen.shape[-1] // 2,) * 2))  # (n, 2, H, W)
        ours, theirs = torch.from_numpy(parts).unbind(1)
        for contrast in ("none", "weighted"):
            heat = rt.explain(model, seen, pair, None, method, contrast, batch_size=8).heatmap().double()
            gain, loss = heat[:, 0].clamp_min(0), (-heat[:, 0]).clamp_min(0)
            altered = torch.where(heat[:, :1] < 0, baseline_images(seen, "blur"), seen)
            hit = ours.flatten(1).gather(1, gain.flatten(1).argmax(1, keepdim=True))[:, 0]
            rows.append([
                task, written(contrast), mean((gain * ours).sum((1, 2)) / gain.sum((1, 2))), mean(hit),
                mean((loss * theirs).sum((1, 2)) / loss.sum((1, 2)).clamp_min(1e-30)),
                mean(alike(heat[:, 0], heat[:, 1])), mean(logits(model, altered).gather(1, pair).softmax(1)[:, 0]),
            ])  # fmt: skip
    heads = [
        "images", "map of P", "positive relevance in P's part", "highest pixel there", "negative relevance in Q's part",
        "cosine with the map of Q", "p_P / (p_P + p_Q), negative part blurred",
    ]  # fmt: skip
    return table(heads, rows)


def figure_6(place: Place) -> str:
    """Garments (VGG-shaped network), as birds cannot be had and photographs of flowers may not be shown.

    A garment in doubt, the weighted Grad-CAM maps of its two classes, and the two surest garments of either class. As
    in the paper, what the maps mark is to be compared by eye.
    """
    model, images, panels = place.model("VGG-shaped"), place.images("VGG-shaped", 1000), list[tuple[str, Any]]()
    p = logits(model, images).softmax(1)
    for i in (p.topk(2).values[:, 1] > 0.25).nonzero().flatten()[::7][:5].tolist():
        (why,) = top(model, images[i : i + 1], 2, ["gradcam"], ["weighted"])
        panels.append(("in doubt", images[i, 0].numpy()))
        for q in range(2):
            map_ = overlay(1 - images[i, 0].numpy(), why.heatmap()[0, q].numpy(), shared_limit([why.heatmap().numpy()]))
            panels.append((f"{why.fact_name(0, q)}?\n{p[i, why.fact[0, q]]:.2f}", map_))
        for q in range(2):
            surest = p[:, why.fact[0, q]].topk(2).indices.tolist()
            panels += [(f"{why.fact_name(0, q)}\n{p[j].max():.2f}", images[j, 0].numpy()) for j in surest]
    return sheet("papers-figure-6", panels, 7, 1.0)


# --------------------------------------------------------------------------------------------- loss contrast
# (top, bottom, left, right) on the 224 x 224 pixels that networks see; tests/test_real_images.py
HEAD, BODY, DOG, CAT = (40, 140, 120, 224), (70, 180, 0, 120), (5, 95, 70, 135), (115, 175, 130, 190)
AUTHORS = {
    "squeezenet1_0": "features.12.expand3x3_activation", "flowers102": "features.12.expand3x3_activation",
    "efficientnet_lite0": "activation",
}  # fmt: skip
PHOTOGRAPHERS = ("squeezenet1_0", "efficientnet_lite0")


def share(heat: Tensor, box: tuple[int, int, int, int]) -> str:
    """How much of the positive relevance lies in a box."""
    gain = heat.clamp_min(0)
    return f"{(gain[box[0] : box[1], box[2] : box[3]].sum() / gain.sum()).item():.2f}"


def spoonbill(place: Place) -> str:
    """Why spoonbill, rather than flamingo? The authors' photograph, which may not be shown: maps alone.

    Grad-CAM at the last layer with a grid. Boxes drawn by hand cover 0.21 (head and bill) and 0.26 (body) of the image.
    """
    rows, panels = [], list[tuple[str, Any]]()
    for name in PHOTOGRAPHERS:
        model = place.model(name)
        image = place.photograph(model, "water-bird.JPEG")
        for contrast in ("none", "loss", "weighted"):
            why = rt.explain(model, image, "spoonbill", "flamingo", contrast=contrast)
            heat, p = why.heatmap()[0], why.probabilities()[0, [129, 130]]
            told = f"{p[0]:.3f}, {p[1]:.3f}"
            rows.append([name, told, written(contrast), share(heat, HEAD), share(heat, BODY)])
            panels.append((f"{name.split('_')[0]},\n{written(contrast)}", coloured(heat)))
    heads = ["network", "p of spoonbill, flamingo", "contrast", "positive relevance on head and bill", "on the body"]
    return f"{table(heads, rows)}\n\n{sheet('papers-loss-1', panels, 6, 1.2)}"


def cat_and_dog(place: Place) -> str:
    """The first row, with SqueezeNet at the authors' layer, and with EfficientNet-Lite0, instead of VGG-16.

    The picture may not be shown, so columns (b) and (d) to (g) are drawn by their maps alone; (c), a representative
    image of Q, is named. The same with a photograph that may: [gallery](../gallery.md). Rows 2 to 4 (LANDMASS,
    CURE-TSR, Stanford Cars): the data cannot be had here. The paper says that the contrastive explanations of a
    majority of the 999 classes are the same; the first table measures it on signed maps. The second tells the positive
    relevance in boxes around the heads of the dog (0.12 of the image) and the cat (0.07).
    """
    rows, spread, panels = [], [], list[tuple[str, Any]]()
    samples = data.load("imagenet_samples", place.root)
    for name in PHOTOGRAPHERS:
        model, method = place.model(name), rt.GradCAM(layer=AUTHORS[name])
        image = place.photograph(model, "cat_dog.png")
        plain = rt.explain(model, image, method=method, contrast="none")
        loss = rt.explain(model, image, foil="each", method=method, contrast="loss")
        p, (fact, near) = plain.probabilities()[0], plain.logits[0].topk(2).indices.tolist()
        P, Q = (f"{loss.class_label(each).split(',')[0]}" for each in (fact, near))
        for preset, drawn in ((None, "signed"), ("prabhushankar2020", "as published")):
            maps, (average, variance) = loss.heatmap(preset)[0], loss.over_foils(preset)
            shown = {"Grad-CAM": plain.heatmap(preset)[0], f"Q: {Q}": maps[near], "P = Q": maps[fact]}
            shown["mean of 999"] = average[0]
            rows += [[name, drawn, label, share(each, DOG), share(each, CAT)] for label, each in shown.items()]
            panels += [(f"{name.split('_')[0]}\n{label}", coloured(each)) for label, each in shown.items()]
            panels.append((f"{drawn}\nvariance", coloured(variance[0], colours=sequential)))
        raw, others = loss.attribution[0], torch.arange(1000) != fact
        common = raw[others].mean(0, keepdim=True)
        same = alike(raw, common.expand_as(raw))
        told = [f"{same[others].median():.3f}", f"{(same[others] > 0.9).double().mean():.1%}"]
        told += [f"{same[each]:.3f}" for each in (near, fact)]
        spread.append([name, f"{P}, {p[fact]:.3f}", f"{Q}, {p[near]:.3f}", samples.ids[near], *told])
    heads = [
        "network", "P", "nearest Q", "(c) an image of Q (ImageNet)", "median cosine of 999 maps with their mean",
        "above 0.9", "nearest Q with the mean", "P = Q with the mean",
    ]  # fmt: skip
    boxes = table(["network", "drawn", "map", "dog's head", "cat's head"], rows)
    return f"{table(heads, spread)}\n\n{boxes}\n\n{sheet('papers-loss-3', panels, 10, 0.95)}"


def networks(place: Place) -> str:
    """Layers in torchvision's names.

    Trained are SqueezeNet, EfficientNet-Lite0, and what is fine-tuned or trained here. Of those, over eight images each
    and Q = P, the second and the third class: how far the loss contrast is from -(1 - p_Q) times the weighted contrast
    *for Q*; and, for the second class, how much it looks like y_P - y_Q, which it is only where P takes nearly all the
    probability.
    """
    rows = []
    for name in SETS:
        model, seen, worst = place.model(name), place.images(name, 8), 0.0
        method = rt.GradCAM(layer=AUTHORS.get(name, model.layer))
        ranked, pair = logits(model, seen).topk(3).indices, torch.empty(0)
        for rank in (0, 2, 1):
            foil = ranked[:, rank]
            loss = rt.explain(model, seen, foil=foil, method=method, contrast="loss", batch_size=4)
            p, maps = loss.probabilities().gather(1, foil[:, None]).view(-1, 1, 1), loss.attribution
            weighted = rt.explain(model, seen, foil, method=method, contrast="weighted", batch_size=4)
            worst = max(worst, float(off(maps, -(1 - p) * weighted.attribution)))
            pair = rt.explain(model, seen, None, ranked[:, 1], method, "weighted", batch_size=4).attribution
        size = " x ".join(map(str, maps.shape[-2:]))
        rows.append([name, method.layer, f"trained, {size}", f"{worst:.0e}", mean(alike(maps, pair))])
    untrained = "trained weights cannot be had here"
    theirs = {
        "AlexNet": "features.11", "VGG-16": "features.29", "VGG-19": "features.35", "ResNet-18, 34, 50, 101": "layer4",
        "DenseNet-161": "features.norm5",
    }  # fmt: skip
    rows += [[name, layer, untrained, "", ""] for name, layer in theirs.items()]
    heads = ["network", "layer", "weights, grid", "largest relative difference", "cosine with y_P - y_Q"]
    return table(heads, rows)


def image_quality(place: Place) -> str:
    """The lighthouse (i21 of TID2013) with two of its distortions, and the flowers (i07), compressed here by JPEG.

    Of the flowers no distorted version is here. The network imitates SSIM (`zoo:iqa`; the paper: DIQaM-FR, trained on
    people's scores, which cannot be had), on patches of 32 x 32 at stride 4 as the authors count them. Its scores are
    higher (the paper: 0.58 for the lighthouse): distortions that it never met it judges kindly. Maps alone are shown;
    on photographs that may be: [gallery](../gallery.md). Orange holds the score down, green holds it up.
    """
    folder, model, rows, panels = place.root / "contrastive_examples", rt.load("zoo:iqa"), [], list[tuple[str, Any]]()
    lighthouse, flowers = (data.to_tensor(Image.open(folder / f"{name}.png"), 3) for name in ("i21", "i07"))
    spoilt = {name: data.to_tensor(Image.open(folder / f"{name}.png"), 3) for name in ("i21_21_5", "i21_03_5")}
    spoilt["i07, JPEG 5"] = distort(flowers, "jpeg", 5, torch.Generator().manual_seed(0))
    for label, distorted in spoilt.items():
        reference = flowers if "JPEG" in label else lighthouse
        why, rather = compare_quality(model, reference, distorted, border="black")
        score, maps = why.logits.item(), rather.attribution[0].cpu()
        speaks, limit = maps.clamp_min(0), shared_limit([maps.clamp_min(0).numpy()])
        plain = why.attribution[0].numpy()
        panels.append((f"{label}\nwhy {score:.2f}?", diverging(resample(plain, (96, 128)), shared_limit([plain]))))
        for q, gain, map_ in zip(rather.foil[0].tolist(), speaks, maps, strict=True):
            colours, does = (diverging, "holds it down") if q > score else (sequential, "holds it up")
            panels.append((f"rather than\n{q:g}?", colours(resample(gain.numpy(), (96, 128)), limit)))
            told = [f"{(gain.sum() / map_.abs().sum()).item():.2f}", f"{alike(gain[None], speaks[-1:]).item():.2f}"]
            rows.append([label, f"{score:.2f}", f"{q:g}", does, *told])
    heads = ["image", "score P", "Q", "what is drawn", "share of it that speaks for P", "cosine with that of Q = 1"]
    return f"{table(heads, rows)}\n\n{sheet('papers-loss-4', panels, 5, 1.2)}"


# --------------------------------------------------------------------------------------------- the pages
Item = Callable[[Place], str] | str
PAGES: dict[str, tuple[str, dict[str, Item]]] = {
    "why-not-other-classes": (
        '"Why Not Other Classes?", table by table (Wang and Wang 2022)',
        {
            "Fig. 1": figure_1, "Fig. 2": "A diagram.", "Proposition 1": proposition_1,
            "Propositions 2 and 3": propositions_2_and_3, "Section 4": section_4, "Section 5.1, Fig. 3": figure_3,
            "Fig. 4 and 8": figure_4, "Table 1": table_1, "Section 5.3, Fig. 5": section_5_3,
            "Section 6": conclusion, "Fig. 6": figure_6, "Table 2": table_2, "Table 3": table_3,
            "Fig. 7, 9 and 10": "Maps of FGVC, Food-101 and Stanford Cars: the data cannot be had here.",
        },
    ),
    "contrastive-explanations": (
        '"Contrastive Explanations in Neural Networks", figure by figure (Prabhushankar et al. 2020)',
        {
            "Fig. 1": spoonbill, "Fig. 2": "A diagram.", "Fig. 3": cat_and_dog, "Section 4.1, the networks": networks,
            "Fig. 4": image_quality,
        },
    ),
}  # fmt: skip


def section(item: Item) -> list[str]:
    """What stands below a heading."""
    if isinstance(item, str):
        return [item]
    found = kept(item)
    text = (getdoc(item) or "").replace("\n\n", "\0").replace("\n", " ").replace("\0", "\n\n")
    return [f"`--only {item.__name__}`", text, found.read_text().strip() if found.exists() else "Not made yet."]


def kept(item: Callable[[Place], str]) -> Path:
    """Where lies what it found."""
    return RUNS / f"papers/{item.__name__}.md"


def main() -> None:
    """Make what is missing of a page, or one item of it, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", choices=PAGES)
    parser.add_argument("--data-root", required=True, type=Path)
    parser.add_argument("--zoo", required=True, type=Path)
    parser.add_argument("--only", metavar="FUNCTION", help="make this one anew, e.g. figure_3")
    given = parser.parse_args()
    torch.set_num_threads(1)
    title, items = PAGES[given.page]
    place = Place(given.data_root, given.zoo)
    for item in (each for each in items.values() if not isinstance(each, str)):
        if given.only == item.__name__ or not (given.only or kept(item).exists()):
            kept(item).parent.mkdir(parents=True, exist_ok=True)
            kept(item).write_text(item(place))
            print(item.__name__, flush=True)
    command = f"`python docs/results/papers.py {given.page} --data-root DIR --zoo runs/zoo`"
    about = f"{command} makes this page, in the order of the paper; with the words below a heading, that part of it."
    parts = [f"# {title}", about, *(f"## {head}\n\n" + "\n\n".join(section(item)) for head, item in items.items())]
    (HERE / f"{given.page}.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
