"""CEM: the search for the class weight, the hinge, pertinent negatives and positives."""

from __future__ import annotations

import math

import pytest
import torch

from ratherthan.errors import InputError
from ratherthan.search.weighing import Weighing, hinge


def _by_hand(outcomes: list[bool], rule: str, c: float) -> list[float]:
    """The rule for one image, as a plain loop."""
    tried, lower, upper = [], 0.0, math.inf
    for success in outcomes:
        tried.append(c)
        if success:
            upper = min(upper, c)
        else:
            lower = max(lower, c)
        if rule == "halve":
            c = c / 2 if success else c * 10
        elif upper < math.inf:
            c = (lower + upper) / 2
        else:
            c = c * 10
    return [*tried, c]


@pytest.mark.parametrize("rule", ["bisect", "halve"])
def test_the_weight_of_every_row_follows_the_rule_of_one_image(rule: str) -> None:
    outcomes = torch.rand(64, 9) < 0.4
    weighing = Weighing.start(torch.full((64,), 10.0, dtype=torch.float64), rule)
    tried = [weighing.c]
    for column in outcomes.T:
        weighing = weighing.update(column)
        tried.append(weighing.c)
    expected = [_by_hand(row, rule, 10.0) for row in outcomes.tolist()]
    torch.testing.assert_close(torch.stack(tried, 1), torch.tensor(expected, dtype=torch.float64))
    some = torch.tensor([5, 1])
    assert torch.equal(weighing.take(some).update(outcomes[some, 0]).c, weighing.update(outcomes[:, 0]).c[some])


def test_weighing_refuses_what_is_no_weight_or_rule() -> None:
    with pytest.raises(InputError, match="positive"):
        Weighing.start(torch.tensor([1.0, 0.0]))
    with pytest.raises(InputError, match="bisect"):
        Weighing.start(torch.ones(1), "bisekt")


def test_hinge_equals_the_formula_row_by_row() -> None:
    logits = torch.randn(40, 5, dtype=torch.float64, requires_grad=True)
    fact, foil = torch.randint(5, (40,)), torch.randint(-1, 5, (40,))
    for keep in (False, True):
        values = hinge(logits, fact, foil, 0.7, keep)
        for row, (t, q) in enumerate(zip(fact.tolist(), foil.tolist(), strict=True)):
            y = logits[row].tolist()
            if keep:
                gap = max(y[i] for i in range(5) if i != t) - y[t]
            elif q < 0:
                gap = y[t] - max(y[i] for i in range(5) if i != t)
            else:
                gap = max(y[i] for i in range(5) if i != q) - y[q]
            assert values[row].item() == pytest.approx(max(0.0, gap + 0.7))
        (gradient,) = torch.autograd.grad(values.sum(), logits)
        assert gradient.isfinite().all()
