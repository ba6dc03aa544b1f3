"""LIME: a linear model of the contrast in superpixels that are shown and hidden."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from ratherthan.attribution.forward import ForwardPass
from ratherthan.attribution.method import Attribution, register_method
from ratherthan.attribution.perturbation import Perturbation, steps
from ratherthan.contrast import Target
from ratherthan.errors import InputError
from ratherthan.settings import Interval, NotNegative, Positive, Seed
from ratherthan.superpixels import Kind, Superpixels, segment

_ALL_MASKS_UP_TO = 16


@register_method
@dataclass(frozen=True)
class Lime(Perturbation):
    """LIME (Ribeiro et al. 2016): a linear model of the contrast in superpixels shown and hidden.

    The altered images are weighed by exp(-d^2 / (2 width^2)) with d the distance from the image. One ridge regression
    with as many outputs as there are questions then minimises sum_m similarity_m (s_m - b - mask_m c)^2 + alpha |c|^2
    (the intercept b is free); a pixel's value is the coefficient c of its superpixel. The lasso, Captum's default,
    would need a fit of its own for each question and is not linear in the contrast.

    The diagnostics hold `r2`, the weighted share of the variance that the linear model explains, (N, Q).

    Attributes:
        superpixels: "slic", "quickshift", "felzenszwalb", "grid", "pixels", a `Superpixels` with settings, or a label
            map (H, W).
        samples: Altered images per image, each superpixel shown with probability 1/2; "all": every mask there is, for
            up to 16 superpixels.
        baseline: What hides a superpixel, see `baseline_images`; None: the mean colour; of a text the blank token.
        alpha: Strength of the ridge penalty; 0: plain least squares.
        distance: "cosine" or "euclidean", between images in image space.
        kernel_width: Width of the similarity kernel.
        seed: Of the masks.
    """

    name = "lime"
    parted = True
    superpixels: Kind | Superpixels | Tensor | np.ndarray[Any, Any] = "slic"
    samples: Annotated[int, Interval(2)] | Literal["all"] = 1000
    baseline: Any = None
    alpha: NotNegative = 1.0
    distance: Literal["cosine", "euclidean"] = "cosine"
    kernel_width: Positive = 1.0
    seed: Seed = 0

    def masks(self, superpixels: int) -> Tensor:
        """(M, superpixels) of 0 and 1, from a generator of its own.

        Raises:
            InputError: If all masks are asked for and there are too many.
        """
        if self.samples != "all":
            generator = torch.Generator().manual_seed(self.seed)
            return torch.rand(self.samples, superpixels, generator=generator).lt(0.5).long()
        if superpixels > _ALL_MASKS_UP_TO:
            raise InputError(f"{superpixels} superpixels have too many masks; samples='all' takes {_ALL_MASKS_UP_TO}")
        return torch.arange(2**superpixels).unsqueeze(1) >> torch.arange(superpixels) & 1

    def respond(self, forward_pass: ForwardPass) -> list[tuple[Tensor, ...]]:
        """Of each image: superpixels (H, W), masks (M, superpixels), similarity (M,) and logits (M, classes)."""
        images, answers = forward_pass.images, []
        channels = 1 if forward_pass.parts is None else -1  # where they stand
        off, labels = forward_pass.nothing(self.baseline), self.parts(forward_pass)
        masks = [self.masks(int(each.max()) + 1).to(images.device) for each in labels]
        parts = [(n, part) for n, each in enumerate(masks) for part in torch.split(each, self.batch_size)]
        for n, part in steps(forward_pass, parts):
            altered = torch.where(part[:, labels[n]].unsqueeze(channels) > 0, images[n], off[n])
            answers.append((n, self.similarity(images[n], altered), self.forward(forward_pass, altered)))
        found = ([each[1:] for each in answers if each[0] == n] for n in range(len(images)))
        return [(labels[n], masks[n], *map(torch.cat, zip(*each, strict=True))) for n, each in enumerate(found)]

    def parts(self, forward_pass: ForwardPass) -> Tensor:
        """What is shown and hidden as one: superpixels (N, H, W), or the words of texts (N, T)."""
        return segment(forward_pass.images, self.superpixels) if forward_pass.parts is None else forward_pass.parts

    def attribute(self, forward_pass: ForwardPass, target: Target) -> Attribution:
        """(N, Q, 1, H, W): the coefficient of the superpixel that holds a pixel; words share theirs, (N, Q, T)."""
        maps, qualities = [], []
        for n, (labels, masks, similarity, logits) in enumerate(self.answers(forward_pass)):
            one = Target(target.logits[n : n + 1], target.question[n : n + 1], target.contrast)
            targets = self.scores(forward_pass, one, logits.unsqueeze(1))[:, 0]
            coefficients, quality = ridge(masks, targets, similarity, self.alpha)
            shared = 1 if forward_pass.parts is None else labels.bincount().to(coefficients).unsqueeze(1)
            maps.append((coefficients / shared)[labels].movedim(-1, 0))
            qualities.append(quality)
        values = torch.stack(maps)
        values = values.unsqueeze(2) if forward_pass.parts is None else values
        return Attribution(values, diagnostics={"r2": torch.stack(qualities)})

    def similarity(self, image: Tensor, altered: Tensor) -> Tensor:
        """exp(-d^2 / (2 width^2)) with the distance d of an image (C, H, W) from altered ones (M, C, H, W): (M,)."""
        x, y = image.flatten(), altered.flatten(1)
        distance = 1 - torch.cosine_similarity(x, y, -1) if self.distance == "cosine" else (x - y).norm(dim=1)
        return (-0.5 * (distance / self.kernel_width).square()).exp()


def ridge(inputs: Tensor, targets: Tensor, weights: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Weighted ridge regression with several outputs and a free intercept, in float64.

    Args:
        inputs: (M, features).
        targets: (M, Q).
        weights: (M,), not negative.
        alpha: Strength of the penalty on the coefficients; with 0, of all least-squares solutions the shortest.

    Returns:
        Coefficients (features, Q) in the targets' dtype, and the weighted R^2 of each output, (Q,); 1 where there is
        nothing to explain.
    """
    x, y, w = (each.detach().cpu().double() for each in (inputs, targets, weights))
    x, y = (each - (w @ each) / w.sum() for each in (x, y))
    root = w.sqrt().unsqueeze(1)
    penalty = alpha**0.5 * torch.eye(x.shape[1], dtype=x.dtype)
    rows = torch.cat([root * y, y.new_zeros(x.shape[1], y.shape[1])])
    coefficients = torch.linalg.lstsq(torch.cat([root * x, penalty]), rows, driver="gelsd").solution
    missed, total = w @ (y - x @ coefficients).square(), w @ y.square()
    quality = torch.where(total > 0, 1 - missed / total, 1.0)
    return coefficients.to(targets), quality.to(targets)
