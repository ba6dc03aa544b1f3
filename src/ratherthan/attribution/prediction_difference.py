"""Prediction difference analysis: what the network would say if it did not know a window."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from ratherthan.attribution.forward import ForwardPass
from ratherthan.attribution.method import register_method
from ratherthan.attribution.perturbation import Windows
from ratherthan.contrast import FoilWeights, Plain, Question, Target, Weighted
from ratherthan.errors import InputError
from ratherthan.settings import AtLeastOne, Interval, Seed


@dataclass(frozen=True, eq=False)
class PatchGaussian:
    """How square patches of natural images are distributed: a normal distribution for each channel.

    Attributes:
        mean: (C, size^2).
        covariance: (C, size^2, size^2).
        low: (C,) least value in the data; samples are clipped to it.
        high: (C,) greatest value.
    """

    mean: Tensor
    covariance: Tensor
    low: Tensor
    high: Tensor

    @property
    def size(self) -> int:
        """Edge of the patches in pixels."""
        return math.isqrt(self.mean.shape[1])

    @staticmethod
    def fit(images: Iterable[Tensor], size: int) -> PatchGaussian:
        """Mean and covariance over every patch of every image, in float64.

        Args:
            images: (C, H, W) each, in image space; sizes may differ.
            size: Edge of the patches in pixels.

        Raises:
            InputError: If a patch does not fit in an image.
        """
        count, ranges = 0, []
        total = square = torch.zeros((), dtype=torch.float64)
        for image in images:
            if min(image.shape[-2:]) < size:
                raise InputError(f"an image of {tuple(image.shape[-2:])} holds no patch of {size} x {size} pixels")
            patches = torch.nn.functional.unfold(image.cpu().double().unsqueeze(1), size)
            count += patches.shape[-1]
            total, square = total + patches.sum(-1), square + patches @ patches.mT
            ranges.append(torch.stack(image.cpu().double().flatten(1).aminmax(dim=1)))
        if count < 2:
            raise InputError("a distribution of patches is fitted to at least two of them")
        mean = total / count
        covariance = (square - count * mean.unsqueeze(-1) * mean.unsqueeze(-2)) / (count - 1)
        low, high = torch.stack(ranges).unbind(1)
        return PatchGaussian(mean, covariance, low.amin(0), high.amax(0))

    def given_surround(self, inside: Tensor) -> tuple[Tensor, Tensor]:
        """The distribution of some pixels of a patch, given all others.

        With 1 the pixels inside and 2 the others, it is normal with mean mu_1 + K (x_2 - mu_2), K = S_12 S_22^-1, and
        covariance S_11 - K S_21. Inverse and root allow for pixels that never vary.

        Args:
            inside: (size^2,) bool.

        Returns:
            K, (C, inside, others), and the symmetric square root of the covariance, (C, inside, inside).
        """
        within, between = self.covariance[:, inside][:, :, inside], self.covariance[:, inside][:, :, ~inside]
        gain = between @ torch.linalg.pinv(self.covariance[:, ~inside][:, :, ~inside], rtol=1e-10, hermitian=True)
        values, vectors = torch.linalg.eigh(within - gain @ between.mT)
        return gain, vectors @ (values.clamp_min(0).sqrt().unsqueeze(-1) * vectors.mT)


@register_method
@dataclass(frozen=True)
class PredictionDifference(Windows):
    """Prediction difference analysis (Zintgraf et al. 2017): what if the window were not known?

    The pixels of a k x k window, all channels, are drawn S times from their distribution; with p the class
    probabilities and p_bar their mean over the draws, a window's value for a question is

    - evidence="log-odds": [s(log p'(x)) - s(log p'_bar)] / ln 2 in bits, s the contrast and p' = (p N + 1) / (N + C)
      the smoothed probabilities. For the contrast `none` s is the log-odds against all other classes, as averaged
      probabilities have no logits: this is the paper's weight of evidence log2 odds(p'(x)) - log2 odds(p'_bar).
      A single foil asks for the weight of evidence of the fact against it.
    - evidence="probability": sum_c w_c (p_c(x) - p_bar_c), w the seed of the contrast; for `none` the paper's p_t(x) -
      p_bar_t.
    - for a network that gives a value: s(y(x)) - s(y_bar).

    A pixel's value is the mean over the windows that hold it. The noise is keyed by (seed, window, draw), the same for
    every image, so that results do not depend on batches. The answers kept are windows x images x classes numbers.

    Attributes:
        patches: What natural images are like: images (M, C, H, W) in image space, a data set, a list of images or a
            `PatchGaussian`. None: windows elsewhere in the explained image itself.
        sampling: "conditional": one normal distribution per channel over patches of k + 2 pad pixels, conditioned on
            the window's surround, clipped to the range of the data. "marginal": the same place in random images of
            `patches`, or random places of the image itself. None: conditional where there are patches.
        window: k, in pixels.
        pad: Width of the surround in pixels.
        samples: S, draws per window.
        stride: Step between windows; the last ones end at the border. The paper's is 1.
        evidence: "log-odds" or "probability".
        training_samples: N of the smoothing, how many images the network learned from.
        seed: Of the noise.
    """

    name = "pda"
    patches: Any = None
    sampling: Literal["conditional", "marginal"] | None = None
    window: AtLeastOne = 10
    pad: Annotated[int, Interval(0)] = 2
    samples: AtLeastOne = 10
    stride: AtLeastOne = 1
    evidence: Literal["log-odds", "probability"] = "log-odds"
    training_samples: AtLeastOne = 1_000_000
    seed: Seed = 0

    def __post_init__(self) -> None:
        """Check the settings, also against each other.

        Raises:
            InputError: If they do not fit.
        """
        super().__post_init__()
        if self.evidence == "probability" and self.foil_weights == "live":
            raise InputError("evidence='probability' is linear in the probabilities: foil_weights are 'frozen'")
        if self.sampling == "conditional" and self.patches is None:
            raise InputError("conditional sampling learns from images: give patches=images or a data set")
        if self.sampling == "marginal" and isinstance(self.patches, PatchGaussian):
            raise InputError("marginal sampling draws windows from images: give patches=images, not a distribution")

    def settings(self) -> dict[str, Any]:
        """The settings by name; of the patches only what they are."""
        given = self.patches
        shape = getattr(given, "shape", None)
        size = f" of shape {tuple(shape)}" if shape else f" of {len(given)}" if hasattr(given, "__len__") else ""
        return super().settings() | {"patches": None if given is None else type(given).__name__ + size}

    @cached_property
    def gaussian(self) -> PatchGaussian:
        """The distribution of patches, fitted once.

        Raises:
            InputError: If one was handed in for another size.
        """
        size = self.window + 2 * self.pad
        if not isinstance(self.patches, PatchGaussian):
            return PatchGaussian.fit(_images_of(self.patches), size)
        if self.patches.size != size:
            raise InputError(f"a distribution of {self.patches.size}-pixel patches; window + 2 pad is {size}")
        return self.patches

    @cached_property
    def pool(self) -> Tensor:
        """(M, C, H, W): the images that marginal windows are taken from."""
        images = list(_images_of(self.patches))
        if len({image.shape for image in images}) != 1:
            raise InputError("marginal sampling takes windows from images of one size; give at least one, all alike")
        return torch.stack(images)

    def read(self, forward_pass: ForwardPass, logits: Tensor) -> Tensor:
        """Probabilities of classes, or values."""
        return logits.softmax(-1) if forward_pass.model.output.of_classes else logits

    def scores(
        self, forward_pass: ForwardPass, target: Target, p: Tensor, foil_weights: FoilWeights | None = None
    ) -> Tensor:
        """What a question makes of probabilities (or values): (M, N, classes) to (M, N, Q)."""
        if not forward_pass.model.output.of_classes:
            return super().scores(forward_pass, target, p)
        if self.evidence == "probability":
            return target.scalar(p)
        log = ((p * self.training_samples + 1) / (self.training_samples + p.shape[-1])).log()
        if isinstance(target.contrast, Plain):
            fact = torch.nn.functional.one_hot(target.question.fact, p.shape[-1]).bool()
            target, foil_weights = Target(target.logits, Question(target.question.fact, ~fact), Weighted()), "live"
        return super().scores(forward_pass, target, log, foil_weights) / math.log(2)

    # ------------------------------------------------------------------------------------- windows
    def sides(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """As given, for all images."""
        return (self.window, self.window), (self.stride, self.stride)

    def altering(self, images: Tensor) -> Callable[[int, Tensor, Tensor], Tensor]:
        """Draws a window anew; its number keys the noise."""
        marginal = self.sampling == "marginal" or self.patches is None
        draw = self._draw_marginal if marginal else self._draw_conditional

        def alter(number: int, down: Tensor, across: Tensor) -> Tensor:
            noise = np.random.Generator(np.random.Philox(key=[self.seed, number]))
            place = int(down.int().argmax()), int(across.int().argmax())
            altered = images.expand(self.samples, *images.shape).clone()
            altered[self._inside(*place)] = draw(images, *place, noise).to(images.dtype)
            return altered

        return alter

    def _draw_conditional(self, images: Tensor, top: int, left: int, noise: np.random.Generator) -> Tensor:
        """(S, N, C, k, k) from the normal distribution given the surround."""
        size, sides = self.window + 2 * self.pad, images.shape[-2:]
        if min(sides) < size:
            raise InputError(f"window + 2 pad is {size}, more than images of {tuple(sides)} hold")
        # `pad` before the window, less or more near the border
        y, x = (min(max(at - self.pad, 0), side - size) for at, side in zip((top, left), sides, strict=True))
        known = (self.gaussian.mean, self.gaussian.low, self.gaussian.high, *self._conditionals[top - y, left - x])
        mean, low, high, inside, gain, root = (each.to(images.device) for each in known)
        if len(mean) != images.shape[1]:
            raise InputError(f"patches of {len(mean)} channels for images of {images.shape[1]}")
        surround = images[..., y : y + size, x : x + size].double().flatten(-2)[..., ~inside] - mean[:, ~inside]
        centre = mean[:, inside] + torch.einsum("cio,nco->nci", gain, surround)
        normal = torch.from_numpy(noise.standard_normal((self.samples, *root.shape[:2]))).to(images.device)
        spread = torch.einsum("cij,scj->sci", root, normal)
        drawn = torch.clamp(centre + spread.unsqueeze(1), low.unsqueeze(-1), high.unsqueeze(-1))
        return drawn.reshape(*drawn.shape[:-1], self.window, self.window)

    def _draw_marginal(self, images: Tensor, top: int, left: int, noise: np.random.Generator) -> Tensor:
        """(S, N, C, k, k) from random images at the same place, or from random places of the image itself."""
        if self.patches is None:
            limits = (images.shape[-2] - self.window + 1, images.shape[-1] - self.window + 1)
            corners = noise.integers(limits, size=(self.samples, 2)).tolist()
            return torch.stack([images[self._inside(*corner)] for corner in corners])
        if self.pool.shape[1:] != images.shape[1:]:
            given, wanted = tuple(self.pool.shape[1:]), tuple(images.shape[1:])
            raise InputError(f"marginal sampling takes windows from images of the same size: {given}, not {wanted}")
        chosen = self.pool[noise.integers(len(self.pool), size=self.samples)].to(images.device)
        return chosen[self._inside(top, left)].unsqueeze(1).expand(-1, len(images), -1, -1, -1)

    @cached_property
    def _conditionals(self) -> dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]]:
        """The (2 pad + 1)^2 distributions of a window given its surround, by its place in the patch.

        Each is the mask of the window in the flattened patch, and what `given_surround` makes of it.
        """
        found = {}
        for top, left in product(range(2 * self.pad + 1), repeat=2):
            inside = torch.zeros(2 * [self.window + 2 * self.pad], dtype=torch.bool)
            inside[self._inside(top, left)] = True
            found[top, left] = inside.flatten(), *self.gaussian.given_surround(inside.flatten())
        return found

    def _inside(self, top: int, left: int) -> tuple[Any, slice, slice]:
        """The index of a window in anything whose last dimensions are rows and columns."""
        return ..., slice(top, top + self.window), slice(left, left + self.window)


def _images_of(data: Any) -> Iterator[Tensor]:
    """The images of a tensor, a list, or a data set of (image, label)."""
    for i in range(len(data)):
        item = data[i][0] if isinstance(data[i], tuple) else data[i]
        if not isinstance(item, Tensor) or item.ndim != 3:
            raise InputError("patches are images (M, C, H, W), a list of (C, H, W) tensors, or a data set of these")
        yield item
