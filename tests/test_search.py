"""The search core on problems whose answers are known, and on rows that go wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import ratherthan as rt
from outside.wachter import Wachter
from ratherthan import InputError, Schedule, Status, Terms
from ratherthan.search.solver import Outcome, Problem, noise, search
from stopping import Stopped

FINE = Schedule(
    outer_iterations=25, inner_iterations=50, rate=0.1, decay=0.65, feasibility_tol=1e-6, tol=0.0, largest_penalty=100
)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class LinearBoundary:
    """A linear classifier on a linear manifold: nearest z with (w G) z + b = 0; z0 - (a z0 + b) a / |a|^2."""

    def __init__(self, count: int = 6) -> None:
        manifold, weights = numbers(5, 3, seed=1), numbers(count, 5, seed=2)
        self.start, self.normal, self.offset = numbers(count, 3, seed=3), weights @ manifold, numbers(count, seed=4)

    def __call__(self, z: Tensor, rows: Tensor) -> Terms:
        miss = (z * self.normal[rows]).sum(1) + self.offset[rows]
        return Terms((z - self.start[rows]).square().sum(1), miss.unsqueeze(1), z.new_zeros(len(z), 0))

    def answer(self) -> Tensor:
        height = (self.start * self.normal).sum(1) + self.offset
        return self.start - (height / self.normal.square().sum(1)).unsqueeze(1) * self.normal


class Box:
    """Nearest point of the box [0, 1]^4: clipping. Both sides of every coordinate are inequalities."""

    start = 2 * numbers(6, 4, seed=5)

    def __call__(self, z: Tensor, rows: Tensor) -> Terms:
        distance = (z - self.start[rows]).square().sum(1)
        return Terms(distance, z.new_zeros(len(z), 0), torch.cat([-z, z - 1], 1))

    def answer(self) -> Tensor:
        return self.start.clamp(0, 1)


class Cap:
    """Lowest point of the unit sphere's part with first coordinate >= 0.6: curved equality, active inequality."""

    start = numbers(5, 3, seed=6)

    def __call__(self, z: Tensor, rows: Tensor) -> Terms:
        return Terms(z[:, 2], z.square().sum(1, keepdim=True) - 1, 0.6 - z[:, :1])

    def answer(self) -> Tensor:
        return torch.tensor([0.6, 0.0, -0.8], dtype=torch.float64).expand(5, 3)


def statuses(found: Outcome) -> tuple[Status, ...]:
    return tuple(status for status, _ in found.ends)


def reasons(found: Outcome) -> tuple[str, ...]:
    return tuple(reason for _, reason in found.ends)


PROBLEMS = (LinearBoundary(), Box(), Cap())


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda each: type(each).__name__)
def test_known_answers(problem: LinearBoundary | Box | Cap) -> None:
    found = search(problem, problem.start, FINE)
    assert set(statuses(found)) == {Status.FOUND}
    assert (found.z - problem.answer()).abs().max() < 1e-4
    assert found.terms.violation().max() <= 1e-6


def one_by_one(problem: Problem, start: Tensor, schedule: Schedule) -> list[Outcome]:
    return [
        search(lambda z, rows, i=i: problem(z, rows + i), start[i : i + 1], schedule)  # type: ignore[misc]
        for i in range(3)
    ]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda each: type(each).__name__)
def test_a_batch_gives_the_answers_of_one_by_one(problem: LinearBoundary | Box | Cap) -> None:
    schedule = Schedule(outer_iterations=5, inner_iterations=15)
    whole = search(problem, problem.start, schedule)
    for row, alone in enumerate(one_by_one(problem, problem.start, schedule)):
        assert torch.allclose(whole.z[row], alone.z[0], atol=1e-9)
        assert statuses(whole)[row] == statuses(alone)[0]
        assert whole.rounds[row] == alone.rounds[0]


def test_finished_rows_leave_the_batch_and_change_no_answer() -> None:
    problem, sizes = LinearBoundary(), []
    problem.offset[::2] *= 30  # these take longer

    def counted(z: Tensor, rows: Tensor) -> Terms:
        sizes.append(len(rows))
        return problem(z, rows)

    def padded(z: Tensor, rows: Tensor) -> Terms:
        whole = problem.start.clone().index_put((rows,), z)
        terms = problem(whole, torch.arange(len(whole)))
        return Terms(terms.objective[rows], terms.zero[rows], terms.below[rows])

    leaving, staying = search(counted, problem.start), search(padded, problem.start)
    assert sizes[0] == 6
    assert 0 < sizes[-2] < 6
    assert leaving.rounds.unique().numel() > 1
    assert torch.equal(leaving.z, staying.z)
    assert statuses(leaving) == statuses(staying)


def test_a_bad_row_harms_no_other() -> None:
    """Row 1 becomes NaN on the way, row 2 runs away to infinity, row 4 is NaN at once."""
    problem = LinearBoundary()
    calm = search(problem, problem.start)

    def troubled(z: Tensor, rows: Tensor) -> Terms:
        terms = problem(z, rows)
        far = (z - problem.start[rows]).square().sum(1)
        runaway = (100 * torch.where(rows == 2, (z - problem.start[rows]).sum(1), 0)).expm1()
        objective = torch.where((rows == 4) | ((rows == 1) & (far > 0.001)), torch.nan, terms.objective - runaway)
        return Terms(objective, torch.where(rows.unsqueeze(1) == 2, 1, terms.zero), terms.below)

    found = search(troubled, problem.start)
    assert {statuses(found)[row] for row in (1, 2, 4)} == {Status.DIVERGED}
    assert "NaN" in reasons(found)[4]
    assert found.z.isfinite().all()
    for row in (0, 3, 5):
        assert torch.allclose(found.z[row], calm.z[row], atol=1e-9)
        assert statuses(found)[row] == statuses(calm)[row] == Status.FOUND


