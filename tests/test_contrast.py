"""The question and its three faces, proved in float64 against closed forms and autograd."""

from __future__ import annotations

import dataclasses
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ratherthan import (
    Contrast,
    InputError,
    Model,
    Question,
    contrasts,
    get_contrast,
    margin,
    register_contrast,
    resolve,
    rival,
)
from ratherthan.contrast import class_index, resolve_values

BUILT_IN = ["none", "mean", "max", "weighted", "probability", "loss"]
FOILS = [None, "runner-up", 2, {1, 4}, [1, {2, 3}], "each", "top3"]


def some_logits(samples: int = 4, classes: int = 6, scale: float = 3.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(samples, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("name", "foil"), list(product(BUILT_IN, FOILS)))
def test_seed_is_the_derivative_of_the_scalar(name: str, foil: object) -> None:
    logits = some_logits()
    question = resolve(logits, None, foil)
    contrast = get_contrast(name)
    by_autograd = Contrast.seed(contrast, logits, question)
    torch.testing.assert_close(contrast.seed(logits, question), by_autograd, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("asked", [[{0, 1, 2}, {3, 5}], [3, 0, 5], [{3}, {0, 2, 4}]])
def test_scalars_equal_a_plain_loop(asked: list[int | set[int]]) -> None:
    logits = some_logits()
    question = resolve(logits, None, asked)
    for i, q in product(range(4), range(len(asked))):
        y, t = logits[i], int(question.fact[i, q])
        wanted = asked[q] if isinstance(asked[q], set) else {asked[q]}
        foils = [c for c in wanted if c != t or len(wanted) == 1]
        rivals = y[foils]
        expected = {
            "none": y[t],
            "mean": y[t] - rivals.mean(),
            "max": y[t] - max(rivals),
            "weighted": y[t] - rivals.exp().sum().log(),
            "probability": y[t].exp() / (y[t].exp() + rivals.exp().sum()),
            "loss": sum(-(y.exp()[c] / y.exp().sum()).log() for c in foils) / len(foils),
        }
        for name, value in expected.items():
            got = get_contrast(name).scalar(logits, question)[i, q]
            assert got.item() == pytest.approx(float(value), abs=1e-10), name


@pytest.mark.parametrize("name", BUILT_IN)
def test_single_foils_need_no_sets(name: str) -> None:
    logits = some_logits(2, 50)
    single = resolve(logits, None, "each")
    assert single.single
    target = get_contrast(name)
    score, seed = target.scalar(logits, single), target.seed(logits, single)
    assert "foils" not in vars(single), "one class per question was written out as a set of classes"
    as_sets = dataclasses.replace(single, foil=torch.full_like(single.foil, -1), sets=single.foils)
    torch.testing.assert_close(score, target.scalar(logits, as_sets))
    torch.testing.assert_close(seed, target.seed(logits, as_sets))


def test_weighted_is_equation_1_of_the_paper() -> None:
    logits = some_logits(1)
    seed = get_contrast("weighted").seed(logits, resolve(logits, 2))[0, 0]
    others = [0, 1, 3, 4, 5]
    alpha = logits[0, others].exp() / logits[0, others].exp().sum()
    torch.testing.assert_close(seed[others], -alpha, atol=1e-12, rtol=0)
    assert seed[2] == 1


@settings(max_examples=40, deadline=None)
@given(st.floats(-50, 50), st.integers(0, 10_000))
def test_a_constant_added_to_all_logits_changes_no_contrast_but_none(shift: float, seed: int) -> None:
    logits = some_logits(seed=seed)
    question = resolve(logits, 1, {0, 3})
    for name in BUILT_IN:
        before = get_contrast(name).scalar(logits, question)
        after = get_contrast(name).scalar(logits + shift, question)
        expected = before + shift if name == "none" else before
        torch.testing.assert_close(after, expected, atol=1e-10, rtol=1e-10)


def test_with_two_classes_mean_max_and_weighted_agree_and_swapping_negates() -> None:
    logits = some_logits(classes=2)
    for face in ("scalar", "seed"):
        results = [
            getattr(get_contrast(name), face)(logits, resolve(logits, 0)) for name in ("mean", "max", "weighted")
        ]
        for other in results[1:]:
            torch.testing.assert_close(other, results[0], atol=1e-12, rtol=0)
        swapped = getattr(get_contrast("weighted"), face)(logits, resolve(logits, 1))
        torch.testing.assert_close(swapped, -results[0], atol=1e-12, rtol=0)


def test_gradient_of_the_probability_is_p_times_q_times_weighted() -> None:
    """Proposition 2, with p_t taken by autograd through softmax."""
    logits = some_logits().requires_grad_()
    question = resolve(logits, 3)
    p = logits.softmax(1)[:, 3]
    (gradient,) = torch.autograd.grad(p.sum(), logits)
    weighted = get_contrast("weighted").seed(logits.detach(), question)[:, 0]
    torch.testing.assert_close(gradient, (p * (1 - p)).detach().unsqueeze(1) * weighted, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(
        get_contrast("probability").seed(logits.detach(), question)[:, 0], gradient, atol=1e-10, rtol=1e-10
    )


def test_weighted_is_right_where_the_network_is_sure() -> None:
    """At p_t = 1 - 1e-12 the weighted seed is still e_t - alpha, and the probability keeps its tiny digits."""
    rivals = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    odds = torch.tensor(1e-12 / (1 - 1e-12), dtype=torch.float64).log()  # of the foils together
    logits = torch.cat([rivals.logsumexp(0, keepdim=True) - odds, rivals]).unsqueeze(0)
    question = resolve(logits, 0)
    assert 1 - logits.softmax(1)[0, 0].item() == pytest.approx(1e-12, rel=1e-3)
    seed = get_contrast("weighted").seed(logits, question)[0, 0]
    torch.testing.assert_close(seed, torch.cat([torch.ones(1, dtype=torch.float64), -rivals.softmax(0)]))
    by_probability = get_contrast("probability").seed(logits, question)[0, 0]
    torch.testing.assert_close(by_probability, 1e-12 * seed, rtol=1e-6, atol=0)


def test_loss_is_the_negated_weighted_contrast_for_the_foil() -> None:
    """Loss(Q) = -(1 - p_Q) weighted(Q), whatever the fact."""
    logits = some_logits()
    for foil, fact in product(range(6), (0, 5)):
        loss = get_contrast("loss").seed(logits, resolve(logits, fact, foil))
        weighted = get_contrast("weighted").seed(logits, resolve(logits, foil))
        rest = 1 - logits.softmax(1)[:, foil].view(-1, 1, 1)
        torch.testing.assert_close(loss, -rest * weighted, atol=1e-10, rtol=1e-10)


def test_sigmoid_and_softmax_train_the_same_binary_classifier() -> None:
    """Proposition 1: w1 - w2 of a two-output linear model follows w of the one-output model, at twice the step.

    Both follow the seeds of the contrast `loss`; that of the single output is the half difference of its two logits'.
    """
    x, label = torch.randn(20, 3, dtype=torch.float64), torch.arange(20) % 2
    single = Model(nn.Linear(3, 1, bias=False).double())
    double = Model(nn.Linear(3, 2, bias=False).double())
    by_torch = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    for model in (single, double):
        nn.init.zeros_(model.module.weight)  # type: ignore[arg-type]
    for _ in range(50):
        one, two = (
            get_contrast("loss").seed(logits, resolve(logits, None, label))[:, 0] / len(x)
            for logits in (model.logits(x).detach() for model in (single, double))
        )
        loss = nn.functional.binary_cross_entropy_with_logits(x @ by_torch, label.double())
        (gradient,) = torch.autograd.grad(loss, by_torch)
        by_torch.data -= 0.2 * gradient
        single.module.weight.data -= 0.2 * ((one[:, 1] - one[:, 0]) / 2 @ x)  # type: ignore[union-attr, operator]
        double.module.weight.data -= 0.1 * (two.T @ x)  # type: ignore[union-attr, operator]
    first, second = double.module.weight.detach()  # type: ignore[union-attr, operator]
    torch.testing.assert_close(second - first, by_torch.detach(), atol=1e-10, rtol=0)
    torch.testing.assert_close(single.module.weight.detach()[0], by_torch.detach(), atol=1e-10, rtol=0)


def test_a_foil_that_is_the_fact_contrasts_nothing_but_its_loss() -> None:
    logits = some_logits()
    question = resolve(logits, 2, 2)
    for name in ("mean", "max", "weighted", "probability"):
        assert not get_contrast(name).seed(logits, question).any(), name
    p = logits.softmax(1)
    p[:, 2] -= 1
    torch.testing.assert_close(get_contrast("loss").seed(logits, question)[:, 0], p)


def test_values_are_contrasted_by_squared_error() -> None:
    output = torch.tensor([[0.58], [0.2]], dtype=torch.float64)
    question = resolve_values(output, [0.75, 0.2])
    loss = get_contrast("loss")
    torch.testing.assert_close(loss.scalar(output, question), (output - torch.tensor([[0.75, 0.2]])).square())
    torch.testing.assert_close(loss.seed(output, question)[..., 0], 2 * (output - torch.tensor([[0.75, 0.2]])))
    torch.testing.assert_close(loss.seed(output, question), Contrast.seed(loss, output, question))


@pytest.mark.parametrize(
    "foil", [float("nan"), [0.5, float("inf")], [], ["a"], {0.5}, [[0.1], [0.2, 0.3]], torch.rand(2, 3), [[[0.5]]]]
)
def test_what_is_no_value_is_refused(foil: object) -> None:
    with pytest.raises(InputError, match=r"a foil is a|give one per sample"):
        resolve_values(torch.zeros(2, 1), foil)


class TestResolve:
    logits = torch.tensor([[1.0, 5.0, 3.0, 0.0], [9.0, 2.0, 4.0, 8.0]])
    names = ("crane", "tabby, house cat", "crane", "Boxer")

    def members(self, question: Question) -> list[list[list[int]]]:
        return [[row.nonzero().flatten().tolist() for row in sample] for sample in question.foils]

    def test_words(self) -> None:
        assert resolve(self.logits).fact.tolist() == [[1], [0]]
        assert self.members(resolve(self.logits)) == [[[0, 2, 3]], [[1, 2, 3]]]
        assert resolve(self.logits, None, "runner-up").foil.tolist() == [[2], [3]]
        assert resolve(self.logits, 3, "runner-up").foil.tolist() == [[1], [0]]
        assert resolve(self.logits, None, "top2").foil.tolist() == [[2, 0], [3, 2]]
        assert resolve(self.logits, "top2", "runner-up").fact.tolist() == [[1, 2], [0, 3]]
        assert resolve(self.logits, "top2", "runner-up").foil.tolist() == [[2, 1], [3, 0]]
        assert resolve(self.logits, None, "top3").foil.tolist() == [[2, 0, 3], [3, 2, 1]]  # all that there are
        assert resolve(self.logits, "top4").fact.tolist() == [[1, 2, 0, 3], [0, 3, 2, 1]]
        assert resolve(self.logits, "each").fact.tolist() == [[0, 1, 2, 3]] * 2
        assert resolve(self.logits, None, "each").foil.tolist() == [[0, 1, 2, 3]] * 2

    def test_one_per_sample_axis_and_sets(self) -> None:
        assert resolve(self.logits, torch.tensor([2, 3]), np.array([0, 1])).foil.tolist() == [[0], [1]]
        assert resolve(self.logits, None, torch.tensor([[0, 2], [1, 3]])).foil.tolist() == [[0, 2], [1, 3]]
        assert self.members(resolve(self.logits, None, {0, 2})) == [[[0, 2]], [[2]]]  # without the fact
        assert self.members(resolve(self.logits, 3, [{0, 1}, 2])) == [[[0, 1], [2]]] * 2
        assert self.members(resolve(self.logits, 3, [[0, {1, 2}], [1, 2]])) == [[[0], [1, 2]], [[1], [2]]]
        assert resolve(self.logits, 3, [0, 1]).axis == "foil"
        assert resolve(self.logits, [3, 1], 0).axis == "fact"
        assert resolve(self.logits, 3, 0).axis is None

    def test_names(self) -> None:
        assert class_index("boxer", 4, self.names) == 3
        assert class_index("house cat", 4, self.names) == 1
        assert class_index("2", 4, self.names) == 2

    @pytest.mark.parametrize(
        ("fact", "foil", "message"),
        [
            (7, None, "class 7 does not exist: this model has classes 0 to 3"),
            (-1, None, "class -1 does not exist: this model has classes 0 to 3"),
            (None, -1, "class -1 does not exist"),
            (None, {1, -1}, "class -1 does not exist"),
            (None, [1, -1], "class -1 does not exist"),
            ([0, -1], None, "class -1 does not exist"),
            (torch.tensor([0, -1]), None, "class -1 does not exist"),
            ("top5", None, "only 4 classes"),
            (None, "boxr", "did you mean 'Boxer'"),
            (None, "crane", "names classes 0 and 2"),
            ("each", "each", "both axes"),
            (None, torch.tensor([1, 2, 3]), "3 foils for 2 samples"),
            (torch.tensor([0.5, 1.0]), None, "whole numbers"),
            (None, [], "empty list"),
            (None, set(), "empty set"),
            (None, [[1], [1, 2]], "equal length"),
            (None, "top9", "only 3 classes"),
            (2.5, None, "not float"),
        ],
    )
    def test_what_cannot_be_asked_is_refused(self, fact: object, foil: object, message: str) -> None:
        with pytest.raises(InputError, match=message):
            resolve(self.logits, fact, foil, self.names)


def test_any_function_is_a_contrast_and_can_be_registered() -> None:
    def gap(logits: Tensor, fact: Tensor, foils: Tensor) -> Tensor:
        return logits.gather(1, fact[:, None])[:, 0] - (logits * foils).sum(1) / foils.sum(1)

    logits = some_logits()
    question = resolve(logits, None, [{0, 1, 2}, {3, 4, 5}])
    torch.testing.assert_close(get_contrast(gap).seed(logits, question), get_contrast("mean").seed(logits, question))
    register_contrast("gap", gap)
    assert contrasts()[-1] == "gap"
    torch.testing.assert_close(
        get_contrast("gap").scalar(logits, question), get_contrast("mean").scalar(logits, question)
    )
    with pytest.raises(InputError, match="exists already"):
        register_contrast("gap", gap)
    with pytest.raises(InputError, match="did you mean 'weighted'"):
        get_contrast("weigthed")
    for wrong in (lambda y, t, foils: y, lambda y, t, foils: None):
        with pytest.raises(InputError, match="one number per sample"):
            get_contrast(wrong).scalar(logits, question)
    with pytest.raises(InputError, match="cannot be differentiated"):
        get_contrast(lambda y, t, foils: y.argmax(1).double()).seed(logits, question)


def test_a_function_does_not_pass_for_another_contrast() -> None:
    def mean(logits: Tensor, fact: Tensor, foils: Tensor) -> Tensor:
        return logits[:, 0]

    with pytest.raises(InputError, match="'mean' exists already"):
        get_contrast(mean)
    for junk in (Contrast, ["none"], 3):
        with pytest.raises(InputError, match="a name, a Contrast or a function"):
            get_contrast(junk)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not int"):
        register_contrast("junk", 3)  # type: ignore[arg-type]


def test_questions_in_words() -> None:
    asked = {name: get_contrast(name).describe("7", "1") for name in BUILT_IN}
    assert asked["none"] == "Why 7?"
    assert asked["weighted"] == "Why 7, rather than 1?"
    assert len(set(asked.values())) == len(BUILT_IN)
    assert get_contrast("loss").describe("7", "7") == "What keeps it from being surer of 7?"


def test_the_margin_is_the_lead_over_the_best_other_and_the_rival_is_that_other() -> None:
    logits = torch.randn(2, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.randint(5, (2, 7), generator=torch.Generator().manual_seed(1))
    others = torch.rand(2, 7, 5, generator=torch.Generator().manual_seed(2)) < 0.6
    others[..., 0] = True
    for i in range(2):
        for j in range(7):
            y, t = logits[i, j].tolist(), int(target[i, j])
            rest = [k for k in range(5) if k != t]
            assert margin(logits, target)[i, j] == y[t] - max(y[k] for k in rest)
            assert rival(logits, target)[i, j] == max(rest, key=lambda k: y[k])
            among = [y[k] for k in range(5) if others[i, j, k]]
            assert margin(logits, target, others)[i, j] == y[t] - max(among)
