"""What nothing is: the image that stands where a part is taken away, the same for all methods and experiments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ratherthan.errors import InputError, told_as, unknown

Baseline = float | Sequence[float] | Tensor | str
"""A value of image space; one per channel; an image (C, H, W); or a word, see `baseline_images`."""
BASELINES = ("mean", "blur", "model-mean")
GROUNDS: tuple[float | str, ...] = (0.0, 0.5, 0.25, 0.75, 1.0, "mean", "blur")
"""What may be nothing where nobody says what is; see `quietest`."""
_WORDS: dict[float | str, str] = {
    0.0: "black", 0.5: "mid grey", 1.0: "white", "mean": "its mean colour", "blur": "its blur",
    "model-mean": "the model's mean",
}  # fmt: skip
_AS_QUIET = 0.01  # share of the entropy by which a ground may say more and still stand before another
SIDE, _RADIUS = 224, 50  # px: the papers' image, and half their 101-tap kernel


def baseline_images(
    images: Tensor, baseline: Any, sigma: Tensor | float = 15.0, model_mean: Sequence[float] | None = None
) -> Tensor:
    """An image of nothing for each image.

    Args:
        images: (N, C, H, W) in image space; or (N, C, ...) of any numbers.
        baseline: A number (0.0 is black); one per channel; an image (C, H, W); "mean": each image's own mean colour;
            "blur": the image blurred; "model-mean": the mean that the model subtracts, 0 after its normalisation.
        sigma: Of the blur, see `blur`.
        model_mean: Per channel; None: 0.

    Returns:
        (N, C, H, W), memory of its own.

    Raises:
        InputError: If it is none of these or does not fit the images.
    """
    if isinstance(baseline, str):
        if baseline not in BASELINES:
            raise InputError(f"{unknown('baseline', baseline, BASELINES)}, or give a number or an image")
        if baseline == "blur" and images.ndim != 4:
            raise InputError(f"a blur is one of images (N, C, H, W), not of {tuple(images.shape)}: give a number")
        if baseline == "blur":
            return blur(images, sigma)
        if baseline == "mean" and images.ndim < 3:
            raise InputError("a row has no mean that stands for nothing: give a number, one per column, or a row")
        if baseline == "mean":
            return images.mean(tuple(range(2, images.ndim)), keepdim=True).expand_as(images).clone()
        baseline = list(model_mean or (0.0,))
    what = f"a baseline is a number, one per channel, an image or a word, not {baseline!r}"
    with told_as(InputError, what, TypeError, ValueError, RuntimeError):
        value = torch.as_tensor(baseline, dtype=images.dtype, device=images.device)
    shape = tuple(images.shape[1:])
    value = value.squeeze(0) if value.ndim == images.ndim and len(value) == 1 else value
    value = value.view(-1, *[1] * (len(shape) - 1)) if value.ndim == 1 and len(value) in (1, shape[0]) else value
    what = f"a baseline of shape {tuple(value.shape)} does not fit images of {shape}"
    with told_as(InputError, what, RuntimeError, then="; give a number or one image"):
        return value.expand(shape).expand_as(images).clone()


def baseline_within(images: Tensor, baseline: Baseline) -> Tensor:
    """The same for what moves in image space only.

    Raises:
        InputError: If it fits no image or leaves [0, 1].
    """
    made = baseline_images(images, baseline)
    if not ((made >= 0) & (made <= 1)).all():
        raise InputError("a baseline lies in image space, [0, 1]")
    return made


def baseline_words(baseline: Baseline) -> str:
    """What to call a baseline: "black", "25% grey", "its blur"."""
    if isinstance(baseline, (int, float, str)):
        return _WORDS.get(baseline, baseline if isinstance(baseline, str) else f"{baseline:.0%} grey")
    return "the given image" if isinstance(baseline, Tensor) else "the given colour"


def quietest(images: Tensor, look: Callable[[Tensor], Tensor]) -> tuple[Tensor, list[str]]:
    """The nothing that says least to a network, for each image by itself.

    That of `GROUNDS` at which its answer has the most entropy, the first of those that are within a hundredth of it.

    Args:
        images: (N, C, H, W) in image space.
        look: Images (N, C, H, W) to logits (N, classes).

    Returns:
        (N, C, H, W), and what each is called.
    """
    answers = torch.stack([look(_ground(images, each)).log_softmax(1) for each in GROUNDS], 1)
    entropy = -(answers.exp() * answers).nansum(2)  # a class that is ruled out adds nothing
    chosen = (entropy >= (1 - _AS_QUIET) * entropy.amax(1, keepdim=True)).int().argmax(1).tolist()
    made = [_ground(image.unsqueeze(0), GROUNDS[k]) for image, k in zip(images, chosen, strict=True)]
    return torch.cat(made), [baseline_words(GROUNDS[k]) for k in chosen]


def _ground(images: Tensor, baseline: Baseline) -> Tensor:
    return baseline_images(images, baseline).clamp(0, 1)  # a blur may round beyond


def blur(images: Tensor, sigma: Tensor | float) -> Tensor:
    """Gaussian blur with reflected borders (weighted-contrast section 5.2.2; the authors' kernel has 101 taps).

    Separable, so two passes along the axes; each is one product with a band matrix that holds kernel and reflection,
    which a matrix multiplication does faster than a 101-tap convolution.

    Args:
        images: (n, C, H, W).
        sigma: Standard deviation, one or (n,), in pixels of a 224-pixel image: it and the kernel (50 pixels to each
            side) shrink with the shorter side of smaller images.

    Returns:
        (n, C, H, W).
    """
    scale = min(images.shape[-2:]) / SIDE
    sigma = torch.as_tensor(sigma, dtype=images.dtype, device=images.device).expand(len(images)) * scale
    down, across = (_band(size, sigma, max(1, round(_RADIUS * scale))) for size in images.shape[-2:])
    return down.unsqueeze(1) @ images @ across.unsqueeze(1).transpose(-1, -2)


def _band(size: int, sigma: Tensor, radius: int) -> Tensor:
    """(n, size, size): row i weighs the pixels that a kernel centred at i meets, reflected at both ends."""
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    weights = (-0.5 * (offsets / sigma.unsqueeze(1)).square()).softmax(1)
    period = max(1, 2 * (size - 1))
    met = (torch.arange(size, device=sigma.device).unsqueeze(1) + offsets) % period
    met = torch.minimum(met, period - met)
    band = sigma.new_zeros(len(sigma), size, size)
    return band.scatter_add_(2, met.expand(len(sigma), -1, -1), weights.unsqueeze(1).expand(-1, size, -1))
