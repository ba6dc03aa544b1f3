"""The one search behind every "what would have to change": constrained, batched, and honest about what it found.

Each row of a batch is a problem of its own: minimise an objective where some terms are to be zero and others at most
zero. The rows never influence each other, so a batch gives the answers of one-by-one searches, and rows that are done
leave it. Solved by the augmented Lagrangian method with multipliers and penalty per row (Bertsekas, Nonlinear
Programming, 1999, section 4.2); the inner minimisation is Adam from where the last one ended.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from ratherthan.settings import AtLeastOne, Interval, NotNegative, Positive, Settings

_EXPLODED = 1e6  # variables beyond this belong to no image; terms may be its square
_STUCK = 3  # rounds without progress at the largest penalty
_SLACK = 0.98  # share of the tolerance asked for on the way: a fresh pass rounds otherwise


class Status(StrEnum):
    """How the search for one sample ended."""

    FOUND = "found"
    NOTHING_NEEDED = "nothing needed"
    NOT_FOUND = "not found"
    INFEASIBLE = "infeasible"
    INVERSION_FAILED = "inversion failed"
    DIVERGED = "diverged"
    OUT_OF_BUDGET = "out of budget"
    FOIL_EQUALS_FACT = "foil equals fact"


End = tuple[Status, str]
"""How a search ended, and why."""
Ends = list[list[End]]
"""The same of R searches for each of K questions."""


@dataclass(frozen=True)
class Terms:
    """A problem at one point per row.

    Attributes:
        objective: (M,) to be small.
        zero: (M, E) to be zero, or (M,) for one such term; None: nothing is.
        below: (M, G) to be at most zero, or (M,); -inf for one that does not concern a row; None: nothing is.
    """

    objective: Tensor
    zero: Tensor = None  # type: ignore[assignment]  # a tensor once made
    below: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        for key in ("zero", "below"):
            given = getattr(self, key)
            given = self.objective.new_zeros(len(self.objective), 0) if given is None else given
            object.__setattr__(self, key, given.unsqueeze(1) if given.ndim == 1 else given)

    def violation(self) -> Tensor:
        """(M,): by how much the worst constraint is missed."""
        nothing = self.objective.new_zeros(len(self.objective), 1)
        return torch.cat([nothing, self.zero.abs(), self.below.clamp_min(0)], 1).amax(1)


Report = Callable[[float], object]
"""Told the share of a batch that is done now and then."""
Problem = Callable[[Tensor, Tensor], Terms]
"""Variables (M, ...) and the numbers (M,) of the rows they belong to, to the terms; differentiable."""


@dataclass(frozen=True)
class Schedule(Settings):
    """How long and how hard to search.

    Attributes:
        outer_iterations: Largest number of inner minimisations; multipliers and penalty change between them.
        inner_iterations: Adam's steps in each.
        rate: Adam's learning rate in units of the variables; within an inner minimisation it falls to zero along a
            cosine.
        decay: Every inner minimisation starts at this share of the rate that the one before started at.
        feasibility_tol: By how much a constraint may be missed, in its own unit.
        tol: A row is done once it ends two inner minimisations running at objectives that differ by no more than this
            share, and the second time feasibly; 0: it makes use of all of them.
        penalty: First penalty.
        growth: The penalty grows by this factor where an inner minimisation has not brought the violation down to a
            quarter.
        largest_penalty: It grows no further than this; a row whose violation then stays three times is infeasible.
        largest_multiplier: Multipliers are kept within this (safeguarded).
    """

    name: ClassVar[str] = "schedule"

    outer_iterations: AtLeastOne = 15
    inner_iterations: AtLeastOne = 80
    rate: Positive = 0.05
    decay: Positive = 0.8
    feasibility_tol: Positive = 0.01
    tol: NotNegative = 0.03
    penalty: Positive = 1.0
    growth: Annotated[float, Interval(1, above=True)] = 4.0
    largest_penalty: Positive = 1e4
    largest_multiplier: Positive = 1e6


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the search found for S rows.

    Attributes:
        z: (S, ...) the best feasible point, else the nearest miss.
        terms: The problem there, from a fresh pass.
        ends: How each row ended, and why.
        rounds: (S,) rounds each row took part in.
        path: (S, T, ...) where it was on the way, the start first; a row that left the batch stays where it was.
        interrupted: Whether Ctrl-C ended the search early.
    """

    z: Tensor
    terms: Terms
    ends: list[End]
    rounds: Tensor
    path: Tensor
    interrupted: bool


