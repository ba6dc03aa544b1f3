"""`confidence-drop`: how much of the fact's lead over the foil its most relevant pixels carry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ratherthan.contrast import resolve
from ratherthan.errors import InputError
from ratherthan.evaluation.experiment import Batch, Experiment, Rows, chosen, register_experiment
from ratherthan.evaluation.perturb import FILLS, filled, highest, pixel_maps


@register_experiment
@dataclass(frozen=True)
class ConfidenceDrop(Experiment):
    """Relative confidence drop when the top pixels are masked (after Zhang et al., Finer-CAM, CVPR 2025).

    With P the predicted class, Q the runner-up, x' the image without its `share` of highest pixels of the map of P
    rather than Q, and q = exp(y_P) / (exp(y_P) + exp(y_Q)) the confidence in P against Q,

        drop = (q(x) - q(x')) / q(x)

    Higher is better: the map found what the decision between the two rests on. Also measured are the absolute drops of
    p_P and p_Q, which tell a loss of P from a loss of both.

    Attributes:
        share: Share of pixels masked.
        fill: What replaces them: "zeros", "mean" or "blur" (sigma 15).
    """

    share: float = 0.05
    fill: str = "zeros"

    name: ClassVar[str] = "confidence-drop"
    measures = ("drop", "fact_drop", "foil_drop")

    def __post_init__(self) -> None:
        chosen("fill", self.fill, FILLS)
        if not 0 < self.share < 1:
            raise InputError(f"share is a share of the pixels, between 0 and 1, not {self.share}")

    def better(self, cell: Mapping[str, Any]) -> int:
        """A larger relative drop."""
        return 1 if cell["measure"] == "drop" else 0

    def measure(self, batch: Batch) -> Iterator[Rows]:
        """One masking per method and contrast."""
        found = batch.explain(foil="runner-up")
        clean = next(iter(found.values())).logits
        question = resolve(clean, foil="runner-up")
        pair = torch.cat([question.fact, question.foil], 1)
        fill = filled(self.fill, batch, 15.0)
        variants = (
            torch.where(highest(pixel_maps(why), self.share).unsqueeze(1), fill, batch.images) for why in found.values()
        )
        p, q = clean.softmax(1).gather(1, pair), clean.gather(1, pair).softmax(1)[:, 0]
        for (method, contrast), altered in zip(found, batch.logits(variants), strict=True):
            lost = p - altered.softmax(1).gather(1, pair)
            drop = (q - altered.gather(1, pair).softmax(1)[:, 0]) / q
            yield batch.rows(method, contrast, {}, drop=drop, fact_drop=lost[:, 0], foil_drop=lost[:, 1])
