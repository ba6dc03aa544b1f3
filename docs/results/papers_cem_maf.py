"""Make cem-maf.md: the tables and figures of CEM-MAF and of its supplement, in their order, ours beside theirs.

    python docs/results/papers_cem_maf.py --data-root DIR --zoo runs/zoo

The networks and manifolds are those that `ratherthan train zoo:NAME --data-root DIR --out runs/zoo` makes: for garments
fashion_clothes, fashion_shoes and fashion_mnist_dip, for lesions ham10000 and ham10000_dip; without the last two the
page says so. Runs are kept in runs/results and are resumed. Figures 1b, 4b and 7 are `searches.py negatives`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from searches import Place, save, table, typical
from torch import Tensor, nn

import ratherthan as rt
from ratherthan import Counterfactuals, Run, Superpixels, data
from ratherthan.evaluation.pertinent import Pertinent
from ratherthan.search.attributes import LatentCoordinate, worded
from ratherthan.zoo import registry as zoo

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Subject:
    """A data set of the paper, and what is asked about it.

    Attributes:
        network: Its classifier in the zoo, and the data set.
        manifold: Its DIP-VAE.
        off: What a feature that is left out shows in the paper's preset: black for garments, where the paper calls zero
            "no information", mid grey for lesions, as in the published code.
        fine: What its images are divided into.
        count: Images of the table.
        slow: Images for the paper's presets, which take 900 looks for a positive and 9,000 for a negative.
        paper: Features, share that keeps the class and correlation of CEM-MAF, LIME and Grad-CAM, as printed.
    """

    network: str
    manifold: str
    off: float
    fine: Any
    count: int
    slow: int
    paper: Mapping[str, tuple[str, str, str]]


CLOTHES = Subject(
    "fashion_clothes", "fashion_mnist_dip", 0.0, "pixels", 16, 8,
    {"CEM-MAF": ("62.7", "100", "-.766"), "LIME": ("226.2", "90", "-.787"), "Grad-CAM": ("344.0", "100", ".077")},
)  # fmt: skip
SHOES = Subject(
    "fashion_shoes", "fashion_mnist_dip", 0.0, "pixels", 16, 8,
    {"CEM-MAF": ("15.7", "100", "-.947"), "LIME": ("194.1", "100", "-.800"), "Grad-CAM": ("202.3", "100", "-.500")},
)  # fmt: skip
LESIONS = Subject(
    "ham10000", "ham10000_dip", 0.5, Superpixels("slic", 200), 12, 12,
    {"CEM-MAF": ("66.7", "100", "-.976"), "LIME": ("108.3", "100", "-.986"), "Grad-CAM": ("95.6", "50", "-.772")},
)  # fmt: skip


# --------------------------------------------------------------------------------------------- tables
def cell(line: Any, digits: int) -> str:
    """A mean and its interval, in percent where there are no digits."""
    if not line["n"]:
        return ""
    mean, low, high = (line[key] * (1 if digits else 100) for key in ("mean", "low", "high"))
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def measured(run: Run, names: Sequence[str], digits: Mapping[str, int]) -> dict[str, list[str]]:
    """The cells of each search, by a name for each in the order in which they were asked."""
    summary = run.summary()
    found = {}
    for name, method in zip(names, summary["method"].unique(), strict=True):
        lines = summary[summary["method"] == method].set_index("measure")
        found[name] = [str(lines["n"].max()), *(cell(lines.loc[each], digits[each]) for each in digits)]
    return found


def enough(place: Place, subject: Subject) -> str:
    """A data set's rows of Tables 1 and 6: which part is enough?"""
    model, images = place.model(subject.network), data.load(subject.network, place.root, "test")
    fast: dict[str, Any] = {
        "CEM-MAF, default (5 logits)": rt.CEMMAFPositive(),
        "CEM-MAF, default search, margin 0": rt.CEMMAFPositive(kappa=0.0),
        "LIME, positive weights": rt.Lime(subject.fine),
        "Grad-CAM, above half of its maximum": "gradcam",
    }
    slow = {"CEM-MAF, as in the paper": rt.CEMMAFPositive(preset="paper", baseline=subject.off)}
    name, digits = subject.network, {"features": 1, "kept": 0, "correlation": 3, "fewer": 0, "p_fact": 2}
    rows: dict[str, list[str]] = {}
    for page, experiment, methods, count in (
        ("paper", Pertinent(), slow, subject.slow),
        ("", Pertinent(), fast, subject.count),
        ("above-zero", Pertinent(threshold=0.0), {"Grad-CAM, above zero": "gradcam"}, subject.count),
    ):
        run = place.run(
            f"cem-maf-enough-{name}-{page}", experiment, model, images, count,
            methods=list(methods.values()), contrasts=["none"],
        )  # fmt: skip
        rows |= measured(run, list(methods), digits)
    lines = []
    for label, (count, *cells) in rows.items():
        printed = subject.paper[label.split(",")[0]] if label != "CEM-MAF, default search, margin 0" else ("",) * 3
        beside = [each for pair in zip(cells[:3], printed, strict=True) for each in pair]
        lines.append([label, count, *beside, *cells[3:]])
    heads = ["part", "n", "# PP Feat", "paper", "PP Acc", "paper", "PP Corr", "paper", "fewer than 3", "p of the class"]
    few = [rows[each][4].split(" ")[0] for each in list(fast)[1::-1]]
    lead = f"Parts of fewer than three features: {few[0]} % with a margin of 0, {few[1]} % with 5 logits"
    paper = rows["CEM-MAF, as in the paper"][4].split(" ")[0]
    return f"{lead}; {paper} % as in the paper.\n\n{table(heads, lines)}"


