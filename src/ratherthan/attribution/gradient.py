"""Methods that pull a contrast back to the images by plain gradients, at one point or at many."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ratherthan.attribution.forward import ForwardPass
from ratherthan.attribution.method import Attribution, Method, register_method
from ratherthan.contrast import FoilWeights, Target
from ratherthan.settings import AtLeastOne, NotNegative, Seed

Quadrature = Literal["gausslegendre", "riemann_left", "riemann_middle", "riemann_right"]


@register_method
@dataclass(frozen=True)
class Gradient(Method):
    """The gradient of the contrast with respect to the image (Simonyan et al. 2013): local sensitivity, signed."""

    name = "gradient"
    linear = True

    def prepare(self, forward_pass: ForwardPass) -> None:
        """Record from the images upward."""
        forward_pass.graph(None)

    def attribute(self, forward_pass: ForwardPass, target: Target) -> Attribution:
        """(N, Q, C, H, W): d contrast / d image."""
        return Attribution(forward_pass.graph(None).vjp(target.seeds, forward_pass.budget))


@register_method
@dataclass(frozen=True)
class InputXGradient(Gradient):
    """The image times the gradient of the contrast (Shrikumar et al. 2016), in image space."""

    name = "ixg"

    def attribute(self, forward_pass: ForwardPass, target: Target) -> Attribution:
        """(N, Q, C, H, W): x * d contrast / dx."""
        return Attribution(forward_pass.images.unsqueeze(1) * super().attribute(forward_pass, target).values)


@register_method
@dataclass(frozen=True)
class SmoothGrad(Method):
    """The mean gradient over noisy copies of the image (Smilkov et al. 2017): 1/S sum_s d contrast / dx (x + n_s).

    The noise is normal, its standard deviation a share of the image's own range of values. It depends on the seed and
    the draw only: every image gets the same S patterns, so that a result depends neither on the batch nor on an
    image's place in it.

    Attributes:
        samples: Noisy copies S.
        noise: Standard deviation as a share of (max - min) of the image.
        seed: Of the noise.
        foil_weights: "frozen": the foils are weighed as at the image itself; "live": anew at every noisy copy.
    """

    samples: AtLeastOne = 25
    noise: NotNegative = 0.15
    seed: Seed = 0
    foil_weights: FoilWeights = "frozen"

    name = "smoothgrad"
    linear = True

    def attribute(self, forward_pass: ForwardPass, target: Target) -> Attribution:
        """(N, Q, C, H, W): mean of d contrast / d image; all questions share the forward pass of a draw."""
        images = forward_pass.images
        low, high = images.flatten(1).aminmax(dim=1)
        sigma = self.noise * _per_image(high - low, images)
        shares = images.new_full((self.samples,), 1 / self.samples)

        def noisy(draw: Tensor, rows: Tensor) -> Tensor:
            keyed = np.random.default_rng([self.seed, int(draw[0])]).standard_normal(images.shape[1:])
            return images + sigma * torch.from_numpy(keyed).to(images)  # the same on every device

        return Attribution(_summed(forward_pass, target, self.foil_weights, shares, noisy))


@register_method
@dataclass(frozen=True)
class IntegratedGradients(Method):
    """The gradients met on the straight way from a baseline to the image, added up (Sundararajan et al. 2017).

    (x - x0) * integral over a in [0, 1] of d contrast / dx (x0 + a (x - x0)). The values of a map add up to the
    contrast at x minus that at x0; what the quadrature misses is the diagnostic `convergence delta`, (N, Q), and more
    than a twentieth is warned of. From a zero baseline it equals `ixg` for plain logits of networks of ReLUs without
    biases (weighted-contrast section 4).

    Attributes:
        n_steps: Points at which the gradient is taken.
        baseline: x0, see `baseline_images`; 0 is black.
        internal_batch_size: Images per forward pass; None: as many as are explained at once.
        foil_weights: "frozen": the foils are weighed as at x, linear in the logits (weighted-contrast eq. 1); "live":
            anew at every point, which for `probability` is the integral of the gradient of p. The two are different
            explanations.
        quadrature: "gausslegendre", or "riemann_left", "riemann_middle", "riemann_right"; points and weights as
            Captum's.
    """

    n_steps: AtLeastOne = 50
    baseline: Any = 0.0
    internal_batch_size: AtLeastOne | None = None
    foil_weights: FoilWeights = "frozen"
    quadrature: Quadrature = "gausslegendre"

    name = "ig"
    linear = True

    def attribute(self, forward_pass: ForwardPass, target: Target) -> Attribution:
        """(N, Q, C, H, W): (x - x0) * mean gradient; all questions share the forward passes."""
        images = forward_pass.images
        baseline = forward_pass.nothing(self.baseline)
        path, at_once = images - baseline, self.internal_batch_size or len(images)
        positions, weights = (torch.from_numpy(row).to(images) for row in _quadrature(self.quadrature, self.n_steps))

        def on_the_way(step: Tensor, rows: Tensor) -> Tensor:
            return baseline[rows] + _per_image(positions[step], images) * path[rows]

        total = _summed(forward_pass, target, self.foil_weights, weights, on_the_way, at_once)
        values, start = total * path.unsqueeze(1), forward_pass.forward(baseline, at_once)
        gain = target.scalar(target.logits, self.foil_weights) - target.scalar(start, self.foil_weights)
        missed, mass = values.flatten(2).sum(2) - gain, values.flatten(2).abs().sum(2)
        if far := int((missed.abs() > _MISSED * torch.maximum(gain.abs(), mass / 5)).sum()):
            what = f"{far} of {missed.numel()} maps of ig miss their sum by more than {_MISSED:.0%} of it"
            warnings.warn(f"{what}: give more than n_steps={self.n_steps}, or see diagnostics", stacklevel=2)
        return Attribution(values, diagnostics={"convergence delta": missed})


_MISSED = 0.05  # share of the contrast, or a hundredth of all relevance, from which on the quadrature is too coarse
_RIEMANN = {"riemann_left": 0.0, "riemann_middle": 0.5, "riemann_right": 1.0}  # of a step


def _quadrature(kind: Quadrature, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions in [0, 1] and their weights, (steps,) each."""
    if kind in _RIEMANN:
        return (np.arange(steps) + _RIEMANN[kind]) / steps, np.full(steps, 1 / steps)
    positions, weights = np.polynomial.legendre.leggauss(steps)
    return (1 + positions) / 2, weights / 2


def _summed(
    forward_pass: ForwardPass, target: Target, foil_weights: FoilWeights, weights: Tensor, point: Any, at_once: int = 0
) -> Tensor:
    """(N, Q, C, H, W): gradients of the contrast, `weights[step]` times those at `point(steps, samples)`, added up."""
    images, seeds = forward_pass.images, target.seeds
    total = images.new_zeros(len(images), seeds.shape[1], *images.shape[1:])
    cases = torch.split(torch.arange(len(weights) * len(images), device=images.device), at_once or len(images))
    for number, case in enumerate(cases):
        forward_pass.report(number / len(cases))
        step, rows = case // len(images), case % len(images)
        graph, seed = ForwardPass(forward_pass.model, point(step, rows), forward_pass.budget).graph(None), seeds[rows]
        if foil_weights == "live":
            seed = target.contrast.seed(graph.output.detach(), target.question[rows])
        gradients = graph.vjp(seed, forward_pass.budget)
        total.index_add_(0, rows, gradients * _per_image(weights[step], gradients))
    return total


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    """(N,) to (N, 1, 1, ...), to be multiplied with a tensor of as many dimensions as `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))
