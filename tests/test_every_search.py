"""What holds for every registered search; a search that is registered is tested here or fails."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import outside.wachter  # registers what it holds
import ratherthan as rt
from test_pullback import State
from turns import of_today

SIDES, PIXELS, LATENTS, CLASSES = (4, 6), 24, 3, 3


# ------------------------------------------------------------------------------------- a small network and manifold
class Network(nn.Module):
    """Three classes; dropout and batch norm, so that training mode shows."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Flatten(), nn.Linear(PIXELS, 8), nn.BatchNorm1d(8, momentum=None), nn.Tanh(), nn.Dropout()
        )
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x))


class Plane(nn.Module):
    """Images around mid grey from three latents; dropout and batch norm here, too."""

    def __init__(self) -> None:
        super().__init__()
        self.basis = nn.Parameter(torch.linalg.qr(torch.randn(PIXELS, LATENTS)).Q)
        self.norm, self.drop = nn.BatchNorm1d(LATENTS, affine=False), nn.Dropout()

    def forward(self, z: Tensor) -> Tensor:
        return (0.5 + 0.15 * self.drop(self.norm(z)) @ self.basis.T).view(-1, 1, *SIDES)

    def decode(self, z: Tensor) -> Tensor:
        return self(z)  # a call, so that hooks see it

    def encode(self, images: Tensor) -> Tensor:
        return self.drop((images.flatten(1) - 0.5) @ self.basis / 0.15)


@dataclasses.dataclass(frozen=True)
class World:
    """A model, a manifold, and three images of two classes."""

    model: rt.Model
    manifold: rt.Manifold
    images: Tensor

    @property
    def both(self) -> nn.ModuleList:
        return nn.ModuleList([self.model.module, *self.manifold.module])


@pytest.fixture
def world() -> World:
    torch.manual_seed(3)
    network, plane = Network().double(), Plane().double().eval()
    for layer in (network.hidden[1], network.head):
        layer.weight.data *= 3  # type: ignore[operator]
    images = plane(1.5 * torch.randn(60, LATENTS).double()).detach()
    network(images)  # what batch norm has seen
    network.eval()
    network.head.bias.data -= network(images).mean(0).detach()
    # black is no part of any: what is of its class would need nothing for a pertinent positive
    black = network(torch.zeros(1, 1, *SIDES).double()).argmax()
    classes = network(images).argmax(1)
    first, second = (k for k in range(CLASSES) if k != black)
    chosen = [*(classes == first).nonzero()[:2], *(classes == second).nonzero()[:1]]
    return World(rt.Model(network, channels=1), rt.Manifold(plane, LATENTS), images[torch.cat(chosen)])


# ------------------------------------------------------------------------------------- every search, made quick
SHORT = rt.Schedule(outer_iterations=6, inner_iterations=12, rate=0.1)
ON_MANIFOLD: dict[str, Any] = {"retries": 0, "schedule": SHORT, "inversion": rt.Inversion(schedule=rt.Schedule(1, 4))}
GRID = rt.Superpixels("grid", 12)


class ShortPaper(rt.CEMMAF):
    binary_search_steps: ClassVar[int] = 2
    iterations: ClassVar[int] = 25
    step: ClassVar[float] = 0.5


class ShortPaperPositive(rt.CEMMAFPositive):
    binary_search_steps: ClassVar[int] = 2
    iterations: ClassVar[int] = 20


@dataclasses.dataclass(frozen=True)
class Case:
    """A search with settings that make it quick and successful.

    Attributes:
        build: Its method, on a manifold.
        uncounted: Images that the network sees of three, asked about at once, and `evaluations` leaves out.
    """

    build: Callable[[rt.Manifold], Any]
    uncounted: int
    verb: Callable[..., Any] = rt.counterfactual


def _coordinate(manifold: rt.Manifold) -> tuple[rt.LatentCoordinate, ...]:
    return (rt.LatentCoordinate(manifold=manifold, index=0, names=("more",)),)


