"""`class-sensitivity`: does a map of one class differ from that of another?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ratherthan.evaluation.experiment import Batch, Experiment, Rows, register_experiment
from ratherthan.evaluation.masking import highest
from ratherthan.evaluation.sanity import spearman
from ratherthan.settings import Share


@register_experiment
@dataclass(frozen=True)
class ClassSensitivity(Experiment):
    """Class sensitivity (Williamson et al., CASE, 2025), and the random-logit test (Sixt et al. 2020).

    The map of the likeliest class is compared with that of the runner-up, and with that of a class at random (foils:
    all other classes each):

        agreement   = |A and B| / |A|, A and B the `share` of pixels that are highest in either map
        correlation = Spearman's rank correlation, as in `sanity`; the random-logit test takes a structural similarity

    Lower is better: a map that stays the same does not say why this class. Maps that have nothing to do with each other
    agree on `share` of the pixels. CASE asks whether the median agreement is below one half.

    Attributes:
        share: Share of pixels that count as highest.
    """

    share: Share = 0.05

    name: ClassVar[str] = "class-sensitivity"
    reads_labels = False
    keys = ("other",)
    measures = ("agreement", "correlation")
    higher_is_better: ClassVar[dict[str, bool]] = {"agreement": False, "correlation": False}
    layout = (("method", "other"), ("measure", "contrast"))

    def measure(self, batch: Batch) -> Iterator[Rows]:
        """One row for the runner-up, one for a class at random."""
        clean = batch.clean()
        first, second = clean.topk(2).indices.unbind(1)
        drawn = (batch.uniform(0, 1, "other") * (clean.shape[1] - 1)).long().clamp_max(clean.shape[1] - 2)
        asked = {"runner-up": second, "random": drawn + (drawn >= first)}  # any class but the first
        ours = batch.explain(first)
        for other, fact in asked.items():
            for key, why in batch.explain(fact).items():
                agreement = self._agreement(ours[key].heatmap(), why.heatmap())
                correlation = spearman(ours[key].attribution, why.attribution)
                yield batch.rows(*key, other=other, agreement=agreement, correlation=correlation)

    def _agreement(self, one: Tensor, other: Tensor) -> Tensor:
        a, b = highest(one, self.share), highest(other, self.share)
        return (a & b).sum((1, 2)).double() / torch.clamp(a.sum((1, 2)), min=1)
