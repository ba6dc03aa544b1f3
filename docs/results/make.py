"""Make the pages in this folder: run (or resume) the experiments, then write their tables and figures.

    python docs/results/make.py flowers102 --data-root DIR --weights runs/zoo/flowers102.safetensors

Runs are kept in runs/results and are resumed; `--only EXPERIMENT` makes one of them.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import ratherthan as rt
from ratherthan import data

HERE = Path(__file__).parent
FOUR = ["none", "mean", "max", "weighted"]


@dataclass(frozen=True)
class Study:
    """One experiment of a page: what it is called there and what it is run with."""

    experiment: str
    limit: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    suffix: str = ""


MASK, EQUAL = Study("mask", settings={"preset": "paper"}), Study("equal-mask", settings={"preset": "sound"})
SIGN = Study("sign-perturbation", 1000)
PAGES: dict[str, tuple[str, str, str | None, tuple[Study, ...]]] = {
    "flowers102": ("zoo:flowers102", "flowers102", "valid+test", (MASK, EQUAL, SIGN)),
    "ham10000": ("zoo:ham10000", "ham10000", "test+isic_test", (MASK, EQUAL)),
    "fashion_mnist": ("zoo:fashion_mnist", "fashion_mnist", "test", (MASK, EQUAL)),
    "mnist": ("zoo:mnist", "mnist", "test", (SIGN, Study("sign-perturbation", 1000, {"epsilon": 0.1}, "-large"))),
    "imagenet": ("zoo:squeezenet1_0", "imagenet_samples", None, (SIGN,)),
}


# Flower-102 in Tables 1 (VGG-16) and 2 (AlexNet): p-bar before; then for blur, zeros and mean in turn: original and
# weighted with positive features kept, original and weighted with negative ones kept.
PAPER = {
    ("Grad-CAM", "t1"): {
        "VGG-16": "715 796 870 378 217 774 858 345 177 777 868 370 194",
        "AlexNet": "728 814 858 418 189 758 824 404 244 792 863 396 218",
    },
    ("Grad-CAM", "t2"): {
        "VGG-16": "285 539 805 369 110 543 835 416 170 544 827 411 164",
        "AlexNet": "272 516 820 409 136 494 757 423 172 506 775 410 158",
    },
    ("LA", "t1"): {
        "VGG-16": "715 778 869 423 290 700 776 350 268 719 785 390 274",
        "AlexNet": "728 824 819 342 234 719 737 462 296 768 760 460 264",
    },
    ("LA", "t2"): {
        "VGG-16": "285 598 746 386 133 632 744 450 234 634 736 448 223",
        "AlexNet": "272 686 790 361 182 693 720 378 271 690 754 368 252",
    },
}


def beside_the_paper(run: rt.Run, network: str) -> str:
    """The means of a mask run, line by line beside the paper's."""
    table = run.table(intervals=False, bold=("", ""))
    heads = ["method", "target", "network", *(" ".join(filter(None, column)) for column in table.columns)]
    lines = ["| " + " | ".join(heads) + " |", "| --- | --- | --- " + "| ---: " * len(table.columns) + "|"]
    for (method, target), row in zip(table.index, table.to_numpy().tolist(), strict=True):
        rows = {f"**{network}**": [f"**{cell}**" for cell in row]}
        rows |= {f"{name}, paper": [f"0.{n}" for n in text.split()] for name, text in PAPER[method, target].items()}
        lines += [f"| {method} | {target} | {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join(lines)


def command(page: str, study: Study, limit: int | None, weights: str | None) -> str:
    """What to type for one of the runs."""
    model, name, split, _ = PAGES[page]
    weights = Path(weights).name if weights else None
    words = ["ratherthan evaluate", study.experiment, "--model", model, *(["--weights", weights] if weights else [])]
    words += ["--data", name, *(["--split", split] if split else []), "--data-root DIR"]
    words += [
        f"--preset {value}" if key == "preset" else f"--set {key}={value}" for key, value in study.settings.items()
    ]
    words += [f"--limit {limit}"] if limit else []
    return " ".join([*words, f"--out runs/results/{page}-{study.experiment}{study.suffix}"])


def measured(place: str, study: Study, model: rt.Model, images: data.Dataset, limit: int | None, **more: Any) -> rt.Run:
    """Run a study, or go on with it, in a folder of runs/results."""
    asked: dict[str, Any] = {
        "contrasts": FOUR if study.experiment == "sign-perturbation" else ["none", "weighted"],
        "shard_size": 8 if model.inputs.size == (224, 224) else 128,
    }
    return rt.evaluate(
        study.experiment, model, images, out=Path("runs/results") / place, limit=limit, resume=True,
        progress=lambda done, total: print(f"{place}: {done} of {total}", flush=True), **asked | study.settings | more,
    )  # fmt: skip


def difference(run: rt.Run) -> str:
    """Weighted minus original on the same samples, as a list."""
    table = run.difference()
    table = table[table["measure"].isin(run.experiment.shown or run.experiment.measures)]
    keys = ["method", *run.experiment.keys, "measure"]
    lines = [
        "| " + " | ".join([*keys, "weighted - original", "95 % interval"]) + " |",
        "| --- " * (len(keys) + 2) + "|",
    ]
    for row in table.to_dict("records"):
        cells = [{"model-mean": "zeros"}.get(row[key], str(row[key])) for key in keys]  # the paper's word
        mean, low, high = (
            f"{v:+.3f}" if v == 0 or abs(v) >= 1e-3 else f"{v:+.1e}" for v in (row["mean"], row["low"], row["high"])
        )
        lines.append(f"| {' | '.join(cells)} | {mean} | {low} to {high} |")
    return "\n".join(lines)


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", choices=PAGES)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--weights")
    parser.add_argument("--only")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model_name, name, split, studies = PAGES[given.page]
    model = rt.load(model_name, weights=given.weights)
    images = data.load(name, given.data_root, split)
    for study in studies:
        if given.only and study.experiment != given.only:
            continue
        limit = given.limit or study.limit
        run = measured(f"{given.page}-{study.experiment}{study.suffix}", study, model, images, limit)
        stem = HERE / f"{given.page}-{study.experiment}{study.suffix}"
        text = f"`{command(given.page, study, limit, given.weights)}`\n\n{run.to_markdown()}\n"
        text += f"\nPaired difference on the same samples:\n\n{difference(run)}\n"
        if (given.page, study.experiment) == ("flowers102", "mask"):
            text += f"\nBeside the paper's networks on Flower-102:\n\n{beside_the_paper(run, 'SqueezeNet')}\n"
        stem.with_suffix(".md").write_text(text)
        run.plot().savefig(stem.with_suffix(".png"), dpi=90)


if __name__ == "__main__":
    main()
