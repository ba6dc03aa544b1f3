"""`equal-mask`: the same with equally many pixels replaced for every contrast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ratherthan.evaluation.experiment import register_experiment
from ratherthan.evaluation.mask import Mask
from ratherthan.evaluation.perturb import ranks


@register_experiment
@dataclass(frozen=True)
class EqualMask(Mask):
    """As `mask`, but for each sample and class all contrasts lose the same number n of pixels (Table 3, appendix G).

    Keep positive replaces the n lowest-ranked pixels, keep negative the n highest. With pos and neg the numbers of
    positive and negative pixels, and min and max over the contrasts compared,

        preset          n, keep positive    n, keep negative
        paper           max neg             min pos
        official-code   min pos             max neg - 1
        strict          min neg             min pos

    The paper's text counts the sign that is replaced. Its code counts the sign that is kept, from the other end, and
    loses one pixel; a map that is 80 % positive beside one that is 50 % positive then has 15,052 positive pixels among
    the 25,088 that it should lose as negative. Only `strict` never replaces a pixel of the wrong sign.

    Attributes:
        preset: As in `mask`, like all others.
        threshold: As in `mask`.
        sigma: As in `mask`.
        fills: As in `mask`.
    """

    name: ClassVar[str] = "equal-mask"

    def replaced(self, maps: Tensor) -> dict[str, Tensor]:
        """Exactly n pixels of every contrast's map, ties included: of equal values the first is the lower."""
        positive, negative = (maps > 0).sum((-2, -1)), (maps < 0).sum((-2, -1))
        if self.preset == "official-code":
            lowest, highest = positive.amin(0), (negative.amax(0) - 1).clamp_min(0)
        else:
            lowest = negative.amin(0) if self.preset == "strict" else negative.amax(0)
            highest = positive.amin(0)
        place, pixels = ranks(maps), maps.shape[-2] * maps.shape[-1]
        return {"positive": place < lowest[..., None, None], "negative": place >= pixels - highest[..., None, None]}
