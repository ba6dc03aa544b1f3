"""CEM: what must stay absent (pertinent negative) and what is enough (pertinent positive), with an elastic net.

Dhurandhar et al. 2018, "Explanations based on the missing", equations 1 and 3, over an image v near a centre a:

    min |v - a|_2^2 + beta |v - a|_1 + c hinge(f(v), kappa) + gamma |AE(v) - v|_2^2    subject to    low <= v <= high

The preset "sound" takes gamma max(0, |AE(v) - v|_2^2 - e0) for the last term, e0 the larger error of the image and the
centre: what the change adds, not what the image already has.

A pertinent negative only adds: a is the image x0 and v lies no nearer to "no information" b than x0 does, on its side
of b. A pertinent positive only keeps: a is b and v lies between b and x0. Both are a box, value by value, that holds a.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import partial
from itertools import product
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from ratherthan.baselines import Baseline, baseline_within, baseline_words
from ratherthan.contrast import rival
from ratherthan.inference import preserve_state
from ratherthan.model import Model
from ratherthan.search.counterfactual import Counterfactual
from ratherthan.search.manifold import Manifold
from ratherthan.search.method import (
    ANY,
    CounterfactualMethod,
    PertinentPositiveMethod,
    SearchMethod,
    SearchQuestion,
    register_counterfactual_method,
    register_pertinent_positive_method,
)
from ratherthan.search.pertinent_positive import PertinentPositive, nothing_needed
from ratherthan.search.solver import Kept, Status, bisected, choose, noise
from ratherthan.settings import AtLeastOne, Interval, NotNegative, Positive

_ROUNDING = 1e-3  # logits by which a fresh pass, in a batch of another size, may differ from the one that found it
_INSIDE = 0.02  # the margin is aimed at a little deeper: steps to first order stop short of it
_CHANGED = 1e-3  # a value that moved by less counts as unchanged
_RIVALS = 3  # classes that a step holds down at once, where one class is to beat all others
_FOILS, _NEAREST, _STARTS = 9, 3, 2  # foils that are searched for by themselves; those from so many more starts
_DUAL_STEPS = 30
_FIRST_RADIUS, _SMALLEST_RADIUS, _LARGEST_RADIUS = 0.05, 1e-5, 1e3
_CONVERGED = 1e-3  # share of the objective that a step must promise
_SETTLED = 0.01  # share by which a further weight must better the answer for another one to be worth it


@dataclass(frozen=True)
class ElasticNetSearch(SearchMethod):
    """What pertinent negatives and positives of CEM share.

    Attributes:
        kappa: By how many logits the class must win, in the loss and for an answer to count.
        beta: Weight of |d|_1; None: 0.1 in the "reference" preset, else what it takes for answers as sparse: 0.3 where
            something is kept, 1 where it is added.
        gamma: Weight of the autoencoder's error, in the preset "sound" of what the change adds to it; there is no such
            term without a manifold.
        manifold: decode(encode(x)) is the autoencoder.
        baseline: "No information", see `baselines.baseline_images`; in [0, 1].
        preset: "sound": every term but the networks is solved for exactly, step by step. "reference": as published.
        binary_search_steps: Weights c to try, at most.
        iterations: Steps for each, at most; None: 1000 in the "reference" preset, else 40.
        c: The first of these weights.
    """

    kappa: NotNegative = 0.5
    beta: Annotated[float, Interval(0)] | None = None
    gamma: NotNegative = 100.0
    manifold: Manifold | None = None
    baseline: Baseline = 0.0
    preset: Literal["sound", "reference"] = "sound"
    binary_search_steps: AtLeastOne = 9
    iterations: Annotated[int, Interval(1)] | None = None
    c: Positive = 10.0

    def check(self, model: Model, images: Tensor) -> None:
        """Refuse a baseline or a manifold that does not fit images (N, C, H, W).

        Raises:
            InputError: If the baseline fits none of what `baseline` may be, or leaves [0, 1].
            ModelError: If the manifold makes images of another shape or has no encoder.
        """
        baseline_within(images[:1], self.baseline)
        if self.manifold is not None:
            self.manifold.to(images).check(images)
            with preserve_state(self.manifold.module), torch.no_grad():
                self.manifold.encode(images[:1])


def box_bounds(images: Tensor, baseline: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    """Between which values each pixel may move.

    Adding moves away from the baseline, on the pixel's own side of it, or to either side where it lies on the baseline;
    keeping lies between the baseline and the image.

    Args:
        images: (N, C, H, W) in image space.
        baseline: The same shape.
        keep: Whether to keep rather than to add.

    Returns:
        Lowest and highest values, both (N, C, H, W).
    """
    if keep:
        return torch.minimum(images, baseline), torch.maximum(images, baseline)
    low = torch.where(images > baseline, images, images.clamp_max(0))
    return low, torch.where(images < baseline, images, images.clamp_min(1))


class _Problem:
    """K rows: the terms, the box, and the best point that each has been seen at."""

    def __init__(
        self,
        how: ElasticNetSearch,
        question: SearchQuestion,
        foil: Tensor | None = None,
        allowed: Tensor | None = None,
    ) -> None:
        self.how, self.question, self.keep = how, question, question.foil is None
        self.images, self.fact, self.foil, self.report = question.asked, question.facts, foil, question.report
        self.soon = False  # whether a row is done with its first answer
        self.sound = how.preset == "sound"
        beta, steps = (0.3 if self.keep else 1.0, 40) if self.sound else (0.1, 1000)
        self.beta = beta if how.beta is None else how.beta
        self.steps = steps if how.iterations is None else how.iterations
        baseline = baseline_within(self.images, how.baseline)
        self.centre = baseline if self.keep else self.images
        self.low, self.high = box_bounds(self.images, baseline, self.keep)
        self.fixed = (self.low == self.high).flatten(1).all(1)
        self.allowed = torch.zeros_like(self.fixed, dtype=self.images.dtype) if allowed is None else allowed
        if self.sound and allowed is None:
            with torch.no_grad():
                self.allowed = torch.maximum(self.unnatural(self.images), self.unnatural(self.centre))
        self.kept, self.interrupted = Kept(self.centre), False
        self.broken, self.stuck = torch.zeros_like(self.fixed), self.fixed.clone()
        self.rows, self.start = question.rows, (self.images if self.sound else self.centre).clone()
        self.reached = partial(question.reached, kappa=how.kappa) if foil is None else self._leads

    def _leads(self, logits: Tensor, rows: Tensor | slice = slice(None), slack: float = 0.0) -> tuple[Tensor, Tensor]:
        """By how much the one foil of each row misses its lead over the fact, and whether it leads."""
        assert self.foil is not None
        ahead = _gathered(logits, self.foil[rows]) - _gathered(logits, self.fact[rows])
        return (self.how.kappa - ahead).clamp_min(0), (ahead >= self.how.kappa - slack) & (ahead > 0)

    def scores(self, v: Tensor, rows: Tensor, more: Tensor | float = 0.0) -> Tensor:
        """Logits at v, one of which is looked at for each of the rows; each row's least elastic net + more is kept."""
        logits = self.question.look(v)
        self.kept.see(rows, v.detach(), self.elastic(v, rows) + more, *self.reached(logits.detach(), rows))
        return logits

    def elastic(self, v: Tensor, rows: Tensor) -> Tensor:
        """|v - a|_2^2 + beta |v - a|_1, (m,)."""
        change = (v - self.centre[rows]).flatten(1)
        return change.square().sum(1) + self.beta * change.abs().sum(1)

    def unnatural(self, v: Tensor, rows: Tensor | None = None) -> Tensor:
        """The autoencoder's error |AE(v) - v|_2^2, less what is allowed to these rows, (m,); 0 without a manifold."""
        manifold = self.how.manifold
        if manifold is None or self.how.gamma == 0:
            return v.new_zeros(len(v))
        drawn = manifold.decode(manifold.encode(v))
        if self.keep and not self.sound:
            drawn = drawn.detach()  # the published gradient of positives holds it fixed
        error = (drawn - v).square().flatten(1).sum(1)
        return error if rows is None else error - self.allowed[rows]

    def unnaturalness(self, excess: Tensor) -> Tensor:
        """What an excess (m, E) costs, (m,)."""
        return self.how.gamma * excess.clamp_min(0).sum(1)

    def ends(self, v: Tensor) -> list[tuple[Status, str]]:
        """How the search for each row ended, at v (K, C, H, W)."""
        return [self._end(row, elastic) for row, elastic in enumerate(self.elastic(v, self.rows).tolist())]

    def _end(self, row: int, elastic: float) -> tuple[Status, str]:
        miss = f"the nearest miss lacks {self.kept.missed[row]:.3g} of the margin of {self.how.kappa:g} logits"
        if row in self.question.same:
            return self.question.same[row]
        if self.kept.found[row]:
            if self.keep and elastic == 0:
                return nothing_needed(self.question, row, [baseline_words(self.how.baseline)])
            return Status.FOUND, f"verified; elastic net {elastic:.3g}"
        if self.broken[row]:
            return Status.DIVERGED, f"the scores or the image became infinite or NaN; {miss}"
        if self.fixed[row]:
            what = "keep: the image is the baseline" if self.keep else "add: every value is at its limit"
            return Status.INFEASIBLE, f"there is nothing to {what}; {miss}"
        if self.interrupted:
            return Status.NOT_FOUND, f"interrupted; {miss}"
        if self.stuck[row]:
            return Status.INFEASIBLE, f"no step brings the class nearer, whatever its weight; {miss}"
        tried = f"{self.how.binary_search_steps} rounds of {self.steps} steps"
        return Status.OUT_OF_BUDGET, f"{tried} were too few; {miss}"

    @torch.no_grad()
    def solve(self, which: Tensor | None = None) -> _Problem:
        """Rounds of steps, each with the weight c of the class that the last one asks for; returns itself.

        A round is a success where the class was right: at its end, or as published at any of its steps. With c above
        the multiplier of that constraint the sound penalty is exact, so rows leave as soon as a further round betters
        their answer by less than a hundredth. Ctrl-C ends it.

        Args:
            which: (K,) bool: which rows; None: all.
        """
        try:
            self.scores(self.centre, self.rows)
            idle = (self.fact == self.question.foils) | self.fixed | (self.kept.least == 0)
            rows = self.rows[~idle if which is None else which & ~idle]
            weights = [torch.full_like(self.kept.least[rows], each) for each in (self.how.c, 0, torch.inf)]
            if not self.sound and self.keep and len(rows):
                # a network without biases is flat at black: from the image, where there is no slope
                flat = _slope(self, self.centre[rows], rows, torch.ones_like(weights[0])).flatten(1).eq(0).all(1)
                self.start[rows] = choose(flat, self.images[rows], self.centre[rows])
            for number in range(self.how.binary_search_steps):
                if not len(rows):
                    break
                before = self.kept.least[rows]
                success = (_proximal if self.sound else _published)(self, rows, weights[0])
                found, better = self.kept.found[rows], self.kept.least[rows] < (1 - _SETTLED) * before
                go_on = ~(self.broken[rows] | (found & (self.soon | ~better) & self.sound))
                weights, rows = [each[go_on] for each in bisected(weights, success)], rows[go_on]
                done = (number + 1) / self.how.binary_search_steps
                self.report(1 - (1 - done) * len(rows) / len(self.rows))
        except KeyboardInterrupt:
            self.interrupted = True
        return self

    @torch.no_grad()
    def solve_by_foil(self) -> _Problem:
        """The same where any other class will do; returns itself.

        "Some class leads the fact by kappa" is the least of K - 1 problems "q leads the fact by kappa", each with one
        smooth constraint, while the class that leads at present may be a local minimum. Each foil is searched for by
        itself, the likeliest where there are many; then the nearest few from elsewhere: halfway to their answer, and
        from noise on what it changed.
        """
        which, ranked = self.question.target == ANY, self.question.logits[self.question.image]
        if self.interrupted or not which.any():
            return self
        ranked = ranked.scatter(1, self.fact.unsqueeze(1), -torch.inf)
        foils = ranked.topk(min(_FOILS, ranked.shape[1] - 1), 1).indices
        few, found = min(_NEAREST, foils.shape[1]), list[_Problem]()
        searches = foils.shape[1] + few * _STARTS
        self.stuck[which] = self.broken[which] = True  # until one of them is not
        for foil in foils.unbind(1):
            found.append(self._merged(which, foil, None, len(found) / searches))
            if self.interrupted:
                return self
        nearest = torch.stack([one.kept.least for one in found], 1).argsort(dim=1, stable=True)
        points = torch.stack([one.kept.points for one in found], 1)
        for number, start in product(range(few), range(_STARTS)):
            at = nearest[:, number]
            done = (foils.shape[1] + number * _STARTS + start) / searches
            self._merged(which, _gathered(foils, at), self._halfway(points[self.rows, at], noisy=bool(start)), done)
            if self.interrupted:
                break
        return self

    def solve_from_starts(self) -> _Problem:
        """The same from several starts, for it ends in the nearest valley; returns itself.

        From the image, half of it, halfway to the answer, and from noise on what that keeps.
        """
        self.report = lambda share: self.question.report(share / (2 + _STARTS))
        self.solve()
        for number in range(1 + _STARTS):
            if self.interrupted:
                break
            start = self._halfway(self.kept.points if number else self.images, noisy=number > 1)
            self._merged(torch.ones_like(self.fixed), None, start, 1.0 + number)
        return self

    def _halfway(self, points: Tensor, noisy: bool) -> Tensor:
        """Halfway from the centre to points, or to noise on what they change."""
        change = points - self.centre
        if noisy:
            drawn = noise(change.shape[1:], 0, [0], 1).to(change)  # of all rows the same: none knows another
            change = change + (change.abs() > _CHANGED) * drawn * change.abs().amax((1, 2, 3), keepdim=True) / 2
        return self.centre + change / 2

    def _merged(self, which: Tensor, foil: Tensor | None, start: Tensor | None, done: float) -> _Problem:
        """The search for one foil of each row, or from a start of its own; what it finds counts here."""
        one = _Problem(self.how, self.question, foil, self.allowed)
        one.report = lambda share: self.report(done)
        one.soon = foil is None or start is None
        if start is not None:
            one.start = torch.clamp(start, one.low, one.high)
        one.solve(which)
        self.interrupted |= one.interrupted
        seen = self.rows[which], one.kept.points[which], one.kept.least[which], one.kept.missed[which]
        self.kept.see(*seen, one.kept.found[which])
        self.broken[which], self.stuck[which] = (self.broken & one.broken)[which], (self.stuck & one.stuck)[which]
        return one


