"""Make cem.md: negatives and positives of CEM, as published and as we search, on the first test digits of MNIST.

    python docs/results/cem.py [--images 100]

$RATHERTHAN_DATA holds mnist/. The published schedule takes a quarter of an hour of one core for each line and 100
digits; lines are kept in runs/results and resumed. Elastic net is |d|_2^2 + 0.1 |d|_1 of what is added to the image, or
to the ground, whatever beta the search used, of what was found. Its mean as a share of the reference's is over the
digits that both have found, with a bootstrap interval over them; "better" counts these, too.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ratherthan as rt

KEPT = Path("runs/results/cem")
HEADS = (
    "| kappa | search | found | elastic net | of the reference's (95 %) | better | pixels | evaluations |\n"
    "| ---: | --- | ---: | ---: | --- | ---: | ---: | ---: |"
)
REFERENCE = "reference", 0.1
NEGATIVES = [REFERENCE, ("sound", 0.1), ("sound", 1.0)]
POSITIVES = [REFERENCE, ("sound", 0.1), ("sound", 0.3)]
PARTS: list[tuple[str, type[Any], float, list[float], list[tuple[str, float]]]] = [
    ("Negatives, any other class", rt.CEM, 0.0, [0.5, 5.0, 10.0], NEGATIVES),
    ("Positives on black", rt.CEMPositive, 0.0, [0.5], POSITIVES),
    ("Positives on mid grey", rt.CEMPositive, 0.5, [0.5], POSITIVES),
]


def sought(images: Tensor, method: type[Any], kappa: float, ground: float, preset: str, beta: float) -> Any:
    """The answers of one search, computed or read: the change of each digit, whether found, evaluations in all."""
    kind = rt.Counterfactual if method is rt.CEM else rt.PertinentPositive
    path = KEPT / f"{method.__name__}-{kappa:g}-{ground:g}-{preset}-{beta:g}-{len(images)}.safetensors"
    if not path.exists():
        how, ask = method(kappa=kappa, beta=beta, preset=preset, baseline=ground), rt.counterfactual
        if method is rt.CEMPositive:
            ask = rt.pertinent_positive  # type: ignore[assignment]
        path.parent.mkdir(parents=True, exist_ok=True)
        ask(rt.load("zoo:mnist"), images, method=how, batch_size=len(images)).save(path)
    found = kind.load(path)
    return (found.example - (images if method is rt.CEM else ground)).flatten(1), found.found, found.evaluations


def share(ours: Tensor, theirs: Tensor) -> str:
    """The mean of ours as a share of the mean of theirs, with an interval by a bootstrap over the digits."""
    drawn = torch.randint(len(ours), (1000, len(ours)), generator=torch.Generator().manual_seed(0))
    low, high = (ours[drawn].mean(1) / theirs[drawn].mean(1)).quantile(torch.tensor([0.025, 0.975])).tolist()
    return f"{ours.mean() / theirs.mean():.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Run or resume, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data = rt.data.load("mnist")
    images = torch.stack([data[i][0] for i in range(asked.images)])
    about = " ".join((__doc__ or "").split("holds mnist/.")[1].split())
    lines = [
        f"# CEM on the first {len(images)} digits of the MNIST test set\n",
        f"`python docs/results/cem.py`. {about}",
    ]
    for title, method, ground, margins, searches in PARTS:
        lines += ["", f"## {title}", "", HEADS]
        for kappa in margins:
            theirs, had = torch.empty(0), torch.empty(0)
            for preset, beta in searches:
                change, found, evaluations = sought(images, method, kappa, ground, preset, beta)
                nets = change.square().sum(1) + 0.1 * change.abs().sum(1)
                theirs, had = (nets, found) if (preset, beta) == REFERENCE else (theirs, had)
                both, pixels = found & had, (change.abs() > 1e-3).sum(1)[found].float().mean()
                cells = [
                    f"{kappa:g}", f"{preset}, beta {beta:g}", int(found.sum()), f"{nets[found].mean():.3f}",
                    share(nets[both], theirs[both]), int((nets < theirs)[both].sum()), f"{pixels:.1f}",
                    f"{evaluations / len(images):,.0f}",
                ]  # fmt: skip
                lines.append(f"| {' | '.join(map(str, cells))} |")
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
