"""Methods that alter the image and see what becomes of the contrast: occlusion, prediction difference, LIME.

Every method asks the network once, about all altered images, and keeps the full matrix of answers (alterations x
classes). Facts, foils and contrasts are read off that matrix, so that all of them cost the forward passes of one.

One value belongs to all channels of a pixel: maps are (N, Q, 1, H, W).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ratherthan.attribution.forward import ForwardPass
from ratherthan.attribution.method import Attribution, Method, register_method
from ratherthan.contrast import Plain, Question, Target, Weighted
from ratherthan.errors import InputError, ModelError, unknown

if TYPE_CHECKING:
    from ratherthan.superpixels import Kind, LabelMap, Superpixels

Weights = Literal["frozen", "live"]
Baseline = float | Literal["mean"] | Tensor
_Step = TypeVar("_Step")
_ANSWERS: WeakKeyDictionary[ForwardPass, dict[int, tuple[Method, Any]]] = WeakKeyDictionary()
_ALL_MASKS_UP_TO = 16


# --------------------------------------------------------------------------------------------- what they share
@dataclass(frozen=True, kw_only=True)
class Perturbation(Method):
    """A method that asks the network about altered images.

    Attributes:
        weights: How the foils are weighed at the altered images: "frozen" at the explained one, or "live".
        batch_size: Altered images per forward pass; bounds the memory, changes no result.
        progress: Show a progress bar.
    """

    weights: Weights = "frozen"
    batch_size: int = 32
    progress: bool = False

    def __post_init__(self) -> None:
        if self.weights not in ("frozen", "live"):
            raise InputError(unknown("weights", self.weights, ["frozen", "live"]))
        if self.batch_size < 1:
            raise InputError(f"batch_size is at least 1, not {self.batch_size}")

    @abstractmethod
    def respond(self, forward_pass: ForwardPass) -> Any:
        """Ask the network about all altered images."""

    def answers(self, forward_pass: ForwardPass) -> Any:
        """What `respond` found, asked once per forward_pass, whatever the number of foils and contrasts."""
        kept = _ANSWERS.setdefault(forward_pass, {})
        if id(self) not in kept:
            kept[id(self)] = (self, self.respond(forward_pass))
        return kept[id(self)][1]

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
        self, forward_pass: ForwardPass, target: Target, logits: Tensor, weights: Weights | None = None
    ) -> Tensor:
        """The contrast at altered images, (M, N, classes) to (M, N, Q), within the memory budget."""
        if (weights or self.weights) == "frozen":
            return target.scalar(logits, "frozen")
        step = max(1, forward_pass.budget // (target.question.foils.numel() * logits.element_size()))
        return torch.cat([target.scalar(part, "live") for part in torch.split(logits, step)])

    def steps(self, steps: Sequence[_Step], label: str) -> Iterable[_Step]:
        """The steps, with a progress bar if one is wanted."""
        if not self.progress:
            return steps
        from rich.progress import track

        return track(steps, description=label)

    def settings(self) -> dict[str, Any]:
        """The settings by name; of data only what it is."""
        return {name: _described(value) for name, value in super().settings().items() if name != "progress"}


def _described(value: Any) -> Any:
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    if isinstance(value, (str, int, float, bool, type(None), tuple)):
        return value
    return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else repr(value)


def _replacement(images: Tensor, baseline: Baseline) -> Tensor:
    """What takes the place of removed pixels: (N, C, H, W), perhaps expanded."""
    if isinstance(baseline, str):
        if baseline != "mean":
            raise InputError(f"baseline {baseline!r}: give a number, 'mean' (of each image and channel) or an image")
        return images.mean((-2, -1), keepdim=True).expand_as(images)
    try:
        return (
            torch.as_tensor(baseline, dtype=images.dtype, device=images.device)
            .expand(images.shape[1:])
            .expand_as(images)
        )
    except RuntimeError as error:
        shape = tuple(images.shape[1:])
        raise InputError(f"a baseline of shape {tuple(np.shape(baseline))} does not fit images of {shape}") from error


def _cover(starts: Sequence[int], size: int, length: int) -> Tensor:
    """(positions, length) bool: the pixels that each window holds along one side; cut off at the border."""
    start, pixel = torch.tensor(starts).unsqueeze(1), torch.arange(length)
    return (start <= pixel) & (pixel < start + size)


def _mean_over_windows(values: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """(rows * columns, N, Q) values of windows to (N, Q, 1, H, W): the mean over the windows that hold a pixel."""
    shares = [(cover / cover.sum(0)).to(values) for cover in (down, across)]
    grid = values.movedim(0, -1).reshape(*values.shape[1:], len(down), len(across))
    return torch.matmul(shares[0].T @ grid, shares[1]).unsqueeze(2)


# --------------------------------------------------------------------------------------------- occlusion
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
        baseline: What covers it: a number, "mean" (that of each image and channel), or an image (C, H, W).
    """

    name = "occlusion"
    size: int | tuple[int, int] | None = None
    stride: int | tuple[int, int] | None = None
    baseline: Baseline = "mean"

    def windows(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Rows and columns held by the windows, (positions, H) and (positions, W) bool.

        Raises:
            InputError: If windows do not fit in the image, or leave gaps.
        """
        sizes = _pair(self.size) or (max(1, height // 8), max(1, width // 8))
        strides = _pair(self.stride) or (max(1, sizes[0] // 2), max(1, sizes[1] // 2))
        for length, size, stride in zip((height, width), sizes, strides, strict=True):
            if not 1 <= size <= length:
                raise InputError(f"a window of {sizes} does not fit in an image of {height} x {width}")
            if not 1 <= stride <= size:
                raise InputError(f"a stride of {strides} leaves gaps between windows of {sizes}, or does not move them")
        starts = [
            range(0, math.ceil((length - size) / stride) * stride + 1, stride)
            for length, size, stride in zip((height, width), sizes, strides, strict=True)
        ]
        return _cover(starts[0], sizes[0], height), _cover(starts[1], sizes[1], width)

    def respond(self, forward_pass: ForwardPass) -> Tensor:
        """(windows, N, classes): logits with each window covered."""
        images = forward_pass.images
        down, across = (cover.to(images.device) for cover in self.windows(images.shape[-2], images.shape[-1]))
        off, samples = _replacement(images, self.baseline), len(images)
        cases, logits = torch.arange(len(down) * len(across) * samples, device=images.device), []
        for part in self.steps(torch.split(cases, self.batch_size), "occlusion"):
            window, sample = part // samples, part % samples
            covered = down[window // len(across)].unsqueeze(2) & across[window % len(across)].unsqueeze(1)
            logits.append(self.forward(forward_pass, torch.where(covered.unsqueeze(1), off[sample], images[sample])))
        return torch.cat(logits).reshape(-1, samples, logits[0].shape[-1])

    def attribute(self, forward_pass: ForwardPass, target: Target) -> Attribution:
        """(N, Q, 1, H, W): mean drop of the contrast over the windows that hold a pixel."""
        drop = self.scores(forward_pass, target, forward_pass.logits[None]) - self.scores(
            forward_pass, target, self.answers(forward_pass)
        )
        return Attribution(_mean_over_windows(drop, *self.windows(*forward_pass.images.shape[-2:])))


def _pair(given: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (given, given) if isinstance(given, int) else given


# --------------------------------------------------------------------------------------------- prediction difference
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
class PredictionDifference(Perturbation):
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
    window: int = 10
    pad: int = 2
    samples: int = 10
    stride: int = 1
    evidence: Literal["log-odds", "probability"] = "log-odds"
    training_samples: int = 1_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.evidence not in ("log-odds", "probability"):
            raise InputError(unknown("evidence", self.evidence, ["log-odds", "probability"]))
        if self.evidence == "probability" and self.weights == "live":
            raise InputError("evidence='probability' is linear in the probabilities: weights are 'frozen'")
        if self.sampling not in (None, "conditional", "marginal"):
            raise InputError(unknown("sampling", self.sampling, ["conditional", "marginal"]))
        if self.sampling == "conditional" and self.patches is None:
            raise InputError("conditional sampling learns from images: give patches=images or a data set")
        if self.sampling == "marginal" and isinstance(self.patches, PatchGaussian):
            raise InputError("marginal sampling draws windows from images: give patches=images, not a distribution")
        if min(self.window, self.samples, self.training_samples, self.pad + 1) < 1:
            raise InputError("window, samples and training_samples are at least 1, pad at least 0")
        if not 1 <= self.stride <= self.window:
            raise InputError(
                f"a stride of {self.stride} leaves gaps between windows of {self.window}, or does not move"
            )

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

    def respond(self, forward_pass: ForwardPass) -> Tensor:
        """(windows, N, classes): mean probabilities, or values, with each window unknown."""
        images = forward_pass.images
        tops, lefts = self._starts(images.shape[-2]), self._starts(images.shape[-1])
        places = list(product(tops, lefts))
        step = max(1, self.batch_size // (self.samples * len(images)))
        chunks = [chunk for group in self._groups(places, images) for chunk in _split(group, step)]
        means: dict[int, Tensor] = {}
        for chunk in self.steps(chunks, "prediction difference"):
            altered = self._altered(images, places, chunk)
            scores = self._distribution(forward_pass, self.forward(forward_pass, altered.flatten(0, 2)))
            means |= zip(chunk, scores.reshape(*altered.shape[:3], -1).mean(1), strict=True)
        return torch.stack([means[window] for window in range(len(places))])

    def attribute(self, forward_pass: ForwardPass, target: Target) -> Attribution:
        """(N, Q, 1, H, W): mean prediction difference over the windows that hold a pixel."""
        known, averaged = self._distribution(forward_pass, forward_pass.logits)[None], self.answers(forward_pass)
        difference = self._evidence(forward_pass, target, known) - self._evidence(forward_pass, target, averaged)
        height, width = forward_pass.images.shape[-2:]
        covers = (_cover(self._starts(length), self.window, length) for length in (height, width))
        return Attribution(_mean_over_windows(difference, *covers))

    def _distribution(self, forward_pass: ForwardPass, logits: Tensor) -> Tensor:
        return logits if not forward_pass.model.output.of_classes else logits.softmax(-1)

    def _evidence(self, forward_pass: ForwardPass, target: Target, p: Tensor) -> Tensor:
        """What a question makes of probabilities (or values): (M, N, classes) to (M, N, Q)."""
        if not forward_pass.model.output.of_classes:
            return self.scores(forward_pass, target, p)
        if self.evidence == "probability":
            return target.scalar(p, "frozen")
        log = ((p * self.training_samples + 1) / (self.training_samples + p.shape[-1])).log()
        if isinstance(target.contrast, Plain):
            fact = torch.nn.functional.one_hot(target.question.fact, p.shape[-1]).bool()
            odds = Target(target.logits, Question(target.question.fact, ~fact), Weighted())
            return self.scores(forward_pass, odds, log, "live") / math.log(2)
        return self.scores(forward_pass, target, log) / math.log(2)

    # ------------------------------------------------------------------------------------- windows
    def _starts(self, length: int) -> list[int]:
        last = length - self.window
        if last < 0:
            raise InputError(f"a window of {self.window} pixels does not fit in {length}; give a smaller window")
        return sorted({*range(0, last + 1, self.stride), last})

    def _is_conditional(self) -> bool:
        return self.sampling != "marginal" and self.patches is not None

    def _groups(self, places: list[tuple[int, int]], images: Tensor) -> list[list[int]]:
        """Windows by their place in the patch around them: each group shares one conditional distribution."""
        if not self._is_conditional():
            return [list(range(len(places)))]
        groups: dict[tuple[int, int], list[int]] = {}
        for window, place in enumerate(places):
            groups.setdefault(self._offset(place, images), []).append(window)
        return list(groups.values())

    def _offset(self, place: tuple[int, int], images: Tensor) -> tuple[int, int]:
        """Where a window lies in its patch: `pad` from the patch's corner, less or more near the border."""
        patch = self.window + 2 * self.pad
        if min(images.shape[-2:]) < patch:
            raise InputError(f"window + 2 pad is {patch}, more than images of {tuple(images.shape[-2:])} hold")
        top, left = (
            start - min(max(start - self.pad, 0), length - patch)
            for start, length in zip(place, images.shape[-2:], strict=True)
        )
        return top, left

    def _altered(self, images: Tensor, places: list[tuple[int, int]], chunk: list[int]) -> Tensor:
        """(windows, S, N, C, H, W): the images with these windows, all of one group, drawn anew."""
        draw = self._draw_conditional if self._is_conditional() else self._draw_marginal
        drawn = draw(images, [places[window] for window in chunk], chunk).to(images.dtype)
        altered = images.expand(len(chunk), self.samples, *images.shape).clone()
        for (top, left), target, window in zip((places[w] for w in chunk), altered, drawn, strict=True):
            target[..., top : top + self.window, left : left + self.window] = window
        return altered

    def _draw_conditional(self, images: Tensor, places: list[tuple[int, int]], chunk: list[int]) -> Tensor:
        """(windows, S, N, C, k, k) from the normal distribution given the surround."""
        top, left = self._offset(places[0], images)
        gain, root = (each.to(images.device) for each in self._conditionals[top, left])
        inside = self._inside(top, left).to(images.device)
        mean, low, high = (
            each.to(images.device) for each in (self.gaussian.mean, self.gaussian.low, self.gaussian.high)
        )
        if len(mean) != images.shape[1]:
            raise InputError(f"patches of {len(mean)} channels for images of {images.shape[1]}")
        size = self.window + 2 * self.pad
        patches = torch.stack([images[..., y - top :, x - left :][..., :size, :size] for y, x in places])
        surround = patches.double().flatten(-2)[..., ~inside] - mean[:, ~inside]
        centre = mean[:, inside] + torch.einsum("cio,bnco->bnci", gain, surround)
        noise = np.stack([self._noise(w).standard_normal((self.samples, *root.shape[:2])) for w in chunk])
        spread = torch.einsum("cij,bscj->bsci", root, torch.from_numpy(noise).to(images.device))
        drawn = torch.clamp(centre.unsqueeze(1) + spread.unsqueeze(2), low.unsqueeze(-1), high.unsqueeze(-1))
        return drawn.reshape(*drawn.shape[:-1], self.window, self.window)

    def _draw_marginal(self, images: Tensor, places: list[tuple[int, int]], chunk: list[int]) -> Tensor:
        """(windows, S, N, C, k, k) from random images at the same place, or from random places of the image itself."""
        if self.patches is not None and self.pool.shape[1:] != images.shape[1:]:
            given, wanted = tuple(self.pool.shape[1:]), tuple(images.shape[1:])
            raise InputError(f"marginal sampling takes windows from images of the same size: {given}, not {wanted}")
        return torch.stack(
            [self._elsewhere(images, *place, self._noise(w)) for place, w in zip(places, chunk, strict=True)]
        )

    def _elsewhere(self, images: Tensor, top: int, left: int, noise: np.random.Generator) -> Tensor:
        k = self.window
        if self.patches is not None:
            chosen = self.pool[noise.integers(len(self.pool), size=self.samples)].to(images.device)
            return chosen[..., top : top + k, left : left + k].unsqueeze(1).expand(-1, len(images), -1, -1, -1)
        limits = (images.shape[-2] - k + 1, images.shape[-1] - k + 1)
        corners = noise.integers(limits, size=(self.samples, 2)).tolist()
        return torch.stack([images[..., y : y + k, x : x + k] for y, x in corners])

    def _noise(self, window: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self.seed, window]))

    @cached_property
    def _conditionals(self) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
        """The (2 pad + 1)^2 distributions of a window given its surround, by its place in the patch."""
        offsets = product(range(2 * self.pad + 1), repeat=2)
        return {(top, left): self.gaussian.given_surround(self._inside(top, left)) for top, left in offsets}

    def _inside(self, top: int, left: int) -> Tensor:
        inside = torch.zeros(2 * [self.window + 2 * self.pad], dtype=torch.bool)
        inside[top : top + self.window, left : left + self.window] = True
        return inside.flatten()