# The first word is the registered name. Uncounted: 1 + 3 for the classes, 6 for places on the manifold, the pass that
# verifies, images and answers rounded and blurred, 14 points between image and answer.
NEGATIVE = {
    "cdeepex": Case(lambda m: rt.CDeepEx(m, margin=0.0, **ON_MANIFOLD), 10 + 3 + 12 + 42),
    "xgem": Case(lambda m: rt.XGEM(m, **ON_MANIFOLD), 10 + 3 + 12 + 42),
    "xgem penalty": Case(lambda m: rt.XGEM(m, objective="penalty", weight=10.0, **ON_MANIFOLD), 10 + 3 + 12 + 42),
    "cem": Case(
        lambda m: rt.CEM(kappa=0.1, beta=0.1, gamma=1.0, manifold=m, binary_search_steps=2, iterations=8),
        4 + 3 + 12 + 42,
    ),
    "cem reference": Case(
        lambda m: rt.CEM(preset="reference", kappa=0.1, beta=0.02, binary_search_steps=3, iterations=12),
        4 + 3 + 12 + 42,
    ),
    "cem-maf": Case(lambda m: rt.CEMMAF(m, _coordinate(m), **ON_MANIFOLD), 10 + 3 + 12 + 42),
    "cem-maf paper": Case(
        lambda m: ShortPaper(m, _coordinate(m), preset="paper", beta=0.1, **ON_MANIFOLD), 10 + 3 + 12 + 42
    ),
    "wachter": Case(lambda m: outside.wachter.Wachter(retries=0, schedule=SHORT), 4 + 3 + 12 + 42),
}
POSITIVE = {
    "cem": Case(lambda m: rt.CEMPositive(kappa=0.1, binary_search_steps=2, iterations=8), 6, rt.pertinent_positive),
    "cem reference": Case(
        lambda m: rt.CEMPositive(preset="reference", kappa=0.1, beta=0.02, binary_search_steps=3, iterations=12),
        6,
        rt.pertinent_positive,
    ),
    "cem-maf": Case(lambda m: rt.CEMMAFPositive(superpixels=GRID), 6, rt.pertinent_positive),
    "cem-maf paper": Case(
        lambda m: ShortPaperPositive(superpixels=GRID, baseline=0.0, preset="paper", kappa=1.0),
        6,
        rt.pertinent_positive,
    ),
}
CASES = {f"negative {name}": case for name, case in NEGATIVE.items()} | {
    f"positive {name}": case for name, case in POSITIVE.items()
}


def test_every_search_is_covered_here() -> None:
    assert {name.split()[0] for name in NEGATIVE} == set(rt.counterfactual_methods()) - {"words"}
    assert {name.split()[0] for name in POSITIVE} == set(rt.pertinent_positive_methods()) - {"words"}


every_search = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
TURN = of_today(CASES, 6)
by_turns = pytest.mark.parametrize("case", [CASES[name] for name in TURN], ids=TURN)  # what takes longest
every_counterfactual = pytest.mark.parametrize("case", NEGATIVE.values(), ids=NEGATIVE)


def ask(case: Case, world: World, images: Tensor | None = None, **options: Any) -> Any:
    return case.verb(
        world.model, world.images if images is None else images, method=case.build(world.manifold), **options
    )


def same(one: Any, other: Any, tolerance: float = 1e-7) -> None:
    """All that two results hold, but how it is worded."""
    assert one.statuses == other.statuses
    for field in dataclasses.fields(one):
        before, after = getattr(one, field.name), getattr(other, field.name)
        if isinstance(before, Tensor):
            torch.testing.assert_close(before, after, atol=tolerance, rtol=tolerance, equal_nan=True, msg=field.name)


class Passes:
    """Watches the forward passes of some modules; `then` is told each, and may raise or answer instead."""

    def __init__(self, *modules: nn.Module, then: Callable[[int, Tensor, Tensor], Tensor | None] | None = None) -> None:
        self.count = self.images = 0
        self.modules, self.then = modules, then

    def _seen(self, module: nn.Module, given: tuple[Tensor], output: Tensor) -> Tensor | None:
        self.count += 1
        self.images += len(given[0])
        return None if self.then is None else self.then(self.count, given[0], output)

    def __enter__(self) -> Passes:
        self._hooks = [each.register_forward_hook(self._seen) for each in self.modules]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()


def raising(error: type[BaseException], at: int) -> Callable[[int, Tensor, Tensor], None]:
    def then(number: int, given: Tensor, output: Tensor) -> None:
        if number == at:
            raise error

    return then


