"""Searches that state what they move, how it decodes and what they ask of it; everything else is done here.

A `ConstrainedSearch` minimises an objective where some terms are to be zero and others at most zero, from several
starts (see `search.solver`). The pixels themselves are what is moved, unless a subclass says otherwise.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ratherthan import data
from ratherthan.errors import InputError
from ratherthan.model import Model
from ratherthan.search.counterfactual import FRAMES, Counterfactual
from ratherthan.search.manifold import Inversion, Manifold, invert
from ratherthan.search.method import CounterfactualMethod, SearchQuestion, lead
from ratherthan.search.solver import Outcome, Problem, Report, Schedule, Status, Terms, noise, search
from ratherthan.search.ways import first_steps, ways_to
from ratherthan.settings import AtLeastOne, Interval, Positive, Seed
from ratherthan.verbs import Samples

_AT_ONCE = 256  # points that are decoded together, without gradients
_DRAWN = 512  # latents of the prior that are the bank where none is given
_ENCODED = 3000  # images of a data set that are one, at most


@dataclass(eq=False)
class Space:
    """Where the searches for K questions move.

    Attributes:
        start: (K, ...) where each begins.
        decode: Variables (M, ...) and the numbers (M,) of their questions to images (M, C, H, W); differentiable.
        excluded: What need not be searched for, by number of the question: how that ends, and why.
        fields: Fields of the result that are known before any search, e.g. reconstructions.
        known: What the method's own terms and starts want to know again, e.g. attributes of the images.
        interrupted: Whether Ctrl-C was pressed already.
    """

    start: Tensor
    decode: Callable[[Tensor, Tensor], Tensor]
    excluded: dict[int, tuple[Status, str]] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    known: dict[str, Any] = field(default_factory=dict)
    interrupted: bool = False

    def images(self, z: Tensor, rows: Tensor) -> Tensor:
        """Images of variables (M, T, ...), as (M, T, C, H, W)."""
        flat, of = z.flatten(0, 1), rows.repeat_interleave(z.shape[1])
        parts = zip(torch.split(flat, _AT_ONCE), torch.split(of, _AT_ONCE), strict=True)
        images = torch.cat([self.decode(*part) for part in parts])
        return images.view(*z.shape[:2], *images.shape[1:])


@dataclass(eq=False)
class Point:
    """M points that a search looks at, each of them for a question.

    Attributes:
        question: All questions.
        space: Where it moves.
        rows: (M,) numbers of the questions.
        z: (M, ...) the variables.
        images: (M, C, H, W) what they decode to.
        logits: (M, classes) of the images.
        turn: How often the search has been begun anew, 0 at first.
        start: (M, ...) the variables of the image asked about.
        asked: (M, C, H, W) the image asked about.
        fact: (M,) class indices.
        foil: (M,) class indices, -1 for any other class.
        lead: (M,) by how many logits the foil leads, or for -1 the best other class the fact.
    """

    question: SearchQuestion
    space: Space
    rows: Tensor
    z: Tensor
    images: Tensor
    logits: Tensor
    turn: int = 0

    def __post_init__(self) -> None:
        self.start, self.asked = self.space.start[self.rows], self.question.asked[self.rows]
        self.fact, self.foil = self.question.facts[self.rows], self.question.foils[self.rows]
        self.lead = lead(self.logits, self.fact, self.foil)


@dataclass(frozen=True, kw_only=True)
class ConstrainedSearch(CounterfactualMethod):
    """A search that a subclass states by its `terms`, and by its `variables` where these are not the pixels.

    Attributes:
        restarts: Independent starts, each of which may give another answer: the image, then noise around it.
        retries: Where a search finds nothing, so many further starts are tried.
        spread: Standard deviation of that noise, per variable.
        schedule: How long and how hard to search.
        seed: Of the noise.
    """

    restarts: AtLeastOne = 1
    retries: Annotated[int, Interval(0)] = 2
    spread: Positive = 0.5
    schedule: Schedule = field(default_factory=Schedule)
    seed: Seed = 0

    @abstractmethod
    def terms(self, at: Point) -> Terms:
        """The objective, what is to be zero and what at most zero, at M points."""

    def variables(self, question: SearchQuestion) -> Space:
        """What is moved; here the pixels, between 0 and 1."""
        return Space(question.asked, lambda z, rows: z.clamp(0, 1))

    def starts(self, question: SearchQuestion, space: Space, rows: Tensor, numbers: Sequence[int]) -> Tensor:
        """Where searches for questions `rows` (M,) begin: number 0 at the image, others at noise around it."""
        z = space.start[rows].clone()
        for row, number in enumerate(numbers):
            if number > 0:
                position = question.positions[int(question.image[rows[row]])]
                z[row] += self.spread * noise(z.shape[1:], self.seed, [position], number)[0].to(z)
        return z

    def solved(self, problem: Problem, start: Tensor, report: Report) -> Outcome:
        """Solve a batch of such problems; a search whose terms are not constraints has a way of its own."""
        return search(problem, start, self.schedule, report)

    def verified(self, at: Point) -> tuple[Tensor, Tensor]:
        """By how much the worst constraint is missed in a fresh pass, and whether an answer holds, (M,) each."""
        violation = self.terms(at).violation()
        return violation, violation <= self.schedule.feasibility_tol

    def fields(self, space: Space, z: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Further fields of the result by answer, (K, R, ...), of variables (K, R, ...) and their images."""
        return {}

    @torch.no_grad()
    def search(self, question: SearchQuestion) -> Counterfactual:
        """Search from all starts, again where nothing was found, and verify."""
        return Searches(self, question).result()