def _gathered(values: Tensor, at: Tensor) -> Tensor:
    """One of each row, (m,)."""
    return values.gather(1, at.unsqueeze(1))[:, 0]


# --------------------------------------------------------------------------------------------------- as published
def _shrunk(change: Tensor, by: float) -> Tensor:
    """Soft threshold."""
    return change.sign() * (change.abs() - by).clamp_min(0)


def _published(problem: _Problem, rows: Tensor, c: Tensor) -> Tensor:
    """FISTA with the weights c: thresholds at beta whatever the step, 0.01 sqrt(1 - k / K); momentum k / (k + 3)."""
    v = y = problem.start[rows]
    success = torch.zeros_like(rows, dtype=torch.bool)
    centre, low, high = problem.centre[rows], problem.low[rows], problem.high[rows]
    for k in range(problem.steps):
        moved = y - 0.01 * math.sqrt(1 - k / problem.steps) * _slope(problem, y, rows, c)
        last, v = v, torch.clamp(centre + _shrunk(moved - centre, problem.beta), low, high)
        y = torch.clamp(v + (k + 1) / (k + 4) * (v - last), low, high)
        success |= problem.reached(problem.scores(v, rows), rows)[1]
    problem.broken[rows] = ~v.flatten(1).isfinite().all(1)
    return success


