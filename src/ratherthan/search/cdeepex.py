"""CDeepEx and xGEM: the nearest image on a manifold that could as well be the foil, or is taken for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ratherthan.search.constrained import OnManifold, Point, Space
from ratherthan.search.method import SearchQuestion, register_counterfactual_method
from ratherthan.search.solver import Terms
from ratherthan.settings import NotNegative, Positive


@register_counterfactual_method
@dataclass(frozen=True)
class CDeepEx(OnManifold):
    """The nearest point on the manifold where fact and foil are equally likely, and all others less (CDeepEx, eq. 2).

    min |z - z0|^2 subject to l_t = l_p and l_i + margin <= min(l_t, l_p) for every other class i, with logits l of the
    image G(z) + r, clipped to [0, 1], and r = I - G(z0), the residual of the inversion: at z0 it is the image itself.
    (The paper's sign of r would give 2 G(z0) - I, and its inequalities are turned; both are read as they must be.)

    Attributes:
        margin: By how many logits the other classes must stay below; the paper's epsilon.
    """

    name: ClassVar[str] = "cdeepex"

    _: KW_ONLY
    margin: NotNegative = 0.1

    def terms(self, at: Point) -> Terms:
        """H = l_t - l_p; g = l_i + margin - l_t and l_i + margin - l_p, -inf for the two classes themselves."""
        fact, foil = at.fact.unsqueeze(1), at.foil.unsqueeze(1)
        of_fact, of_foil = at.logits.gather(1, fact), at.logits.gather(1, foil)
        others = at.logits.scatter(1, fact, -torch.inf).scatter(1, foil, -torch.inf) + self.margin
        return Terms(_moved(at), of_fact - of_foil, torch.cat([others - of_fact, others - of_foil], 1))


@register_counterfactual_method
@dataclass(frozen=True)
class XGEM(OnManifold):
    """Either of the two things called xGEM.

    "boundary": CDeepEx without its inequalities, which is what that paper's section 4.1 compares with: a third class
    may come out on top. "penalty": min |x - G(z)|^2 + weight CE(f(G(z)), p) as in Joshi et al. (2018), without the
    residual; there the answer is well inside the foil. It counts as found only where a fresh pass gives the foil; where
    it does not, each retry multiplies the weight by ten.

    Attributes:
        objective: "boundary" or "penalty".
        weight: That of the cross-entropy in "penalty".
    """

    name: ClassVar[str] = "xgem"

    _: KW_ONLY
    objective: Literal["boundary", "penalty"] = "boundary"
    weight: Positive = 1.0

    def with_residual(self) -> bool:
        """Only on the boundary."""
        return self.objective == "boundary"

    def starts(self, question: SearchQuestion, space: Space, rows: Tensor, numbers: Sequence[int]) -> Tensor:
        """On the boundary every retry has a start of its own; a penalty is raised from where it began."""
        own = numbers if self.objective == "boundary" else [number % self.restarts for number in numbers]
        return super().starts(question, space, rows, own)

    def terms(self, at: Point) -> Terms:
        """On the boundary h = l_t - l_p, else the penalised misfit."""
        if self.objective == "boundary":
            fact, foil = at.fact.unsqueeze(1), at.foil.unsqueeze(1)
            return Terms(_moved(at), at.logits.gather(1, fact) - at.logits.gather(1, foil))
        misfit = (at.images - at.asked).square().flatten(1).sum(1)
        surprise = nn.functional.cross_entropy(at.logits, at.foil, reduction="none")
        return Terms(misfit + self.weight * 10**at.turn * surprise)

    def verified(self, at: Point) -> tuple[Tensor, Tensor]:
        """With a penalty, the foil is to be the likeliest class."""
        return super().verified(at) if self.objective == "boundary" else at.question.reached(at.logits, at.rows)


def _moved(at: Point) -> Tensor:
    """|z - z0|^2, (M,)."""
    return (at.z - at.start).square().flatten(1).sum(1)