class Searches:
    """The searches for K questions, R answers each; what is found is verified, ranked and shown.

    Attributes:
        rows: (K,) numbers of the questions.
        z: (K, R, ...) the answers, or nearest misses.
        way: (K, R, FRAMES - 2, ...) points on the way to them.
        ends: K lists of R: how each search ended, and why.
        slots: (question, restart) of those that are still to be searched for.
        interrupted: Whether Ctrl-C was pressed.
    """

    def __init__(self, how: ConstrainedSearch, question: SearchQuestion) -> None:
        self.how, self.question, self.space, self.rows = how, question, how.variables(question), question.rows
        count, restarts = len(self.space.start), how.restarts
        self.z = self.space.start.unsqueeze(1).repeat_interleave(restarts, 1)
        self.way = self.z.unsqueeze(2).repeat_interleave(FRAMES - 2, 2)
        self.interrupted = self.space.interrupted
        excluded = self.space.excluded | question.same
        usual = Status.NOT_FOUND, "interrupted before it began"
        self.ends = [[excluded.get(k, usual)] * restarts for k in range(count)]
        self.slots = [(k, r) for k in range(count) for r in range(restarts) if k not in excluded]

    def result(self) -> Counterfactual:
        """Search turn after turn, until everything is found or retries run out, and look at everything once more."""
        for turn in range(self.how.retries + 1):
            if self.slots and not self.interrupted:
                self._turn(turn)
        examples = self.space.images(self.z, self.rows)
        moved = (self.z - self.space.start.unsqueeze(1)).flatten(2).norm(dim=2)
        more: dict[str, Any] = {"check": partial(self._check, examples), "interrupted": self.interrupted}
        more["way"] = lambda best: self.space.images(self.way[self.rows, best], self.rows)
        more["answers"] = self.how.fields(self.space, self.z, examples)
        return Counterfactual.of(self.how, self.question, examples, self.ends, moved, **more, **self.space.fields)

    def _turn(self, turn: int) -> None:
        """Search for what is not found yet; a retry counts only where it finds something."""
        how, rows = self.how, torch.tensor([k for k, _ in self.slots], device=self.rows.device)
        last = list[Point]()

        def problem(z: Tensor, of: Tensor) -> Terms:
            images = self.space.decode(z, rows[of])
            last[:] = [Point(self.question, self.space, rows[of], z, images, self.question.look(images), turn)]
            return how.terms(last[0])

        try:
            starts = how.starts(self.question, self.space, rows, [r + turn * how.restarts for _, r in self.slots])
        except KeyboardInterrupt:
            self.interrupted = True
            return
        outcome = how.solved(problem, starts, self.question.report)
        self.interrupted = outcome.interrupted
        # it ends with a fresh pass over the answers; a method may ask more of them than its terms do
        holds, top = how.verified(last[0])[1].tolist(), last[0].logits.argmax(1).tolist()
        slots, self.slots, rounds = self.slots, [], outcome.rounds.tolist()
        for row, ((k, r), end) in enumerate(zip(slots, outcome.ends, strict=True)):
            if end[0] is Status.FOUND and not holds[row]:
                end = Status.NOT_FOUND, f"at its best the class is {top[row]}, which is not what was asked for"
            if turn == 0 or end[0] is Status.FOUND:
                self.ends[k][r], self.z[k, r] = end, outcome.z[row]
                # evenly over its own way: in a larger batch the others may have gone on
                far = rounds[row] * (outcome.path.shape[1] - 1) // max(1, *rounds)
                steps = torch.linspace(0, far, FRAMES - 1).round().long()[:-1]
                self.way[k, r] = outcome.path[row, steps.to(rows.device)]
            if end[0] is not Status.FOUND:
                self.slots.append((k, r))

    def _check(self, examples: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        restarts = examples.shape[1]
        rows, z = self.rows.repeat_interleave(restarts), self.z.flatten(0, 1)
        at = Point(self.question, self.space, rows, z, examples.flatten(0, 1), logits.flatten(0, 1))
        violation, holds = self.how.verified(at)
        return violation.view(-1, restarts), holds.view(-1, restarts)


# --------------------------------------------------------------------------------------------- on a manifold
@dataclass(frozen=True)
class OnManifold(ConstrainedSearch):
    """A search among the images of a manifold, from where it has the image asked about.

    It begins where a way to the foil that a bank of its images shows crosses the boundary nearest to z0, the latents of
    the image; further starts are z0, where other ways cross it, and, where there are none left, noise around z0.

    Attributes:
        manifold: The generative model; None: the one that a zoo model names.
        inversion: How z0 is found.
        bank: What shows the ways: images (M, C, H, W) in image space or a data set, of which up to 3,000 are taken,
            evenly spread, for a manifold with an encoder; or latents (M, *latent_shape). None: 512 samples of the
            prior. The network is asked for their classes, once in a call, and these count as evaluations.
    """

    manifold: Manifold | None = None
    _: KW_ONLY
    inversion: Inversion = field(default_factory=Inversion)
    bank: Tensor | Dataset[Any] | None = None

    def with_residual(self) -> bool:
        """Whether what the manifold cannot make of the image is added to all that it makes."""
        return True

    def prepared(self, model: Model) -> Self:
        """With the manifold that a zoo model names, where none is given."""
        return self if self.manifold is not None else replace(self, manifold=Manifold.of(model))

    def check(self, model: Model, images: Tensor) -> None:
        """Refuse images of another shape than the manifold makes, and a bank that it has no latents for."""
        manifold = self.generator
        manifold.to(images).check(images)
        if self.bank is None or self._of_latents:
            return
        if isinstance(self.bank, Tensor) and self.bank.ndim != images.ndim:
            raise InputError(f"a bank of latents {tuple(self.bank.shape[1:])} for {manifold!r}")
        if not manifold.can_encode:
            raise InputError(f"{manifold!r} has no encoder for a bank of images: give latents, or none to draw some")

    def settings(self) -> dict[str, Any]:
        """The bank by its hash, not whole."""
        if self.bank is None:
            return super().settings()
        if isinstance(self.bank, Tensor):
            digest = hashlib.sha256(self.bank.detach().cpu().double().numpy().tobytes()).hexdigest()[:32]
        else:
            digest = data.load(self.bank).fingerprint()
        return super(OnManifold, replace(self, bank=None)).settings() | {"bank": digest}

    @property
    def _of_latents(self) -> bool:
        return isinstance(self.bank, Tensor) and tuple(self.bank.shape[1:]) == self.generator.latent_shape

    def starts(self, question: SearchQuestion, space: Space, rows: Tensor, numbers: Sequence[int]) -> Tensor:
        """See the class."""
        z = super().starts(question, space, rows, numbers)
        for i, (row, number) in enumerate(zip(rows.tolist(), numbers, strict=True)):
            steps = self._first_steps(question, space, row, number > 1)
            if number == 1 and len(steps):
                z[i] = space.start[row]
            elif number != 1 and max(0, number - 1) < len(steps):
                z[i] = space.start[row] + steps[max(0, number - 1)]
        return z

    def _first_steps(self, question: SearchQuestion, space: Space, row: int, several: bool) -> Tensor:
        known = space.known.setdefault("first steps", {})
        if (row, several) not in known:  # once for all its starts
            fact, foil = (each[row] for each in (question.facts, question.foils))

            def ahead(z: Tensor) -> Tensor:
                logits = question.look(space.decode(z, question.rows[row].expand(len(z))))
                return lead(logits, fact.expand(len(z)), foil.expand(len(z))) > 0

            ways = ways_to(*self._classified(question), int(fact), int(foil))
            known[row, several] = first_steps(ahead, space.start[row], ways, several)
        return known[row, several]  # type: ignore[no-any-return]

    def _classified(self, question: SearchQuestion) -> tuple[Tensor, Tensor]:
        """The bank's latents, and what the network says of what they decode to; -1 where that is not finite."""
        if "bank" not in question.shared:
            latents = self._latents(question).to(question.images)
            seen = [question.look(self.generator.decode(z).clamp(0, 1)) for z in torch.split(latents, _AT_ONCE)]
            logits = torch.cat(seen)
            question.shared["bank"] = latents, logits.argmax(1).where(logits.isfinite().all(1), -1)
        return question.shared["bank"]  # type: ignore[no-any-return]

    def _latents(self, question: SearchQuestion) -> Tensor:
        manifold = self.generator
        if self.bank is None:
            return noise(manifold.latent_shape, self.seed, range(_DRAWN), 1)
        if self._of_latents:
            return self.bank  # type: ignore[return-value]
        bank = self.bank if isinstance(self.bank, Tensor) else data.load(self.bank).spread(_ENCODED)
        images = Samples.of(question.model, bank).images.to(question.images)
        return torch.cat([manifold.encode(part) for part in torch.split(images, _AT_ONCE)])

    def variables(self, question: SearchQuestion) -> Space:
        """The latents; images are G(z) + r, clipped to [0, 1], with r = I - G(z0) or none."""
        manifold, at = self.generator, question.image
        facts = question.facts[:: question.questions]
        inverted = invert(manifold, question.images, question.model, facts, self.inversion, self.seed)
        residual = inverted.residual[at] * self.with_residual()
        error = inverted.error[at]
        failed = ~(error <= self.inversion.largest_error)  # NaN has failed too
        why = "the manifold makes no such image: its best reconstruction is off by {:.3f}"
        off = {k: (Status.INVERSION_FAILED, why.format(error[k])) for k in failed.nonzero().flatten().tolist()}
        known = {key: getattr(inverted, key) for key in ("reconstruction", "error", "class_kept")}

        def decode(z: Tensor, rows: Tensor) -> Tensor:
            return (manifold.decode(z) + residual[rows]).clamp(0, 1)

        return Space(inverted.latents[at], decode, off, known, interrupted=inverted.interrupted)

    def fields(self, space: Space, z: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Where the answers lie."""
        return {"latents": z}

    @property
    def generator(self) -> Manifold:
        """The manifold, which a prepared method has."""
        assert self.manifold is not None
        return self.manifold
