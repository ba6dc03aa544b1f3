"""Superpixels: the parts of a picture that are switched on and off together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ratherthan.errors import InputError, told_as
from ratherthan.settings import AtLeastOne, Settings

Kind = Literal["slic", "quickshift", "felzenszwalb", "grid", "pixels"]
_SMALL = 32 * 32  # grey pictures up to this many pixels are explained pixel by pixel
DEFAULT_COUNT = 200  # superpixels that the CEM-MAF paper asks for


@dataclass(frozen=True)
class Superpixels(Settings):
    """How pictures are divided.

    Attributes:
        kind: "slic", "quickshift" or "felzenszwalb" (scikit-image, each deterministic), "grid" (rectangles of about
            equal size) or "pixels" (every pixel by itself).
        count: How many are wanted, for "slic" and "grid"; there may be fewer.
        settings: Further arguments of the scikit-image function, e.g. {"compactness": 20}.
    """

    name = "superpixels"
    kind: Kind = "slic"
    count: AtLeastOne = 50
    settings: dict[str, Any] = field(default_factory=dict)  # type: ignore[assignment]


Division = Kind | Superpixels | Tensor | np.ndarray[Any, Any]
"""How pictures are divided: a kind, a kind with settings, or a label map (H, W) or (N, H, W)."""


@dataclass(frozen=True, eq=False)
class SegmentedImages:
    """Pictures whose superpixels can be switched off.

    Attributes:
        images: (N, C, H, W) in image space.
        labels: (N, H, W) from `segment`.
        baseline: (N, C, H, W): what a pixel is where its superpixel is switched off.
    """

    images: Tensor
    labels: Tensor
    baseline: Tensor

    @cached_property
    def count(self) -> Tensor:
        """(N,) how many superpixels each picture has."""
        return self.labels.flatten(1).amax(1) + 1

    @cached_property
    def present(self) -> Tensor:
        """(N, S) bool: which of the S labels occur in each picture."""
        return torch.arange(int(self.count.max()), device=self.labels.device) < self.count.unsqueeze(1)

    def pixels(self, masks: Tensor, rows: Tensor) -> Tensor:
        """The value of every pixel's superpixel: (M, S) for pictures `rows` (M,) to (M, H, W)."""
        return masks.gather(1, self.labels[rows].flatten(1)).view(len(masks), *self.labels.shape[1:])

    def render(self, masks: Tensor, rows: Tensor) -> Tensor:
        """Pictures with part of each superpixel, b + m (image - b): (M, S) in [0, 1] to (M, C, H, W)."""
        baseline = self.baseline[rows]
        return baseline + self.pixels(masks, rows).unsqueeze(1) * (self.images[rows] - baseline)


def default_superpixels(images: Tensor, kind: Kind | None = None) -> Superpixels:
    """What CEM-MAF divides pictures into: single pixels of small grey ones, about 200 superpixels of others."""
    if kind is not None:
        return Superpixels(kind, DEFAULT_COUNT)
    if images.shape[1] == 1 and images[0].numel() <= _SMALL:
        return Superpixels("pixels")
    return Superpixels(usual_kind(images), DEFAULT_COUNT)


def usual_kind(images: Tensor) -> Kind:
    """Superpixels of grey and coloured pictures (N, C, H, W), a grid of others."""
    return "slic" if images.shape[1] in (1, 3) else "grid"


def segment(images: Tensor, how: Division = "slic") -> Tensor:
    """Divide pictures into superpixels.

    Args:
        images: (N, C, H, W) in image space; of volumes (N, C, D, H, W) and signals (N, C, T) "grid" makes blocks.
        how: A kind, a `Superpixels` with settings, or a label map (H, W) or (N, H, W) of whole numbers >= 0.

    Returns:
        (N, H, W), or with the other axes, int64 on the images' device. The labels of each picture are 0 to n - 1; every
        pixel has one and every label occurs. n differs between pictures, and may be less than was asked for.

    Raises:
        InputError: If the kind is unknown, or the label map has another size or leaves pixels without a label.
    """
    if isinstance(how, (Tensor, np.ndarray)):
        maps = _given(torch.as_tensor(how).cpu(), images)
    else:
        spec = how if isinstance(how, Superpixels) else Superpixels(how)
        maps = np.stack([_divide(image, spec) for image in images.detach().cpu()])
    # scikit-image's SLIC starts at 1, and labels may have gaps
    labels = [np.unique(each, return_inverse=True)[1].reshape(each.shape) for each in maps]
    return torch.from_numpy(np.stack(labels)).long().to(images.device)


def _given(labels: Tensor, images: Tensor) -> np.ndarray[Any, Any]:
    samples, size = len(images), tuple(images.shape[2:])
    if tuple(labels.shape) not in (size, (samples, *size)):
        raise InputError(f"a label map of shape {tuple(labels.shape)} for images of {size}: give (H, W) or (N, H, W)")
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.min() < 0:
        raise InputError("a label map holds whole numbers from 0 up: every pixel belongs to a superpixel")
    return labels.expand(samples, *size).numpy()


def _divide(image: Tensor, spec: Superpixels) -> np.ndarray[Any, Any]:
    """(C, H, W) to labels (H, W), not yet consecutive."""
    plane = image.shape[1:]
    if spec.kind == "pixels":
        return np.arange(plane.numel()).reshape(plane)
    if spec.kind == "grid":
        return _grid(plane, spec.count)
    if len(plane) != 2:
        raise InputError(f"{spec.kind!r} divides pictures, not what has axes of {tuple(plane)}: say 'grid' or 'pixels'")
    from skimage import segmentation

    grey = image if len(image) in (1, 3) else image.mean(0, keepdim=True)  # as it is drawn
    picture = grey.expand(3, -1, -1).movedim(0, -1).double().clamp(0, 1).numpy()
    count = {"n_segments": spec.count} if spec.kind == "slic" else {}
    with told_as(InputError, f"{spec.kind} with {spec.settings}", TypeError, ValueError):
        return np.asarray(getattr(segmentation, spec.kind)(picture, **count | spec.settings))


def _grid(plane: Sequence[int], count: int) -> np.ndarray[Any, Any]:
    """Rectangles, or blocks, as square as the count allows."""
    labels = np.zeros((), int)
    for axis, length in enumerate(plane):
        rest = plane[axis + 1 :]
        cells = min(length, max(1, round((count * length ** len(rest) / math.prod(rest)) ** (1 / (1 + len(rest))))))
        labels, count = np.add.outer(labels * cells, np.arange(length) * cells // length), count // cells
    return labels