@torch.no_grad()
def search(
    problem: Problem,
    start: Tensor,
    schedule: Schedule | None = None,
    report: Report = lambda share: None,
) -> Outcome:
    """Solve a batch of constrained problems.

    Args:
        problem: The terms of any of the rows.
        start: (S, ...) where to begin.
        schedule: How long and how hard; None: the usual.
        report: Called with the share of the rows that are done after every round.

    Returns:
        The outcome. Ctrl-C does not raise: it ends the search, and the best so far comes back, marked.
    """
    run = _Run(problem, start.detach(), schedule or Schedule())
    interrupted = False
    try:
        run.begin()
        for number in range(run.schedule.outer_iterations):
            if not run.alive.any():
                break
            run.round(number)
            report(1 - run.alive.double().mean().item())
    except KeyboardInterrupt:
        interrupted = True
    return run.outcome(interrupted)


class Kept:
    """The best point that each of K rows has been seen at, and the one that missed by least.

    Args:
        start: (K, ...) what counts as both until something is seen.
    """

    def __init__(self, start: Tensor) -> None:
        self.best, self.nearest = start.clone(), start.clone()
        self.least = start.new_full((len(start),), torch.inf)
        self.missed = self.least.clone()

    @property
    def found(self) -> Tensor:
        """(K,) bool: whether any point held."""
        return self.least.isfinite()

    @property
    def points(self) -> Tensor:
        """(K, ...): the best, else the nearest miss."""
        return choose(self.found, self.best, self.nearest)

    @torch.no_grad()
    def see(self, rows: Tensor, points: Tensor, value: Tensor, missed: Tensor, holds: Tensor) -> None:
        """Look at points (M, ...) of different rows (M,).

        Args:
            rows: Numbers of the rows.
            points: One for each.
            value: (M,) to be small.
            missed: (M,) by how much it fails.
            holds: (M,) bool: whether it counts as an answer.
        """
        better, nearer = holds & (value < self.least[rows]), missed < self.missed[rows]
        self.best[rows] = choose(better, points, self.best[rows])
        self.least[rows] = choose(better, value, self.least[rows])
        self.nearest[rows] = choose(nearer, points, self.nearest[rows])
        self.missed[rows] = choose(nearer, missed, self.missed[rows])


@dataclass
class _Rows:
    """The state of some rows of a search; M of them, in every tensor."""

    number: Tensor
    z: Tensor
    last_violation: Tensor
    last_objective: Tensor
    penalty: Tensor
    zero_multipliers: Tensor
    below_multipliers: Tensor
    stalled: Tensor
    settled: Tensor
    diverged: Tensor
    rounds: Tensor

    def take(self, which: Tensor) -> _Rows:
        """Some of the rows, as copies."""
        return _Rows(*(getattr(self, f.name)[which] for f in fields(self)))

    def put(self, rows: _Rows) -> None:
        """Write rows back to where they were taken from."""
        for f in fields(self):
            getattr(self, f.name)[rows.number] = getattr(rows, f.name)

    def lagrangian(self, terms: Terms) -> Tensor:
        """Augmented Lagrangian: f + l h + c/2 h^2 + (max(0, m + c g)^2 - m^2) / 2c (Bertsekas, section 4.2), (M,)."""
        penalty = self.penalty.unsqueeze(1)
        equal = self.zero_multipliers * terms.zero + penalty / 2 * terms.zero.square()
        pushed = (self.below_multipliers + penalty * terms.below).clamp_min(0)
        unequal = (pushed.square() - self.below_multipliers.square()) / (2 * penalty)
        return terms.objective + equal.sum(1) + unequal.sum(1)

    def adjust(self, terms: Terms, schedule: Schedule) -> None:
        """Multipliers by one step of the method of multipliers, penalty by how well the constraints did."""
        limit, penalty = schedule.largest_multiplier, self.penalty.unsqueeze(1)
        self.zero_multipliers = (self.zero_multipliers + penalty * terms.zero).clamp(-limit, limit)
        self.below_multipliers = (self.below_multipliers + penalty * terms.below).clamp(0, limit)
        violation = terms.violation()
        slow = violation > (self.last_violation / 4).clamp_min(_SLACK * schedule.feasibility_tol)
        stalls = slow & (self.penalty >= schedule.largest_penalty) & (violation > 0.9 * self.last_violation)
        self.stalled = torch.where(stalls, self.stalled + 1, 0)
        grown = torch.where(slow, self.penalty * schedule.growth, self.penalty)
        change = (terms.objective - self.last_objective).abs()
        self.settled = (violation <= schedule.feasibility_tol) & (change < schedule.tol * terms.objective.abs())
        self.penalty, self.last_violation = grown.clamp_max(schedule.largest_penalty), violation
        self.last_objective = terms.objective
        terms_sound = (terms.objective.abs() < _EXPLODED**2) & (violation < _EXPLODED**2)
        self.diverged = ~(terms_sound & (self.z.flatten(1).abs().amax(1) < _EXPLODED))


