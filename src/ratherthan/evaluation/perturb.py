"""Taking pixels away: which ones, by rank of a map, and what stands in their place."""

from __future__ import annotations

import torch
from torch import Tensor

from ratherthan.attribution.explanation import Explanation
from ratherthan.evaluation.experiment import Batch

FILLS = ("blur", "zeros", "mean")
_SIDE, _RADIUS = 224, 50  # px: the papers' image, and half their 101-tap kernel


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
    scale = min(images.shape[-2:]) / _SIDE
    sigma = torch.as_tensor(sigma, dtype=images.dtype, device=images.device).expand(len(images)) * scale
    down, across = (_band(size, sigma, max(1, round(_RADIUS * scale))) for size in images.shape[-2:])
    return down.unsqueeze(1) @ images @ across.unsqueeze(1).transpose(-1, -2)


def _band(size: int, sigma: Tensor, radius: int) -> Tensor:
    """(n, size, size): row i weighs the pixels that a kernel centred at i meets, reflected at both ends."""
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    weights = (-0.5 * (offsets / sigma.unsqueeze(1)).square()).exp()
    weights = weights / weights.sum(1, keepdim=True)
    period = max(1, 2 * (size - 1))
    met = (torch.arange(size, device=sigma.device).unsqueeze(1) + offsets) % period
    met = torch.minimum(met, period - met)
    band = sigma.new_zeros(len(sigma), size, size)
    return band.scatter_add_(2, met.expand(len(sigma), -1, -1), weights.unsqueeze(1).expand(-1, size, -1))


def filled(fill: str, batch: Batch, sigma: Tensor | float) -> Tensor:
    """The images with every pixel replaced, (n, C, H, W).

    Args:
        fill: "blur"; "zeros", 0 after the model's normalisation, the mean colour of its training data; "mean", each
            image's own mean colour.
        batch: The images.
        sigma: Of the blur.
    """
    images = batch.images
    if fill == "blur":
        return blur(images, sigma)
    if fill == "mean":
        return images.mean((2, 3), keepdim=True).expand_as(images)
    return images.new_tensor(getattr(batch.model.inputs, "mean", None) or (0.0,)).view(-1, 1, 1).expand_as(images)


def pixel_maps(explanation: Explanation, align_corners: bool = False) -> Tensor:
    """An explanation on the pixels of its images: channels summed, then bilinear; (n, [Q,] H, W).

    Args:
        explanation: What is upsampled.
        align_corners: The authors' grid, whose corner cells lie on the corner pixels; else that of `heatmap`.
    """
    lead = 1 if explanation.axis is None else 2
    maps = explanation.attribution
    size = (explanation.images.shape[-2], explanation.images.shape[-1])
    if not align_corners or maps.ndim - lead == 3 or maps.shape[-2:] == size:
        return explanation.heatmap()
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    upsampled = torch.nn.functional.interpolate(flat, size, mode="bilinear", align_corners=True)
    return upsampled.reshape(*maps.shape[:-2], *size)


def ranks(maps: Tensor) -> Tensor:
    """The place of every pixel in ascending order, 0 for the lowest: (..., H, W). Of equals the first comes first."""
    order = maps.flatten(-2).argsort(dim=-1, stable=True)
    places = torch.arange(order.shape[-1], device=maps.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places).reshape(maps.shape)


def highest(maps: Tensor, share: float) -> Tensor:
    """The given share of pixels with the highest values, exactly: (..., H, W) bool."""
    pixels = maps.shape[-2] * maps.shape[-1]
    return ranks(maps) >= pixels - round(share * pixels)
