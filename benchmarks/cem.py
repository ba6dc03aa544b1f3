"""CEM on zoo:mnist: our reference mode beside a plain loop over images, and the sound mode beside both.

    python benchmarks/cem.py --data-root DIR [--images 100] [--rounds 9] [--steps 1000] [--kappa 0.5]

The plain loop is the schedule of the published code, one image after the other. The full schedule takes it half a
minute of CPU per image and kind, an hour and a half for all; fewer images, rounds or steps apply to the loop and to our
reference mode alike, and so leave the comparison fair. All figures are over the images for which everything compared
found an answer; the elastic net is |d|_2^2 + 0.1 |d|_1 for every row, whatever weight of |d|_1 its search used.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import ratherthan as rt
from ratherthan import CEM, CEMPositive, data

BETA = 0.1


@dataclass
class Result:
    """Of N images: the change from the centre (N, C, H, W), which were found (N,), evaluations, CPU seconds."""

    change: Tensor
    found: Tensor
    evaluations: int
    seconds: float

    @property
    def elastic(self) -> Tensor:
        """(N,), inf where nothing was found."""
        change = self.change.flatten(1)
        return torch.where(self.found, change.square().sum(1) + BETA * change.abs().sum(1), torch.inf)


def plain_loop(model: rt.Model, images: Tensor, keep: bool, kappa: float, rounds: int, steps: int) -> Result:
    """The published schedule, image by image: FISTA, soft threshold at beta, c from 10 by bisection."""
    begin, evaluations = time.process_time(), 0
    changes, found = torch.zeros_like(images), torch.zeros(len(images), dtype=torch.bool)

    def gap(v: Tensor, fact: int) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        y = model.logits(v)[0]
        others = torch.cat([y[:fact], y[fact + 1 :]]).max()
        return (others - y[fact] if keep else y[fact] - others) + kappa

    def slope(y: Tensor, centre: Tensor, fact: int, c: float) -> Tensor:
        leaf = y.detach().requires_grad_()
        loss = c * gap(leaf, fact).clamp_min(0) + (leaf - centre).square().sum()
        return torch.autograd.grad(loss, leaf)[0]

    for i, image in enumerate(images.split(1)):
        with torch.no_grad():
            fact = int(model.logits(image).argmax())
        centre = torch.zeros_like(image) if keep else image
        high = image if keep else torch.ones_like(image)
        start = centre
        if keep and not slope(centre, centre, fact, 1.0).any():
            start = image  # no bias: the network is flat at black, and the published start would never move
        c, lower, upper, least = 10.0, 0.0, math.inf, math.inf
        for _ in range(rounds):
            v, y, success = start, start, False
            for k in range(steps):
                moved = y - 0.01 * math.sqrt(1 - k / steps) * slope(y, centre, fact, c) - centre
                new = (centre + moved.sign() * (moved.abs() - BETA).clamp_min(0)).clamp(centre, high)
                y = (new + (k + 1) / (k + 4) * (new - v)).clamp(centre, high)
                v = new
                with torch.no_grad():
                    won = gap(v, fact).item() <= 0
                success |= won
                value = (v - centre).square().sum().item() + BETA * (v - centre).abs().sum().item()
                if won and value < least:
                    least, changes[i], found[i] = value, (v - centre)[0], True
            lower, upper = (lower, min(upper, c)) if success else (max(lower, c), upper)
            c = (lower + upper) / 2 if upper < math.inf else 10 * c
    return Result(changes, found, evaluations, time.process_time() - begin)


def ours(model: rt.Model, images: Tensor, how: CEM | CEMPositive, batch: int) -> Result:
    """Ours, a batch at a time."""
    begin = time.process_time()
    verb = rt.pertinent_positive if isinstance(how, CEMPositive) else rt.counterfactual
    found = verb(model, images, method=how, batch_size=batch)
    # of a positive the part by itself, which lies on black; of a negative what was added
    change = found.example if isinstance(how, CEMPositive) else found.example - found.images
    return Result(change, found.found, found.evaluations, time.process_time() - begin)


def show(results: dict[str, Result]) -> None:
    """A table; the first row is what the others are compared with."""
    first = next(iter(results.values()))
    common = torch.stack([each.found for each in results.values()]).all(0)
    count = len(common)
    print(
        f"| | found | elastic net (of {int(common.sum())}) | changed pixels | evaluations | CPU s per image | faster |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, each in results.items():
        pixels = (each.change.abs() > 1e-3).any(1).flatten(1).sum(1).float()
        print(
            f"| {name} | {int(each.found.sum())} of {count} | {each.elastic[common].mean():.3f} "
            f"| {pixels[common].mean():.1f} | {each.evaluations / count:,.0f} | {each.seconds / count:.2f} "
            f"| {first.seconds / each.seconds:.1f} |",
            flush=True,
        )


def main() -> None:
    """Compare for negatives and positives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--kappa", type=float, default=0.5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--no-loop", action="store_true", help="leave the plain loop out")
    asked = parser.parse_args()
    model = rt.load("zoo:mnist")
    dataset = data.load("mnist", asked.data_root, "test")
    images = torch.cat([model.preprocess(dataset[i][0]) for i in range(asked.images)])
    kinds: list[tuple[str, Callable[..., CEM | CEMPositive]]] = [("negatives", CEM), ("positives", CEMPositive)]
    for title, make in kinds:
        print(f"\n{title}, kappa {asked.kappa:g}, {asked.rounds} rounds of {asked.steps} steps")
        results = {}
        if not asked.no_loop:
            keep = make is CEMPositive
            results["plain loop"] = plain_loop(model, images, keep, asked.kappa, asked.rounds, asked.steps)
        published = make(
            kappa=asked.kappa, preset="reference", binary_search_steps=asked.rounds, iterations=asked.steps
        )
        results["reference"] = ours(model, images, published, asked.batch)
        results["sound"] = ours(model, images, make(kappa=asked.kappa), asked.batch)
        results["sound, one by one"] = ours(model, images, make(kappa=asked.kappa), 1)
        show(results)


if __name__ == "__main__":
    main()
