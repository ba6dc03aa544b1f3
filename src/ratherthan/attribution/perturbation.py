"""What methods have in common that alter the image and see what becomes of the contrast.

Each asks the network once, about all altered images, and keeps the full matrix of answers (alterations x classes).
Facts, foils and contrasts are read off that matrix, so that all of them cost the forward passes of one.

One value belongs to all channels of a pixel: maps are (N, Q, 1, H, W).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ratherthan.attribution.forward import ForwardPass
from ratherthan.attribution.method import Method
from ratherthan.contrast import FoilWeights, Target
from ratherthan.errors import InputError, ModelError
from ratherthan.settings import AtLeastOne

_Step = TypeVar("_Step")


@dataclass(frozen=True, kw_only=True)
class Perturbation(Method):
    """A method that asks the network about altered images.

    Attributes:
        foil_weights: How the foils are weighed at the altered images: "frozen" at the explained one, or "live".
        batch_size: Altered images per forward pass; bounds the memory, changes no result.
    """

    foil_weights: FoilWeights = "frozen"
    batch_size: AtLeastOne = 32

    def prepare(self, forward_pass: ForwardPass) -> None:
        """Refuse what has no parts to alter.

        Raises:
            InputError: If these are no images.
        """
        if forward_pass.images.ndim != 4:
            shape = tuple(forward_pass.images.shape)
            raise InputError(
                f"{self.name} alters parts of images (N, C, H, W), not what has shape {shape}: use ixg or ig"
            )

    @abstractmethod
    def respond(self, forward_pass: ForwardPass) -> Any:
        """Ask the network about all altered images."""

    def answers(self, forward_pass: ForwardPass) -> Any:
        """What `respond` found, asked once per forward pass, whatever the number of foils and contrasts."""
        return forward_pass.once(self, lambda: self.respond(forward_pass))

    def forward(self, forward_pass: ForwardPass, altered: Tensor) -> Tensor:
        """Logits of altered images, (M, C, H, W) to (M, classes).

        Raises:
            ModelError: If one of them is not finite.
        """
        logits = forward_pass.forward(altered, self.batch_size)
        if not logits.isfinite().all():
            raise ModelError(f"{forward_pass.model.name} gives NaN or infinite scores for an altered image")
        return logits

    def scores(
        self, forward_pass: ForwardPass, target: Target, logits: Tensor, foil_weights: FoilWeights | None = None
    ) -> Tensor:
        """The contrast at altered images, (M, N, classes) to (M, N, Q), within the memory budget."""
        if (foil_weights or self.foil_weights) == "frozen":
            return target.scalar(logits)
        step = max(1, forward_pass.budget // (target.question.fact.numel() * logits.shape[-1] * logits.element_size()))
        return torch.cat([target.scalar(part, "live") for part in torch.split(logits, step)])


def steps(forward_pass: ForwardPass, parts: Sequence[_Step]) -> Iterator[_Step]:
    """The parts of a long loop, each reported when it is done."""
    for number, part in enumerate(parts):
        yield part
        forward_pass.report((number + 1) / len(parts))


def window_cover(starts: Sequence[int], size: int, length: int) -> Tensor:
    """(positions, length) bool: the pixels that each window holds along one side; cut off at the border."""
    start, pixel = torch.tensor(starts).unsqueeze(1), torch.arange(length)
    return (start <= pixel) & (pixel < start + size)


def mean_over_windows(values: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """(rows * columns, N, Q) values of windows to (N, Q, 1, H, W): the mean over the windows that hold a pixel."""
    shares = [(cover / cover.sum(0)).to(values) for cover in (down, across)]
    grid = values.movedim(0, -1).reshape(*values.shape[1:], len(down), len(across))
    return torch.matmul(shares[0].T @ grid, shares[1]).unsqueeze(2)
