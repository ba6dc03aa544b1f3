"""`deletion`: how fast the log-odds fall when pixels go, the most relevant first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ratherthan.contrast import get_contrast, resolve
from ratherthan.errors import InputError
from ratherthan.evaluation.experiment import Batch, Experiment, Rows, chosen, register_experiment
from ratherthan.evaluation.perturb import FILLS, filled, pixel_maps, ranks


@register_experiment
@dataclass(frozen=True)
class Deletion(Experiment):
    """Deletion (Petsiuk et al., RISE, 2018) on the contrastive score rather than on p_t.

    With P the predicted class, S the foils and s(x) = y_P - logsumexp_S y the log-odds,

        area = integral over u in [0, 1] of s(x without the u highest-ranked pixels), by the trapezoidal rule

    Lower is better: what the map ranks first is what P's lead rests on.

    Attributes:
        steps: Number of steps from the whole image to none.
        fill: What replaces pixels: "zeros", "mean" or "blur" (sigma 15).
        foil: "runner-up", or "others": all classes but P.
    """

    steps: int = 20
    fill: str = "zeros"
    foil: str = "runner-up"

    name: ClassVar[str] = "deletion"
    measures = ("area", "start", "end")
    shown = ("area",)
    layout = (("method",), ("contrast",))

    def __post_init__(self) -> None:
        chosen("fill", self.fill, FILLS)
        chosen("foil", self.foil, ("runner-up", "others"))
        if self.steps < 1:
            raise InputError(f"{self.name} needs at least one step, not {self.steps}")

    def better(self, cell: Mapping[str, Any]) -> int:
        """Less area."""
        return -1

    def gone(self, maps: Tensor) -> Iterator[Tensor]:
        """Which pixels are replaced at each of the steps + 1 points: bool (n, H, W), from none to all."""
        place, pixels = ranks(maps), maps.shape[-2] * maps.shape[-1]
        for step in range(self.steps + 1):
            yield place >= pixels - round(step * pixels / self.steps)

    def measure(self, batch: Batch) -> Iterator[Rows]:
        """The log-odds along the way of every method and contrast."""
        found = batch.explain(foil=self.foil)
        question = resolve(next(iter(found.values())).logits, foil=self.foil)
        fill = filled(self.fill, batch, 15.0)
        for (method, contrast), why in found.items():
            masks = self.gone(pixel_maps(why))
            altered = batch.logits(torch.where(mask.unsqueeze(1), fill, batch.images) for mask in masks)
            score = get_contrast("weighted").scalar(altered, question)[..., 0]
            area = torch.trapezoid(score, dx=1 / self.steps, dim=0)
            yield batch.rows(method, contrast, {}, area=area, start=score[0], end=score[-1])
