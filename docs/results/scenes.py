"""Make scenes.md: how much of what speaks for an object lies on the object's own strokes?

    python docs/results/scenes.py [--scenes 100]

$RATHERTHAN_DATA holds mnist/ and fashion_mnist/. Of each scene of the test part one digit or garment is asked about
that the network (`zoo:scenes`) recognises: "why this, rather than what else it is most like, here?" The share is the
positive relevance on its strokes, of all positive relevance in the scene.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ratherthan as rt

HERE = Path(__file__).parent
METHODS: dict[str, Any] = {
    "`la` at `head`, the scores of each place": rt.LinearApproximation("head"),
    "`la` at `fine`, below a linear map of each place": rt.LinearApproximation("fine"),
    "`la` at `middle`, 32 x 32": rt.LinearApproximation("middle"),
    "`la` at `whole`, the first layer": rt.LinearApproximation("whole"),
    "`gradcam` at `fine`": rt.GradCAM("fine"),
    "`ixg`": "ixg",
    "`lrp`, epsilon": rt.LRP("epsilon"),
    "`deeplift`, from black": rt.DeepLift(),
    "`ig`, 16 steps from black": rt.IntegratedGradients(n_steps=16),
    "`occlusion`, 4 x 4, by the mean": rt.Occlusion(size=4, stride=4, baseline="mean"),
}


@dataclass(frozen=True)
class Case:
    """An object of a scene that the network recognises, and what it is asked with.

    Attributes:
        image: The scene, (1, 1, 64, 64).
        strokes: Where the object is, (64, 64).
        box: The quarter of the scene that it lies in.
        fact: Its class.
        foil: The other object whose score on the strokes is the highest.
    """

    image: Tensor
    strokes: Tensor
    box: tuple[int, int, int, int]
    fact: int
    foil: int


@torch.no_grad()
def cases(model: rt.Model, scenes: rt.Dataset, count: int) -> Iterator[Case]:
    """Of each scene one object, in turn from another quarter, if most of its strokes are called what it is."""
    found = 0
    for index in range(len(scenes)):
        classes = scenes.reader.classes(index)  # type: ignore[attr-defined]
        for turn in range(index, index + 4):
            top, left = 32 * (turn // 2 % 2), 32 * (turn % 2)
            strokes = torch.zeros(64, 64, dtype=torch.bool)
            strokes[top : top + 32, left : left + 32] = classes[top : top + 32, left : left + 32] > 0
            if strokes.any():
                break
        image, fact = scenes[index][0][None], int(classes[strokes][0])
        scores = model.module(image)[0, :, strokes]
        if (scores.argmax(0) == fact).double().mean() > 0.5:
            others = scores.mean(1)
            others[[0, fact]] = -torch.inf  # the ground is no object
            yield Case(image, strokes, (left, top, left + 32, top + 32), fact, int(others.argmax()))
            found += 1
        if found == count:
            return


def share(model: rt.Model, case: Case, method: Any, region: str) -> float:
    """Of the positive relevance of a scene, that on the strokes."""
    there = rt.Region(case.strokes if region == "strokes" else case.box)
    why = rt.explain(model.replace(output=there), case.image, case.fact, case.foil, method)
    positive = why.heatmap()[0].clamp_min(0)
    return float((positive * case.strokes).sum() / positive.sum())


def interval(shares: Sequence[float]) -> str:
    """Their mean, with its 95 % interval by bootstrap over scenes."""
    random, given = np.random.default_rng(0), np.array(shares)
    means = random.choice(given, (2000, len(given))).mean(1)
    return f"{given.mean():.3f} ({np.quantile(means, 0.025):.3f} to {np.quantile(means, 0.975):.3f})"


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--weights", type=Path, help="Others than those that ship.")
    parser.add_argument("--out", type=Path, default=HERE / "scenes.md")
    arguments = parser.parse_args()
    model, exact = (rt.load("zoo:scenes", weights=arguments.weights) for _ in range(2))
    exact.module.double()  # as some rules ask for
    scenes = rt.data.load("scenes", split="test")
    found = list(cases(model, scenes, arguments.scenes))
    area, within = (np.mean([float(case.strokes.sum()) / cells for case in found]) for cells in (64 * 64, 32 * 32))
    lines = [TEXT.format(count=len(found), area=area, within=within)]
    for name, method in METHODS.items():
        asked = exact if isinstance(method, (rt.LRP, rt.DeepLift)) else model
        cells = [interval([share(asked, case, method, region) for case in found]) for region in ("box", "strokes")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    arguments.out.write_text("\n".join(lines) + "\n")
    draw(model, found[:4], arguments.out.with_suffix(".png"))


def draw(model: rt.Model, found: Sequence[Case], path: Path) -> None:
    """A picture of some cases."""
    fact, foil = (torch.tensor([getattr(case, key) for case in found]) for key in ("fact", "foil"))
    there = model.replace(output=rt.Region([case.box for case in found]))
    rt.explain(there, torch.cat([case.image for case in found]), fact, foil, "la").save(path)


TEXT = """# Relevance on the strokes of an object

Written by `python docs/results/scenes.py`. {count} test scenes of `zoo:scenes`, in each one digit or garment that it
recognises: why this, rather than the other object whose score is highest there? The share is the positive relevance on
the object's strokes, of all positive relevance in the scene; mean over scenes, with its 95 % interval by bootstrap. An
even map has {area:.3f} of it there, one that is even in the box {within:.3f}.

The region is the box of 32 x 32 pixels that the object lies in, or its strokes themselves. Of `la` at `head` and
`fine` the second is 1 by construction: nothing but a linear map of each place lies between these layers and the region.

| method | region: the box | region: the strokes |
| --- | --- | --- |"""


if __name__ == "__main__":
    main()
