"""How hard the class counts: the search for the weight c of its hinge, row by row of a batch.

It comes from CEM (Dhurandhar et al. 2018, "Explanations based on the missing", section 3), which took it from
Carlini and Wagner (2017): the smallest weight that just moves the class leaves the most room for all other terms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ratherthan.errors import InputError
from ratherthan.settings import check_value

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
        check_value("rule of weighing", Rule, rule)
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