def spread(count: int) -> list[int]:
    """The first and the last of so many passes, and some between."""
    return sorted({number for number in range(1, count + 1) if number <= 5 or number > count - 5 or number % 25 == 0})


# ------------------------------------------------------------------------------------------- right
@every_search
def test_it_finds_something(case: Case, world: World) -> None:
    """The other tests would mean little if it did not."""
    answer = ask(case, world)
    assert answer.found.all(), answer.reason
    seen = world.model.logits(answer.example)
    torch.testing.assert_close(answer.example_logits.view_as(seen), seen, atol=1e-9, rtol=0)
    assert 0 <= answer.example.min() < answer.example.max() <= 1


@every_search
def test_a_batch_is_its_images_one_by_one(case: Case, world: World) -> None:
    together = ask(case, world)
    for size in (1, 2):
        pieces = ask(case, world, batch_size=size)
        same(pieces, together)
        assert pieces.evaluations == together.evaluations
    for i, image in enumerate(world.images):
        alone = ask(case, world, image[None])
        assert alone.status[0] == together.status[i]
        torch.testing.assert_close(alone.example[0], together.example[i], atol=1e-7, rtol=0)


@every_counterfactual
def test_many_foils_are_as_many_calls(case: Case, world: World) -> None:
    each = ask(case, world, foil=[2, 0, 1])
    for q, foil in enumerate([2, 0, 1]):
        single = ask(case, world, foil=foil)
        torch.testing.assert_close(each.example[:, q], single.example, atol=1e-7, rtol=0)
        torch.testing.assert_close(each.path[:, q], single.path, atol=1e-7, rtol=0)
        assert [row[q] for row in each.status] == single.status


@every_counterfactual
def test_a_foil_that_is_the_fact_is_said_and_harms_no_other(case: Case, world: World) -> None:
    facts = world.model.logits(world.images).argmax(1)
    foils = (facts + 1) % CLASSES
    usual = ask(case, world, foil=foils)
    foils[1] = facts[1]
    mixed = ask(case, world, foil=foils)
    assert mixed.status[1] == "foil equals fact"
    assert "same class" in mixed.reason[1]
    assert mixed.found.tolist() == [bool(usual.found[0]), False, bool(usual.found[2])]
    torch.testing.assert_close(mixed.example[[0, 2]], usual.example[[0, 2]], atol=1e-7, rtol=0)


@every_search
def test_the_same_seed_gives_the_same_whatever_the_callers_is(case: Case, world: World) -> None:
    first = ask(case, world)
    torch.manual_seed(99)
    same(ask(case, world), first, 0)


@every_search
def test_what_it_cost_is_what_the_network_saw(case: Case, world: World) -> None:
    with Passes(world.model.module) as seen:
        answer = ask(case, world)
    assert seen.images == answer.evaluations + case.uncounted


@every_search
def test_progress_ends_at_the_whole(case: Case, world: World) -> None:
    for size in (1, 64):
        told: list[tuple[int, int]] = []
        ask(case, world, batch_size=size, progress=lambda done, of, told=told: told.append((done, of)))
        assert told[-1] == (3, 3)
        assert {of for _, of in told} == {3}
        assert [done for done, _ in told] == sorted(done for done, _ in told)


@every_search
def test_saved_and_loaded_it_is_the_same(case: Case, world: World, tmp_path: Path) -> None:
    answer = ask(case, world, world.images[:2])
    again = type(answer).load(answer.save(tmp_path / "it.safetensors"))
    for field in dataclasses.fields(answer):
        before, after = getattr(answer, field.name), getattr(again, field.name)
        if isinstance(before, Tensor):
            torch.testing.assert_close(after, before, atol=0, rtol=0, equal_nan=True)
        elif field.name != "settings":
            assert after == before, field.name
    assert str(again) == str(answer)
    assert again.settings.keys() == answer.settings.keys()


# ------------------------------------------------------------------------------------------- nothing left behind
def in_training(world: World) -> None:
    """Everything in training mode but one module, one parameter frozen."""
    world.both.train()
    world.both[0].hidden[0].eval()  # type: ignore[union-attr, operator]
    next(world.both.parameters()).requires_grad_(False)


def modes() -> tuple[Any, ...]:
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()


