"""`insertion`: how fast the log-odds rise when pixels come, the most relevant first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ratherthan.evaluation.deletion import Deletion
from ratherthan.evaluation.experiment import register_experiment


@register_experiment
@dataclass(frozen=True)
class Insertion(Deletion):
    """Insertion (Petsiuk et al., RISE, 2018) on the contrastive score: `deletion` from the other side.

        area = integral over u in [0, 1] of s(the fill with the u highest-ranked pixels of x), by the trapezoidal rule

    Higher is better.

    Attributes:
        steps: As in `deletion`.
        fill: What the image emerges from; as published, a blurred one.
        foil: As in `deletion`.
    """

    fill: str = "blur"

    name: ClassVar[str] = "insertion"

    def better(self, cell: Mapping[str, Any]) -> int:
        """More area."""
        return 1

    def gone(self, maps: Tensor) -> Iterator[Tensor]:
        """From all pixels to none, the highest-ranked back first."""
        for mask in super().gone(maps):
            yield ~mask
