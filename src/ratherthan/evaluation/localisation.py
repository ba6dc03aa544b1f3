"""`localisation`: does the map lie where somebody says that the object is?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ratherthan.errors import InputError, first_line
from ratherthan.evaluation.experiment import Batch, Experiment, Rows, chosen, register_experiment
from ratherthan.evaluation.perturb import pixel_maps


@register_experiment
@dataclass(frozen=True, eq=False)
class Localisation(Experiment):
    """Pointing game (Zhang et al. 2016) and share of relevance inside given regions R.

        pointing = 1 if the highest pixel of the map is in R, else 0
        inside   = sum over R of max(phi, 0) / sum of max(phi, 0)    (undefined for a map without positive values)
        region   = the share of the image that R covers, what a map that knows nothing reaches

    Attributes:
        regions: For each sample's name its boxes, [[left, top, right, bottom], ...] as shares of width and height in
            [0, 1] of the image as the network sees it, or a mask, an array (h, w) that is true inside. Or a JSON file
            of boxes. Samples that are not named are left out.
        target: The class explained: "label" or "predicted"; foils are all others.
    """

    regions: Mapping[str, Any] | str | Path = field(default_factory=dict)
    target: str = "label"

    name: ClassVar[str] = "localisation"
    measures = ("pointing", "inside", "region")
    lead = "region"
    shown = ("pointing", "inside")

    def __post_init__(self) -> None:
        chosen("target", self.target, ("label", "predicted"))
        if isinstance(self.regions, (str, Path)):
            object.__setattr__(self, "regions", _read(self.regions))
        if not isinstance(self.regions, Mapping) or not self.regions:
            raise InputError("localisation needs regions={sample name: boxes or mask}, or a JSON file of boxes")

    def options(self) -> dict[str, Any]:
        """The regions by their hash."""
        assert isinstance(self.regions, Mapping)
        listed = {name: np.asarray(region).tolist() for name, region in sorted(self.regions.items())}
        return {"target": self.target, "regions": hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]}

    def better(self, cell: Mapping[str, Any]) -> int:
        """More."""
        return 1

    def measure(self, batch: Batch) -> Iterator[Rows]:
        """One row per method and contrast for the samples that have a region."""
        assert isinstance(self.regions, Mapping)
        batch = batch.keep(torch.tensor([name in self.regions for name in batch.ids], device=batch.images.device))
        if not batch.ids:
            return
        size = (batch.images.shape[-2], batch.images.shape[-1])
        inside = torch.stack([_plane(name, self.regions[name], size) for name in batch.ids]).to(batch.images.device)
        for (method, contrast), why in batch.explain(batch.labels if self.target == "label" else None).items():
            maps = pixel_maps(why)
            gain = maps.clamp_min(0)
            yield batch.rows(
                method,
                contrast,
                {},
                pointing=inside.flatten(1).gather(1, maps.flatten(1).argmax(1, keepdim=True))[:, 0],
                inside=(gain * inside).sum((1, 2)) / gain.sum((1, 2)),
                region=inside.double().mean((1, 2)),
            )


def _read(path: str | Path) -> dict[str, Any]:
    try:
        regions = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"regions: cannot read {str(path)!r}: {first_line(error)}") from error
    if not isinstance(regions, dict):
        raise InputError(f"regions: {str(path)!r} should hold an object of sample name: boxes")
    return regions


def _plane(name: str, region: Any, size: tuple[int, int]) -> Tensor:
    """(H, W) bool: the pixels whose centre is in a box, or a mask brought to this size."""
    values = np.asarray(region)
    if values.dtype == bool and values.ndim == 2:
        mask = torch.from_numpy(values).float()[None, None]
        return torch.nn.functional.interpolate(mask, size, mode="nearest-exact")[0, 0] > 0
    boxes = values.reshape(-1, 4) if values.size and values.size % 4 == 0 and values.dtype != object else None
    if boxes is None or not ((boxes >= 0) & (boxes <= 1)).all():
        raise InputError(f"region of {name!r}: give boxes [left, top, right, bottom] in [0, 1], or a mask of booleans")
    rows, columns = ((torch.arange(length) + 0.5) / length for length in size)
    plane = torch.zeros(size, dtype=torch.bool)
    for left, top, right, bottom in boxes.tolist():
        down, across = (rows >= top) & (rows <= bottom), (columns >= left) & (columns <= right)
        plane |= down.unsqueeze(1) & across.unsqueeze(0)
    return plane
