"""What the latents of a generative model do to a picture: measured, not asserted (CEM-MAF, Fig. 5 and 6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ratherthan.errors import InputError
from ratherthan.inference import preserve_state

Measure = Callable[[Tensor], Mapping[str, float]]
"""Measures concepts by name of a picture (C, H, W) in image space."""


# ----------------------------------------------------------------------------------------- measures of a picture
def shape_of(image: Tensor) -> dict[str, float]:
    """Measure the darker of the two parts (by Otsu's threshold) of a picture, e.g. a lesion on skin.

    Args:
        image: (C, H, W) in image space.

    Returns:
        size: Its share of the area. roundness: 4 pi area / perimeter^2 of its largest piece, 1 for a disc. darkness:
        mean brightness around it minus mean brightness in it. border: mean gradient of the brightness along its edge,
        per pixel. NaN where there is no such part, as in a picture of one colour.
    """
    from skimage import filters, measure, morphology

    grey = image.detach().float().mean(0).cpu().numpy()
    if not float(grey.max() - grey.min()) > 1e-4:  # NaN, too
        return dict.fromkeys(("size", "roundness", "darkness", "border"), float("nan"))
    dark = grey < filters.threshold_otsu(grey)  # type: ignore[no-untyped-call]
    pieces = measure.label(dark)  # type: ignore[no-untyped-call]
    largest = pieces == np.bincount(pieces[dark]).argmax()
    perimeter = float(measure.perimeter(largest))  # type: ignore[no-untyped-call]
    edge = morphology.dilation(largest) ^ largest
    slope = np.hypot(*np.gradient(grey))
    roundness = 4 * np.pi * largest.sum() / perimeter**2 if perimeter > 0 else float("nan")
    return {
        "size": float(dark.mean()),
        "roundness": float(min(roundness, 1.0)),
        "darkness": float(grey[~dark].mean() - grey[dark].mean()),
        "border": float(slope[edge].mean()) if edge.any() else float("nan"),
    }


def garment_of(image: Tensor) -> dict[str, float]:
    """Measure a garment or a shoe, light on black ground, as those of Fashion-MNIST.

    Args:
        image: (C, H, W) in image space.

    Returns:
        sides: Mean brightness of the outer quarters, where sleeves are. waist: how much of three rows in the middle is
        not black. length: how many rows are not all black. heel: mean brightness where heels are, low on the right.
        mass: mean brightness. All in [0, 1].
    """
    light = image.detach().float().mean(0).cpu()
    rows, columns = light.shape
    quarter, middle = columns // 4, rows // 2
    return {
        "sides": torch.cat([light[:, :quarter], light[:, -quarter:]], 1).mean().item(),
        "waist": (light[middle - 1 : middle + 2] > _INK).double().mean().item(),
        "length": (light > _INK).any(1).double().mean().item(),
        "heel": light[middle : rows - rows // 7, -(columns * 2 // 7) :].mean().item(),
        "mass": light.mean().item(),
    }


GARMENT_WORDS = {"sides": "broader sides", "waist": "wider waist", "length": "greater length", "mass": "more material"}
"""What more of each is called."""

_INK = 0.2  # brightness from which on a pixel is not black
_ALIKE = 1e-6  # standard deviation of a concept below which pictures are alike in it


# ----------------------------------------------------------------------------------------- what latents do
@dataclass(frozen=True, eq=False)
class Effect:
    """What each of L latent coordinates does to one concept; NaN, in weights 0, where that could not be measured.

    Attributes:
        correlation: (L,) in [-1, 1]: of the concept with the coordinate (Pearson), 0 where it does not change.
        strength: (L,) by how much the concept rises per unit of the coordinate, in standard deviations that the concept
            has among the pictures begun at.
    """

    correlation: Tensor
    strength: Tensor


@torch.no_grad()
def effects(
    decoder: Any, latents: Tensor, measured: Measure = shape_of, reach: float = 3.0, steps: int = 7
) -> dict[str, Effect]:
    """Move each latent coordinate, and measure what becomes of the picture.

    Each coordinate goes from -reach to reach in even steps, the others staying where they are; correlation and slope
    over the steps are averaged over the latents begun at.

    Args:
        decoder: The generative model, of flat latents: what has `module` and `decode`, e.g. a `Manifold`. It is moved
            to where the latents are.
        latents: (N, L) where to begin, e.g. of encoded images, at least two.
        measured: What is measured.
        reach: How far the coordinates go.
        steps: In how many steps, at least three.

    Returns:
        The effects on each concept; their strength is NaN where the pictures begun at are all alike in it.

    Raises:
        InputError: If there are fewer latents or steps, or they are no vectors.
    """
    if latents.ndim != 2 or len(latents) < 2 or steps < 3:
        raise InputError(f"effects need at least two latents (N, L) and 3 steps, not {tuple(latents.shape)}, {steps}")
    places = torch.linspace(-reach, reach, steps).to(latents)
    found: dict[str, list[Any]] = {}
    with preserve_state(decoder.module.to(latents.device, latents.dtype)):
        spread = {name: np.nanstd(column) for name, column in _columns(decoder, latents, measured).items()}
        for index in range(latents.shape[1]):
            moved = latents.repeat_interleave(steps, 0)
            moved[:, index] = places.repeat(len(latents))
            for name, column in _columns(decoder, moved, measured).items():
                lines = [_line(places.cpu().double().numpy(), y) for y in column.reshape(len(latents), steps)]
                known = np.array([line for line in lines if line is not None]).reshape(-1, 2)
                found.setdefault(name, []).append(known.mean(0) if len(known) else np.full(2, np.nan))
    units = {name: [1.0, value if value > _ALIKE else np.nan] for name, value in spread.items()}
    tables = {name: torch.tensor(np.array(rows) / units[name]) for name, rows in found.items()}
    return {name: Effect(*table.unbind(1)) for name, table in tables.items()}


def _columns(decoder: Any, latents: Tensor, measured: Measure) -> dict[str, np.ndarray[Any, Any]]:
    rows = [measured(each) for part in torch.split(latents, 64) for each in decoder.decode(part).clamp(0, 1)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _line(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> tuple[float, float] | None:
    """Correlation and slope; None where y is unknown."""
    known = np.isfinite(y)
    if known.sum() < 3:
        return None
    if np.ptp(y[known]) < 1e-9:
        return 0.0, 0.0
    return float(np.corrcoef(x[known], y[known])[0, 1]), float(np.polyfit(x[known], y[known], 1)[0])
