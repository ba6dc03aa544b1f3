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

from ratherthan.attribution.method import get_method
from ratherthan.errors import InputError, first_line
from ratherthan.evaluation.experiment import Batch, Experiment, Rows, chosen, register_experiment
from ratherthan.evaluation.perturb import pixel_maps
from ratherthan.search.method import CounterfactualMethod, counterfactual_methods, get_counterfactual_method


@register_experiment
@dataclass(frozen=True, eq=False)
class Localisation(Experiment):
    """Pointing game (Zhang et al. 2016) and share of relevance inside given regions R.

        pointing = 1 if the highest pixel of the map is in R, else 0
        inside   = sum over R of max(phi, 0) / sum of max(phi, 0)    (undefined for a map without positive values)
        region   = the share of the image that R covers, what a map that knows nothing reaches

    A search for counterfactuals is measured by what its answer adds to the image; where it found none, by nothing.

    Attributes:
        regions: For each sample's name its boxes, [[left, top, right, bottom], ...] as shares of width and height in
            [0, 1] of the image as the network sees it, or a mask, an array (h, w) that is true inside. Or a JSON file
            of boxes. The name "*" stands for all samples that are not named; without it they are left out.
        target: The class explained: "label" or "predicted"; foils are all others.
        why_not: A class index: asks "why not this?" of the images that are predicted as another (cdeepex section 4.1):
            the map of this class against the prediction, or the change towards it. None: `target` is asked about.
    """

    regions: Mapping[str, Any] | str | Path = field(default_factory=dict)
    target: str = "label"
    why_not: int | None = None

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
        return {
            "target": self.target,
            "why_not": self.why_not,
            "regions": hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16],
        }

    def better(self, cell: Mapping[str, Any]) -> int:
        """More."""
        return 1

    def method(self, method: Any) -> Any:
        """An attribution method, or a search for counterfactuals."""
        return (
            get_counterfactual_method(method)
            if isinstance(method, CounterfactualMethod) or method in counterfactual_methods()
            else get_method(method)
        )

    def measure(self, batch: Batch) -> Iterator[Rows]:
        """One row per method and contrast for the samples that have a region."""
        assert isinstance(self.regions, Mapping)
        named = torch.tensor([name in self.regions or "*" in self.regions for name in batch.ids])
        batch = batch.keep(named.to(batch.images.device))
        predicted = batch.logits([batch.images])[0].argmax(1) if batch.ids else batch.labels
        if self.why_not is not None:
            other = predicted != self.why_not
            batch, predicted = batch.keep(other), predicted[other]
        if not batch.ids:
            return
        size = (batch.images.shape[-2], batch.images.shape[-1])
        regions = [self.regions.get(name, self.regions.get("*")) for name in batch.ids]
        planes = [_plane(name, each, size) for name, each in zip(batch.ids, regions, strict=True)]
        inside = torch.stack(planes).to(batch.images.device)
        for (method, contrast), maps in self._maps(batch, predicted):
            gain = maps.clamp_min(0)
            hit = inside.flatten(1).gather(1, gain.flatten(1).argmax(1, keepdim=True))[:, 0].double()
            yield batch.rows(
                method,
                contrast,
                {},
                pointing=torch.where(maps.isnan().any(2).any(1), torch.nan, hit),
                inside=(gain * inside).sum((1, 2)) / gain.sum((1, 2)),
                region=inside.double().mean((1, 2)),
            )

    def _maps(self, batch: Batch, predicted: Tensor) -> Iterator[tuple[tuple[str, str], Tensor]]:
        """Name and contrast, and (n, H, W) signed relevance or change; NaN where a search found nothing."""
        if self.why_not is None:
            asked, against = (batch.labels if self.target == "label" else predicted), None
        else:
            asked, against = torch.full_like(predicted, self.why_not), predicted
        for way, why in batch.explain(asked, against).items() if batch.methods else ():
            yield way, pixel_maps(why)
        for name, method in batch.searches.items():
            if self.why_not is None:
                raise InputError(f"{name} moves towards a class: give localisation why_not=CLASS")
            answers = batch.search(method, predicted, asked)
            yield (name, ""), answers.difference.sum(1).masked_fill(~answers.found.view(-1, 1, 1), torch.nan)


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