class _Run:
    """A search: the state of all rows, which of them go on, and the way they came."""

    def __init__(self, problem: Problem, start: Tensor, schedule: Schedule) -> None:
        self.problem, self.schedule, self.path = problem, schedule, [start.clone()]
        self.kept, number = Kept(start), torch.arange(len(start), device=start.device)
        self.alive, none = torch.ones_like(number, dtype=torch.bool), start.new_zeros(len(start), 0)
        rows = {"number": number, "z": start.clone(), "penalty": torch.full_like(self.kept.least, schedule.penalty)}
        rows |= {key: self.kept.least.clone() for key in ("last_violation", "last_objective")}
        rows |= dict.fromkeys(("zero_multipliers", "below_multipliers"), none)
        rows |= {key: torch.zeros_like(number) for key in ("stalled", "rounds")}
        self.all = _Rows(**rows, settled=~self.alive, diverged=~self.alive)

    def begin(self) -> None:
        """Look at the start; how many constraints there are shows here."""
        terms = self._look(self.all, self.all.z)
        self.all.zero_multipliers = torch.zeros_like(terms.zero)
        self.all.below_multipliers = torch.zeros_like(terms.below)

    def round(self, number: int) -> None:
        """Minimise the augmented Lagrangian of the rows that go on, then adjust what holds their constraints."""
        rows = self.all.take(self.alive)
        rows.rounds.fill_(number + 1)
        try:
            self._minimise(rows, number)
            rows.adjust(self._look(rows, rows.z), self.schedule)
        finally:
            self.all.put(rows)
        found = self.kept.found[rows.number]
        stuck = (rows.stalled >= _STUCK) & ~found
        self.alive[rows.number] = ~(rows.settled & found) & ~rows.diverged & ~stuck

    def _minimise(self, rows: _Rows, number: int) -> None:
        steps = self.schedule.inner_iterations
        first, second = torch.zeros_like(rows.z), torch.zeros_like(rows.z)
        highest = self.schedule.rate * self.schedule.decay**number
        for step in range(steps):
            gradient = self._gradient(rows)
            first = 0.9 * first + 0.1 * gradient
            second = 0.99 * second + 0.01 * gradient.square()
            mean, spread = first / (1 - 0.9 ** (step + 1)), (second / (1 - 0.99 ** (step + 1))).sqrt()
            rate = highest * 0.5 * (1 + math.cos(math.pi * step / steps))
            rows.z = rows.z - rate * mean / (spread + 1e-12)
            if (step + 1) % max(1, steps // 4) == 0:
                self.path.append(self.path[-1].index_put((rows.number,), rows.z))

    def _gradient(self, rows: _Rows) -> Tensor:
        with torch.enable_grad():
            leaf = rows.z.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(rows.lagrangian(self._look(rows, leaf)).sum(), leaf)
        return gradient

    def _look(self, rows: _Rows, z: Tensor) -> Terms:
        terms = self.problem(z, rows.number)
        violation = terms.violation().detach()
        holds = violation <= _SLACK * self.schedule.feasibility_tol
        self.kept.see(rows.number, rows.z, terms.objective.detach(), violation, holds)
        return terms

    def outcome(self, interrupted: bool) -> Outcome:
        """Look again at what was kept, and say how each row ended."""
        z = self.kept.points
        terms = self.problem(z, self.all.number)
        ends = [self._end(row, missed, interrupted) for row, missed in enumerate(terms.violation().tolist())]
        return Outcome(z, terms, ends, self.all.rounds, torch.stack(self.path, 1), interrupted)

    def _end(self, row: int, violation: float, interrupted: bool) -> End:
        rounds, tolerance, going_on = int(self.all.rounds[row]), self.schedule.feasibility_tol, bool(self.alive[row])
        missed = f"the nearest miss violates a constraint by {violation:.3g} (allowed: {tolerance:g})"
        if self.kept.found[row]:
            if not violation <= tolerance:
                return Status.NOT_FOUND, f"a point that seemed feasible is not in a fresh pass: {missed}"
            why = " (interrupted)" if interrupted else " (best when the rounds ran out)"
            return Status.FOUND, f"verified after {rounds} rounds{why * going_on}"
        if self.all.diverged[row]:
            return Status.DIVERGED, f"the variables or the terms became infinite or NaN in round {rounds}; {missed}"
        if interrupted and going_on:
            return Status.NOT_FOUND, f"interrupted in round {rounds}; {missed}"
        if self.all.stalled[row] >= _STUCK:
            return Status.INFEASIBLE, f"at the largest penalty the violation no longer falls; {missed}"
        return Status.OUT_OF_BUDGET, f"{rounds} rounds of {self.schedule.inner_iterations} steps were too few; {missed}"


def choose(rows: Tensor, this: Tensor, other: Tensor) -> Tensor:
    """Choose between two tensors row by row: (M,) bool."""
    return torch.where(rows.view(-1, *[1] * (this.ndim - 1)), this, other)


def noise(shape: Sequence[int], seed: int, samples: Sequence[int], restart: int) -> Tensor:
    """Standard normal numbers that depend on (seed, sample, restart) alone, not on the batch.

    Args:
        shape: Of one sample.
        seed: The seed of the whole search.
        samples: The N samples' numbers.
        restart: Which start this is for.

    Returns:
        (N, *shape), float64 on the CPU.
    """
    drawn = []
    for sample in samples:
        key = hashlib.sha256(f"{seed}/{sample}/{restart}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
        drawn.append(torch.randn(tuple(shape), generator=generator, dtype=torch.float64))
    return torch.stack(drawn)


# --------------------------------------------------------------------------------------------- weights of the class
def bisected(weights: Sequence[Tensor], success: Tensor) -> list[Tensor]:
    """How hard the class is to count next, row by row, and the bounds between which that is sought.

    It comes from CEM (Dhurandhar et al. 2018, "Explanations based on the missing", section 3), which took it from
    Carlini and Wagner (2017): the smallest weight that just moves the class leaves the most room for all other terms.

    Args:
        weights: (M,) each: the weights c that were tried, positive; the largest that failed, 0 before any did; the
            smallest that succeeded, inf before any did.
        success: (M,) bool: whether they moved the class.

    Returns:
        The same: c is the midpoint of the bounds, or ten times what it was while there is no upper one.
    """
    c, lower, upper = weights
    lower = torch.where(success, lower, torch.maximum(lower, c))
    upper = torch.where(success, torch.minimum(upper, c), upper)
    return [torch.where(upper.isfinite(), (lower + upper) / 2, 10 * c), lower, upper]


def descend(
    start: Tensor, step: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]], rounds: int, steps: int, report: Report
) -> None:
    """Rounds of steps from the same start; the class counts with a weight that starts at 1 (CEM-MAF, supplement).

    After a round in which it moved the weight is halved, after one in which it did not it grows tenfold.

    Args:
        start: (M, ...).
        step: Where rows are, their weights (M,) and the number of the step, to where they go, and whether the class had
            moved, (M,) bool.
        rounds: Weights to try.
        steps: Steps for each.
        report: Told the share that is done.
    """
    c = start.new_ones(len(start))
    for number in range(rounds):
        at, success = start, torch.zeros_like(c, dtype=torch.bool)
        for k in range(steps):
            at, moved = step(at, c, k)
            success |= moved
        c = torch.where(success, c / 2, 10 * c)
        report((number + 1) / rounds)