def _slope(problem: _Problem, y: Tensor, rows: Tensor, c: Tensor) -> Tensor:
    """Gradient of all but the L1 term."""
    with torch.enable_grad():
        leaf = y.detach().requires_grad_()
        change = (leaf - problem.centre[rows]).square().flatten(1).sum(1)
        missed, _ = problem.reached(problem.question.look(leaf), rows)
        loss = c * missed + change + problem.how.gamma * problem.unnatural(leaf, rows)
        (slope,) = torch.autograd.grad(loss.sum(), leaf)
    return slope


# --------------------------------------------------------------------------------------------------- sound
@dataclass
class _State:
    """Where m rows of the sound search are, and the network to first order there: margins of the class over its rivals.

    Attributes:
        rows: (m,) numbers of the rows.
        v: (m, C, H, W).
        margins: (m, J) in logits.
        excess: (m, E) by how much the autoencoder draws it worse than allowed; E is 0 without one, else 1.
        slopes: (m, J + E, D) gradients of the margins and of - excess.
    """

    rows: Tensor
    v: Tensor
    margins: Tensor
    excess: Tensor
    slopes: Tensor

    def take(self, which: Tensor) -> _State:
        """Some of the rows."""
        return _State(*(getattr(self, f.name)[which] for f in fields(self)))

    def moved(self, which: Tensor, to: _State) -> _State:
        """With these rows (m,) bool where the other state is."""
        return _State(*(choose(which, getattr(to, f.name), getattr(self, f.name)) for f in fields(self)))