@every_search
def test_a_network_in_training_is_searched_as_it_is_in_use_and_left_as_it_was(case: Case, world: World) -> None:
    in_use = ask(case, world)
    in_training(world)
    given, before, state = world.images.clone(), modes(), State(world.both)
    same(ask(case, world), in_use)
    state.unchanged()
    assert modes() == before
    assert torch.equal(world.images, given)
    assert not world.images.requires_grad


class Breaks(Exception):
    pass


@by_turns
def test_nothing_is_left_behind_by_a_failure_in_any_forward_pass(case: Case, world: World) -> None:
    with Passes(*world.both) as passes:
        ask(case, world)
    in_training(world)
    for number in spread(passes.count):
        before, state = modes(), State(world.both)
        with Passes(*world.both, then=raising(Breaks, number)), pytest.raises(Breaks):
            ask(case, world)
        state.unchanged()
        assert modes() == before


@every_search
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_without_gradients_around_it(case: Case, mode: Callable[[], Any], world: World) -> None:
    usual = ask(case, world)
    with mode():
        same(ask(case, world), usual)
        same(ask(case, world, world.images.clone()), usual)  # in inference mode, a tensor made there


@every_search
def test_what_becomes_of_the_callers_images_is_nothing_to_the_result(case: Case, world: World) -> None:
    """Not even where it happens on the way."""
    images, usual = world.images.clone(), ask(case, world)
    same(ask(case, world, images, batch_size=1, progress=lambda done, of: images.zero_()), usual)
    images.copy_(world.images)
    answer = ask(case, world, images)
    images.zero_()
    same(answer, usual, 0)


# ------------------------------------------------------------------------------------------- when things go wrong
def passes_for(case: Case, world: World, images: int) -> int:
    with Passes(*world.both) as passes:
        ask(case, world, world.images[:images], batch_size=1)
    return passes.count


def interrupted(case: Case, world: World, at: int) -> Any:
    """Image by image, Ctrl-C being pressed in the pass of this number; nothing may stay behind."""
    in_training(world)
    state = State(world.both)
    try:
        with Passes(*world.both, then=raising(KeyboardInterrupt, at)):
            return ask(case, world, batch_size=1)
    except KeyboardInterrupt:
        pytest.fail("what was done is lost")
    finally:
        state.unchanged()