def test_what_cannot_be_is_infeasible_and_comes_with_the_nearest_miss() -> None:
    def impossible(z: Tensor, rows: Tensor) -> Terms:
        return Terms(z.square().sum(1), z[:, :1], torch.stack([1 - z[:, 0], z[:, 1] - 5], 1))

    found = search(impossible, numbers(2, 2))
    assert statuses(found) == (Status.INFEASIBLE, Status.INFEASIBLE)
    assert torch.allclose(found.z[:, 0], torch.full((2,), 0.5, dtype=torch.float64), atol=0.02)
    assert "0.5" in reasons(found)[0]


def test_too_few_rounds_are_called_so() -> None:
    problem = LinearBoundary()
    found = search(problem, problem.start + 50, Schedule(outer_iterations=2, inner_iterations=3))
    assert set(statuses(found)) == {Status.OUT_OF_BUDGET}
    assert "2 rounds" in reasons(found)[0]


def test_a_point_that_fails_the_fresh_pass_is_not_called_found() -> None:
    problem, calls = LinearBoundary(), 0

    def fickle(z: Tensor, rows: Tensor) -> Terms:
        nonlocal calls
        calls += z.requires_grad
        terms = problem(z, rows)
        return terms if calls < 15 * 80 and (z.requires_grad or calls < 240) else Terms(
            terms.objective, terms.zero + 1, terms.below
        )  # fmt: skip

    found = search(fickle, problem.start, Schedule(outer_iterations=4, tol=0.0))
    assert set(statuses(found)) == {Status.NOT_FOUND}
    assert "fresh pass" in reasons(found)[0]


def test_a_row_that_stands_still_beside_its_constraint_goes_on() -> None:
    """It begins feasibly, then rests at the foot of a slope, too far out: the penalty is not yet steep enough."""

    def slope(z: Tensor, rows: Tensor) -> Terms:
        return Terms(1 + (1 - z[:, 0]).clamp_min(0), below=z - 0.5)

    weak = Schedule(outer_iterations=8, inner_iterations=40, rate=0.1, penalty=0.5, growth=1.01, largest_multiplier=0.1)
    found = search(slope, torch.zeros(1, 1, dtype=torch.float64), weak)
    assert found.rounds.tolist() == [8]
    assert statuses(found) == (Status.FOUND,)
    assert found.z.item() <= 0.51


def test_an_interrupt_returns_the_best_so_far() -> None:
    problem = LinearBoundary()
    found = search(Stopped().at_call(300, problem.__call__), problem.start, Schedule(tol=0.0))
    assert found.interrupted
    assert Status.FOUND in statuses(found)
    assert any("interrupted" in reason for reason in reasons(found))
    assert found.terms.violation()[statuses(found).index(Status.FOUND)] <= 0.01


def test_noise_depends_on_seed_sample_and_restart_alone() -> None:
    together, alone = noise((2, 3), 7, [4, 5, 6], 1), noise((2, 3), 7, [5], 1)
    assert torch.equal(together[1], alone[0])
    others = [noise((2, 3), 8, [5], 1), noise((2, 3), 7, [5], 2), noise((2, 3), 7, [6], 1)]
    assert not any(torch.equal(alone, other) for other in others)
    many = noise((1000,), 0, range(10), 0)
    assert abs(many.mean()) < 0.05
    assert abs(many.std() - 1) < 0.05


def test_schedules_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="outer_iterations of schedule is a whole number of at least 1, not 0"):
        Schedule(outer_iterations=0)
    with pytest.raises(InputError, match="growth of schedule is a number above 1"):
        Schedule(growth=1.0)


def test_a_search_from_outside_comes_near_the_least_change_there_is() -> None:
    """For a linear classifier the least sum of changes is a linear programme: the strongest pixels first."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).double()
    images = 0.3 + 0.4 * torch.rand(5, 1, 3, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    schedule = Schedule(outer_iterations=20, inner_iterations=100, feasibility_tol=1e-4, tol=0.001)
    found = rt.counterfactual(rt.Model(module, channels=1), images, method=Wachter(schedule=schedule))
    assert found.found.all(), found.reason
    for i, image in enumerate(images.flatten(1).tolist()):
        fact = int(found.fact[i])
        weights = (module[1].weight[1 - fact] - module[1].weight[fact]).tolist()
        missing = float(found.logits[i, fact] - found.logits[i, 1 - fact])
        least = 0.0
        for weight, value in sorted(zip(weights, image, strict=True), key=lambda pair: -abs(pair[0])):
            step = min(missing / abs(weight), 1 - value if weight > 0 else value)
            least, missing = least + step, missing - step * abs(weight)
        change = float(found.difference[i].abs().sum())
        assert least - 0.001 <= change <= 1.05 * least + 0.001
        assert float(found.example_logits[i, 0, 1 - fact] - found.example_logits[i, 0, fact]) >= -1e-4
