"""Wachter et al. (2017) in pixels: the nearest image by the sum of absolute changes that has the foil."""

from dataclasses import dataclass
from typing import ClassVar

import ratherthan as rt


@rt.register_counterfactual_method
@dataclass(frozen=True)
class Wachter(rt.ConstrainedSearch):
    name: ClassVar[str] = "wachter"

    def terms(self, at: rt.Point) -> rt.Terms:
        distance = (at.images - at.asked).abs().flatten(1).sum(1)
        return rt.Terms(distance, below=-rt.margin(at.logits, at.foil))
