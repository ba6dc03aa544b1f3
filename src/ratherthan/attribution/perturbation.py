"""What methods have in common that alter the image and see what becomes of the contrast.

Each asks the network once, about all altered images, and keeps the full matrix of answers (alterations x classes).
Facts, foils and contrasts are read off that matrix, so that all of them cost the forward passes of one.

One value belongs to all channels of a pixel: maps are (N, Q, 1, H, W).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ratherthan.attribution.forward import ForwardPass
from ratherthan.attribution.method import Attribution, Method, register_method
from ratherthan.baselines import baseline_images
from ratherthan.contrast import FoilWeights, Target
from ratherthan.errors import InputError, ModelError
from ratherthan.settings import AtLeastOne

_Step = TypeVar("_Step")


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


def steps(forward_pass: ForwardPass, parts: Sequence[_Step]) -> Iterator[_Step]:
    """The parts of a long loop, each reported when it is done."""
    for number, part in enumerate(parts):
        yield part
        forward_pass.report((number + 1) / len(parts))
