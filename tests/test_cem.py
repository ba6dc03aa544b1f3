"""CEM: the search for the class weight, the hinge, pertinent negatives and positives."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.optimize import minimize
from torch import Tensor, nn

import ratherthan as rt
from ratherthan import (
    CEM,
    CEMPositive,
    Counterfactual,
    InputError,
    Manifold,
    Model,
    PertinentPositive,
    SearchQuestion,
    Status,
    preserve_state,
)
from ratherthan.search.method import lead
from ratherthan.search.solver import bisected


def _by_hand(outcomes: list[bool], c: float) -> list[float]:
    """The rule for one image, as a plain loop."""
    tried, lower, upper = [], 0.0, math.inf
    for success in outcomes:
        tried.append(c)
        if success:
            upper = min(upper, c)
        else:
            lower = max(lower, c)
        c = (lower + upper) / 2 if upper < math.inf else c * 10
    return [*tried, c]


def test_the_weight_of_every_row_follows_the_rule_of_one_image() -> None:
    outcomes, weights = (
        torch.rand(64, 9) < 0.4,
        [torch.full((64,), each, dtype=torch.float64) for each in (10, 0, math.inf)],
    )
    tried = [weights[0]]
    for column in outcomes.T:
        weights = bisected(weights, column)
        tried.append(weights[0])
    expected = [_by_hand(row, 10.0) for row in outcomes.tolist()]
    torch.testing.assert_close(torch.stack(tried, 1), torch.tensor(expected, dtype=torch.float64))


def test_a_weight_is_positive() -> None:
    with pytest.raises(InputError, match="c of cem is a number above 0, not 0"):
        CEM(c=0.0)


def test_the_lead_equals_the_formula_row_by_row() -> None:
    """For a foil q, y_q - max of the others; for any, max of the others - y_t; to keep the fact, q = t."""
    logits = torch.randn(40, 5, dtype=torch.float64, requires_grad=True)
    fact, foil = torch.randint(5, (40,)), torch.randint(-1, 5, (40,))
    foil[:5] = fact[:5]
    values = lead(logits, fact, foil)
    for row, (t, q) in enumerate(zip(fact.tolist(), foil.tolist(), strict=True)):
        y = logits[row].tolist()
        own = t if q < 0 else q
        ahead = y[own] - max(y[i] for i in range(5) if i != own)
        assert values[row].item() == pytest.approx(-ahead if q < 0 else ahead)
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    assert gradient.isfinite().all()


# --------------------------------------------------------------------------------------------------- CEM itself
class _Halfspace(nn.Module):
    """Two classes, the second ahead by w x - threshold."""

    def __init__(self, weight: Tensor, threshold: float) -> None:
        super().__init__()
        self.weight, self.threshold = nn.Parameter(weight), threshold

    def forward(self, x: Tensor) -> Tensor:
        ahead = x.flatten(1) @ self.weight - self.threshold
        return torch.stack([-ahead / 2, ahead / 2], 1)


def _net(classes: int = 4, channels: int = 1, side: int = 6) -> nn.Module:
    hidden = nn.Linear(channels * side * side, 24)
    return nn.Sequential(nn.Flatten(), hidden, nn.Tanh(), nn.Linear(24, classes)).double()


def _negatives(how: CEM, model: nn.Module, images: Tensor, foil: Tensor | None = None) -> Counterfactual:
    wrapped = Model(model, channels=images.shape[1])
    fact = wrapped.logits(images).argmax(1)
    foil = torch.full_like(fact, -1) if foil is None else foil
    with preserve_state(nn.ModuleList([model, *how.modules()])):
        return how.search(SearchQuestion(wrapped, images, fact, foil, range(len(images))))


def _positives(how: CEMPositive, model: nn.Module, images: Tensor) -> PertinentPositive:
    wrapped = Model(model, channels=images.shape[1])
    return how.search(SearchQuestion(wrapped, images, wrapped.logits(images).argmax(1), None, range(len(images))))


def _least(weight: Tensor, beta: float, wanted: float) -> Tensor:
    """argmin |d|^2 + beta |d|_1 with w d = wanted: d = S_beta(l w) / 2, l by bisection."""
    low, high = 0.0, 1e4
    for _ in range(200):
        middle = (low + high) / 2
        d = (middle * weight).sign() * ((middle * weight).abs() - beta).clamp_min(0) / 2
        low, high = (middle, high) if (weight * d).sum() < wanted else (low, middle)
    return d


@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0])
def test_negative_of_a_linear_classifier_is_the_soft_thresholded_normal(beta: float) -> None:
    weight = torch.rand(16, dtype=torch.float64) * 4
    image = torch.full((1, 1, 4, 4), 0.1, dtype=torch.float64)
    threshold = (weight * 0.1).sum().item() + 1.0
    answers = _negatives(CEM(beta=beta, kappa=0.5), _Halfspace(weight, threshold), image)
    assert answers.status == [Status.FOUND]
    change = (answers.examples[0, 0] - image[0]).flatten()
    exact = _least(weight, beta, 1.5)
    least = (exact.square().sum() + beta * exact.abs().sum()).item()
    assert answers.distance.item() >= least - 1e-9  # nothing lies below the minimum
    assert answers.distance.item() == pytest.approx(least, rel=0.06)  # the margin is aimed at from 0.03 inside
    torch.testing.assert_close(change, _least(weight, beta, 1.53), atol=0.02, rtol=0)


def test_any_other_class_is_the_nearest_of_all_and_not_the_one_that_leads() -> None:
    """The runner-up has the flattest slope: the answer is the least over all foils, each known in closed form."""
    weights = torch.rand(6, 16, dtype=torch.float64) * torch.tensor([0.0, 0.3, 1, 2, 3, 4]).double().unsqueeze(1)
    behind = torch.tensor([0.0, 0.5, 0.8, 0.9, 1.1, 1.2]).double()
    image = torch.full((1, 1, 4, 4), 0.1, dtype=torch.float64)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 6)).double()
    net[1].weight.data, net[1].bias.data = weights, -behind - 0.1 * weights.sum(1)
    exact = [_least(weights[q], 0.1, behind[q].item() + 0.5) for q in range(1, 6)]
    nets = [(each.square().sum() + 0.1 * each.abs().sum()).item() for each in exact]
    assert min(nets) < 0.2 * nets[0], "the runner-up is far"
    found = _negatives(CEM(beta=0.1, kappa=0.5), net, image)
    assert found.status == [Status.FOUND]
    assert min(nets) <= found.distance.item() + 1e-9
    assert found.distance.item() == pytest.approx(min(nets), rel=0.06)
    mixed = _negatives(CEM(beta=0.1, kappa=0.5), net, image.expand(2, -1, -1, -1), torch.tensor([-1, 5]))
    torch.testing.assert_close(mixed.examples[0], found.examples[0], atol=1e-9, rtol=0)


def test_positive_of_a_linear_classifier_is_the_soft_thresholded_normal() -> None:
    weight = torch.rand(16, dtype=torch.float64) * 4 + 0.1
    image = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    answers = _positives(CEMPositive(beta=0.3, kappa=0.5), _Halfspace(weight, 2.0), image)
    assert answers.status == [Status.FOUND]
    torch.testing.assert_close(answers.examples.flatten(), _least(weight, 0.3, 2.53), atol=0.02, rtol=0)
    torch.testing.assert_close(answers.mask, answers.example[:, 0])


@pytest.mark.parametrize("mode", ["sound", "reference"])
@pytest.mark.parametrize("baseline", [0.0, "mean", [0.2, 0.5, 0.8], "image"])
def test_adding_moves_away_from_the_baseline_and_keeping_towards_it(mode: str, baseline: Any) -> None:
    images = torch.rand(5, 3, 4, 4, dtype=torch.float64)
    images[:, :, 0] = 0.5
    b = torch.rand(3, 4, 4, dtype=torch.float64) if baseline == "image" else baseline
    if isinstance(b, str):
        plain = images.mean((2, 3), keepdim=True).expand_as(images)
    else:
        plain = torch.as_tensor(b, dtype=torch.float64).reshape((3, 4, 4) if baseline == "image" else (-1, 1, 1))
        plain = plain.expand_as(images)
    net, settings = (
        _net(channels=3, side=4),
        {"kappa": 0.1, "baseline": b, "preset": mode, "binary_search_steps": 4, "iterations": 40},
    )
    added = _negatives(CEM(**settings), net, images).examples[:, 0] - plain
    before = images - plain
    assert (added.abs() >= before.abs() - 1e-12).all()
    assert (added * before >= 0).all()
    assert (added - before).abs().sum() > 0.01
    kept = _positives(CEMPositive(**settings), net, images).example - plain
    assert (kept.abs() <= before.abs() + 1e-12).all()
    assert (kept * before >= -1e-12).all()


def _published(model: Model, image: Tensor, kappa: float, beta: float, keep: bool, rounds: int, steps: int) -> Tensor:
    """One image, as PAPER-NOTES and the paper describe the schedule; the best image, or zeros."""
    fact = int(model.logits(image).argmax())
    centre, low, high = (torch.zeros_like(image), 0 * image, image) if keep else (image, image, torch.ones_like(image))
    c, lower, upper, least, best = 10.0, 0.0, math.inf, math.inf, torch.zeros_like(image)

    def gap(v: Tensor) -> Tensor:
        y = model.logits(v)[0]
        other = torch.cat([y[:fact], y[fact + 1 :]]).max()
        return (other - y[fact] if keep else y[fact] - other) + kappa

    for _ in range(rounds):
        v, y, success = centre.clone(), centre.clone(), False
        for k in range(steps):
            y = y.detach().requires_grad_()
            loss = c * gap(y).clamp_min(0) + (y - centre).square().sum()
            d = y.detach() - 0.01 * math.sqrt(1 - k / steps) * torch.autograd.grad(loss, y)[0] - centre
            new = (centre + d.sign() * (d.abs() - beta).clamp_min(0)).clamp(low, high)
            y = (new + (k + 1) / (k + 4) * (new - v)).clamp(low, high)
            v = new
            if gap(v) <= 0:
                success = True
                value = ((v - centre).square().sum() + beta * (v - centre).abs().sum()).item()
                if value < least:
                    least, best = value, v
        lower, upper = (lower, min(upper, c)) if success else (max(lower, c), upper)
        c = (lower + upper) / 2 if upper < math.inf else 10 * c
    return best


@pytest.mark.parametrize("keep", [False, True])
def test_reference_mode_equals_a_loop_over_images(keep: bool) -> None:
    images, net = torch.rand(4, 1, 4, 4, dtype=torch.float64), _net(3, 1, 4)
    settings = {"preset": "reference", "kappa": 0.2, "beta": 0.02, "binary_search_steps": 4, "iterations": 30}
    expected = [_published(Model(net), image[None], 0.2, 0.02, keep, 4, 30) for image in images]
    if keep:
        answers = _positives(CEMPositive(**settings), net, images)
        found, examples = answers.found.tolist(), answers.example
    else:
        negatives = _negatives(CEM(**settings), net, images)
        found, examples = negatives.found.tolist(), negatives.example
    assert sum(found) >= 2
    for ours, theirs, was_found in zip(examples, expected, found, strict=True):
        if was_found:
            torch.testing.assert_close(ours, theirs[0], atol=1e-5, rtol=0)
        else:
            assert not theirs.any()


@pytest.mark.parametrize("mode", ["sound", "reference"])
def test_rows_of_a_batch_never_influence_each_other_nor_leave_anything(mode: str) -> None:
    images, net = torch.rand(6, 1, 4, 4, dtype=torch.float64), _net(3, 1, 4).train()
    how = CEM(preset=mode, kappa=0.1, binary_search_steps=3, iterations=20)
    foil = torch.tensor([-1, 0, 1, 2, -1, 0])
    torch.manual_seed(3)
    state = torch.get_rng_state()
    together = _negatives(how, net, images, foil)
    for i in range(6):
        alone = _negatives(how, net, images[i : i + 1], foil[i : i + 1])
        assert alone.status[0] == together.status[i]
        torch.testing.assert_close(alone.examples[0], together.examples[i], atol=1e-7, rtol=0)
    assert torch.equal(state, torch.get_rng_state())
    assert all(module.training for module in net.modules())
    assert all(p.grad is None for p in net.parameters())


def test_a_foil_is_reached_by_its_margin_and_the_answer_counts_what_it_cost() -> None:
    images, net = torch.rand(8, 1, 6, 6, dtype=torch.float64) / 2, _net()
    seen = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal seen
        seen += len(inputs[0])

    fact = net(images).argmax(1)
    with_hook = net.register_forward_hook(count)
    answers = _negatives(CEM(kappa=0.3), net, images, (fact + 1) % 4)
    with_hook.remove()
    y = net(answers.examples[:, 0])
    for i, status in enumerate(answers.status):
        target = int(fact[i] + 1) % 4
        others = torch.cat([y[i, :target], y[i, target + 1 :]]).max()
        assert (status == Status.FOUND) == bool(y[i, target] - others >= 0.3 - 1e-3)
    assert answers.found.sum() >= 6
    # besides the search: the fact, the images themselves, the verification, images and answers rounded and blurred, and
    # the frames of the path between them
    assert seen == answers.evaluations + 8 + 8 + 8 + 4 * 8 + 8 * 14


@pytest.mark.parametrize("mode", ["sound", "reference"])
def test_what_cannot_be_found_is_reported_for_its_row_alone(mode: str) -> None:
    weight = torch.linspace(0.1, 1, 16, dtype=torch.float64)
    images = torch.stack([torch.full((1, 4, 4), value, dtype=torch.float64) for value in (0.2, 1.0, 0.0)])
    net = _Halfspace(weight, 12.0)  # no image is of the second class
    settings = {"preset": mode, "binary_search_steps": 3, "iterations": 30}
    never = _negatives(CEM(**settings), net, images)
    assert never.found.tolist() == [False] * 3
    assert never.status[1] == Status.INFEASIBLE
    assert "every value is at its limit" in never.reason[1]
    assert (never.examples[0] >= images[0]).all()
    assert (never.examples[0] > images[0]).any()
    assert never.violation[0].item() > 0
    reached = _negatives(CEM(**settings), _Halfspace(weight, 4.0), images)
    assert reached.status == [Status.FOUND, Status.INFEASIBLE, Status.FOUND]
    too_much = _negatives(CEM(kappa=100, **settings), _Halfspace(weight, 4.0), images)
    assert not too_much.found.any()
    same = _negatives(CEM(**settings), net, images, torch.zeros(3, dtype=torch.long))
    assert same.status == [Status.FOIL_EQUALS_FACT] * 3
    blank = _positives(CEMPositive(kappa=20, **settings), net, images)
    assert blank.status[2] == Status.INFEASIBLE
    assert "the image is the baseline" in blank.reason[2]


@pytest.mark.parametrize("mode", ["sound", "reference"])
def test_ctrl_c_is_the_reason_where_nothing_was_found_until_then(mode: str) -> None:
    class Stopped(_Halfspace):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 4:
                raise KeyboardInterrupt
            return super().forward(x)

    images = torch.full((1, 1, 4, 4), 0.2, dtype=torch.float64)
    answers = _negatives(CEM(preset=mode), Stopped(torch.linspace(0.1, 1, 16, dtype=torch.float64), 12.0), images)
    assert answers.interrupted
    assert answers.status == [Status.NOT_FOUND]
    assert answers.reason[0].startswith("interrupted")


def test_a_row_that_breaks_harms_no_other() -> None:
    class Fragile(_Halfspace):
        def forward(self, x: Tensor) -> Tensor:
            broken = torch.where((x.flatten(1).sum(1) > 9).unsqueeze(1), torch.nan, 1.0)
            return super().forward(x) * broken

    weight = torch.linspace(0.5, 1, 16, dtype=torch.float64)
    images = torch.stack([torch.full((1, 4, 4), value, dtype=torch.float64) for value in (0.1, 0.6)])
    fact = torch.zeros(2, dtype=torch.long)
    question = SearchQuestion(Model(Fragile(weight, 4.0), channels=1), images, fact, fact - 1, range(2))
    assert CEM().search(question).status == [Status.FOUND, Status.DIVERGED]


class _Smooth(nn.Module):
    """Draws every image as its mean."""

    def encode(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))

    def decode(self, z: Tensor) -> Tensor:
        return z.view(-1, 1, 1, 1).expand(-1, 1, 4, 4)


def test_positives_as_published_hold_what_the_autoencoder_draws_fixed() -> None:
    """FISTA for one image as a plain loop, whose gradient of the term is 2 gamma (v - AE(v))."""

    class Dim(_Smooth):
        def decode(self, z: Tensor) -> Tensor:
            return super().decode(z) / 2

    weight = torch.linspace(-0.5, 2, 16, dtype=torch.float64)
    image, gamma, steps = torch.linspace(0.2, 1, 16, dtype=torch.float64), 3.0, 12
    settings: dict[str, Any] = {"kappa": 50.0, "beta": 0.01, "binary_search_steps": 1, "iterations": steps}
    how = CEMPositive(preset="reference", gamma=gamma, manifold=Manifold(Dim(), 1), **settings)
    found = _positives(how, _Halfspace(weight, -1.0), image.view(1, 1, 4, 4))
    v = y = torch.zeros(16, dtype=torch.float64)
    for k in range(steps):  # black already has the class by 1 logit: each step goes on, and the last is the nearest
        slope = -10 * weight + 2 * y + 2 * gamma * (y - y.mean() / 2)
        moved = y - 0.01 * math.sqrt(1 - k / steps) * slope
        last, v = v, (moved - 0.01).clamp_min(0).minimum(image)
        y = (v + (k + 1) / (k + 4) * (v - last)).clamp_min(0).minimum(image)
    torch.testing.assert_close(found.examples[0, 0].flatten(), v)


def test_a_positive_is_the_nearest_of_two_valleys() -> None:
    """From the image the first pixel leads, and keeping it costs more: the least of all points of a grid does not."""

    class Either(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first, second = x.flatten(1)[:, 0], x.flatten(1)[:, 1]
            return torch.stack([torch.maximum(2 * first - 1, 0.9 * second.sqrt() - 0.3), 0 * first], 1)

    image = torch.tensor([[[[1.0, 0.3], [0.0, 0.0]]]], dtype=torch.float64)
    found = _positives(CEMPositive(kappa=0.1, beta=0.1), Either(), image)
    side = torch.linspace(0, 1, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(side, 0.3 * side)
    wins = torch.maximum(2 * grid[:, 0] - 1, 0.9 * grid[:, 1].sqrt() - 0.3) >= 0.1
    nets = grid.square().sum(1) + 0.1 * grid.sum(1)
    kept = found.example.flatten()
    assert found.found.all()
    assert float(kept.square().sum() + 0.1 * kept.sum()) == pytest.approx(float(nets[wins].min()), rel=0.1)


def test_the_autoencoder_punishes_what_the_change_adds_and_nothing_else() -> None:
    """Least |d|^2 that crosses the boundary and is drawn no worse than the image: scipy's SLSQP is the reference."""
    weight = torch.linspace(0.1, 2, 16, dtype=torch.float64)
    image, net = torch.linspace(0.1, 0.3, 16, dtype=torch.float64).view(1, 1, 4, 4), _Halfspace(weight, 6.0)
    error = lambda v: ((v - v.mean()) ** 2).sum()  # noqa: E731, of _Smooth
    x = image.flatten().numpy()
    answers = [
        _negatives(CEM(kappa=0.0, gamma=gamma, beta=0.0, manifold=Manifold(_Smooth(), 1)), net, image)
        for gamma in (0.0, 1000.0)
    ]
    for found, limits in zip(answers, ([], [{"type": "ineq", "fun": lambda d: error(x) - error(x + d)}]), strict=True):
        lead = found.example_logits[0, 0].diff().item()
        crossed = {"type": "ineq", "fun": lambda d, lead=lead: weight.numpy() @ (x + d) - 6.0 - lead}
        least = minimize(lambda d: d @ d, x * 0 + 0.2, bounds=[(0, 1)] * 16, constraints=[crossed, *limits])
        assert found.found.all()
        assert found.distance.item() == pytest.approx(least.fun, rel=0.02)
    free, natural = answers
    assert error(free.example.numpy()) > 2 * error(x)
    assert error(natural.example.numpy()) < 1.02 * error(x)


