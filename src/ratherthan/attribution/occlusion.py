"""Occlusion: cover a window, see by how much the contrast falls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ratherthan.attribution.method import register_method
from ratherthan.attribution.perturbation import Windows
from ratherthan.baselines import baseline_images


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
        baseline: What covers it, see `baseline_images`.
    """

    name = "occlusion"
    cut_off = True
    size: int | tuple[int, int] | None = None
    stride: int | tuple[int, int] | None = None
    baseline: Any = "mean"

    def sides(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """As given, or an eighth of the image by half of that."""
        sizes = _pair(self.size) or (max(1, height // 8), max(1, width // 8))
        return sizes, _pair(self.stride) or (max(1, sizes[0] // 2), max(1, sizes[1] // 2))

    def altering(self, images: Tensor) -> Callable[[int, Tensor, Tensor], Tensor]:
        """Covers a window."""
        off = baseline_images(images, self.baseline)
        return lambda _, down, across: torch.where(down.unsqueeze(1) & across, off, images).unsqueeze(0)


def _pair(given: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (given, given) if isinstance(given, int) else given