@by_turns
def test_ctrl_c_in_a_search_gives_back_what_is_done(case: Case, world: World) -> None:
    usual = ask(case, world)
    one, two = passes_for(case, world, 1), passes_for(case, world, 2)
    begun = interrupted(case, world, 2 * one // 3)
    assert begun.interrupted
    assert len(begun) == len(begun.names) == len(begun.reason) == 1
    further = interrupted(case, world, (one + 2 * two) // 3)
    assert further.interrupted
    assert "interrupted" in str(further)
    assert len(further) == len(further.names) == len(further.reason) == 2
    assert further.status[0] == usual.status[0]
    torch.testing.assert_close(further.example[0], usual.example[0], atol=1e-7, rtol=0)


@by_turns
def test_ctrl_c_before_the_next_search_keeps_what_is_done(case: Case, world: World) -> None:
    usual = ask(case, world)
    begun = interrupted(case, world, passes_for(case, world, 1) + 1)
    assert begun.interrupted
    torch.testing.assert_close(begun.example[0], usual.example[0], atol=1e-7, rtol=0)


@by_turns
def test_ctrl_c_in_the_last_pass_keeps_what_is_done(case: Case, world: World) -> None:
    usual = ask(case, world)
    begun = interrupted(case, world, passes_for(case, world, 3))
    assert begun.interrupted
    torch.testing.assert_close(begun.example[:2], usual.example[:2], atol=1e-7, rtol=0)


@every_search
@pytest.mark.parametrize("batch_size", [64, 1])
def test_an_image_that_the_network_has_no_scores_for_is_refused_by_number(
    case: Case, batch_size: int, world: World
) -> None:
    def then(number: int, given: Tensor, output: Tensor) -> Tensor:
        return torch.where((given == world.images[1]).flatten(1).all(1, keepdim=True), torch.nan, output)

    with Passes(world.model.module, then=then), pytest.raises(rt.ModelError, match="scores for sample 1:"):
        ask(case, world, batch_size=batch_size)


@every_search
def test_an_image_whose_changes_give_nan_harms_no_other(case: Case, world: World) -> None:
    """Whatever resembles the middle image most, but is not it, has no scores."""
    marked, broken = world.images[1].flatten(), 0

    def then(number: int, given: Tensor, output: Tensor) -> Tensor:
        nonlocal broken
        likest = torch.cosine_similarity(given.flatten(1).unsqueeze(1), world.images.flatten(1), dim=2).argmax(1)
        bad = (likest == 1) & ((given.flatten(1) - marked).abs().amax(1) > 1e-12)
        broken += int(bad.sum())
        return torch.where(bad.unsqueeze(1), torch.nan, output)

    with Passes(world.model.module, then=then):
        together = ask(case, world)
        alone = [ask(case, world, image[None]) for image in world.images]
        shown = world.model.logits(together.example)
    assert broken > 0
    assert together.found.any()
    assert together.example.isfinite().all()
    assert shown[together.found].isfinite().all()
    for i, single in enumerate(alone):
        assert single.status[0] == together.status[i]
        torch.testing.assert_close(single.example[0], together.example[i], atol=1e-6, rtol=0)


# ------------------------------------------------------------------------------------------- verified by a fresh pass
def told_otherwise(case: Case, world: World, last: int) -> Any:
    """One image is asked about, and in its last passes the network says what would undo the answer."""
    image, fact = world.images[:1], int(world.model.logits(world.images[:1]).argmax())
    against = -100.0 if case.verb is rt.pertinent_positive else 100.0
    lie = against * nn.functional.one_hot(torch.tensor(fact), CLASSES)
    with Passes(world.model.module) as passes:
        assert ask(case, world, image).found.all()

    def then(number: int, given: Tensor, output: Tensor) -> Tensor:
        return output + lie if number > passes.count - last else output

    with Passes(world.model.module, then=then):
        return ask(case, world, image)


@every_search
def test_what_no_fresh_pass_confirms_is_not_found(case: Case, world: World) -> None:
    assert not told_otherwise(case, world, last=7).found.any()


@every_search
@pytest.mark.parametrize("last", [1, 3, 7])
def test_what_is_found_is_so_by_the_logits_that_the_result_shows(case: Case, last: int, world: World) -> None:
    answer = told_otherwise(case, world, last)
    logits, facts = answer.example_logits.view(1, CLASSES), answer.fact.view(1, 1)
    own = logits.gather(1, facts).squeeze(1)
    other = logits.scatter(1, facts, -torch.inf).amax(1)
    holds = own > other if case.verb is rt.pertinent_positive else own <= other + 0.02
    assert not (answer.found & ~holds).any()


@dataclasses.dataclass(frozen=True)
class Claims(rt.CounterfactualMethod):
    """Gives the images back and says that it found something."""

    name: ClassVar[str] = "claims"

    def search(self, question: rt.SearchQuestion) -> rt.Counterfactual:
        ends = [[(rt.Status.FOUND, "believe me")]] * len(question.asked)
        return rt.Counterfactual.of(self, question, question.asked.unsqueeze(1), ends, torch.zeros(len(ends), 1))


@dataclasses.dataclass(frozen=True)
class ClaimsPositive(rt.PertinentPositiveMethod):
    """Gives black, which is of another class, and says that it is enough."""

    name: ClassVar[str] = "claims"

    def search(self, question: rt.SearchQuestion) -> rt.PertinentPositive:
        black, ends = torch.zeros_like(question.images), [(rt.Status.FOUND, "believe me")] * len(question.images)
        return rt.PertinentPositive.of(self, question, black, ends, black[:, 0])


def test_a_counterfactual_method_that_claims_too_much_is_not_believed(world: World) -> None:
    answer = rt.counterfactual(world.model, world.images, method=Claims())
    assert not answer.found.any()
    assert answer.status == ["not found"] * 3


def test_a_positive_method_that_claims_too_much_is_not_believed(world: World) -> None:
    answer = rt.pertinent_positive(world.model, world.images, method=ClaimsPositive())
    assert not answer.found.any()
    assert answer.status == ["not found"] * 3
    assert all("fresh pass" in reason for reason in answer.reason)
    assert answer.features.tolist() == [0] * 3
