"""How hard the class counts: the hinge on the logits, and the search for its weight c, row by row of a batch.

Both come from CEM (Dhurandhar et al. 2018, "Explanations based on the missing", section 3), which took the search from
Carlini and Wagner (2017): the smallest weight that just moves the class leaves the most room for all other terms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from ratherthan.contrast import margin
from ratherthan.errors import InputError, unknown
from ratherthan.search.method import lead

Rule = Literal["bisect", "halve"]


@dataclass(frozen=True, eq=False)
class TradeoffSearch:
    """Weights c of M rows and the bounds between which each is sought.

    Attributes:
        c: (M,) the weights to try now.
        lower: (M,) the largest weight that failed, 0 before any did.
        upper: (M,) the smallest weight that succeeded, inf before any did.
        rule: "bisect" (CEM): the midpoint of the bounds, or 10 c while there is no upper one. "halve" (CEM-MAF,
            supplement): c / 2 after a success, 10 c after a failure.
    """

    c: Tensor
    lower: Tensor
    upper: Tensor
    rule: Rule = "bisect"

    @classmethod
    def start(cls, c: Tensor, rule: Rule = "bisect") -> TradeoffSearch:
        """Begin a search.

        Args:
            c: (M,) the first weights, positive.
            rule: "bisect" or "halve".

        Raises:
            InputError: If there is no such rule or a weight is not positive.
        """
        if rule not in get_args(Rule):
            raise InputError(unknown("rule of weighing", rule, get_args(Rule)))
        if not (c > 0).all():
            raise InputError(f"a weight of the class term is positive, not {c.min().item():g}")
        return cls(c, torch.zeros_like(c), torch.full_like(c, torch.inf), rule)

    def update(self, success: Tensor) -> TradeoffSearch:
        """The weights to try next, knowing which of these moved the class: (M,) bool."""
        lower = torch.where(success, self.lower, torch.maximum(self.lower, self.c))
        upper = torch.where(success, torch.minimum(self.upper, self.c), self.upper)
        if self.rule == "bisect":
            c = torch.where(upper.isfinite(), (lower + upper) / 2, 10 * self.c)
        else:
            c = torch.where(success, self.c / 2, 10 * self.c)
        return replace(self, c=c, lower=lower, upper=upper)

    def take(self, rows: Tensor) -> TradeoffSearch:
        """Some of the rows, by number or by a mask (M,)."""
        return replace(self, c=self.c[rows], lower=self.lower[rows], upper=self.upper[rows])


def hinge(logits: Tensor, fact: Tensor, foil: Tensor, kappa: float, keep: bool) -> Tensor:
    """By how many logits the class is still on the wrong side; 0 once it is right by kappa.

    keep=False, a pertinent negative: max(0, y_t - max_{i != t} y_i + kappa) leaves the fact t; with a foil q,
    max(0, max_{i != q} y_i - y_q + kappa) arrives there. keep=True, a pertinent positive:
    max(0, max_{i != t} y_i - y_t + kappa).

    Args:
        logits: (M, classes).
        fact: (M,) class indices.
        foil: (M,) class indices, -1 for any other class than the fact; unused where `keep`.
        kappa: The margin, in logits.
        keep: Whether the fact is to be kept.

    Returns:
        (M,), not negative.
    """
    return (kappa - (margin(logits, fact) if keep else lead(logits, fact, foil))).clamp_min(0)