def _images_of(data: Any) -> Iterator[Tensor]:
    """The images of a tensor, a list, or a data set of (image, label)."""
    for i in range(len(data)):
        item = data[i][0] if isinstance(data[i], tuple) else data[i]
        if not isinstance(item, Tensor) or item.ndim != 3:
            raise InputError(
                "patches: images (M, C, H, W), a list of (C, H, W) tensors, or a data set of these is needed"
            )
        yield item


def _split(items: list[int], step: int) -> list[list[int]]:
    return [items[start : start + step] for start in range(0, len(items), step)]


# --------------------------------------------------------------------------------------------- LIME
@dataclass(frozen=True, eq=False)
class Sampling:
    """What LIME learned about one image.

    Attributes:
        labels: (H, W) superpixels.
        masks: (M, superpixels), 1 where a superpixel is shown.
        similarity: (M,) weight of each altered image.
        logits: (M, classes).
    """

    labels: Tensor
    masks: Tensor
    similarity: Tensor
    logits: Tensor


@register_method
@dataclass(frozen=True)
class Lime(Perturbation):
    """LIME (Ribeiro et al. 2016), sampled by Captum: a linear model of the contrast in superpixels shown and hidden.

    Captum draws the altered images and weighs them, exp(-d^2 / (2 width^2)) with d the distance from the image. One
    ridge regression with as many outputs as there are questions then minimises sum_m similarity_m (s_m - b - mask_m
    c)^2 + alpha |c|^2 (the intercept b is free); a pixel's value is the coefficient c of its superpixel. Captum's
    default, the lasso, would need a fit of its own for each question and is not linear in the contrast.

    The notes hold `r2`, the weighted share of the variance that the linear model explains, (N, Q).

    Attributes:
        superpixels: "slic", "quickshift", "felzenszwalb", "grid", "pixels", a `Superpixels` with settings, or a label
            map (H, W).
        samples: Altered images per image, each superpixel shown with probability 1/2; "all": every mask there is, for
            up to 16 superpixels.
        baseline: What hides a superpixel: a number, "mean" (of each image and channel), or an image (C, H, W).
        alpha: Strength of the ridge penalty; 0: plain least squares.
        distance: "cosine" or "euclidean", between images in image space.
        kernel_width: Width of the similarity kernel.
        seed: Of the masks.
    """

    name = "lime"
    superpixels: Kind | Superpixels | LabelMap = "slic"
    samples: int | Literal["all"] = 1000
    baseline: Baseline = "mean"
    alpha: float = 1.0
    distance: Literal["cosine", "euclidean"] = "cosine"
    kernel_width: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples != "all" and (isinstance(self.samples, str) or self.samples < 2):
            raise InputError(f"samples is at least 2, or 'all', not {self.samples!r}")
        if self.alpha < 0 or self.kernel_width <= 0:
            raise InputError("alpha is at least 0 and kernel_width more than 0")
        if self.distance not in ("cosine", "euclidean"):
            raise InputError(unknown("distance", self.distance, ["cosine", "euclidean"]))

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

    def respond(self, forward_pass: ForwardPass) -> list[Sampling]:
        """The altered images of each image and what the network makes of them."""
        from ratherthan.superpixels import segment

        off = _replacement(forward_pass.images, self.baseline)
        labels = segment(forward_pass.images, self.superpixels)
        return [self._sample(forward_pass, *each) for each in zip(forward_pass.images, off, labels, strict=True)]

    def attribute(self, forward_pass: ForwardPass, target: Target) -> Attribution:
        """(N, Q, 1, H, W): the coefficient of the superpixel that holds a pixel."""
        maps, qualities = [], []
        for n, sampling in enumerate(self.answers(forward_pass)):
            one = Target(target.logits[n : n + 1], target.question[n : n + 1], target.contrast)
            targets = self.scores(forward_pass, one, sampling.logits.unsqueeze(1))[:, 0]
            coefficients, quality = ridge(sampling.masks, targets, sampling.similarity, self.alpha)
            maps.append(coefficients[sampling.labels].movedim(-1, 0))
            qualities.append(quality)
        return Attribution(torch.stack(maps).unsqueeze(2), diagnostics={"r2": torch.stack(qualities)})

    def _sample(self, forward_pass: ForwardPass, image: Tensor, off: Tensor, labels: Tensor) -> Sampling:
        from captum.attr import LimeBase
        from captum.attr._core.lime import default_from_interp_rep_transform, get_exp_kernel_similarity_function

        masks, logits, keeper = self.masks(int(labels.max()) + 1), [], _Keeper()

        def each_mask(image: Tensor, **settings: Any) -> Iterator[Tensor]:
            yield from torch.split(masks.to(image.device), 1)

        def ask_network(altered: Tensor) -> Tensor:
            logits.append(self.forward(forward_pass, altered))
            return logits[-1][:, 0]  # Captum keeps one number per image, we the whole row

        similarity = get_exp_kernel_similarity_function(self.distance, self.kernel_width)
        lime = LimeBase(ask_network, keeper, similarity, each_mask, True, default_from_interp_rep_transform, None)
        lime.attribute(
            image.unsqueeze(0),
            n_samples=len(masks),
            perturbations_per_eval=self.batch_size,
            show_progress=self.progress,
            feature_mask=labels[None, None],
            baselines=off.unsqueeze(0),
        )
        return Sampling(labels, keeper.masks, keeper.similarity, torch.cat(logits))


class _Keeper:
    """Stands where Captum expects a linear model: keeps what the model would be fitted to."""

    masks: Tensor
    similarity: Tensor

    def fit(self, loader: Any) -> None:
        self.masks, _, self.similarity = loader.dataset.tensors

    def representation(self) -> Tensor:
        return self.similarity


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
