"""Make the pages on searches in this folder: what would have to change, and what is enough.

    python docs/results/searches.py deepex --data-root DIR --zoo runs/zoo

The networks and manifolds are those that `ratherthan train zoo:NAME --data DIR --out runs/zoo` makes. Runs are kept in
runs/results and are resumed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import ratherthan as rt
from ratherthan import Counterfactuals, Localisation, Run, Superpixels, data, evaluate
from ratherthan.baselines import quietest
from ratherthan.render.colours import overlay
from ratherthan.replication.cdeepex import EIGHTS, SQUARE
from ratherthan.search.attributes import worded
from ratherthan.search.counterfactual import FRAMES
from ratherthan.superpixels import default_superpixels, segment

HERE = Path(__file__).parent
SIZE = {"mnist_vae": "VAE", "mnist_gan": "GAN", "mnist_biased_vae": "VAE", "fashion_mnist_vae": "VAE"}


@dataclass(frozen=True)
class Place:
    """Where things lie, and how much of them is used."""

    root: Path
    zoo: Path
    limit: int | None

    def weights(self, name: str) -> Path | None:
        """Weights trained here; None: those in the package."""
        path = self.zoo / f"{name}.safetensors"
        return path if path.is_file() else None

    def model(self, name: str) -> rt.Model:
        """A classifier of the zoo."""
        return rt.load(f"zoo:{name}", weights=self.weights(name))

    def manifold(self, name: str) -> rt.Manifold:
        """A generative model of the zoo."""
        return rt.Manifold.load(name, self.weights(name))

    def trained(self, name: str) -> str:
        """How long something was trained that does not ship in the package, by its card."""
        settings = json.loads((self.zoo / f"{name}.json").read_text())["settings"]
        return f"`{name}` ({settings['epochs']} of {settings['recipe']['epochs']} epochs)"

    def run(self, page: str, experiment: Any, model: rt.Model, images: data.Dataset, limit: int, **more: Any) -> Run:
        """Run an experiment, or go on with it."""
        limit = min(limit, self.limit or limit)
        return evaluate(
            experiment, model, images, out=Path("runs/results") / page, limit=limit, resume=True, shard_size=64,
            progress=lambda done, total: print(f"{page}: {done} of {total}", flush=True), **more,
        )  # fmt: skip


def write(page: str, study: Callable[[Place], None], title: str, parts: Sequence[str]) -> None:
    """Write a page, with the command that makes it."""
    command = f"`python docs/results/searches.py {study.__name__} --data-root DIR --zoo runs/zoo`"
    (HERE / f"{page}.md").write_text("\n\n".join([f"# {title}", command, *parts]) + "\n")


def shares(runs: dict[str, Run], measures: Sequence[str]) -> str:
    """A table: a row per run and method, a column per measure, means with their intervals."""
    lines = [f"| search | n | {' | '.join(measures)} |", "| --- " * (len(measures) + 2) + "|"]
    for label, run in runs.items():
        summary = run.summary()
        for method in summary["method"].unique():
            cells = []
            of_method = summary[summary["method"] == method].set_index("measure")
            for measure in measures:
                row = of_method.loc[measure]
                cells.append(f"{row['mean']:.3f} ({row['low']:.3f} to {row['high']:.3f})" if row["n"] else "")
            lines.append(f"| {label}, {method.split('(')[0]} | {of_method['n'].max()} | {' | '.join(cells)} |")
    return "\n".join(lines)


def mean(values: Any, digits: int = 2) -> str:
    """A mean with its 95 % bootstrap interval."""
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    if not len(values):
        return ""
    drawn = values[np.random.default_rng(0).integers(len(values), size=(1000, len(values)))].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{values.mean():.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def odds(model: rt.Model, images: Tensor, pair: tuple[int, int]) -> Tensor:
    """(N,): log-odds of the foil against the fact."""
    with torch.no_grad():
        logits = model.logits(images)
    return logits[:, pair[1]] - logits[:, pair[0]]


def third(found: rt.Counterfactual) -> Tensor:
    """(N,): whether another class than fact and foil is the likeliest in the answer."""
    top = found.example_logits[:, 0].argmax(1)
    return (top != found.fact) & (top != found.reached[:, 0])


def drawn(image: Tensor, change: Tensor) -> np.ndarray[Any, Any]:
    """An image in grey, what is added in red, what is removed in blue; each map by its own largest value."""
    values = change.sum(0).cpu().numpy()
    return overlay(image.permute(1, 2, 0).cpu().numpy(), values, float(np.abs(values).max()) or 1.0)


def sheet(name: str, rows: Sequence[Sequence[tuple[Any, str]]], cell: float = 1.0, dpi: int = 80) -> str:
    """Draw rows of pictures with their titles, (H, W[, 3]) or a tensor (1, H, W), and return what shows them."""
    wide = max(map(len, rows))
    figure = Figure((cell * wide, (cell + 0.18) * len(rows)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)  # type: ignore[union-attr]
    for line, panels in zip(rows, figure.subplots(len(rows), wide, squeeze=False), strict=True):
        for axes in panels:
            axes.set_axis_off()
        for (picture, title), axes in zip(line, panels, strict=False):
            shown = picture[0].cpu() if isinstance(picture, Tensor) else picture
            axes.imshow(shown, cmap="gray", vmin=0, vmax=1)
            axes.set_title(title, fontsize=7, pad=2)
    save(figure, HERE / f"{name}.png", dpi)
    return f"![]({name}.png)"


def curves(runs: dict[str, Run], path: Path) -> None:
    """Fig. 5b: mean probability of P, Q and the likeliest other class on the way, a panel per search."""
    panels = [
        (f"{label}, {name.split('(')[0]}", rows)
        for label, run in runs.items()
        for name, rows in run.to_frame().groupby("method")
    ]
    figure = Figure((2.5 * len(panels), 2.4), layout="constrained")
    for axes, (title, rows) in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        for name, label in (("fact", "P"), ("foil", "Q"), ("third", "likeliest other")):
            axes.plot([rows[f"path_{name}_{t:02d}"].mean() for t in range(FRAMES)], label=label)
        axes.set_title(title, fontsize=8)
        axes.set_xlabel("along the way", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("mean probability", fontsize=8)
    figure.axes[0].legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=100)


# --------------------------------------------------------------------------------------------- 1
def deepex(place: Place) -> None:
    """CDeepEx and xGEM on MNIST, with the classifier of the paper."""
    model, images = place.model("mnist_paper"), data.load("mnist", place.root, "test")
    judged = {"second": place.model("mnist"), "reference": data.load("mnist", place.root, "train")}
    runs = {}
    for manifold, foil, limit in (
        ("mnist_vae", "runner-up", 400),
        ("mnist_vae", "random", 150),
        ("mnist_gan", "runner-up", 60),
    ):
        generator = place.manifold(manifold)
        methods = [rt.CDeepEx(generator), rt.XGEM(generator)]
        label = f"{SIZE[manifold]}, {foil}"
        runs[label] = place.run(
            f"deepex-{manifold}-{foil}", Counterfactuals(foil=foil, **judged), model, images, limit, methods=methods
        )
    write(
        "deepex",
        deepex,
        "The nearest image on the boundary: CDeepEx and xGEM on MNIST",
        [
            shares(runs, ["found", "boundary", "third", "p_fact", "p_foil", "p_third"]),
            shares(runs, ["distance", "l1", "l2", "sparsity", "im1", "im2", "second"]),
            "![Probabilities along the way](deepex.png)",
        ],
    )
    curves(runs, HERE / "deepex.png")


# --------------------------------------------------------------------------------------------- 2
ROWS, COLUMNS = SQUARE
BOX = [[COLUMNS.start / 28, ROWS.start / 28, COLUMNS.stop / 28, ROWS.stop / 28]]


def biased(place: Place) -> None:
    """The network that saw a grey square on every 8 (cdeepex section 4.1): who finds the square?"""
    model, images = place.model("mnist_biased"), data.load("mnist_biased", place.root, "plain")
    manifolds = {name: place.manifold(name) for name in ("mnist_biased_vae", "mnist_squares_vae")}
    why_not = Localisation(regions={"*": BOX}, why_not=8)
    plain = ["gradcam", "ig", "lime", "pda"]
    maps = place.run(
        "biased-maps", why_not, model, images, 100,
        methods=[*plain, *map(rt.Scan, plain)], contrasts=["none", "weighted"],
    )  # fmt: skip
    kinds = ((rt.CDeepEx, "mnist_squares_vae"), (rt.XGEM, "mnist_squares_vae"), (rt.CDeepEx, "mnist_biased_vae"))
    methods = [kind(manifolds[name]) for kind, name in kinds]
    searched = place.run("biased-search", why_not, model, images, 100, methods=methods)
    tables = [searched.to_markdown()]
    if place.weights("mnist_squares_gan"):
        of_gan = rt.CDeepEx(place.manifold("mnist_squares_gan"))
        adversarial = place.run("biased-gan", why_not, model, images, 100, methods=[of_gan])
        tables += [
            f"The manifold of the paper, a GAN, {place.trained('mnist_squares_gan')}:",
            adversarial.to_markdown(),
        ]
    vae, own = map(place.trained, ("mnist_squares_vae", "mnist_biased_vae"))
    seen = f"{vae} has seen squares on all digits, {own} on 8s only."
    write(
        "biased",
        biased,
        "A network with a known bias: is the square found?",
        [accuracies(place, model), seen, *tables, maps.to_markdown(), "![](biased.png)"],
    )
    digits = torch.stack([images[i][0] for i in (3, 2, 1, 18, 4, 7)])
    rt.counterfactual(model, digits, foil=8, method=methods[0]).plot().savefig(HERE / "biased.png", dpi=80)


def accuracies(place: Place, model: rt.Model) -> str:
    """What the network makes of plain digits, and of digits with the square."""
    plain, labels = predictions(model, data.load("mnist_biased", place.root, "plain"))
    marked, _ = predictions(model, data.load("mnist_biased", place.root, "marked"))
    eights = labels == 8
    return (
        f"Of the plain test digits the network recognises {share((plain == 8)[eights])} of the 8s (paper: 5 %) and "
        f"{share((plain == labels)[~eights])} of the others; with the square {share((marked == 8)[~eights])} of "
        "the others are called 8 (paper: 77 %)."
    )


def predictions(model: rt.Model, images: data.Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted and true classes."""
    with torch.no_grad():
        pairs = [(model.logits(pictures).argmax(1), labels) for _, pictures, labels in data.batches(images, 500)]
    return torch.cat([seen for seen, _ in pairs]), torch.cat([labels for _, labels in pairs])


