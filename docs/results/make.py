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
from ratherthan.evaluation import Run, evaluate

HERE = Path(__file__).parent
FOUR = ["none", "mean", "max", "weighted"]


@dataclass(frozen=True)
class Study:
    """One experiment of a page: what it is called there and what it is run with."""

    experiment: str
    limit: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)


MASK, EQUAL = Study("mask", settings={"preset": "paper"}), Study("equal-mask", settings={"preset": "strict"})
PAGES: dict[str, tuple[str, str, str | None, tuple[Study, ...]]] = {
    "flowers102": ("zoo:flowers102", "flowers102", "valid+test", (MASK, EQUAL, Study("sign-perturbation", 200))),
    "ham10000": ("zoo:ham10000", "ham10000", "test+isic_test", (MASK, EQUAL)),
    "fashion_mnist": ("zoo:fashion_mnist", "fashion_mnist", "test", (MASK, EQUAL)),
    "mnist": ("zoo:mnist", "mnist", "test", (MASK, Study("sign-perturbation", 2000, {"epsilon": 0.01}))),
    "imagenet": ("zoo:squeezenet1_0", "imagenet_samples", None, (Study("sign-perturbation", 200),)),
}


def command(page: str, study: Study, weights: str | None) -> str:
    """What to type for one of the runs."""
    model, name, split, _ = PAGES[page]
    words = ["ratherthan evaluate", study.experiment, "--model", model, *(["--weights", weights] if weights else [])]
    words += ["--data", name, *(["--split", split] if split else []), "--data-root DIR"]
    words += [f"--{key} {value}" for key, value in study.settings.items()]
    words += [f"--limit {study.limit}"] if study.limit else []
    return " ".join([*words, f"--out runs/results/{page}-{study.experiment}"])


def difference(run: Run) -> str:
    """Weighted minus original on the same samples, as a list."""
    table = run.difference()
    table = table[table["measure"].isin(run.experiment.shown or run.experiment.measures)]
    keys = ["method", *run.experiment.settings, "measure"]
    lines = [
        "| " + " | ".join([*keys, "weighted - original", "95 % interval"]) + " |",
        "| --- " * (len(keys) + 2) + "|",
    ]
    for row in table.to_dict("records"):
        cells = [str(row[key]) for key in keys]
        lines.append(f"| {' | '.join(cells)} | {row['mean']:+.3f} | {row['low']:+.3f} to {row['high']:+.3f} |")
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
        out = Path("runs/results") / f"{given.page}-{study.experiment}"
        run = evaluate(
            study.experiment,
            model,
            images,
            contrasts=FOUR if study.experiment == "sign-perturbation" else ["none", "weighted"],
            out=out,
            limit=given.limit or study.limit,
            resume=True,
            part_size=16 if model.size == (224, 224) else 128,
            progress=lambda done, total, at=study: print(f"{at.experiment}: {done} of {total}", flush=True),
            **study.settings,
        )
        stem = HERE / f"{given.page}-{study.experiment}"
        text = f"`{command(given.page, study, given.weights)}`\n\n{run.to_markdown()}\n"
        stem.with_suffix(".md").write_text(f"{text}Paired difference on the same samples:\n\n{difference(run)}\n")
        run.plot().savefig(stem.with_suffix(".png"), dpi=90)


if __name__ == "__main__":
    main()