# --------------------------------------------------------------------------------------------- attributes
def attributes(place: Place, subject: Subject) -> tuple[LatentCoordinate, ...]:
    """The latent coordinates that have a name."""
    return worded(place.model(subject.network), place.manifold(subject.manifold))


@torch.no_grad()
def accuracies(place: Place, subject: Subject) -> list[list[str]]:
    """How well each attribute tells images with more of its concept from those with less."""
    images = data.load(subject.network, place.root, "test").spread(300)
    pictures = torch.cat([each for _, each, _ in data.batches(images, 100)])
    entry, measure = zoo.get(subject.network), zoo.get(subject.manifold, generative=True).measure
    assert measure is not None
    true = [measure(each) for each in pictures]
    rows = []
    for each in attributes(place, subject):
        concept = next(key for key, word in entry.words.items() if word == each.names[0])
        values = torch.tensor([row[concept] for row in true])
        known = ~values.isnan()
        told = each.measure(pictures)[known, 0]
        right = ((told > told.median()) == (values[known] > values[known].median())).double().mean().item()
        rows.append([subject.network, f"{each.names[0]} (z{each.index})", f"{right:.1%}", each.evidence.split(": ")[1]])
    return rows


def walks(place: Place, subjects: Sequence[Subject], path: Path) -> None:
    """Figures 2, 5 and 6: what the coordinates with names do, from -3 to 3 in the direction of more."""
    strips = []
    for subject in subjects:
        manifold, shown = place.manifold(subject.manifold), attributes(place, subject)
        image = typical(place.model(subject.network), data.load(subject.network, place.root, "test"))[:1]
        with torch.no_grad():
            for each in shown:
                latents = manifold.encode(image).repeat(7, 1)
                latents[:, each.index] = each.sign * torch.linspace(-3, 3, 7)
                strips.append((f"{each.names[0]} (z{each.index})", torch.cat(list(manifold.decode(latents)), 2)))
    rows = max(1, -(-len(strips) // 2))
    figure = Figure((9, 0.85 * rows), layout="constrained")
    for axes, (name, strip) in zip(figure.subplots(rows, 2, squeeze=False).T.flat, strips, strict=False):
        draw(axes, strip, name)
    for axes in figure.axes:
        axes.set_axis_off()
    save(figure, path, dpi=80)


def draw(axes: Any, picture: Tensor, title: str) -> None:
    """An image with its title."""
    axes.imshow(picture.movedim(0, 2).squeeze(2).clamp(0, 1).cpu(), cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize=7)


# --------------------------------------------------------------------------------------------- ablations
@dataclass(frozen=True)
class Shortened(rt.CEMMAF):
    """The paper's search with fewer steps for each of the nine weights: it is slow."""

    iterations: ClassVar[int] = 100


PAPER = {"preset": "paper", "kappa": 5.0, "gamma": 100.0, "beta": 100.0}
CHANGES: dict[str, dict[str, Any]] = {
    "paper: kappa 5, gamma 100, beta 100": {},
    "kappa 0.5": {"kappa": 0.5},
    "gamma 1": {"gamma": 1.0},
    "beta 0": {"beta": 0.0},
}
SOUND: dict[str, dict[str, Any]] = {
    "default: kappa 0.1, beta 1, nothing lost": {},
    "kappa 0.5": {"kappa": 0.5},
    "kappa 5": {"kappa": 5.0},
    "beta 0": {"beta": 0.0},
    "beta 100": {"beta": 100.0},
}
OTHER_CLASS = Counterfactuals(foil="any", noticed=0.1)


def ablations(place: Place, subject: Subject, slow: int, count: int) -> str:
    """What kappa, gamma and beta do to negatives, in the paper's preset and in the default."""
    model, images = place.model(subject.network), data.load(subject.network, place.root, "test")
    manifold = place.manifold(subject.manifold)
    digits = {"found": 0, "gained": 2, "lost": 2, "distance": 2, "l1": 1, "p_foil": 2}
    pages = []
    searches = (("paper", Shortened, CHANGES, PAPER, slow), ("default", rt.CEMMAF, SOUND, {}, count))
    for page, kind, changes, base, limit in searches:
        methods = [kind(manifold, **(base | each)) for each in changes.values()]
        run = place.run(
            f"cem-maf-ablation-{subject.network}-{page}", OTHER_CLASS, model, images, limit, methods=methods
        )
        rows = [[name, *cells] for name, cells in measured(run, list(changes), digits).items()]
        pages.append(
            table(
                ["negatives", "n", "found %", "gained", "lost", "distance in latents", "l1", "p of the new class"], rows
            )
        )
    return "\n\n".join(pages)


def positive_ablations(place: Place, subject: Subject, slow: int) -> str:
    """What kappa does to positives in the paper's preset."""
    model, images = place.model(subject.network), data.load(subject.network, place.root, "test")
    base = {"preset": "paper", "baseline": subject.off}
    changes = {"paper: kappa 5": {}, "kappa 0.5": {"kappa": 0.5}}
    run = place.run(
        f"cem-maf-ablation-{subject.network}-positive", Pertinent(), model, images, slow,
        methods=[rt.CEMMAFPositive(**(base | each)) for each in changes.values()],
    )  # fmt: skip
    digits = {"features": 1, "kept": 0, "correlation": 3, "p_fact": 2}
    rows = [[name, *cells] for name, cells in measured(run, list(changes), digits).items()]
    return table(["positives", "n", "features", "kept %", "correlation", "p of the class"], rows)


# --------------------------------------------------------------------------------------------- networks
def layers(module: nn.Module) -> str:
    """The layers of a network in words."""
    told = []
    for each in module.modules():
        if isinstance(each, (nn.Conv2d, nn.ConvTranspose2d)):
            kind = "Deconv" if isinstance(each, nn.ConvTranspose2d) else "Conv"
            stride = f" (stride {each.stride[0]})" if each.stride[0] != 1 else ""
            told.append(f"{kind} {each.out_channels}x{each.kernel_size[0]}x{each.kernel_size[1]}{stride}")
        elif isinstance(each, nn.Linear):
            told.append(f"FC {each.out_features}")
        elif isinstance(each, nn.MaxPool2d):
            told.append("MaxPool")
        elif isinstance(each, nn.Dropout):
            told.append(f"Dropout {each.p:g}")
    return ", ".join(told)


def trained(place: Place, name: str) -> list[str]:
    """What a network of the zoo is, and what it reached."""
    card = json.loads((place.zoo / f"{name}.json").read_text())
    scores = "; ".join(
        f"{split}: "
        + ", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in row.items() if key != "images")
        for split, row in card["metrics"].items()
    )
    model = zoo.load_weights(zoo.get(name, generative=None), place.weights(name))
    return [name, layers(model), f"{card['parameters']:,}", str(card["settings"]["epochs"]), scores]


# --------------------------------------------------------------------------------------------- the page
FACES = "CelebA's images are not at hand; `zoo:celeba` and its eleven attributes are recipes for whoever has them."
UNTRAINED = "Not made here: `ratherthan train` makes ham10000 and ham10000_dip; run this again with them in `--zoo`."
PEOPLE = "Nothing to compute: answers of people."
PRINTED = {
    "ham10000": "ResNet9",
    "ham10000_dip": "Table 3: Conv 32x4x4, 32x4x4, 64x4x4, 64x4x4 (stride 2), FC 256; latents 32; the reverse",
    "fashion_mnist_dip": "Table 4: FC 1200, 1200; latents 16; FC 1200, 1200, 1200, 784; Adam 1e-4",
    "fashion_clothes": "Table 5: Conv 5,5,32, MaxPool, Conv 5,5,64, MaxPool, FC 1024, Dropout 0.4, FC 6; SGD 1e-3",
    "fashion_shoes": "Table 5: the same, FC 3",
}


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--zoo", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--limit", type=int, help="at most so many images, for a trial")
    given = parser.parse_args()
    torch.set_num_threads(1)
    place = Place(given.data_root, given.zoo, given.limit)
    garments, lesions = [CLOTHES, SHOES], all(map(place.weights, (LESIONS.network, LESIONS.manifold)))
    drawn = {"garments": garments} | ({"lesions": [LESIONS]} if lesions else {})
    for name, subjects in drawn.items():
        walks(place, subjects, HERE / f"cem-maf-{name}-walks.png")
    attributes_told = [row for subjects in drawn.values() for each in subjects for row in accuracies(place, each)]
    networks = [[*trained(place, name), printed] for name, printed in PRINTED.items() if place.weights(name)]
    heads = ["network", "its layers here", "parameters", "epochs", "reached", "paper"]
    walked = "![Coordinates of the lesions' DIP-VAE](cem-maf-lesions-walks.png)" if lesions else UNTRAINED
    parts = {
        "Figure 1a, faces": FACES,
        "Figure 1b, lesions": f"{COLUMNS if lesions else EARLIER}\n\n![Lesions](negatives-lesions.png)",
        "Table 1, faces": FACES,
        "Table 1, lesions": f"{TABLE_1}\n\n{enough(place, LESIONS) if place.weights(LESIONS.network) else UNTRAINED}",
        "Figure 2, lesions along two coordinates": f"{FIGURE_2}\n\n{walked}",
        "Figure 3, user study": PEOPLE,
        "Supplement 1, kappa, gamma and beta": "\n\n".join(
            [ABLATIONS, ablations(place, CLOTHES, 6, 24), positive_ablations(place, CLOTHES, 4)]
        ),
        "Table 2, attribute classifiers": f"{TABLE_2}\n\n"
        + table(["images of", "attribute", "right", "moved by hand"], attributes_told),
        "Figure 4, further examples": f"Faces: none. {FIGURE_4}",
        "Tables 3, 4 and 5, architectures": f"{TABLES_3_TO_5}\n\n{table(heads, networks)}",
        "Figure 5, lesions along all coordinates": FIGURE_5,
        "Figure 6, garments along coordinates": f"{FIGURE_6}\n\n![Garments](cem-maf-garments-walks.png)",
        "Table 6, clothes": f"{TABLE_6}\n\n{enough(place, CLOTHES)}",
        "Table 6, shoes": enough(place, SHOES),
        "Figure 7, garments": f"{COLUMNS}\n\n![Garments](negatives.png)",
        "Table 7 and Figure 8, user study": PEOPLE,
    }
    page = "\n\n".join(f"## {head}\n\n{text}" for head, text in parts.items())
    (HERE / "cem-maf.md").write_text(f"{INTRODUCTION}\n\n{page}\n")


INTRODUCTION = """# CEM-MAF: every table and figure of the paper

`python docs/results/papers_cem_maf.py --data-root DIR --zoo runs/zoo`

Luss et al., "Leveraging latent features for local explanations" (*Generating Contrastive Explanations with Monotonic
Attribute Functions*), and its supplement, in order. Networks and manifolds are trained here on two cores, see [Tables
3, 4 and 5](#tables-3-4-and-5-architectures); lesions are those of HAM10000. Means with 95 % bootstrap intervals over
images, rough where they are few; *paper* stands beside what the paper prints, without intervals."""
COLUMNS = """`python docs/results/searches.py negatives`: [negatives](negatives.md). From the left: the image, the
negative of CEM-MAF and what was added, of CEM, the positives of both, LIME's positive weights, and Grad-CAM above half
of its maximum."""
EARLIER = """The picture of an earlier run, with a network that was right for 73 % of its test images: the image, the
negative of CEM-MAF and what was added, of CEM, and positives that only just keep the class, of both. `python
docs/results/searches.py negatives` draws it anew, with LIME's and Grad-CAM's columns, where `--zoo` holds ham10000 and
ham10000_dip."""
TABLE_1 = """*# PP Feat*: features of the part; *PP Acc*: percent of the parts that keep the class; *PP Corr*:
Spearman's correlation of the number of features with the descending rank of the confidence, -1 where each feature
adds some (undefined below three features, and left out). SLIC superpixels, 200 asked for. Which
threshold the paper's Grad-CAM has is not stated: both half of the maximum and zero are shown. A part of CEM-MAF keeps
the class by construction."""
FIGURE_2 = "The coordinates that have names; more to the right."
ABLATIONS = """Clothes, any other class; an attribute has *gained* or *lost* where it moved by more than 0.1. The
first table is eq. 1 by the paper's subgradient descent (100 steps for each of nine weights c, where the paper takes
1,000; one changed setting a row), the second the default search, in which "nothing is lost" is a constraint: there is
no gamma. The third is eq. 2 in the paper's preset; its gamma weighs what attributes gain, there are none here."""
TABLE_2 = """The paper's attribute classifiers are of faces. What stands for them here are coordinates of the
DIP-VAEs: *right* is how often the encoder's coordinate tells whether an image is above or below the median of what
was measured in it (300 test images, chance 50 %; the paper: 64 to 94 % for faces); *moved by hand* is what happens to
the measure along the coordinate."""
FIGURE_4 = "Lesions: the lower rows of [the picture above](#figure-1b-lesions)."
TABLES_3_TO_5 = """What is not in the table: AdamW instead of SGD or Adam, the rates of the recipes. Table 3 prints
one channel; lesions are in colour. The encoders have twice the latents at their end, for mean and variance. The
classifiers' recipes ask for five epochs."""
FIGURE_5 = (
    "The coordinates with names: [Figure 2](#figure-2-lesions-along-two-coordinates). `ratherthan train` draws all."
)
FIGURE_6 = """The coordinates with names, first along those of clothes, then of shoes; more to the right. A name holds
near the image: one coordinate means another thing on clothes than on shoes, and far out a sandal becomes a garment."""
TABLE_6 = "Features are single pixels, of 784; else as in Table 1."


if __name__ == "__main__":
    main()
