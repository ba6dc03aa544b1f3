"""Methods that alter the image and see what becomes of the contrast: occlusion, prediction difference, LIME, scan.

Each asks the network once, about all altered images, and keeps the full matrix of answers (alterations x classes).
Facts, foils and contrasts are read off that matrix, so that all of them cost the forward passes of one.

One value belongs to all channels of a pixel: maps are (N, Q, 1, H, W). Occlusion and LIME do the same on the time steps
of signals and in volumes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import product
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from ratherthan.attribution.explanation import on_plane
from ratherthan.attribution.forward import ForwardPass
from ratherthan.attribution.method import Attribution, Method, get_method, register_method
from ratherthan.contrast import Contrast, FoilWeights, Plain, Question, Target, Weighted
from ratherthan.errors import InputError, ModelError, told_as
from ratherthan.settings import AtLeastOne, Interval, NotNegative, Positive, Seed
from ratherthan.superpixels import Kind, Superpixels, segment

_Step = TypeVar("_Step")
_ALL_MASKS_UP_TO = 16
WEIGHTS = tuple(0.005 * step for step in range(1, 401))
_NOTE = f"kept: how many of {len(WEIGHTS)} weights lowered the fact and raised the foil; where 0, the map is zero"
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Perturbation(Method):
    """A method that asks the network about altered images.

    Attributes:
        foil_weights: How the foils are weighed at the altered images: "frozen" at the explained one, or "live".
        batch_size: Altered images per forward pass; bounds the memory, changes no result.
    """

    parted: ClassVar[bool] = False
    """Whether it can also alter the parts that the kind of input has of its own, as words."""
    of_planes: ClassVar[bool] = False
    """Whether it can also alter what has another number of axes than rows and columns."""
    foil_weights: FoilWeights = "frozen"
    batch_size: AtLeastOne = 32

    def prepare(self, forward_pass: ForwardPass) -> None:
        """Refuse what has no parts to alter.

        Raises:
            InputError: If these are no images.
        """
        parts = self.parted and forward_pass.parts is not None
        if len(forward_pass.plane) != 2 and not parts and not (self.of_planes and forward_pass.plane):
            shape = tuple(forward_pass.images.shape)
            what = f"{self.name} alters parts of images (N, C, H, W), not what has shape {shape}"
            table = "; occlusion and lime take rows of a table by Model(net, inputs=Table())"
            raise InputError(f"{what}: use ixg or ig{table * (len(shape) == 2 and forward_pass.parts is None)}")

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


def _by_itself(target: Target, classes: Tensor, contrast: Contrast) -> Target:
    """Why each of these classes, (N, Q), rather than any other?"""
    return Target(target.logits, Question.against_all(classes, target.logits.shape[-1]), contrast)


def steps(forward_pass: ForwardPass, parts: Sequence[_Step]) -> Iterator[_Step]:
    """The parts of a long loop, each reported when it is done."""
    for number, part in enumerate(parts):
        yield part
        forward_pass.report((number + 1) / len(parts))


class Windows(Perturbation):
    """A method that alters one window of the image at a time; a pixel's value is the mean over those that hold it.

    The plane may have any number of axes: rows and columns of images, steps of signals, slices before them of volumes.
    """

    cut_off: ClassVar[bool] = False
    """Whether the last windows are cut off at the border; if not, they end there."""

    @abstractmethod
    def sides(self, *plane: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the windows in a plane (H, W): height and width, steps down and across."""

    def windows(self, *plane: int) -> list[Tensor]:
        """Rows and columns held by the windows, (positions, H) and (positions, W) bool.

        Raises:
            InputError: If windows do not fit in the image, or leave gaps.
        """
        covers = []
        for length, size, stride in zip(plane, *self.sides(*plane), strict=True):
            if not 1 <= size <= length:
                raise InputError(f"a window of {size} pixels does not fit in {length}; give a smaller window")
            if not 1 <= stride <= size:
                raise InputError(f"a stride of {stride} leaves gaps between windows of {size}, or does not move them")
            starts = range(0, length - size + stride, stride)
            start = torch.tensor(starts).clamp_max(length if self.cut_off else length - size).unsqueeze(1)
            covers.append((start <= torch.arange(length)) & (torch.arange(length) < start + size))
        return covers

    @abstractmethod
    def altering(self, forward_pass: ForwardPass) -> Callable[..., Tensor]:
        """What alters a window: its number, rows (H,) and columns (W,) to copies of the images, (S, N, C, H, W)."""

    def read(self, forward_pass: ForwardPass, logits: Tensor) -> Tensor:
        """What is averaged over the copies of a window, and given to `scores`; the logits, if nothing made of them."""
        return logits

    def respond(self, forward_pass: ForwardPass) -> Tensor:
        """(windows, N, classes): the mean answer with each window altered."""
        images, means = forward_pass.images, []
        alter = self.altering(forward_pass)
        windows = list(enumerate(product(*(side.to(images.device) for side in self.windows(*forward_pass.plane)))))
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
        sides = [side.to(drop) / side.sum(0).to(drop) for side in self.windows(*forward_pass.plane)]
        values = drop.movedim(0, -1).reshape(*drop.shape[1:], *map(len, sides))
        for side in sides:  # the first axis of windows becomes the last, of pixels
            values = torch.tensordot(values, side, ([2], [0]))
        return Attribution(values.unsqueeze(2))


