"""`localisation`: does the map lie where somebody says that the object is?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ratherthan.errors import InputError, told_as
from ratherthan.evaluation.experiment import Batch, Experiment, Rows, register_experiment
from ratherthan.files import read_text
from ratherthan.search.method import COUNTERFACTUAL_METHODS
from ratherthan.settings import Interval


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

    regions: Any = None
    target: Literal["label", "predicted"] = "label"
    why_not: Annotated[int, Interval(0)] | None = None

    name: ClassVar[str] = "localisation"
    measures = ("pointing", "inside", "region")
    higher_is_better: ClassVar[dict[str, bool]] = {"pointing": True, "inside": True}
    lead = "region"
    shown = ("pointing", "inside")
    searches = (COUNTERFACTUAL_METHODS,)

    def __post_init__(self) -> None:
        """Read the regions.

        Raises:
            InputError: If they cannot be read, or another setting does not fit.
        """
        super().__post_init__()
        object.__setattr__(self, "regions", read_regions(self.regions))

    def settings(self) -> dict[str, Any]:
        """The regions by their hash."""
        listed = {name: np.asarray(region).tolist() for name, region in sorted(self.regions.items())}
        regions = hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]
        return {"target": self.target, "why_not": self.why_not, "regions": regions}

    def measure(self, batch: Batch) -> Iterator[Rows]:
        """One row per method and contrast for the samples that have a region."""
        batch = batch.keep(torch.tensor(["*" in self.regions or name in self.regions for name in batch.ids]))
        predicted = batch.clean().argmax(1) if batch.ids else batch.labels
        if self.why_not is not None:
            other = predicted != self.why_not
            batch, predicted = batch.keep(other), predicted[other]
        if not batch.ids:
            return
        regions = {name: self.regions.get(name, self.regions.get("*")) for name in batch.ids}
        planes = [plane_of(name, region, batch.images.shape[-2:]) for name, region in regions.items()]
        inside = torch.stack(planes).to(batch.images.device)
        for key, maps in self._maps(batch, predicted):
            gain = maps.clamp_min(0)
            hit = inside.flatten(1).gather(1, gain.flatten(1).argmax(1, keepdim=True))[:, 0].double()
            pointing = torch.where(maps.flatten(1).isnan().any(1), torch.nan, hit)
            share = (gain * inside).sum((1, 2)) / gain.sum((1, 2))
            yield batch.rows(*key, pointing=pointing, inside=share, region=inside.double().mean((1, 2)))

    def _maps(self, batch: Batch, predicted: Tensor) -> Iterator[tuple[tuple[str, str], Tensor]]:
        """Method and contrast, and (n, H, W) signed relevance or change; NaN where a search found nothing."""
        asked, against = (batch.labels if self.target == "label" else predicted), None
        if self.why_not is not None:
            asked, against = torch.full_like(predicted, self.why_not), predicted
        for way, why in batch.explain(asked, against).items():
            yield way, why.heatmap()
        if batch.searches and self.why_not is None:
            raise InputError(f"{next(iter(batch.searches))} moves towards a class: give localisation why_not=CLASS")
        for name, answers in batch.search(predicted, asked):
            yield (name, ""), answers.difference.sum(1).masked_fill(~answers.found.view(-1, 1, 1), torch.nan)


def read_regions(regions: Any) -> Mapping[str, Any]:
    """Regions by the names of samples, as `Localisation` takes them.

    Raises:
        InputError: If there are none, or they cannot be read.
    """
    if isinstance(regions, (str, Path)):
        with told_as(InputError, f"regions: cannot read {str(regions)!r}", ValueError, RecursionError):
            regions = json.loads(read_text(regions))
    if not isinstance(regions, Mapping) or not regions:
        raise InputError("give regions={sample name: boxes or mask}, or a JSON file of boxes")
    return regions


def plane_of(name: str, region: Any, size: Sequence[int]) -> Tensor:
    """(H, W) bool: the pixels whose centre is in a box, or a mask brought to this size."""
    values = np.asarray(region)
    if values.dtype == bool and values.ndim == 2:
        mask = torch.from_numpy(values).float()[None, None]
        return torch.nn.functional.interpolate(mask, tuple(size), mode="nearest-exact")[0, 0] > 0
    boxes = values.reshape(-1, 4) if values.size and values.size % 4 == 0 and values.dtype != object else None
    if boxes is None or not ((boxes >= 0) & (boxes <= 1)).all():
        raise InputError(f"region of {name!r}: give boxes [left, top, right, bottom] in [0, 1], or a mask of booleans")
    rows, columns = ((torch.arange(length) + 0.5) / length for length in size)
    left, top, right, bottom = torch.from_numpy(boxes).float().unsqueeze(2).unbind(1)  # (boxes, 1) each
    down, across = (rows >= top) & (rows <= bottom), (columns >= left) & (columns <= right)
    return (down.unsqueeze(2) & across.unsqueeze(1)).any(0)