def _proximal(problem: _Problem, rows: Tensor, c: Tensor) -> Tensor:
    """Minimise with the weights c by prox-linear steps; (m,) bool where it ends with the class right."""
    start = choose(problem.kept.found[rows], problem.kept.best[rows], problem.start[rows])
    kappa, success = problem.how.kappa, torch.zeros_like(rows, dtype=torch.bool)
    aim = kappa + _INSIDE * (1 + kappa)
    place = torch.arange(len(rows), device=rows.device)
    at = _look(problem, start, rows)
    # a heavier class presses for longer steps: the same steps need a smaller radius
    unit = (problem.how.c / c).clamp_max(1)
    radius, duals = _FIRST_RADIUS * unit, torch.zeros_like(at.slopes[:, :, 0])
    problem.stuck[rows] = False
    for _ in range(problem.steps):
        value = _value(problem, at, aim, c)
        to, new_duals, promised = _step(problem, at, aim, c, radius, duals)
        problem.broken[at.rows] = ~value.isfinite()
        promised = value - promised
        done = ~(promised > _CONVERGED * value) | (radius <= _SMALLEST_RADIUS * unit)
        if done.any():
            success[place[done]] = (at.margins[done] >= kappa).all(1)
            problem.stuck[at.rows[done]] = ~success[place[done]]
            kept = (place, to, c, radius, unit, duals, new_duals, value, promised)
            place, to, c, radius, unit, duals, new_duals, value, promised = (each[~done] for each in kept)
            at = at.take(~done)
            if not len(place):
                return success
        there = _look(problem, to, at.rows)
        share = (value - _value(problem, there, aim, c)) / promised
        accepted = share > 0.1  # False for NaN too
        at, duals = at.moved(accepted, there), torch.where(accepted.unsqueeze(1), new_duals, duals)
        radius = torch.where(share > 0.6, 2 * radius, torch.where(accepted, radius, radius / 4))
        radius = radius.clamp_max(_LARGEST_RADIUS)
    success[place] = (at.margins >= kappa).all(1)
    return success