def share(chosen: torch.Tensor) -> str:
    """How many of them, in percent."""
    return f"{chosen.double().mean().item():.1%}"


# --------------------------------------------------------------------------------------------- 3
def eights(place: Place) -> None:
    """Networks that know an 8 not at all, a little, more, and well (cdeepex section 6.2, Fig. 10)."""
    images, generator = data.load("mnist", place.root, "test"), place.manifold("mnist_vae")
    not_8 = images.subset([i for i, label in enumerate(images.labels) if label != 8])
    runs, pictures, samples = {}, [], torch.stack([not_8[i][0] for i in (0, 18, 30)])
    for name in (*(f"mnist_eights_{percent}" for percent in EIGHTS), "mnist_paper"):
        model = place.model(name)
        accuracy = share((predictions(model, images)[0] == 8)[torch.tensor(images.labels) == 8])
        method = rt.CDeepEx(generator, restarts=4)
        experiment = Counterfactuals(foil=8, second=place.model("mnist"))
        runs[f"{accuracy} of 8s"] = place.run(f"eights-{name}", experiment, model, not_8, 64, methods=[method])
        found = rt.counterfactual(model, samples, foil=8, method=method)
        pictures.append((f"{accuracy} of 8s", found.examples[:, :3]))
    measures = ["found", "agreement", "diversity", "second", "l1", "distance"]
    write(
        "eights",
        eights,
        "Does the answer come from the network? 8s known by degrees",
        [shares(runs, measures), "![](eights.png)"],
    )
    figure = Figure((9, 3.2), layout="constrained")
    for axes, (title, found) in zip(figure.subplots(1, len(pictures)), pictures, strict=True):
        rows = [torch.cat([sample, *answers], 2) for sample, answers in zip(samples, found, strict=True)]
        axes.imshow(torch.cat(rows, 1)[0].cpu(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(f"{title}\ninput, three answers", fontsize=8)
        axes.set_axis_off()
    figure.savefig(HERE / "eights.png", dpi=100)


# --------------------------------------------------------------------------------------------- 4
def fashion(place: Place) -> None:
    """Two networks of different kind, T-shirt to shirt and trouser to coat (cdeepex section 4.2, Fig. 7)."""
    images, generator = data.load("fashion_mnist", place.root, "test"), place.manifold("fashion_mnist_vae")
    networks = {name: place.model(name) for name in ("fashion_mnist", "fashion_mnist_resnet")}
    runs, rows = {}, []
    for (name, model), other in zip(networks.items(), reversed(networks.values()), strict=True):
        for fact, foil in ((0, 6), (1, 4)):
            seen = predictions(model, images)[0]
            garments = images.subset([i for i, label in enumerate(images.labels) if label == fact and seen[i] == fact])
            methods = [rt.CDeepEx(generator), rt.XGEM(generator)]
            label = f"{name}, {images.class_names[fact]} to {images.class_names[foil]}"
            runs[label] = place.run(
                f"fashion-{name}-{fact}-{foil}", Counterfactuals(foil=foil, second=other), model, garments, 100,
                methods=methods,
            )  # fmt: skip
            samples = torch.stack([garments[i][0] for i in (0, 1, 2)])
            found = [rt.counterfactual(model, samples, foil=foil, method=method).example for method in methods]
            rows.append((label, torch.stack([samples, *found], 1)))
    measures = ["found", "boundary", "third", "distance", "l1", "second"]
    write(
        "fashion-searches",
        fashion,
        "Two networks, two questions: Fashion-MNIST",
        [shares(runs, measures), "![](fashion-searches.png)"],
    )
    figure = Figure((8, 6), layout="constrained")
    for axes, (label, found) in zip(figure.subplots(2, 2).flat, rows, strict=True):
        axes.imshow(torch.cat([torch.cat(list(row), 2) for row in found], 1)[0].cpu(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(f"{label}\ninput, CDeepEx, xGEM", fontsize=8)
        axes.set_axis_off()
    figure.savefig(HERE / "fashion-searches.png", dpi=90)


# --------------------------------------------------------------------------------------------- CEM-MAF
def pertinent(place: Place) -> None:
    """Tables 1 and 6 of CEM-MAF: what is enough, on clothes and shoes, and on lesions where there is a network."""
    lesions = ["ham10000"] if place.weights("ham10000") else []
    parts = {name: enough(place, name) for name in ("fashion_clothes", "fashion_shoes", *lesions)}
    few = "; ".join(f"of {name} {share}" for name, (share, _) in parts.items())
    lead = f"Fewer than three features, with a margin of 0 and with the paper's 5 logits: {few}."
    why = (
        "`kept` of CEM-MAF is 1 by construction. `correlation` is in an order that was fixed before the part was found."
    )
    pages = [text for name, (_, page) in parts.items() for text in (f"## {name}", page)]
    write("pertinent", pertinent, "What is enough: pertinent positives", [lead, why, *pages])


def enough(place: Place, name: str) -> tuple[str, str]:
    """The shares of parts with fewer than three features, and the table."""
    none, paper, images = rt.CEMMAFPositive(kappa=0.0), rt.CEMMAFPositive(), data.load(name, place.root, "test")
    if name == "ham10000":  # large images, so fewer of them
        model, count, shown = place.model(name), 16, [none, paper, rt.Lime(Superpixels("slic", 200)), "gradcam", "la"]
    else:  # the network that ships, asked about these classes only
        model, count = among(place.model("fashion_mnist"), images.class_names), 100
        several = rt.CEMMAFPositive(kappa=2.0, baselines=(0.0, 0.25, "mean"))
        shown = [none, paper, rt.CEMMAFPositive(confidence=0.9), several, rt.Lime("pixels"), "gradcam", "la"]
    run = place.run(f"pertinent-{name}", "pertinent", model, images, count, methods=shown)
    few = run.to_frame().groupby("method")["fewer"].mean()
    return f"{few['cem-maf(kappa=0.0)']:.0%} and {few['cem-maf']:.0%}", run.to_markdown()


def among(model: rt.Model, names: Sequence[str] | None) -> rt.Model:
    """The same network, asked about some of its classes."""
    known, names = list(model.class_names or ()), tuple(names or ())
    chosen = [known.index(name) for name in names]
    return rt.Model(model.module, names, inputs=model.inputs, forward=lambda module, x: module(x)[:, chosen])


GALLERY = 6  # pictures of each subject


def negatives(place: Place) -> None:
    """Pertinent negatives of CEM-MAF beside CEM's, on clothes, shoes and lesions (cem-maf Fig. 1 and 7)."""
    runs, notes, sheets = {}, [], []
    for name, manifold, count in (
        ("fashion_clothes", "fashion_mnist_dip", 40),
        ("fashion_shoes", "fashion_mnist_dip", 40),
        ("ham10000", "ham10000_dip", 20),
    ):
        if name == "ham10000" and place.weights(name) is None:
            continue
        model, images, generator = place.model(name), data.load(name, place.root, "test"), place.manifold(manifold)
        dark = 0.0 if name != "ham10000" else "mean"  # what CEM takes for no information
        methods = [rt.CEMMAF(generator), rt.CEM(baseline=dark)]
        runs[name] = place.run(f"negatives-{name}", Counterfactuals(foil="any"), model, images, count, methods=methods)
        notes += [f"\n{name}:\n", *(f"- {each.names[0]}: {each.evidence}" for each in worded(model, generator)), ""]
        some = typical(model, images)
        found = [rt.counterfactual(model, some, method=method) for method in methods]
        enough = [rt.pertinent_positive(model, some, method=how) for how in ("cem-maf", rt.CEMPositive(baseline=dark))]
        sheets.append((name, found, enough, [pointed_at(model, some, *each) for each in MAPS]))
        notes += [f"- image {i + 1}: {found[0].text(i)}" for i in range(len(some))]
    measures = ["found", "foil", "gained", "lost", "distance", "density", "l1", "sparsity"]
    pages = [
        shares(runs, measures),
        "\n\n".join(f"![](negatives{each}.png)" for each in ("", "-lesions")[: len(sheets) - 1]),
        "What moves along the coordinates that have names was measured; and what is said of the images shown:",
        "\n".join(notes),
    ]
    write("negatives", negatives, "What must stay absent: pertinent negatives", pages)
    for file, shown in (("negatives", sheets[:2]), ("negatives-lesions", sheets[2:])):
        if not shown:
            continue
        figure = Figure((9 * len(shown), 9), layout="constrained")
        for part, sheet in zip(figure.subfigures(1, len(shown), squeeze=False)[0], shown, strict=True):
            gallery(part, *sheet)
        save(figure, HERE / f"{file}.png", dpi=75)


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write a picture in 256 colours, which is enough of them and a small file."""
    figure.savefig(path, dpi=dpi)
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


def typical(model: rt.Model, images: data.Dataset) -> torch.Tensor:
    """The first image of each class that the network recognises, in turn."""
    seen = predictions(model, images)[0]
    first: dict[int, list[int]] = {}
    for i, label in enumerate(images.labels):
        if seen[i] == label:
            first.setdefault(label, []).append(i)
    turns = [rows[turn] for turn in range(GALLERY) for _, rows in sorted(first.items()) if turn < len(rows)]
    return torch.stack([images[i][0] for i in turns[:GALLERY]])


MAPS = (("LIME", rt.Lime, 0.0), ("Grad-CAM", rt.GradCAM, 0.5))  # and above which share of the maximum they point


def pointed_at(model: rt.Model, images: torch.Tensor, name: str, kind: Any, above: float) -> list[Any]:
    """Of each image what a map points at, on the ground of CEM-MAF's positives, and how many features that are."""
    how = default_superpixels(images)
    labels, ground = segment(images, how), quietest(images, model.logits)[0]
    heat = rt.explain(model, images, method=kind(how) if kind is rt.Lime else kind(), contrast="none").heatmap()
    relevance = torch.zeros(len(images), int(labels.max()) + 1)
    relevance.scatter_reduce_(1, labels.flatten(1), heat.flatten(1), "mean", include_self=False)
    kept = relevance > (above * relevance.amax(1, keepdim=True)).clamp_min(0)
    shown = torch.where(kept.gather(1, labels.flatten(1)).view_as(labels).unsqueeze(1), images, ground)
    counts = zip(kept.sum(1).tolist(), (labels.flatten(1).amax(1) + 1).tolist(), strict=True)
    said = [f"{features} of {count}\n({name})\n" for features, count in counts]
    return list(zip(shown, said, strict=True))


def gallery(
    figure: Any, name: str, negative: list[rt.Counterfactual], positive: list[rt.PertinentPositive], maps: list[Any]
) -> None:
    """A row for each image: itself, the negatives and the positives of both methods, and what maps point at."""
    figure.suptitle(name)
    near = negative[0]
    for row, axes in enumerate(figure.subplots(len(near), 5 + len(maps), squeeze=False)):
        added = [", ".join(f"+ {each}" for each in near.added(row)), ""]
        shown = [(near.images[row], f"{label(near, near.fact[row])}\n\n")]
        shown += [
            (each.example[row], f"{label(each, each.reached[row, 0])}\n({each.method})\n{words}")
            for each, words in zip(negative, added, strict=True)
        ]
        shown += [
            (each.example[row], f"{each.features[row]} of {each.feature_count[row]}\n({each.method})\n")
            for each in positive
        ]
        shown += [each[row] for each in maps]
        for panel, (picture, title) in zip(axes, shown, strict=True):
            panel.imshow(picture.permute(1, 2, 0).squeeze(2).clamp(0, 1).cpu(), cmap="gray", vmin=0, vmax=1)
            panel.set_title(title, fontsize=6.5)
            panel.set_axis_off()


def label(found: rt.Counterfactual, index: torch.Tensor) -> str:
    """The name of a class."""
    return (found.class_names or ())[int(index)]


STUDIES: dict[str, Callable[[Place], None]] = {
    study.__name__: study for study in (deepex, biased, eights, fashion, pertinent, negatives)
}


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--zoo", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--limit", type=int, help="at most so many images")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    STUDIES[given.study](Place(given.data_root, given.zoo, given.limit))


if __name__ == "__main__":
    main()