# --------------------------------------------------------------------------------------------- occlusion
@register_method
@dataclass(frozen=True)
class Occlusion(Windows):
    """Occlusion (Zeiler and Fergus 2014): by how much the contrast falls when a window is covered.

    A window's drop is s(x) - s(x with the window replaced); a pixel's value is the mean drop of the windows that hold
    it. Windows start at multiples of the stride; the last ones are cut off at the border, so that every pixel is held
    by one. These are Captum's windows, and its values for a single class.

    In volumes and signals a window has as many sides as these have axes; of a table one column is covered at a time.

    Attributes:
        size: Height and width of the window in pixels; None: an eighth of the image's.
        stride: Step between windows, at most their size; None: half of it.
        baseline: What covers it, see `baseline_images`; None: the mean colour; of a text the blank token; of a table
            the mean that the model subtracts, or 0.
    """

    name = "occlusion"
    parted = True
    of_planes = True
    cut_off = True
    size: int | tuple[int, ...] | None = None
    stride: int | tuple[int, ...] | None = None
    baseline: Any = None

    def sides(self, *plane: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """As given, or an eighth of the image by half of that.

        Raises:
            InputError: If there is not a number for each axis.
        """
        sizes = self._each_side("size", plane) or tuple(max(1, length // 8) for length in plane)
        return sizes, self._each_side("stride", plane) or tuple(max(1, size // 2) for size in sizes)

    def _each_side(self, what: str, plane: tuple[int, ...]) -> tuple[int, ...] | None:
        given: int | tuple[int, ...] | None = getattr(self, what)
        if isinstance(given, tuple) and len(given) != len(plane):
            raise InputError(f"{what} of {self.name} is a number, or one for each of {len(plane)} axes, not {given}")
        return (given,) * len(plane) if isinstance(given, int) else given

    def altering(self, forward_pass: ForwardPass) -> Callable[..., Tensor]:
        """Covers a window."""
        images, off = forward_pass.images, forward_pass.nothing(self.baseline)

        def alter(number: int, *sides: Tensor) -> Tensor:
            return torch.where(reduce(lambda window, side: window.unsqueeze(-1) & side, sides), off, images)[None]

        return alter

    def respond(self, forward_pass: ForwardPass) -> Tensor:
        """(windows, N, classes), or (words or columns, N, classes): logits with each covered."""
        parts = forward_pass.parts
        if parts is None:
            return super().respond(forward_pass)
        images, off, answers = forward_pass.images, forward_pass.nothing(self.baseline), []
        numbers = torch.arange(int(parts.max()) + 1, device=parts.device)
        for some in steps(forward_pass, torch.split(numbers, max(1, self.batch_size // len(images)))):
            covered = (parts == some.view(-1, 1, 1)).view(-1, *parts.shape, *[1] * (images.ndim - parts.ndim))
            altered = torch.where(covered, off, images)
            answers.append(self.forward(forward_pass, altered.flatten(0, 1)).reshape(*altered.shape[:2], -1))
        return torch.cat(answers)

    def attribute(self, forward_pass: ForwardPass, target: Target) -> Attribution:
        """(N, Q, 1, H, W): see above; the tokens of a word share its drop, (N, Q, T); of columns (N, Q, F)."""
        parts = forward_pass.parts
        if parts is None:
            return super().attribute(forward_pass, target)
        drop = self.scores(forward_pass, target, forward_pass.logits[None])
        drop = (drop - self.scores(forward_pass, target, self.answers(forward_pass))).movedim(0, -1)
        within = torch.nn.functional.one_hot(parts, drop.shape[-1]).to(drop)  # (N, T, words)
        return Attribution(drop @ (within / within.sum(1, keepdim=True).clamp_min(1)).mT)


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

    Where a network is surer than N images could make it, all smoothed probabilities are alike and the map is zero.

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
        with told_as(InputError, "marginal sampling takes windows from images of one size, at least one", RuntimeError):
            return torch.stack(list(_images_of(self.patches)))

    def prepare(self, forward_pass: ForwardPass) -> None:
        """Refuse what is no image, or labels.

        Raises:
            InputError: If these are no images.
            ModelError: If the classes are labels.
        """
        super().prepare(forward_pass)
        forward_pass.model.check_exclusive(self.name)

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
            target, foil_weights = _by_itself(target, target.question.fact, Weighted()), "live"
        return super().scores(forward_pass, target, log, foil_weights) / math.log(2)

    # ------------------------------------------------------------------------------------- windows
    def sides(self, *plane: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """As given, for all images."""
        return (self.window, self.window), (self.stride, self.stride)

    def altering(self, forward_pass: ForwardPass) -> Callable[..., Tensor]:
        """Draws a window anew; its number keys the noise."""
        images = forward_pass.images
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


# --------------------------------------------------------------------------------------------- LIME
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
            map (H, W). None: "slic" of images; of signals and volumes, which have no colours, "grid".
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
    of_planes = True
    superpixels: Kind | Superpixels | Tensor | np.ndarray[Any, Any] | None = None
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
        off, labels = forward_pass.nothing(self.baseline), self.parts(forward_pass)
        one = [1] * (images.ndim - labels.ndim)  # channels stand before the plane, or behind the tokens
        shape = (*one, *labels.shape[1:]) if forward_pass.parts is None else (*labels.shape[1:], *one)
        masks = [self.masks(int(each.max()) + 1).to(images.device) for each in labels]
        parts = [(n, part) for n, each in enumerate(masks) for part in torch.split(each, self.batch_size)]
        for n, part in steps(forward_pass, parts):
            altered = torch.where(part[:, labels[n]].view(-1, *shape) > 0, images[n], off[n])
            answers.append((n, self.similarity(images[n], altered), self.forward(forward_pass, altered)))
        found = ([each[1:] for each in answers if each[0] == n] for n in range(len(images)))
        return [(labels[n], masks[n], *map(torch.cat, zip(*each, strict=True))) for n, each in enumerate(found)]

    def parts(self, forward_pass: ForwardPass) -> Tensor:
        """What is shown and hidden as one: superpixels (N, H, W), words of texts (N, T), columns (N, F)."""
        if forward_pass.parts is not None:
            return forward_pass.parts
        usual: Kind = "slic" if len(forward_pass.plane) == 2 else "grid"
        return segment(forward_pass.images, usual if self.superpixels is None else self.superpixels)

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


# --------------------------------------------------------------------------------------------- scan
@register_method
@dataclass(frozen=True)
class Scan(Method):
    """Subtract the foil's map from the fact's by every weight, keep what works, take the mean.

    With E_t and E_p the plain maps of fact and foil (contrast `none`), on the plane of the image and scaled to
    max |E| = 1, and E_w = E_t - w E_p for w = .005, .010 ... 2.000: the evidence is removed from the image,
    x (1 - relu(E_w) / max relu(E_w)), all weights in one batched forward pass. E_w is kept where p_t falls and p_p
    rises. Scaling and removal are our reading; the paper leaves them open.

    The map is the mean of the kept E_w at the method's own resolution, zero where none was kept; how many were kept is
    in the diagnostics, (N, Q). Without a foil (contrast `none`) it is the method's plain map.

    Attributes:
        method: What makes the plain maps: a name or a method with settings.
    """

    name = "scan"
    method: str | Method = "gradcam"

    def settings(self) -> dict[str, Any]:
        """The method by its name, with its settings where it was given as an object."""
        own = self.method
        return {"method": own if isinstance(own, str) else {"name": own.name, **own.settings()}}

    def prepare(self, forward_pass: ForwardPass) -> None:
        """Make the forward pass of the method.

        Raises:
            ModelError: If these are no images, or the classes are labels.
        """
        forward_pass.model.check_images(self.name)
        get_method(self.method).prepare(forward_pass)

    def attribute(self, forward_pass: ForwardPass, target: Target) -> Attribution:
        """(N, Q, ...) as the method's maps.

        Raises:
            InputError: If a question has several foils, or the contrast would weigh them in another way.
        """
        method = forward_pass.once(self, lambda: get_method(self.method))
        if target.contrast.name == "none":
            return method.attribute(forward_pass, target)
        if target.contrast.name not in ("mean", "max", "weighted"):
            raise InputError(f"scan weighs fact and foil in its own way: leave contrast {target.contrast.name!r} out")
        if not target.question.single:
            raise InputError("scan compares with one class at a time: give a foil, e.g. 'runner-up' or a class")
        fact, foil = target.question.fact, target.question.foil
        found = method.attribute(forward_pass, _by_itself(target, torch.cat([fact, foil], 1), Plain()))
        summed = found.values.sum(2) if found.values.ndim == 5 else found.values
        planes = on_plane(summed, forward_pass.images)
        largest = planes.abs().amax((-2, -1))
        scale = torch.where(largest > 0, largest, 1)
        e_fact, e_foil = (planes / scale[..., None, None]).chunk(2, 1)
        weights = torch.tensor(WEIGHTS, dtype=planes.dtype, device=planes.device)
        kept = _kept(forward_pass, target, e_fact, e_foil, weights)
        count = kept.sum(-1)
        mean_weight = (kept * weights).sum(-1) / count.clamp_min(1)
        lead = (..., *[None] * (found.values.ndim - 2))
        raw_fact, raw_foil = (found.values / scale[lead]).chunk(2, 1)
        values = (count > 0)[lead] * (raw_fact - mean_weight[lead] * raw_foil)
        return Attribution(values, found.layer, {"kept": count, "scan": _NOTE})


def _kept(forward_pass: ForwardPass, target: Target, e_fact: Tensor, e_foil: Tensor, weights: Tensor) -> Tensor:
    """(N, Q, weights) bool: does removing the evidence lower the fact and raise the foil?"""
    shape = (*e_fact.shape[:2], len(weights))
    cases = torch.cartesian_prod(*(torch.arange(length, device=weights.device) for length in shape))
    answers = []
    for n, q, w in (part.T for part in torch.split(cases, _BATCH)):
        evidence = (e_fact[n, q] - weights[w, None, None] * e_foil[n, q]).clamp_min(0)
        most = evidence.amax((-2, -1), keepdim=True)
        removed = evidence / torch.where(most > 0, most, 1)
        answers.append(forward_pass.forward(forward_pass.images[n] * (1 - removed).unsqueeze(1)))
    n, q, _ = cases.T
    change = torch.cat(answers).softmax(-1) - forward_pass.logits.softmax(-1)[n]
    fact, foil = (each[n, q].unsqueeze(1) for each in (target.question.fact, target.question.foil))
    return ((change.gather(1, fact) < 0) & (change.gather(1, foil) > 0)).reshape(shape)
