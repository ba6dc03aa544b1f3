"""CEM-MAF on Fashion-MNIST: a batch against one by one, and the sound presets against the paper's.

    python benchmarks/pertinent.py --data DIR [--images 64] [--paper 8]

Network evaluations are images that the classifier looks at, gradients counting as one. Seconds are those of the process
(CPU), on as many threads as torch takes; what else the machine does hardly counts. The paper's presets take 9000
evaluations for a negative and 900 for a positive, so they are run for fewer images, the first `--paper`. Negatives are
sought without attribute functions, for eq. 1 then has the same terms under both presets.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ratherthan as rt
from ratherthan import CEMMAF, CEMMAFPositive, Counterfactual, Schedule, counterfactual, pertinent_positive

EVERY = 37  # the images are spread over the test part


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What a run gives, and the CPU seconds it takes."""
    start = time.process_time()
    return run(), time.process_time() - start


def batching(what: str, images: Tensor, run: Callable[[Tensor], Any]) -> None:
    """One call for all images against a call for each."""
    _, together = timed(lambda: run(images))
    _, alone = timed(lambda: [run(image.unsqueeze(0)) for image in images])
    share = together / len(images)
    print(f"{what}: one batch {share:.3f} s per image; one by one {alone / together:.1f} times that", flush=True)


def equation_1(found: Counterfactual) -> Tensor:
    """Eq. 1, nu |z0 - z|^2 + eta |x0 - x|^2 with nu = eta = 1 and no attributes, per image."""
    pixels = (found.example - found.images).flatten(1).square().sum(1)
    return found.distance[:, 0].square() + pixels


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--paper", type=int, default=8)
    options = parser.parse_args()
    model, data = rt.load("zoo:fashion_mnist"), rt.data.load("fashion_mnist", options.data)
    images = torch.stack([data[i * EVERY][0] for i in range(options.images)])
    few = images[: options.paper]

    equal_iterations = Schedule(outer_iterations=4, inner_iterations=20, tol=0.0)
    even = CEMMAF(attributes=(), schedule=equal_iterations, retries=0).prepared(model)
    batching("negatives", images, lambda some: counterfactual(model, some, method=even))
    least = CEMMAFPositive(kappa=0.0)
    batching("positives, margin 0", images, lambda some: pertinent_positive(model, some, method=least, batch_size=64))

    for name, how in (
        ("sound, margin 0", CEMMAFPositive(kappa=0.0)),
        ("sound", CEMMAFPositive()),
        ("paper", CEMMAFPositive(preset="paper")),
    ):
        shown = few if name == "paper" else images
        found, seconds = timed(lambda how=how, shown=shown: pertinent_positive(model, shown, method=how))  # type: ignore[misc]
        corr = found.correlation()
        print(
            f"positives {name}: {found.found.float().mean():.0%} keep the class, {found.features.float().mean():.1f} "
            f"features ({found.features[: len(few)].float().mean():.1f} of the first {len(few)}), correlation "
            f"{corr.nanmean():.3f} of {int((~corr.isnan()).sum())}, {found.evaluations / len(shown):.0f} evaluations, "
            f"{seconds / len(shown):.2f} s each",
            flush=True,
        )
    for name, how_not in (
        ("sound", CEMMAF(attributes=())),
        ("sound, without residual", CEMMAF(attributes=(), residual=False)),
        ("paper", CEMMAF(attributes=(), preset="paper")),
    ):
        shown = few if name != "sound" else images
        absent, seconds = timed(lambda how=how_not, shown=shown: counterfactual(model, shown, method=how))  # type: ignore[misc]
        met = absent.found.cpu()
        print(
            f"negatives {name}: {met.float().mean():.0%} found, eq. 1 {equation_1(absent)[met].mean():.2f}, "
            f"|z - z0| {absent.distance[:, 0][met].mean():.2f}, {absent.evaluations / len(shown):.0f} evaluations, "
            f"{seconds / len(shown):.2f} s each",
            flush=True,
        )


if __name__ == "__main__":
    main()