def test_an_image_that_the_autoencoder_draws_badly_is_changed_no_more_for_it() -> None:
    """All weights are equal: the nearest answer is brighter by a constant, which leaves the error as it is."""
    image = torch.rand(1, 1, 4, 4, dtype=torch.float64) / 2
    net = _Halfspace(torch.ones(16, dtype=torch.float64), float(image.sum()) + 1.0)
    found = _negatives(CEM(kappa=0.0, beta=0.0, manifold=Manifold(_Smooth(), 1)), net, image)
    lead = found.example_logits[0, 0].diff().item()
    torch.testing.assert_close(found.example, image + (1.0 + lead) / 16, atol=1e-3, rtol=0)


def _change_of_a_linear_network(weight: Tensor) -> tuple[Counterfactual, Tensor]:
    image = torch.full((1, 1, 4, 4), 0.3, dtype=torch.float64)
    net = _Halfspace(weight, (0.3 * weight.sum() + 0.5).item())
    return rt.counterfactual(Model(net, channels=1), image, method=CEM(kappa=0.1, beta=0.0)), image


def test_what_survives_a_blur_is_that_of_a_linear_network() -> None:
    weight = torch.rand(16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, image = _change_of_a_linear_network(weight)
    change = (found.example - image)[0, 0].numpy()
    blurred = gaussian_filter(change, 0.5, mode="mirror", radius=1)
    rounded = (found.example[0, 0].numpy() * 255).round() / 255 - (image[0, 0].numpy() * 255).round() / 255
    w = weight.view(4, 4).numpy()
    least = min((w * blurred).sum(), (w * rounded).sum()) / (w * change).sum()
    assert found.survives.item() == pytest.approx(least)
    assert not found.adversarial.any()
    assert "adversarial" not in found.text(0)


def test_a_foil_that_led_before_is_no_adversarial_example(recwarn: pytest.WarningsRecorder) -> None:
    weight = torch.rand(16, dtype=torch.float64)
    image = torch.full((1, 1, 4, 4), 0.5, dtype=torch.float64)
    model = Model(_Halfspace(weight, 0.0), channels=1)
    found = rt.counterfactual(model, image, fact=0, foil=1, method=CEM(kappa=0.0))
    assert found.found.all()
    assert not found.adversarial.any()
    assert not [each for each in recwarn if "adversarial" in str(each.message)]


@pytest.mark.parametrize("case", ["undone by a blur", "tiny"])
def test_a_change_that_nobody_sees_is_called_adversarial(case: str) -> None:
    weight = torch.tensor([[1.0, -1], [-1, 1]], dtype=torch.float64).repeat(2, 2).flatten()
    weight = weight if case == "undone by a blur" else torch.full_like(weight, 1000)
    with pytest.warns(UserWarning, match="1 of 1 answers are adversarial"):
        found, image = _change_of_a_linear_network(weight)
    assert found.found.all()
    assert found.adversarial.all()
    assert "adversarial example, hardly an explanation" in found.text(0)
    assert ((found.example - image).norm() < 0.01 * image.norm()) == (case == "tiny")
    assert found.to_frame()["adversarial"].all()


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"preset": "fast"}, "preset"),
        ({"kappa": -1}, "kappa"),
        ({"binary_search_steps": 0}, "binary_search_steps"),
        ({"c": 0}, "c of cem is a number above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        CEM(**settings)


@pytest.mark.parametrize("baseline", ["median", 1.5, [0.1, 0.2], torch.zeros(3, 2, 2)])
def test_a_baseline_that_fits_no_image_is_refused(baseline: Any) -> None:
    with pytest.raises(InputError, match="baseline"):
        CEM(baseline=baseline).check(Model(_net(), channels=3), torch.rand(1, 3, 4, 4))


def test_without_a_margin_a_tie_is_not_yet_another_class() -> None:
    weight = torch.full((16,), 0.5, dtype=torch.float64)
    image = torch.full((1, 1, 4, 4), 0.25, dtype=torch.float64)
    model = Model(_Halfspace(weight, 2.0), channels=1)
    assert model.logits(image)[0].tolist() == [0, 0]
    how = rt.counterfactual(model, image, method=CEM(kappa=0.0))
    assert how.found.all(), how.reason
    assert how.example_logits[0, 0, 1] > how.example_logits[0, 0, 0]
