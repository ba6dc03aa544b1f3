"""Ways to spoil a photograph, five levels each, and the full-reference score that says how much was lost."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image, ImageFilter, features
from torch import Tensor

from ratherthan.data import to_tensor
from ratherthan.errors import InputError, unknown

LEVELS = 5
"""Levels of each distortion, 1 (hardly visible) to 5 (severe)."""

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def _picture(image: Tensor) -> Image.Image:
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _recoded(image: Tensor, **options: object) -> Tensor:
    buffer = io.BytesIO()
    _picture(image).save(buffer, **options)  # type: ignore[arg-type]
    return to_tensor(Image.open(buffer), len(image))


_SETTINGS: dict[str, tuple[float, ...]] = {
    "jpeg": (50, 25, 12, 7, 4),  # quality
    "jpeg2000": (10, 25, 50, 100, 200),  # compression ratio
    "blur": (0.7, 1.1, 1.7, 2.5, 4.0),  # standard deviation in pixels
    "noise": (0.015, 0.03, 0.05, 0.08, 0.14),  # standard deviation, white is 1
    "contrast": (0.75, 0.5, 0.35, 0.22, 0.12),  # what is left of it
}
_APPLY: dict[str, Callable[[Tensor, Any, torch.Generator | None], Tensor]] = {
    "jpeg": lambda image, quality, _: _recoded(image, format="JPEG", quality=quality),
    "jpeg2000": lambda image, rate, _: _recoded(image, format="JPEG2000", quality_mode="rates", quality_layers=[rate]),
    "blur": lambda image, sigma, _: to_tensor(_picture(image).filter(ImageFilter.GaussianBlur(sigma)), len(image)),
    "noise": lambda image, sigma, generator: image + sigma * torch.randn(image.shape, generator=generator),
    "contrast": lambda image, left, _: (mean := image.mean((1, 2), keepdim=True)) + left * (image - mean),
}


def kinds() -> list[str]:
    """The distortions that can be made here; JPEG 2000 only where Pillow was built with it."""
    return [kind for kind in _SETTINGS if kind != "jpeg2000" or features.check("jpg_2000")]


def distort(image: Tensor, kind: str, level: int, generator: torch.Generator | None = None) -> Tensor:
    """Spoil a photograph.

    Args:
        image: (1 or 3, H, W) in [0, 1].
        kind: "jpeg" (quality 50, 25, 12, 7, 4), "jpeg2000" (compression 10, 25, 50, 100, 200), "blur" (Gaussian, sigma
            0.7, 1.1, 1.7, 2.5, 4 pixels), "noise" (white Gaussian, sigma 0.015, 0.03, 0.05, 0.08, 0.14) or "contrast"
            (0.75, 0.5, 0.35, 0.22, 0.12 of the distance from the mean colour is left).
        level: 1 to 5.
        generator: Where noise is drawn from.

    Returns:
        An image of the same shape in [0, 1], rounded to 8 bits as a file would hold it.

    Raises:
        InputError: There is no such distortion here, or no such level.
    """
    if kind not in kinds():
        raise InputError(unknown("distortion", kind, kinds()))
    if not 1 <= level <= LEVELS:
        raise InputError(f"distortions have levels 1 to {LEVELS}, not {level}")
    return (_APPLY[kind](image, _SETTINGS[kind][level - 1], generator).clamp(0, 1) * 255).round() / 255


def structural_similarity(reference: Tensor, distorted: Tensor) -> float:
    """The quality of a distorted image: SSIM of its luma (Wang et al. 2004), computed by scikit-image.

    Gaussian window of sigma 1.5, as published; the mean over the image, whose range is [-1, 1], is clipped to [0, 1].

    Args:
        reference: (1 or 3, H, W) in [0, 1], at least 11 pixels a side.
        distorted: The same photograph, spoilt.

    Returns:
        1 for identical images, 0 for images that share no structure.
    """
    return min(max(float(_ssim(reference, distorted)[0]), 0.0), 1.0)


def similarity_map(reference: Tensor, distorted: Tensor) -> Tensor:
    """What `structural_similarity` is the mean of (there without 5 pixels at the border): (H, W) in [-1, 1]."""
    return torch.from_numpy(_ssim(reference, distorted)[1]).float()


def _ssim(reference: Tensor, distorted: Tensor) -> Any:
    from skimage.metrics import structural_similarity as ssim

    weights = reference.new_tensor(_LUMA if len(reference) == 3 else (1,)).double()
    lumas = [torch.einsum("c,chw->hw", weights, each.double()).numpy() for each in (reference, distorted)]
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0, "full": True}
    return ssim(*lumas, **options)  # type: ignore[no-untyped-call]