def _look(problem: _Problem, v: Tensor, rows: Tensor) -> _State:
    """Pass v through the network, and pull the margins back."""
    with torch.enable_grad():
        leaf = v.detach().requires_grad_()
        excess = problem.unnatural(leaf, rows).unsqueeze(1)
        logits = problem.scores(leaf, rows, problem.unnaturalness(excess.detach()))
        winner, rivals = _classes(problem, logits.detach(), rows)
        margins = logits.gather(1, winner) - logits.gather(1, rivals)
        if not excess.requires_grad:
            excess = excess[:, :0]
        pulled = *margins.unbind(1), *(-excess).unbind(1)  # each through its own network only
        slopes = [torch.autograd.grad(column.sum(), leaf, retain_graph=True)[0] for column in pulled]
    return _State(rows, v, margins.detach(), excess.detach(), torch.stack(slopes, 1).flatten(2))


def _classes(problem: _Problem, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The class that is to win, (m, 1), and the strongest that it must beat, (m, J)."""
    fact, target = problem.fact[rows], problem.question.target[rows]
    if problem.foil is not None:
        return problem.foil[rows].unsqueeze(1), fact.unsqueeze(1)
    anywhere = (target == ANY).unsqueeze(1)
    winner = torch.where(target == ANY, rival(logits, fact), target).unsqueeze(1)
    if bool(anywhere.all()):
        return winner, fact.unsqueeze(1)
    rivals = logits.scatter(1, winner, -torch.inf).topk(min(_RIVALS, logits.shape[1] - 1), 1).indices
    return winner, torch.where(anywhere, fact.unsqueeze(1), rivals)


def _value(problem: _Problem, at: _State, aim: float, c: Tensor) -> Tensor:
    """The objective, (m,)."""
    hinge = c * (aim - at.margins).amax(1).clamp_min(0)
    return problem.elastic(at.v, at.rows) + problem.unnaturalness(at.excess) + hinge


def _step(
    problem: _Problem, at: _State, aim: float, c: Tensor, radius: Tensor, duals: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The minimum with the networks taken to first order and |u - v|^2 / 2 radius added (prox-linear method).

    It lies at clip(a + S_beta((v - a) / radius + sum_j l_j g_j) / (2 + 1 / radius)), S the soft threshold; the
    multipliers l >= 0, those of the margins at most c together, that of the autoencoder at most gamma, maximise the
    dual, which is smooth: accelerated projected gradient. Drusvyatskiy and Lewis 2018, "Error bounds, quadratic
    growth, and linear convergence of proximal methods".

    Returns:
        The minimum (m, C, H, W), the multipliers (m, J + E), and the value there of what was minimised, (m,).
    """
    v = at.v.flatten(1)
    centre, low, high = (each[at.rows].flatten(1) for each in (problem.centre, problem.low, problem.high))
    stiffness = 2 + 1 / radius.unsqueeze(1)
    pull, classes = (v - centre) / radius.unsqueeze(1), at.margins.shape[1]
    offset = torch.cat([aim - at.margins, at.excess], 1) + (at.slopes @ v.unsqueeze(2)).squeeze(2)

    def minimum(multipliers: Tensor) -> tuple[Tensor, Tensor]:
        force = pull + (multipliers.unsqueeze(1) @ at.slopes).squeeze(1)
        u = torch.clamp(centre + _shrunk(force, problem.beta) / stiffness, low, high)
        return u, offset - (at.slopes @ u.unsqueeze(2)).squeeze(2)

    rate = stiffness / at.slopes.square().sum((1, 2)).clamp_min(1e-12).unsqueeze(1)
    last, ahead = duals, duals
    for k in range(_DUAL_STEPS):
        new = ahead + rate * minimum(ahead)[1]
        capped = _capped(new[:, :classes], c), new[:, classes:].clamp(0, problem.how.gamma)
        new = torch.cat(capped, 1)
        turned = ((new - ahead) * (new - last)).sum(1, keepdim=True) < 0
        ahead, last = torch.where(turned, new, new + k / (k + 3) * (new - last)), new
    u, short = minimum(last)
    to, apart = u.view_as(at.v), (u - v)
    promised = problem.elastic(to, at.rows) + problem.unnaturalness(short[:, classes:])
    return to, last, promised + c * short[:, :classes].amax(1).clamp_min(0) + apart.square().sum(1) / (2 * radius)


def _capped(multipliers: Tensor, c: Tensor) -> Tensor:
    """The nearest multipliers that are not negative and at most c together."""
    positive = multipliers.clamp_min(0)
    largest = positive.sort(1, descending=True).values
    excess = (largest.cumsum(1) - c.unsqueeze(1)) / torch.arange(1, largest.shape[1] + 1, device=c.device)
    count = (largest > excess).sum(1, keepdim=True).clamp_min(1)
    return (positive - excess.gather(1, count - 1).clamp_min(0)).clamp_min(0)


# --------------------------------------------------------------------------------------------------- the two questions
@register_counterfactual_method
@dataclass(frozen=True)
class CEM(ElasticNetSearch, CounterfactualMethod):
    """Pertinent negatives by CEM: what must be absent for the fact, the least that can be added to leave it.

    See the module for the equation and `ElasticNetSearch` for the settings. `distance` of the answers is the elastic
    net. Nothing is random in it.
    """

    name: ClassVar[str] = "cem"
    default_foil: ClassVar[Any] = "any"
    any_foil: ClassVar[bool] = True

    def search(self, question: SearchQuestion) -> Counterfactual:
        """See `SearchMethod.search`."""
        problem = _Problem(self, question)
        if problem.sound:
            problem.solve(question.target != ANY).solve_by_foil()
        else:
            problem.solve()
        examples = problem.kept.points
        distance = problem.elastic(examples, problem.rows).unsqueeze(1)
        found = examples.unsqueeze(1), [[end] for end in problem.ends(examples)], distance
        check = partial(problem.reached, slack=_ROUNDING)
        return Counterfactual.of(self, question, *found, check=check, interrupted=problem.interrupted)


@register_pertinent_positive_method
@dataclass(frozen=True)
class CEMPositive(ElasticNetSearch, PertinentPositiveMethod):
    """Pertinent positives by CEM: the least of the image that keeps the fact with nothing else around.

    See the module for the equation and `ElasticNetSearch` for the settings. Nothing is random in it.
    """

    name: ClassVar[str] = "cem"

    def search(self, question: SearchQuestion) -> PertinentPositive:
        """See `SearchMethod.search`."""
        problem = _Problem(self, question)
        problem = problem.solve_from_starts() if problem.sound else problem.solve()
        examples, whole = problem.kept.points, (question.images - problem.centre).abs()
        kept = (examples - problem.centre).abs() / whole.clamp_min(_CHANGED)
        more: dict[str, Any] = {"mask": kept.amax(1).clamp_max(1), "interrupted": problem.interrupted}
        more["check"] = lambda logits: problem.reached(logits, slack=_ROUNDING)[1]
        more["grounds"] = [[baseline_words(self.baseline)]] * len(examples)
        return PertinentPositive.of(self, question, examples, problem.ends(examples), **more)
