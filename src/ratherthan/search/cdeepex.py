"""CDeepEx and xGEM: the nearest image on a manifold that the network cannot tell fact from foil by (CDeepEx, eq. 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from ratherthan.attribution.pullback import clean_room
from ratherthan.errors import InputError
from ratherthan.model import Model
from ratherthan.search.answers import FRAMES, Answers, CounterfactualMethod, Report, register_counterfactual_method
from ratherthan.search.core import Outcome, Schedule, Status, Terms, noise, search
from ratherthan.search.manifold import Inversion, Inverted, Manifold, invert

if TYPE_CHECKING:
    from typing import Self

_ON_SEGMENT = 17  # points looked at between z0 and a latent of the foil
_BANK = 512  # latents of the prior among which one of the foil is sought, where none are given


@register_counterfactual_method
@dataclass(frozen=True)
class CDeepEx(CounterfactualMethod):
    """The nearest point on the manifold where fact and foil are equally likely, and all others less (CDeepEx, eq. 2).

    min |z - z0|^2 subject to l_t = l_p and l_i + margin <= min(l_t, l_p) for every other class i, with logits l of the
    image G(z) + r, clipped to [0, 1], and r = I - G(z0), the residual of the inversion: at z0 it is the image itself.
    (The paper's sign of r would give 2 G(z0) - I, and its inequalities are turned; both are read as they must be.)

    Attributes:
        manifold: The generative model; None: the one that a zoo model names.
        margin: By how many logits the other classes must stay below; the paper's epsilon.
        restarts: Independent starts: z0; the point between z0 and the nearest latent of the foil where both classes are
            equally likely; then z0 and noise. Each may give another answer.
        retries: Where a search finds nothing, so many further starts are tried.
        spread: Standard deviation of that noise, per latent.
        bank: (M, *latent_shape) latents to look for the foil among, e.g. of training images; None: prior samples.
        schedule: The search.
        inversion: How z0 is found.
        seed: Of the noise and the prior samples.
    """

    name: ClassVar[str] = "cdeepex"
    constrained: ClassVar[bool] = True

    manifold: Manifold | None = None
    margin: float = 0.1
    restarts: int = 1
    retries: int = 2
    spread: float = 0.5
    bank: Tensor | None = None
    schedule: Schedule = field(default_factory=Schedule)
    inversion: Inversion = field(default_factory=Inversion)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.restarts < 1 or self.retries < 0 or self.margin < 0 or self.spread <= 0:
            raise InputError("restarts is at least 1, retries and margin at least 0, and spread is positive")

    def prepared(self, model: Model) -> Self:
        """With the manifold that a zoo model names, where none is given."""
        return self if self.manifold is not None else replace(self, manifold=Manifold.of(model))

    def check(self, model: Model, images: Tensor) -> None:
        """Refuse images of another shape than the manifold makes."""
        assert self.manifold is not None
        self.manifold.to(images).check(images)

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
        with clean_room(nn.ModuleList([model.module, self.manifold.module])):
            inverted = invert(self.manifold, images, model, fact[:, 0], self.inversion, self.seed)
            hunt = _Hunt(self, self.manifold, model, images, inverted, fact, foil, samples)
            return hunt.answers(report)


@register_counterfactual_method
@dataclass(frozen=True)
class XGEM(CDeepEx):
    """CDeepEx without its inequalities, as its section 4.1 calls xGEM: a third class may come out on top.

    The other meaning of the name, the minimum of |x - G(z)|^2 + w CE(f(G(z)), p) as in Joshi et al. (2018), is not this
    one.
    """

    name: ClassVar[str] = "xgem"
    constrained: ClassVar[bool] = False


class _Hunt:
    """The searches for K questions: row k R + r of a search is answer r to question k."""

    def __init__(
        self,
        how: CDeepEx,
        manifold: Manifold,
        model: Model,
        images: Tensor,
        inverted: Inverted,
        fact: Tensor,
        foil: Tensor,
        samples: Sequence[int],
    ) -> None:
        self.how, self.manifold, self.model, self.inverted = how, manifold, model, inverted
        self.fact, self.foil = fact.flatten(), foil.flatten()
        self.image = torch.arange(len(images), device=images.device).repeat_interleave(fact.shape[1])
        self.sample = [samples[i] for i in self.image.tolist()]
        failed = (inverted.error > how.inversion.largest_error) | inverted.error.isnan()
        self.excluded = {
            Status.INVERSION_FAILED: failed[self.image],
            Status.FOIL_EQUALS_FACT: self.fact == self.foil,
        }

    def answers(self, report: Report | None) -> Answers:
        """Search from all starts, again where nothing was found, and rank."""
        open_ = ~(self.excluded[Status.INVERSION_FAILED] | self.excluded[Status.FOIL_EQUALS_FACT])
        rows = open_.nonzero().flatten().repeat_interleave(self.how.restarts)
        slots = [(k, i % self.how.restarts) for i, k in enumerate(rows.tolist())]
        board = _Board(self)
        turn, interrupted = 0, False
        while slots and turn <= self.how.retries and not interrupted:
            questions = torch.tensor([k for k, _ in slots], device=self.fact.device)
            starts = self._starts(questions, [turn * self.how.restarts + slot for _, slot in slots])
            outcome = search(self._problem(questions), starts, self.how.schedule, report)
            board.enter(slots, outcome, first=turn == 0)
            interrupted = outcome.interrupted
            slots = [slot for slot in slots if board.status[slot[0]][slot[1]] is not Status.FOUND]
            turn += 1
        return board.answers(interrupted)

    def image_at(self, z: Tensor, questions: Tensor) -> Tensor:
        """G(z) + r in image space."""
        residual = self.inverted.residual[self.image[questions]]
        return (self.manifold.decode(z) + residual).clamp(0, 1)

    def _problem(self, questions: Tensor) -> Callable[[Tensor, Tensor], Terms]:
        origin = self.inverted.latents[self.image[questions]]

        def problem(z: Tensor, rows: Tensor) -> Terms:
            asked = questions[rows]
            distance = (z - origin[rows]).square().flatten(1).sum(1)
            return self.terms(distance, self.model.logits(self.image_at(z, asked)), asked)

        return problem

    def terms(self, distance: Tensor, logits: Tensor, questions: Tensor) -> Terms:
        """Eq. 2 at these logits: h = l_t - l_p, g = l_i + margin - l_t and l_i + margin - l_p."""
        fact, foil = self.fact[questions].unsqueeze(1), self.foil[questions].unsqueeze(1)
        of_fact, of_foil = logits.gather(1, fact), logits.gather(1, foil)
        if not self.how.constrained:
            return Terms(distance, of_fact - of_foil, logits[:, :0])
        others = logits.scatter(1, fact, -torch.inf).scatter(1, foil, -torch.inf) + self.how.margin
        return Terms(distance, of_fact - of_foil, torch.cat([others - of_fact, others - of_foil], 1))

    # ----------------------------------------------------------------------------------------- where to begin
    def _starts(self, questions: Tensor, starts: Sequence[int]) -> Tensor:
        z = self.inverted.latents[self.image[questions]].clone()
        for row, start in enumerate(starts):
            if start > 1:
                drawn = noise(self.manifold.latent_shape, self.how.seed, [self.sample[int(questions[row])]], start)
                z[row] += self.how.spread * drawn[0].to(z)
        between = torch.tensor([start == 1 for start in starts], device=z.device)
        if between.any():
            z[between] = self._boundary(questions[between], z[between])
        return z

    @torch.no_grad()
    def _boundary(self, questions: Tensor, origin: Tensor) -> Tensor:
        """The point between z0 and the nearest latent of the foil where fact and foil are closest to equal."""
        bank = self.how.bank
        if bank is None:
            bank = noise(self.manifold.latent_shape, self.how.seed, range(_BANK), 1)
        bank = bank.to(origin)
        seen = self.manifold.decode(bank).clamp(0, 1)
        classes = torch.cat([self.model.logits(part).argmax(1) for part in torch.split(seen, 64)])
        far = torch.cdist(origin.flatten(1), bank.flatten(1))
        far = far.masked_fill(classes != self.foil[questions].unsqueeze(1), torch.inf)
        goal = torch.where(far.isfinite().any(1).view(-1, *[1] * (origin.ndim - 1)), bank[far.argmin(1)], origin)
        best, least = origin.clone(), origin.new_full((len(origin),), torch.inf)
        for share in torch.linspace(0, 1, _ON_SEGMENT).tolist():
            z = origin + share * (goal - origin)
            gap = self._problem(questions)(z, torch.arange(len(z), device=z.device)).zero.abs().squeeze(1)
            nearer = gap < least
            best[nearer], least[nearer] = z[nearer], gap[nearer]
        return best


class _Board:
    """Collects the answers of the searches; what was not searched for keeps the image itself."""

    def __init__(self, hunt: _Hunt) -> None:
        self.hunt, restarts = hunt, hunt.how.restarts
        at = hunt.inverted.latents[hunt.image]
        self.latents = at.unsqueeze(1).repeat(1, restarts, *[1] * (at.ndim - 1))
        self.path = at.unsqueeze(1).unsqueeze(1).repeat(1, restarts, FRAMES, *[1] * (at.ndim - 1))
        self.status = [[Status.NOT_FOUND] * restarts for _ in hunt.sample]
        self.reason = [["interrupted before it began"] * restarts for _ in hunt.sample]
        error = hunt.inverted.error[hunt.image].tolist()
        words = {
            Status.INVERSION_FAILED: "the manifold makes no such image: its best reconstruction is off by {:.3f}",
            Status.FOIL_EQUALS_FACT: "foil and fact are the same class: nothing would have to change",
        }
        for status, which in hunt.excluded.items():
            for k in which.nonzero().flatten().tolist():
                self.status[k] = [status] * restarts
                self.reason[k] = [words[status].format(error[k])] * restarts

    def enter(self, slots: Sequence[tuple[int, int]], outcome: Outcome, first: bool) -> None:
        """Write down a search; a retry counts only where it found something."""
        for row, (k, r) in enumerate(slots):
            if first or outcome.status[row] is Status.FOUND:
                self.status[k][r], self.reason[k][r] = outcome.status[row], outcome.reason[row]
                self.latents[k, r] = outcome.z[row]
                # evenly spread over the row's own way: in a larger batch the others may have gone on
                own = int(outcome.rounds[row]) * (outcome.path.shape[1] - 1) // max(1, int(outcome.rounds.max()))
                steps = torch.linspace(0, own, FRAMES - 1).round().long()
                self.path[k, r, 1:] = outcome.path[row, steps.to(outcome.path.device)]
                self.path[k, r, -1] = outcome.z[row]

    @torch.no_grad()
    def answers(self, interrupted: bool) -> Answers:
        """Rank, and look at everything once more through the network."""
        hunt, count, restarts = self.hunt, len(self.status), self.hunt.how.restarts
        distance = (self.latents - hunt.inverted.latents[hunt.image].unsqueeze(1)).flatten(2).square().sum(2).sqrt()
        found = torch.tensor([[each is Status.FOUND for each in row] for row in self.status], device=distance.device)
        order = torch.argsort(distance + 1e9 * ~found, dim=1, stable=True)
        rows = torch.arange(count, device=order.device).unsqueeze(1)
        latents, path = self.latents[rows, order], self.path[rows, order][:, 0]
        examples, logits = self._seen(latents)
        questions = rows.expand(-1, restarts).flatten()
        violation = hunt.terms(distance.flatten(), logits.flatten(0, 1), questions).violation().view(count, restarts)
        frames, path_logits = self._seen(path)
        return Answers(
            status=[[self.status[k][r] for r in order[k].tolist()] for k in range(count)],
            reason=[[self.reason[k][r] for r in order[k].tolist()] for k in range(count)],
            examples=examples,
            logits=logits,
            distance=distance[rows, order],
            violation=violation,
            path=frames,
            path_logits=path_logits,
            interrupted=interrupted,
            inverted=hunt.inverted,
            latents=latents,
        )

    def _seen(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Images and logits of latents (K, R, ...)."""
        count, each = latents.shape[:2]
        questions = torch.arange(count, device=latents.device).repeat_interleave(each)
        images, logits = [], []
        for part, asked in zip(torch.split(latents.flatten(0, 1), 256), torch.split(questions, 256), strict=True):
            images.append(self.hunt.image_at(part, asked))
            logits.append(self.hunt.model.logits(images[-1]))
        seen, scores = torch.cat(images), torch.cat(logits)
        return seen.view(count, each, *seen.shape[1:]), scores.view(count, each, -1)
