"""Methods that alter the image and see what becomes of the contrast: occlusion, LIME, and what such have in common.

Each asks the network once, about all altered images, and keeps the full matrix of answers (alterations x classes).
Facts, foils and contrasts are read off that matrix, so that all of them cost the forward passes of one.

One value belongs to all channels of a pixel: maps are (N, Q, 1, H, W).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from ratherthan.attribution.forward import ForwardPass
from ratherthan.attribution.method import Attribution, Method, register_method
from ratherthan.baselines import baseline_images
from ratherthan.contrast import FoilWeights, Target
from ratherthan.errors import InputError, ModelError
from ratherthan.settings import AtLeastOne, Interval, NotNegative, Positive, Seed
from ratherthan.superpixels import Kind, Superpixels, segment

_Step = TypeVar("_Step")
_ALL_MASKS_UP_TO = 16


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
            what = f"{self.name} alters parts of images (N, C, H, W), not what has shape {shape}"
            raise InputError(f"{what}: use ixg or ig")

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
        step = max(1, forward_pass.budget // (target.question.foils.numel() * logits.element_size()))
        return torch.cat([target.scalar(part, "live") for part in torch.split(logits, step)])


class Windows(Perturbation):
    """A method that alters one window of the image at a time; a pixel's value is the mean over those that hold it."""

    cut_off: ClassVar[bool] = False
    """Whether the last windows are cut off at the border; if not, they end there."""

    @abstractmethod
    def sides(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of the windows in an image: height and width, steps down and across."""

    def windows(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Rows and columns held by the windows, (positions, H) and (positions, W) bool.

        Raises:
            InputError: If windows do not fit in the image, or leave gaps.
        """
        covers = []
        for length, size, stride in zip((height, width), *self.sides(height, width), strict=True):
            if not 1 <= size <= length:
                raise InputError(f"a window of {size} pixels does not fit in {length}; give a smaller window")
            if not 1 <= stride <= size:
                raise InputError(f"a stride of {stride} leaves gaps between windows of {size}, or does not move them")
            starts = range(0, length - size + stride, stride)
            start = torch.tensor(starts).clamp_max(length if self.cut_off else length - size).unsqueeze(1)
            covers.append((start <= torch.arange(length)) & (torch.arange(length) < start + size))
        return covers[0], covers[1]

    @abstractmethod
    def altering(self, images: Tensor) -> Callable[[int, Tensor, Tensor], Tensor]:
        """What alters a window: its number, rows (H,) and columns (W,) to copies of the images, (S, N, C, H, W)."""

    def read(self, forward_pass: ForwardPass, logits: Tensor) -> Tensor:
        """What is averaged over the copies of a window, and given to `scores`; the logits, if nothing made of them."""
        return logits

    def respond(self, forward_pass: ForwardPass) -> Tensor:
        """(windows, N, classes): the mean answer with each window altered."""
        images, means = forward_pass.images, []
        alter = self.altering(images)
        windows = list(enumerate(product(*(side.to(images.device) for side in self.windows(*images.shape[-2:])))))
        at_once = max(1, self.batch_size // (getattr(self, "samples", 1) * len(images)))
        for start in steps(forward_pass, range(0, len(windows), at_once)):
            altered = torch.stack([alter(number, *sides) for number, sides in windows[start : start + at_once]])
            answers = self.read(forward_pass, self.forward(forward_pass, altered.flatten(0, 2)))
            means.append(answers.reshape(*altered.shape[:3], -1).mean(1))
        return torch.cat(means)

    def attribute(self, forward_pass: ForwardPass, target: Target) -> Attribution:
        """(N, Q, 1, H, W): what the image has more of the contrast than the altered images, in the mean."""
        clean, altered = self.read(forward_pass, forward_pass.logits)[None], self.answers(forward_pass)
        drop = self.scores(forward_pass, target, clean) - self.scores(forward_pass, target, altered)
        down, across = ((side / side.sum(0)).to(drop) for side in self.windows(*forward_pass.images.shape[-2:]))
        grid = drop.movedim(0, -1).reshape(*drop.shape[1:], len(down), len(across))
        return Attribution((down.T @ grid @ across).unsqueeze(2))


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
        baseline: What hides a superpixel, see `baseline_images`.
        alpha: Strength of the ridge penalty; 0: plain least squares.
        distance: "cosine" or "euclidean", between images in image space.
        kernel_width: Width of the similarity kernel.
        seed: Of the masks.
    """

    name = "lime"
    superpixels: Kind | Superpixels | Tensor | np.ndarray[Any, Any] = "slic"
    samples: Annotated[int, Interval(2)] | Literal["all"] = 1000
    baseline: Any = "mean"
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
        off, labels = baseline_images(images, self.baseline), segment(images, self.superpixels)
        masks = [self.masks(int(each.max()) + 1).to(images.device) for each in labels]
        parts = [(n, part) for n, each in enumerate(masks) for part in torch.split(each, self.batch_size)]
        for n, part in steps(forward_pass, parts):
            altered = torch.where(part[:, labels[n]].unsqueeze(1) > 0, images[n], off[n])
            answers.append((n, self.similarity(images[n], altered), self.forward(forward_pass, altered)))
        found = ([each[1:] for each in answers if each[0] == n] for n in range(len(images)))
        return [(labels[n], masks[n], *map(torch.cat, zip(*each, strict=True))) for n, each in enumerate(found)]

    def attribute(self, forward_pass: ForwardPass, target: Target) -> Attribution:
        """(N, Q, 1, H, W): the coefficient of the superpixel that holds a pixel."""
        maps, qualities = [], []
        for n, (labels, masks, similarity, logits) in enumerate(self.answers(forward_pass)):
            one = Target(target.logits[n : n + 1], target.question[n : n + 1], target.contrast)
            targets = self.scores(forward_pass, one, logits.unsqueeze(1))[:, 0]
            coefficients, quality = ridge(masks, targets, similarity, self.alpha)
            maps.append(coefficients[labels].movedim(-1, 0))
            qualities.append(quality)
        return Attribution(torch.stack(maps).unsqueeze(2), diagnostics={"r2": torch.stack(qualities)})

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


def steps(forward_pass: ForwardPass, parts: Sequence[_Step]) -> Iterator[_Step]:
    """The parts of a long loop, each reported when it is done."""
    for number, part in enumerate(parts):
        yield part
        forward_pass.report((number + 1) / len(parts))
