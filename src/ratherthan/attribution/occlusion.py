"""Occlusion: cover a window, see by how much the contrast falls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ratherthan.attribution.forward import ForwardPass
from ratherthan.attribution.method import Attribution, register_method
from ratherthan.attribution.perturbation import Perturbation, mean_over_windows, steps, window_cover
from ratherthan.baselines import baseline_images
from ratherthan.contrast import Target
from ratherthan.errors import InputError


@register_method
@dataclass(frozen=True)
class Occlusion(Perturbation):
    """Occlusion (Zeiler and Fergus 2014): by how much the contrast falls when a window is covered.

    A window's drop is s(x) - s(x with the window replaced); a pixel's value is the mean drop of the windows that hold
    it. Windows start at multiples of the stride; the last ones are cut off at the border, so that every pixel is held
    by one. These are Captum's windows, and its values for a single class.

    Attributes:
        size: Height and width of the window in pixels; None: an eighth of the image's.
        stride: Step between windows, at most their size; None: half of it.
        baseline: What covers it, see `baseline_images`.
    """

    name = "occlusion"
    size: int | tuple[int, int] | None = None
    stride: int | tuple[int, int] | None = None
    baseline: Any = "mean"

    def windows(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Rows and columns held by the windows, (positions, H) and (positions, W) bool.

        Raises:
            InputError: If windows do not fit in the image, or leave gaps.
        """
        sizes = _pair(self.size) or (max(1, height // 8), max(1, width // 8))
        strides = _pair(self.stride) or (max(1, sizes[0] // 2), max(1, sizes[1] // 2))
        covers = []
        for length, size, stride in zip((height, width), sizes, strides, strict=True):
            if not 1 <= size <= length:
                raise InputError(f"a window of {sizes} does not fit in an image of {height} x {width}")
            if not 1 <= stride <= size:
                raise InputError(f"a stride of {strides} leaves gaps between windows of {sizes}, or does not move them")
            covers.append(window_cover(range(0, length - size + stride, stride), size, length))
        return covers[0], covers[1]

    def respond(self, forward_pass: ForwardPass) -> Tensor:
        """(windows, N, classes): logits with each window covered."""
        images = forward_pass.images
        down, across = (cover.to(images.device) for cover in self.windows(images.shape[-2], images.shape[-1]))
        off, samples = baseline_images(images, self.baseline), len(images)
        cases, logits = torch.arange(len(down) * len(across) * samples, device=images.device), []
        for part in steps(forward_pass, torch.split(cases, self.batch_size)):
            window, sample = part // samples, part % samples
            covered = down[window // len(across)].unsqueeze(2) & across[window % len(across)].unsqueeze(1)
            logits.append(self.forward(forward_pass, torch.where(covered.unsqueeze(1), off[sample], images[sample])))
        return torch.cat(logits).reshape(-1, samples, logits[0].shape[-1])

    def attribute(self, forward_pass: ForwardPass, target: Target) -> Attribution:
        """(N, Q, 1, H, W): mean drop of the contrast over the windows that hold a pixel."""
        clean, covered = forward_pass.logits[None], self.answers(forward_pass)
        drop = self.scores(forward_pass, target, clean) - self.scores(forward_pass, target, covered)
        return Attribution(mean_over_windows(drop, *self.windows(*forward_pass.images.shape[-2:])))


def _pair(given: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (given, given) if isinstance(given, int) else given
