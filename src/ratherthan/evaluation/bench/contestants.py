"""What the bench compares besides our own methods: maps of noise, and those of other libraries."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ratherthan.attribution.forward import ForwardPass
from ratherthan.attribution.method import Attribution, Method
from ratherthan.contrast import Target, odds
from ratherthan.errors import InputError

Maps = Callable[[nn.Module, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class RandomMaps(Method):
    """Noise that depends on the image and on fact and foil: what knows nothing."""

    name = "random"

    def attribute(self, forward_pass: ForwardPass, target: Target) -> Attribution:
        """(N, Q, H, W), normal."""
        images, question = forward_pass.images, target.question
        values = images.new_empty(*question.fact.shape, *images.shape[-2:])
        for i, image in enumerate(images):
            key = hashlib.sha256(image.cpu().contiguous().numpy().tobytes()).digest()
            for q in range(values.shape[1]):
                asked = [int(question.fact[i, q]), int(question.foil[i, q]) + 1]
                noise = np.random.default_rng([*key, *asked]).standard_normal(images.shape[-2:])
                values[i, q] = torch.from_numpy(noise)
        return Attribution(values)


@dataclass(frozen=True)
class Peer(Method):
    """A method of another library.

    Attributes:
        label: What it is called in results.
        maps: A function of the network, the images as the network sees them (N, C, H, W), the facts (N,) and the foils
            to maps (N, h, w). Foils are None where none is asked about (contrast `none`), else (N,), -1 for all other
            classes. What cannot contrast returns the map of the fact.
    """

    label: str = "peer"
    maps: Maps | None = None

    @property
    def name(self) -> str:  # type: ignore[override]
        """Its label."""
        return self.label

    def settings(self) -> dict[str, object]:
        """None: it is told apart by its label."""
        return {}

    def attribute(self, forward_pass: ForwardPass, target: Target) -> Attribution:
        """(N, Q, h, w): a call for each question.

        Raises:
            InputError: If the function returns something else.
        """
        images, question, contrast = forward_pass.images, target.question, target.contrast.name
        if self.maps is None:
            raise InputError(f"{self.label} has no function: give Peer(label, maps)")
        found = []
        for fact, foil in zip(question.fact.T, question.foil.T, strict=True):
            against = (
                None if contrast == "none" else torch.full_like(foil, -1) if contrast == any_other.__name__ else foil
            )
            module, seen = forward_pass.model.module, forward_pass.model.normalise(images)
            with torch.enable_grad(), _own_gradients(module):
                made = self.maps(module, seen, fact, against)
            made = torch.as_tensor(made).detach().to(images)
            if made.ndim != 3 or len(made) != len(images):
                raise InputError(f"{self.label} gives maps of shape {tuple(made.shape)}, not ({len(images)}, h, w)")
            found.append(made)
        return Attribution(torch.stack(found, 1))


@contextmanager
def _own_gradients(module: nn.Module) -> Iterator[None]:
    """Gradients of the parameters are as before afterwards: other libraries call backward()."""
    before = [(each, each.grad) for each in module.parameters()]
    for each, _ in before:
        each.grad = None
    try:
        yield
    finally:
        for each, gradient in before:
            each.grad = gradient


def any_other(logits: Tensor, fact: Tensor, foils: Tensor) -> Tensor:
    """A contrast that does not heed the foil: the log-odds of the fact against all other classes."""
    return odds(logits, fact)
