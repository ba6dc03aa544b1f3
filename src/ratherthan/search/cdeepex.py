"""CDeepEx and xGEM: the nearest image on a manifold that could as well be the foil, or is taken for it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from ratherthan.errors import InputError, unknown
from ratherthan.inference import preserve_state
from ratherthan.model import Model
from ratherthan.search.manifold import Inversion, Inverted, Manifold, invert
from ratherthan.search.method import FRAMES, Answers, CounterfactualMethod, Report, register_counterfactual_method
from ratherthan.search.solver import Outcome, Problem, Schedule, Status, Terms, noise, search

if TYPE_CHECKING:
    from typing import Self

Objective = Literal["boundary", "penalty"]
_ON_SEGMENT = 17  # points looked at between z0 and a latent of the foil
_BANK = 512  # latents of the prior among which one of the foil is sought, where none are given
_AT_ONCE = 256  # images of a fresh pass
_WHY_NOT = {
    Status.INVERSION_FAILED: "the manifold makes no such image: its best reconstruction is off by {:.3f}",
    Status.FOIL_EQUALS_FACT: "foil and fact are the same class: nothing would have to change",
}


@dataclass(frozen=True)
class OnManifold(CounterfactualMethod):
    """A search among the images of a manifold, from where it has the image asked about.

    Attributes:
        manifold: The generative model; None: the one that a zoo model names.
        restarts: Independent starts: z0; the point between z0 and the nearest latent of the foil where both classes are
            closest to equally likely; then z0 and noise. Each may give another answer.
        retries: Where a search finds nothing, so many further starts are tried.
        spread: Standard deviation of that noise, per latent.
        bank: (M, *latent_shape) latents to look for the foil among, e.g. of training images; None: prior samples.
        schedule: The search.
        inversion: How z0 is found.
        seed: Of the noise and the prior samples.
    """

    manifold: Manifold | None = None
    restarts: int = 1
    retries: int = 2
    spread: float = 0.5
    bank: Tensor | None = None
    schedule: Schedule = field(default_factory=Schedule)
    inversion: Inversion = field(default_factory=Inversion)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.restarts < 1 or self.retries < 0 or self.spread <= 0:
            raise InputError("restarts is at least 1, retries at least 0, and spread is positive")
        Manifold.required(self.manifold)

    @abstractmethod
    def constraints(self, logits: Tensor, fact: Tensor, foil: Tensor) -> tuple[Tensor, Tensor]:
        """What is to be zero, (M, E), and what at most zero, (M, G), for logits (M, classes) and classes (M, 1)."""

    def prepared(self, model: Model) -> Self:
        """With the manifold that a zoo model names, where none is given."""
        return self if self.manifold is not None else replace(self, manifold=Manifold.of(model))

    def check(self, model: Model, images: Tensor) -> None:
        """Refuse images of another shape than the manifold makes, and latents of another than it takes."""
        assert self.manifold is not None
        self.manifold.to(images).check(images)
        if self.bank is not None and tuple(self.bank.shape[1:]) != self.manifold.latent_shape:
            raise InputError(f"a bank of latents {tuple(self.bank.shape[1:])} for {self.manifold!r}")

    def answer(
        self,
        model: Model,
        images: Tensor,
        fact: Tensor,
        foil: Tensor,
        samples: Sequence[int],
        report: Report | None = None,
    ) -> Answers:
        """All foils of all images at once."""
        assert self.manifold is not None
        with preserve_state(nn.ModuleList([model.module, self.manifold.module])):
            inverted = invert(self.manifold, images, model, fact[:, 0], self.inversion, self.seed)
            return LatentSearch(self, model, images, inverted, fact, foil, samples).answers(report)


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

    margin: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.margin < 0:
            raise InputError(f"margin is at least 0 logits, not {self.margin}")

    def constraints(self, logits: Tensor, fact: Tensor, foil: Tensor) -> tuple[Tensor, Tensor]:
        """H = l_t - l_p; g = l_i + margin - l_t and l_i + margin - l_p, -inf for the two classes themselves."""
        of_fact, of_foil = logits.gather(1, fact), logits.gather(1, foil)
        others = logits.scatter(1, fact, -torch.inf).scatter(1, foil, -torch.inf) + self.margin
        return of_fact - of_foil, torch.cat([others - of_fact, others - of_foil], 1)


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

    objective: Objective = "boundary"
    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective not in get_args(Objective):
            raise InputError(unknown("objective of xgem", self.objective, get_args(Objective)))
        if self.weight <= 0:
            raise InputError(f"weight is positive, not {self.weight}")

    def constraints(self, logits: Tensor, fact: Tensor, foil: Tensor) -> tuple[Tensor, Tensor]:
        """For "boundary", h = l_t - l_p; for "penalty", the likeliest other class is to be below the foil."""
        of_foil = logits.gather(1, foil)
        if self.objective == "boundary":
            return logits.gather(1, fact) - of_foil, logits[:, :0]
        return logits[:, :0], logits.scatter(1, foil, -torch.inf).amax(1, keepdim=True) - of_foil


class LatentSearch:
    """The searches for K questions, R answers each; every tensor that begins with M belongs to M of the questions."""

    def __init__(
        self,
        how: OnManifold,
        model: Model,
        images: Tensor,
        inverted: Inverted,
        fact: Tensor,
        foil: Tensor,
        samples: Sequence[int],
    ) -> None:
        assert how.manifold is not None
        self.how, self.manifold, self.model, self.inverted = how, how.manifold, model, inverted
        self.penalised = isinstance(how, XGEM) and how.objective == "penalty"
        self.fact, self.foil = fact.reshape(-1, 1), foil.reshape(-1, 1)
        self.image = torch.arange(len(images), device=images.device).repeat_interleave(fact.shape[1])
        self.images, self.sample = images[self.image], [samples[i] for i in self.image.tolist()]
        self.origin = inverted.latents[self.image]
        self.residual = inverted.residual[self.image] * (not self.penalised)
        self.latents = self.origin.unsqueeze(1).repeat_interleave(how.restarts, 1)
        self.path = self.latents.unsqueeze(2).repeat_interleave(FRAMES, 2)
        self.status = [[Status.NOT_FOUND] * how.restarts for _ in self.sample]
        self.reason = [["interrupted before it began"] * how.restarts for _ in self.sample]
        self.evaluations = 0

    def answers(self, report: Report | None) -> Answers:
        """Search from all starts, again where nothing was found, and rank."""
        how, interrupted = self.how, self.inverted.interrupted
        slots = [(k, r) for k in self._open() for r in range(how.restarts)]
        for turn in range(how.retries + 1):
            if not slots or interrupted:
                break
            questions = torch.tensor([k for k, _ in slots], device=self.fact.device)
            starts = self._starts(questions, [r + (0 if self.penalised else turn * how.restarts) for _, r in slots])
            outcome = search(self._problem(questions, turn), starts, how.schedule, report)
            interrupted = outcome.interrupted
            self._enter(slots, questions, outcome, first=turn == 0)
            slots = [(k, r) for k, r in slots if self.status[k][r] is not Status.FOUND]
        return self._ranked(interrupted)

    def _open(self) -> list[int]:
        """The questions that can be searched for; the others are told why not."""
        error = self.inverted.error[self.image]
        failed = ~(error <= self.how.inversion.largest_error)  # NaN has failed too
        same = (self.fact == self.foil).squeeze(1)
        for status, which in ((Status.INVERSION_FAILED, failed), (Status.FOIL_EQUALS_FACT, same)):
            for k in which.nonzero().flatten().tolist():
                self.status[k] = [status] * self.how.restarts
                self.reason[k] = [_WHY_NOT[status].format(error[k].item())] * self.how.restarts
        open_: list[int] = (~(failed | same)).nonzero().flatten().tolist()
        return open_

    # ----------------------------------------------------------------------------------------- what is minimised
    def image_at(self, z: Tensor, questions: Tensor) -> Tensor:
        """G(z) + r in image space."""
        return (self.manifold.decode(z) + self.residual[questions]).clamp(0, 1)

    def logits(self, images: Tensor) -> Tensor:
        """The network's, counted."""
        self.evaluations += len(images)
        return self.model.logits(images)

    def constraints(self, logits: Tensor, questions: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the method."""
        return self.how.constraints(logits, self.fact[questions], self.foil[questions])

    def _problem(self, questions: Tensor, turn: int = 0) -> Problem:
        weight = self.how.weight * 10**turn if isinstance(self.how, XGEM) else 0

        def problem(z: Tensor, rows: Tensor) -> Terms:
            asked = questions[rows]
            made = self.image_at(z, asked)
            logits = self.logits(made)
            if not self.penalised:
                far = (z - self.origin[asked]).square().flatten(1).sum(1)
                return Terms(far, *self.constraints(logits, asked))
            misfit = (made - self.images[asked]).square().flatten(1).sum(1)
            surprise = nn.functional.cross_entropy(logits, self.foil[asked].squeeze(1), reduction="none")
            return Terms(misfit + weight * surprise, logits[:, :0], logits[:, :0])

        return problem

    # ----------------------------------------------------------------------------------------- where to begin
    def _starts(self, questions: Tensor, starts: Sequence[int]) -> Tensor:
        z, shape = self.origin[questions].clone(), self.manifold.latent_shape
        for row, start in enumerate(starts):
            if start > 1:
                drawn = noise(shape, self.how.seed, [self.sample[int(questions[row])]], start)[0]
                z[row] += self.how.spread * drawn.to(z)
        between = torch.tensor([start == 1 for start in starts], device=z.device)
        if between.any():
            z[between] = self._boundary(questions[between])
        return z

    @cached_property
    def _bank(self) -> tuple[Tensor, Tensor]:
        """Latents, and the classes of their images."""
        bank = self.how.bank
        if bank is None:
            bank = noise(self.manifold.latent_shape, self.how.seed, range(_BANK), 1)
        bank = bank.to(self.origin)
        made = [self.logits(self.manifold.decode(part).clamp(0, 1)).argmax(1) for part in torch.split(bank, 64)]
        return bank, torch.cat(made)

    @torch.no_grad()
    def _boundary(self, questions: Tensor) -> Tensor:
        """The point between z0 and the nearest latent of the foil where fact and foil are closest to equal."""
        (bank, classes), origin = self._bank, self.origin[questions]
        far = torch.cdist(origin.flatten(1), bank.flatten(1)).masked_fill(classes != self.foil[questions], torch.inf)
        some = far.isfinite().any(1).view(-1, *[1] * (origin.ndim - 1))
        step = torch.where(some, bank[far.argmin(1)] - origin, 0)
        best, least = origin.clone(), origin.new_full((len(origin),), torch.inf)
        for share in torch.linspace(0, 1, _ON_SEGMENT).tolist():
            z = origin + share * step
            logits = self.logits(self.image_at(z, questions))
            gap = (logits.gather(1, self.fact[questions]) - logits.gather(1, self.foil[questions])).abs().squeeze(1)
            nearer = gap < least
            best[nearer], least[nearer] = z[nearer], gap[nearer]
        return best

    # ----------------------------------------------------------------------------------------- what came of it
    def _enter(self, slots: Sequence[tuple[int, int]], questions: Tensor, outcome: Outcome, first: bool) -> None:
        """Write down a search; a retry counts only where it found something."""
        status, reason = list(outcome.status), list(outcome.reason)
        if self.penalised:
            _, logits = self._seen(outcome.z.unsqueeze(1), questions)
            reached = logits[:, 0].argmax(1)
            for row in (reached != self.foil[questions, 0]).nonzero().flatten().tolist():
                if status[row] is Status.FOUND:
                    status[row] = Status.NOT_FOUND
                    reason[row] = f"at its best the class is {int(reached[row])}: a larger weight may help"
        rounds, last = outcome.rounds.tolist(), outcome.path.shape[1] - 1
        for row, (k, r) in enumerate(slots):
            if first or status[row] is Status.FOUND:
                self.status[k][r], self.reason[k][r] = status[row], reason[row]
                self.latents[k, r] = outcome.z[row]
                # evenly spread over the row's own way: in a larger batch the others may have gone on
                steps = torch.linspace(0, rounds[row] * last // max(1, *rounds), FRAMES - 1).round().long()
                self.path[k, r, 1:] = outcome.path[row, steps.to(outcome.path.device)]
                self.path[k, r, -1] = outcome.z[row]

    @torch.no_grad()
    def _ranked(self, interrupted: bool) -> Answers:
        """Best first, the nearest, then the misses, the least violation first; all are looked at once more."""
        count, restarts = len(self.status), self.how.restarts
        rows = torch.arange(count, device=self.fact.device)
        examples, logits = self._seen(self.latents, rows)
        distance = (self.latents - self.origin.unsqueeze(1)).flatten(2).norm(dim=2)
        constraints = self.constraints(logits.flatten(0, 1), rows.repeat_interleave(restarts))
        violation = Terms(distance.flatten(), *constraints).violation().view(count, restarts)
        found = torch.tensor([[each is Status.FOUND for each in row] for row in self.status], device=distance.device)
        order = torch.where(found, distance, violation).argsort(dim=1, stable=True)
        order = order.gather(1, (~found).gather(1, order).byte().argsort(dim=1, stable=True))
        at = rows.unsqueeze(1), order
        frames, path_logits = self._seen(self.path[rows, order[:, 0]], rows)
        ranked = [(self.status[k][r], self.reason[k][r]) for k, row in enumerate(order.tolist()) for r in row]
        return Answers(
            status=[[each[0] for each in ranked[k * restarts : (k + 1) * restarts]] for k in range(count)],
            reason=[[each[1] for each in ranked[k * restarts : (k + 1) * restarts]] for k in range(count)],
            examples=examples[at],
            logits=logits[at],
            distance=distance[at],
            violation=violation[at],
            path=frames,
            path_logits=path_logits,
            interrupted=interrupted,
            evaluations=self.evaluations,
            inverted=self.inverted,
            latents=self.latents[at],
        )

    @torch.no_grad()
    def _seen(self, latents: Tensor, questions: Tensor) -> tuple[Tensor, Tensor]:
        """Images and logits of latents (M, R, ...)."""
        count, each = latents.shape[:2]
        flat, asked = latents.flatten(0, 1), questions.repeat_interleave(each)
        parts = zip(torch.split(flat, _AT_ONCE), torch.split(asked, _AT_ONCE), strict=True)
        images = [self.image_at(*part) for part in parts]
        logits = torch.cat([self.logits(part) for part in images])
        seen = torch.cat(images)
        return seen.view(count, each, *seen.shape[1:]), logits.view(count, each, -1)
