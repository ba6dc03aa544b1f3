"""Occlusion: cover a window, see by how much the contrast falls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ratherthan.attribution.forward import ForwardPass
from ratherthan.attribution.method import Attribution, register_method
from ratherthan.attribution.perturbation import Windows, steps
from ratherthan.contrast import Target


@register_method
@dataclass(frozen=True)
class Occlusion(Windows):
    """Occlusion (Zeiler and Fergus 2014): by how much the contrast falls when a window is covered.

    A window's drop is s(x) - s(x with the window replaced); a pixel's value is the mean drop of the windows that hold
    it. Windows start at multiples of the stride; the last ones are cut off at the border, so that every pixel is held
    by one. These are Captum's windows, and its values for a single class.

    Attributes:
        size: Height and width of the window in pixels; None: an eighth of the image's.
        stride: Step between windows, at most their size; None: half of it.
        baseline: What covers it, see `baseline_images`; None: the mean colour; of a text the blank token.
    """

    name = "occlusion"
    parted = True
    cut_off = True
    size: int | tuple[int, int] | None = None
    stride: int | tuple[int, int] | None = None
    baseline: Any = None

    def sides(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """As given, or an eighth of the image by half of that."""
        sizes = _pair(self.size) or (max(1, height // 8), max(1, width // 8))
        return sizes, _pair(self.stride) or (max(1, sizes[0] // 2), max(1, sizes[1] // 2))

    def altering(self, forward_pass: ForwardPass) -> Callable[[int, Tensor, Tensor], Tensor]:
        """Covers a window."""
        images, off = forward_pass.images, forward_pass.nothing(self.baseline)
        return lambda _, down, across: torch.where(down.unsqueeze(1) & across, off, images).unsqueeze(0)

    def respond(self, forward_pass: ForwardPass) -> Tensor:
        """(windows, N, classes), or (words, N, classes): logits with each covered."""
        parts = forward_pass.parts
        if parts is None:
            return super().respond(forward_pass)
        images, off, answers = forward_pass.images, forward_pass.nothing(self.baseline), []
        numbers = torch.arange(int(parts.max()) + 1, device=parts.device)
        for some in steps(forward_pass, torch.split(numbers, max(1, self.batch_size // len(images)))):
            covered = (parts == some.view(-1, 1, 1)).unsqueeze(-1)
            altered = torch.where(covered, off, images)
            answers.append(self.forward(forward_pass, altered.flatten(0, 1)).reshape(*altered.shape[:2], -1))
        return torch.cat(answers)

    def attribute(self, forward_pass: ForwardPass, target: Target) -> Attribution:
        """(N, Q, 1, H, W): see above; the tokens of a word share its drop, (N, Q, T)."""
        parts = forward_pass.parts
        if parts is None:
            return super().attribute(forward_pass, target)
        drop = self.scores(forward_pass, target, forward_pass.logits[None])
        drop = (drop - self.scores(forward_pass, target, self.answers(forward_pass))).movedim(0, -1)
        within = torch.nn.functional.one_hot(parts, drop.shape[-1]).to(drop)  # (N, T, words)
        return Attribution(drop @ (within / within.sum(1, keepdim=True).clamp_min(1)).mT)


def _pair(given: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (given, given) if isinstance(given, int) else given
