"""Signed maps as colours: blue speaks against, red-orange speaks for, white says nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratherthan.errors import InputError

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]

# Lightness falls equally on both sides of white, and blue against orange survives every common colour blindness.
_SIGNED = {-1.0: (20, 86, 176), -0.5: (92, 158, 222), 0.0: (255, 255, 255), 0.5: (248, 148, 88), 1.0: (200, 60, 8)}
_UNSIGNED = {0.0: (255, 255, 255), 0.35: (176, 204, 190), 0.7: (60, 137, 130), 1.0: (12, 62, 78)}
FOR, AGAINST = "#d9601f", "#2f78c4"
# of curves; apart from each other under every common colour blindness, and from the two above
FACT, FOIL, OTHERS = "#6b4fa3", "#0e8f6e", "#a3abb5"
TINT_STRENGTH = 0.85  # even the strongest value lets some of the photograph through
FADED = 0.65  # the image below a tint is paled this far, or dark places would swallow the tint
_SHADES = 127  # of either sign in a palette image; with zero itself that makes 255 colours


def diverging(values: ArrayLike, limit: float) -> Bytes:
    """Colour a signed map on a zero-centred scale.

    Args:
        values: Numbers of any dtype, (H, W).
        limit: The absolute value, >= 0, that gets the strongest colour; larger ones are clipped. 0 draws white.

    Returns:
        RGB, uint8 (H, W, 3): blue below zero, white at zero, red-orange above.

    Raises:
        InputError: `values` is not two-dimensional or holds NaN; `limit` is negative or not finite.
    """
    return _interpolate(_scaled(values, limit), _SIGNED)


def sequential(values: ArrayLike, limit: float) -> Bytes:
    """Colour a non-negative map, e.g. a variance: white at or below zero, dark teal at `limit`; see `diverging`."""
    return _interpolate(np.maximum(_scaled(values, limit), 0.0), _UNSIGNED)


def overlay(image: ArrayLike, values: ArrayLike, limit: float, behind: bool = False) -> Bytes:
    """Tint the pale grey version of an image with a signed map; opacity grows with the absolute value.

    Args:
        image: (H, W), (H, W, 1) or (H, W, 3); floats in [0, 1] or uint8.
        values: (h, w), resampled bilinearly to the image where the sizes differ.
        limit: As in `diverging`.
        behind: Whether the image is ink on white paper, which takes the map's colours and stays as dark as it is.

    Returns:
        RGB, uint8 (H, W, 3): the pale grey image itself where the map is zero.

    Raises:
        InputError: The image has another shape, or as `diverging`.
    """
    rgb = as_rgb(image)
    if behind:
        pale = 255 - FADED * (255.0 - diverging(resample(values, rgb.shape[:2]), limit))
        return _bytes(rgb / 255.0 * pale)
    grey = 255 - FADED * (255 - rgb @ np.array([0.299, 0.587, 0.114]))
    coloured = tint(resample(values, rgb.shape[:2]), limit).astype(np.float64)
    opacity = coloured[..., 3:] / 255 * TINT_STRENGTH
    return _bytes(grey[..., None] * (1 - opacity) + coloured[..., :3] * opacity)


def shared_limit(maps: Iterable[ArrayLike], quantile: float = 0.995) -> float:
    """Find one colour scale for maps that are to be compared.

    Args:
        maps: Arrays of any shape.
        quantile: In [0, 1]: this share of each map's absolute values lies within the scale. A map so sparse that its
            quantile is zero counts with its largest value, or it would vanish.

    Returns:
        The largest of the maps' limits; 0 if all maps are zero or there is none.

    Raises:
        InputError: A map holds NaN or infinity.
    """
    limits = [0.0]
    for values in maps:
        size = np.abs(np.asarray(values, dtype=np.float64))
        if not np.isfinite(size).all():
            raise InputError("a map to be drawn holds NaN or infinity")
        if size.size:
            limits.append(float(np.quantile(size, quantile)) or float(size.max()))
    return max(limits)


def tint(values: ArrayLike, limit: float) -> Bytes:
    """Colour a map as a transparent tint, RGBA (H, W, 4), which laid over white is `diverging` again."""
    rgb = diverging(values, limit)
    opacity = 255.0 - rgb.min(axis=-1, keepdims=True)
    return _bytes(np.concatenate([255 - (255.0 - rgb) * 255 / np.maximum(opacity, 1), opacity], axis=-1))


def palette(values: ArrayLike, limit: float) -> tuple[Bytes, Bytes]:
    """Write `tint` as colour numbers (H, W) and their RGBA colours (255, 4), a fraction of the size."""
    ramp = np.linspace(-1, 1, 2 * _SHADES + 1)[None]
    return _bytes(np.rint(_scaled(values, limit) * _SHADES) + _SHADES), tint(ramp, 1.0)[0]


def as_rgb(image: ArrayLike) -> Bytes:
    """Bring an image, (H, W[, 1 or 3]) in [0, 1] (clipped) or uint8, to RGB bytes (H, W, 3), or raise InputError."""
    array = np.asarray(image)
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] not in (1, 3) or 0 in array.shape:
        raise InputError(f"an image to be drawn must be (H, W), (H, W, 1) or (H, W, 3), not {np.shape(image)}")
    if array.dtype != np.uint8:
        array = _bytes(np.clip(np.nan_to_num(array.astype(np.float64)), 0, 1) * 255)
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def resample(values: ArrayLike, shape: tuple[int, int]) -> Floats:
    """Resize a map (h, w) bilinearly to (H, W), averaging where it shrinks; untouched if it has that size."""
    from PIL import Image

    array = _plane(values)
    if array.shape == shape:
        return array
    resized = Image.fromarray(array.astype(np.float32)).resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float64)


def css_gradient() -> str:
    """Return the diverging scale, from against to for, as the stops of a CSS gradient."""
    colours = diverging(np.linspace(-1, 1, 13)[None], 1.0)[0]
    return ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in colours.tolist())


def _plane(values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.size == 0 or np.isnan(array).any():
        raise InputError(f"a map to be drawn must be (H, W) and hold no NaN; got shape {array.shape}")
    return array


def _scaled(values: ArrayLike, limit: float) -> Floats:
    if not 0 <= limit < np.inf:
        raise InputError(f"the limit of a colour scale must be finite and not negative, not {limit}")
    array = _plane(values)
    with np.errstate(over="ignore"):
        return np.clip(array / limit, -1.0, 1.0) if limit else np.zeros_like(array)


def _interpolate(position: Floats, points: dict[float, tuple[int, int, int]]) -> Bytes:
    channels = [np.interp(position, list(points), channel) for channel in zip(*points.values(), strict=True)]
    return _bytes(np.stack(channels, axis=-1))


def _bytes(array: NDArray[Any]) -> Bytes:
    rounded: Bytes = np.rint(array).astype(np.uint8)
    return rounded
