"""All foils for the forward passes of one: occlusion, prediction difference and LIME, beside Captum's LIME.

    python benchmarks/perturbation.py

Figures are seconds of processor time, which other processes do not lengthen; medians of repetitions taken alternately.
The network is SqueezeNet with the weights in the folder that RATHERTHAN_DATA names, else with random ones, which
changes no cost. Captum's LIME needs scikit-learn.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from captum._utils.models.linear_model import SkLearnRidge
from captum.attr import Lime as CaptumLime
from torch import Tensor

import ratherthan as rt
from ratherthan import Superpixels, segment
from ratherthan.zoo import registry

FOILS = list(range(1, 11))
FACT = 0
MASKS = 60
PER_PASS = 32
SUPERPIXELS = Superpixels("grid", 49)


def squeezenet() -> rt.Model:
    root = os.environ.get("RATHERTHAN_DATA")
    weights = next(Path(root).glob("squeezenet/*.safetensors"), None) if root else None
    if weights is not None:
        return rt.load("zoo:squeezenet1_0", weights=weights)
    torch.manual_seed(0)
    return rt.Model(registry.get("squeezenet1_0").build().eval())


class Counted:
    """A call, the seconds it took and the images that went through the network."""

    def __init__(self, model: rt.Model, call: Callable[[], Any]) -> None:
        self.call, self.images, self.seconds = call, 0, []
        self.model = model

    def run(self) -> Any:
        """Call it once more."""
        self.images = 0
        hook = self.model.module.register_forward_pre_hook(self._count)
        start = time.process_time()
        result = self.call()
        self.seconds.append(time.process_time() - start)
        hook.remove()
        return result

    def _count(self, module: object, inputs: tuple[Tensor, ...]) -> None:
        self.images += len(inputs[0])

    @property
    def median(self) -> float:
        """Seconds, over all runs."""
        return statistics.median(self.seconds)


def alternately(first: Counted, second: Counted, repetitions: int) -> tuple[Any, Any]:
    for _ in range(repetitions):
        results = first.run(), second.run()
    return results


def line(what: str, one: Counted, other: Counted, ratio: float, target: str) -> None:
    times = f"{one.median:7.2f} s {one.images:5d} images | {other.median:7.2f} s {other.images:5d} images"
    print(f"{what:34s} | {times} | {ratio:5.2f} ({target})", flush=True)


def foils_against_one(model: rt.Model, x: Tensor, name: str, method: rt.Method, repetitions: int = 3) -> None:
    """All 1,000 foils against one, by the same method."""
    rt.explain(model, x[..., :64, :64], method=method)  # the distribution of patches is learned once, here
    one = Counted(model, lambda: rt.explain(model, x, FACT, FOILS[0], method))
    every = Counted(model, lambda: rt.explain(model, x, FACT, "each", method))
    alternately(one, every, repetitions)
    line(f"{name}: one foil | all 1,000", one, every, every.median / one.median, "at most 1.1")


def captum_lime(model: rt.Model, x: Tensor, method: rt.Lime, cells: Tensor) -> list[Tensor]:
    """Captum's LIME, called once for each foil, on the masks that ours uses."""

    def same_masks(image: Tensor, **settings: Any) -> Iterator[Tensor]:
        yield from method.masks(int(cells.max()) + 1).split(1)

    def of_foil(foil: int) -> Tensor:
        def contrast(images: Tensor) -> Tensor:
            logits = model.logits(images)
            return logits[:, FACT] - logits[:, foil]

        lime = CaptumLime(contrast, SkLearnRidge(alpha=method.alpha), perturb_func=same_masks)
        options = {"feature_mask": cells[:, None], "n_samples": MASKS, "perturbations_per_eval": PER_PASS}
        return lime.attribute(x, method.baseline, **options)[:, :1]

    return [of_foil(foil) for foil in FOILS]


def lime_against_captum(model: rt.Model, x: Tensor, repetitions: int = 2) -> None:
    """Ten foils by our LIME against Captum's LIME called ten times."""
    method = rt.Lime(superpixels=SUPERPIXELS, samples=MASKS, baseline=0.5, batch_size=PER_PASS)
    ours = Counted(model, lambda: rt.explain(model, x, FACT, FOILS, method).attribution[0])
    theirs = Counted(model, lambda: captum_lime(model, x, method, segment(x, SUPERPIXELS)))
    rt.explain(model, x, FACT, FOILS[0], method)
    found, expected = alternately(ours, theirs, repetitions)
    line("LIME, 10 foils: ours | Captum's", ours, theirs, theirs.median / ours.median, "at least 5")
    wanted = torch.stack(expected)[:, 0]
    difference = (found - wanted).abs().max() / wanted.abs().max()
    print(f"  the maps differ by at most {difference:.1e} of the largest value")


def main() -> None:
    model = squeezenet()
    x = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {sys.platform}; seconds and images run | ratio"
    )
    foils_against_one(model, x, "occlusion", rt.Occlusion(batch_size=PER_PASS))
    patches = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    pda = rt.PredictionDifference(patches, window=16, pad=2, stride=16, samples=4, batch_size=PER_PASS)
    foils_against_one(model, x, "prediction difference", pda)
    lime_against_captum(model, x)


if __name__ == "__main__":
    main()
