"""`sign-perturbation`: push every pixel a little the way the map says and see what it does to the class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ratherthan.errors import InputError, UnsupportedError
from ratherthan.evaluation.experiment import Batch, Experiment, Rows, chosen, register_experiment


@register_experiment
@dataclass(frozen=True)
class SignPerturbation(Experiment):
    """Gradient-sign perturbation (weighted-contrast section 5.1, Fig. 3).

        x <- clamp(x + (eps / n) sign(phi_t(x)), max(x0 - eps, 0), min(x0 + eps, 1)),    n times

    with phi re-computed at every step (the paper prints the clamp with min and max exchanged). Measured are the changes
    in y_t, in p_t and in accuracy; t is the true class, or accuracy could not change. A contrast that shows what tells
    t from the others raises p_t and accuracy; y_t may rise without either.

    Attributes:
        iterations: The numbers n of steps.
        epsilon: Largest change of a pixel, in image space.
        target: "label", or "predicted" where labels mean something else.
    """

    iterations: tuple[int, ...] = (1, 2, 10)
    epsilon: float = 1e-3
    target: str = "label"

    name: ClassVar[str] = "sign-perturbation"
    settings = ("iterations",)
    measures = ("logit", "probability", "accuracy")
    layout = (("method", "iterations"), ("measure", "contrast"))
    methods = ("gradient",)
    contrasts = ("none", "mean", "max", "weighted")

    def __post_init__(self) -> None:
        chosen("target", self.target, ("label", "predicted"))
        if not self.iterations or min(self.iterations) < 1 or self.epsilon <= 0:
            raise InputError("sign-perturbation needs iterations of at least 1 and a positive epsilon")

    def better(self, cell: Mapping[str, Any]) -> int:
        """More is better; for y_t it means nothing."""
        return 0 if cell["measure"] == "logit" else 1

    def measure(self, batch: Batch) -> Iterator[Rows]:
        """The perturbed images of all contrasts and numbers of steps."""
        fact = batch.labels if self.target == "label" else batch.logits([batch.images])[0].argmax(1)
        found = batch.explain(fact)
        clean = next(iter(found.values())).logits
        variants, plan = [], []
        for key, why in found.items():
            if why.attribution.shape != batch.images.shape:
                raise UnsupportedError(f"sign-perturbation needs a map of the image; {key[0]} explains {why.layer!r}")
            for steps in self.iterations:
                variants.append(self._perturbed(batch, key, fact, why.attribution, steps))
                plan.append((key, steps))
        before = self._state(clean, fact, batch.labels)
        for ((method, contrast), steps), altered in zip(plan, batch.logits(variants), strict=True):
            after = self._state(altered, fact, batch.labels)
            changes = {name: after[name] - before[name] for name in self.measures}
            yield batch.rows(method, contrast, {"iterations": steps}, **changes)

    def _perturbed(self, batch: Batch, key: tuple[str, str], fact: Tensor, first: Tensor, steps: int) -> Tensor:
        method, contrast = key
        batch = replace(batch, methods={method: batch.methods[method]}, contrasts={contrast: batch.contrasts[contrast]})
        lower, upper = (batch.images - self.epsilon).clamp_min(0), (batch.images + self.epsilon).clamp_max(1)
        images, phi = batch.images, first
        for step in range(steps):
            if step:
                phi = replace(batch, images=images).explain(fact)[key].attribution
            images = torch.clamp(images + self.epsilon / steps * phi.sign(), lower, upper)
        return images

    @staticmethod
    def _state(logits: Tensor, fact: Tensor, labels: Tensor) -> dict[str, Tensor]:
        of_fact = fact.unsqueeze(1)
        return {
            "logit": logits.gather(1, of_fact)[:, 0],
            "probability": logits.softmax(1).gather(1, of_fact)[:, 0],
            "accuracy": (logits.argmax(1) == labels).to(logits),
        }
