"""`sign-perturbation`: push every pixel a little the way the map says and see what it does to the class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ratherthan.attribution.explain import explain
from ratherthan.errors import UnsupportedError
from ratherthan.evaluation.experiment import Batch, Experiment, Rows, register_experiment
from ratherthan.settings import AtLeastOne, NotEmpty, Positive


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

    iterations: Annotated[tuple[AtLeastOne, ...], NotEmpty()] = (1, 2, 10)
    epsilon: Positive = 1e-3
    target: Literal["label", "predicted"] = "label"

    name: ClassVar[str] = "sign-perturbation"
    keys = ("iterations",)
    measures = ("logit", "probability", "accuracy")
    higher_is_better: ClassVar[dict[str, bool]] = {"probability": True, "accuracy": True}
    layout = (("method", "iterations"), ("measure", "contrast"))
    methods = ("gradient",)
    contrasts = ("none", "mean", "max", "weighted")

    def measure(self, batch: Batch) -> Iterator[Rows]:
        """The perturbed images of all contrasts and numbers of steps."""
        fact = batch.labels if self.target == "label" else batch.clean().argmax(1)
        found = batch.explain(fact)
        for key, why in found.items():
            if why.attribution.shape != batch.images.shape:
                raise UnsupportedError(f"sign-perturbation needs a map of the image; {key[0]} explains {why.layer!r}")
        plan = list(product(found, self.iterations))
        variants = (self._perturbed(batch, key, fact, found[key].attribution, steps) for key, steps in plan)
        before = _state(next(iter(found.values())).logits, fact, batch.labels)
        for ((method, contrast), steps), altered in zip(plan, batch.logits(variants), strict=True):
            changes = zip(self.measures, _state(altered, fact, batch.labels) - before, strict=True)
            yield batch.rows(method, contrast, iterations=steps, **dict(changes))

    def _perturbed(self, batch: Batch, key: tuple[str, str], fact: Tensor, phi: Tensor, steps: int) -> Tensor:
        how = (batch.methods[key[0]], batch.contrasts[key[1]])
        lower, upper = (batch.images - self.epsilon).clamp_min(0), (batch.images + self.epsilon).clamp_max(1)
        images = batch.images
        for step in range(steps):
            if step:
                phi = explain(batch.model, images, fact, None, *how, batch_size=batch.batch_size).attribution
            images = torch.clamp(images + self.epsilon / steps * phi.sign(), lower, upper)
        return images


def _state(logits: Tensor, fact: Tensor, labels: Tensor) -> Tensor:
    """(3, n) y_t, p_t and whether the label is the likeliest class."""
    of_fact = fact.unsqueeze(1)
    right = (logits.argmax(1) == labels).to(logits)
    return torch.stack([logits.gather(1, of_fact)[:, 0], logits.softmax(1).gather(1, of_fact)[:, 0], right])
