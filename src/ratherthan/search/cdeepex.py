"""CDeepEx and xGEM: the nearest image on a manifold that could as well be the foil, or is taken for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ratherthan.errors import InputError
from ratherthan.model import Model
from ratherthan.search.constrained import OnManifold, Point, Space
from ratherthan.search.method import SearchQuestion, register_counterfactual_method
from ratherthan.search.solver import Kept, Terms, noise
from ratherthan.settings import NotNegative, Positive

_ON_SEGMENT = 17  # points looked at between z0 and a latent of the foil
_BANK = 512  # latents of the prior among which one of the foil is sought, where none are given


@dataclass(frozen=True)
class BoundarySearch(OnManifold):
    """A search for the boundary between two classes: it may begin where a way to the foil crosses it.

    The starts are z0; the point between z0 and the nearest latent of the foil where both classes are closest to equally
    likely; then z0 and noise.

    Attributes:
        bank: (M, *latent_shape) latents to look for the foil among, e.g. of training images; None: prior samples.
    """

    _: KW_ONLY
    bank: Tensor | None = None

    def check(self, model: Model, images: Tensor) -> None:
        """Refuse images of another shape than the manifold makes, and latents of another than it takes."""
        super().check(model, images)
        if self.bank is not None and tuple(self.bank.shape[1:]) != self.generator.latent_shape:
            raise InputError(f"a bank of latents {tuple(self.bank.shape[1:])} for {self.manifold!r}")

    def starts(self, question: SearchQuestion, space: Space, rows: Tensor, numbers: Sequence[int]) -> Tensor:
        """See the class."""
        z, between = super().starts(question, space, rows, numbers), torch.tensor(numbers, device=rows.device) == 1
        if between.any():
            z[between] = self._crossing(question, space, rows[between])
        return z

    def _classified(self, question: SearchQuestion) -> tuple[Tensor, Tensor]:
        shape = self.generator.latent_shape
        bank = (noise(shape, self.seed, range(_BANK), 1) if self.bank is None else self.bank).to(question.images)
        made = (self.generator.decode(part).clamp(0, 1) for part in torch.split(bank, 64))
        return bank, torch.cat([question.look(each).argmax(1) for each in made])

    def _crossing(self, question: SearchQuestion, space: Space, rows: Tensor) -> Tensor:
        if "bank" not in space.known:  # looked at only where it is needed, and once
            space.known["bank"] = self._classified(question)
        (bank, classes), origin = space.known["bank"], space.start[rows]
        fact, foil = question.facts[rows].unsqueeze(1), question.foils[rows].unsqueeze(1)
        far = torch.cdist(origin.flatten(1), bank.flatten(1)).masked_fill(classes != foil, torch.inf)
        some = far.isfinite().any(1).view(-1, *[1] * (origin.ndim - 1))
        step = torch.where(some, bank[far.argmin(1)] - origin, 0)
        kept, numbers = Kept(origin), torch.arange(len(rows), device=rows.device)
        for share in torch.linspace(0, 1, _ON_SEGMENT).tolist():
            z = origin + share * step
            logits = question.look(space.decode(z, rows))
            gap = (logits.gather(1, fact) - logits.gather(1, foil)).abs().squeeze(1)
            kept.see(numbers, z, gap, gap, gap.isfinite())
        return kept.points


@register_counterfactual_method
@dataclass(frozen=True)
class CDeepEx(BoundarySearch):
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
class XGEM(BoundarySearch):
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
