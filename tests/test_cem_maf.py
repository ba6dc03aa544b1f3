"""Pertinent negatives against closed forms and a plain loop; attribute functions against what they measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from pages import cases_of
from ratherthan import (
    CEMMAF,
    Attribute,
    InputError,
    Inversion,
    LatentCoordinate,
    Manifold,
    Model,
    Schedule,
    class_attributes,
    complete,
    counterfactual,
    load,
)
from ratherthan.search.attributes import measure, named, worded
from ratherthan.zoo.concepts import Effect, effects, garment_of, shape_of
from stopping import Stopped

LATENTS, PIXELS, CLASSES = 4, 12, 3


class _Plane(nn.Module):
    """Images around mid grey that lie on a plane; the encoder projects onto it."""

    def __init__(self) -> None:
        super().__init__()
        basis = torch.linalg.qr(torch.randn(PIXELS, LATENTS, dtype=torch.float64)).Q
        self.basis = nn.Parameter(0.05 * basis)

    def decode(self, z: Tensor) -> Tensor:
        return (0.5 + z @ self.basis.T).view(-1, 1, 3, 4)

    def encode(self, images: Tensor) -> Tensor:
        return (images.flatten(1) - 0.5) @ self.basis / 0.05**2


def _problem(classes: int = CLASSES) -> tuple[Model, Manifold, Tensor]:
    torch.manual_seed(2)
    module = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, classes)).double()
    module[1].weight.data *= 20
    module[1].bias.data = -0.5 * module[1].weight.data.sum(1)  # so that all classes meet in mid grey
    plane = _Plane()
    images = plane.decode(torch.randn(6, LATENTS, dtype=torch.float64)).detach()
    return Model(module, channels=1), Manifold(plane, LATENTS), images


def _how(manifold: Manifold, **settings: object) -> CEMMAF:
    long = Schedule(outer_iterations=20, inner_iterations=60, rate=0.1, tol=0.0005)
    return CEMMAF(manifold, **{"schedule": long, "kappa": 1.0, "eta": 3.0, "beta": 0.0, **settings})  # type: ignore[arg-type]


def _closed(model: Model, manifold: Manifold, image: Tensor, fact: int, foil: int, held: int | None) -> Tensor:
    """The step with y_foil - y_fact = 1 of least |dz|^2 + 3 |D dz|^2; coordinate `held` may not fall. Two classes."""
    basis = manifold.module[0].basis.detach()
    slope = (model.module[1].weight[foil] - model.module[1].weight[fact]).detach() @ basis
    y = model.logits(image.unsqueeze(0))[0]
    metric = torch.eye(LATENTS, dtype=torch.float64) + 3 * basis.T @ basis
    step = torch.linalg.solve(metric, slope)
    step = step * (1 + y[fact] - y[foil]).detach() / (slope @ step)
    if held is None or step[held] >= 0:
        return step
    free = [i for i in range(LATENTS) if i != held]
    part = torch.linalg.solve(metric[free][:, free], slope[free])
    step = torch.zeros(LATENTS, dtype=torch.float64)
    step[free] = part * (1 + y[fact] - y[foil]).detach() / (slope[free] @ part)
    return step


@pytest.mark.parametrize("held", [None, 1])
def test_the_nearest_answer_of_a_linear_problem_has_a_closed_form(held: int | None) -> None:
    model, manifold, images = _problem(classes=2)
    attributes = () if held is None else (LatentCoordinate(manifold=manifold, index=held, range=(-99, 99)),)
    found = counterfactual(model, images, method=_how(manifold, attributes=attributes))
    assert found.found.all()
    basis, bound = manifold.module[0].basis.detach(), 0
    for i, image in enumerate(images):
        fact = int(found.fact[i])
        expected = _closed(model, manifold, image, fact, 1 - fact, held)
        bound += held is not None and bool((expected[held] == 0).all())
        step = found.latents[i, 0] - manifold.encode(images)[i]
        cost, least = ((v.square().sum() + 3 * (basis @ v).square().sum()).item() for v in (step, expected))
        assert cost == pytest.approx(least, rel=0.03)  # constraints may be missed by 0.01, so it may be a little less
        assert torch.cosine_similarity(step, expected, 0) > 0.99
    assert held is None or 0 < bound < 6  # the constraint matters for some and not for others
    if held is not None:
        lost = found.attributes_before - found.attributes[:, 0]
        assert (lost <= 0.01).all()


@torch.no_grad()
def test_any_other_class_and_a_given_one_are_reached() -> None:
    model, manifold, images = _problem()
    anywhere = counterfactual(model, images, method=_how(manifold))
    fact = model.logits(images).argmax(1)
    foil = (fact + 1) % CLASSES
    there = counterfactual(model, images, foil=foil, method=_how(manifold))
    other = counterfactual(model, images, foil=(fact + 2) % CLASSES, method=_how(manifold))
    for found, target in ((anywhere, None), (there, foil)):
        logits = model.logits(found.example)
        assert found.found.all()
        assert (logits.argmax(1) != fact).all()
        assert target is None or torch.equal(logits.argmax(1), target)
    # the nearest of any is the nearer of the two
    nearer = torch.minimum(there.distance, other.distance)[:, 0]
    assert (anywhere.distance[:, 0] <= 1.05 * nearer).sum() >= 5


@dataclass(frozen=True)
class _Short(CEMMAF):
    binary_search_steps: ClassVar[int] = 3
    iterations: ClassVar[int] = 40


SPARSITY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "added": lambda g, g0: torch.clamp(g - g0, min=0),
    "all": lambda g, g0: g.abs(),
    "absent": lambda g, g0: g.abs() if g0 < 0.5 else 0 * g,
}


def _loop(how: CEMMAF, model: Model, image: Tensor, form: str) -> tuple[Tensor, float]:
    """Eq. 1 for one image as the paper searches it: the nearest iterate of another class."""
    manifold = how.manifold
    assert manifold is not None
    z0 = manifold.encode(image).detach()
    fact, c, best, least = int(model.logits(image).argmax()), 1.0, z0, 1e9
    g0 = -z0[0, 0]
    for _ in range(3):
        z, reached = z0.clone(), False
        for k in range(40):
            leaf = z.clone().requires_grad_()
            x = manifold.decode(leaf)
            y, g = model.logits(x)[0], -leaf[0, 0]
            margin = y[fact] - torch.cat([y[:fact], y[fact + 1 :]]).max()
            loss = (leaf - z0).square().sum() + (x - image).square().sum() + c * torch.clamp(margin + 5, min=0)
            loss = loss + 100 * torch.clamp(g0 - g, min=0) + 2.0 * SPARSITY[form](g, g0)
            (slope,) = torch.autograd.grad(loss, leaf)
            distance = float((z - z0).norm())
            if margin < 0:
                reached = True
                if distance < least:
                    best, least = z, distance
            z = z - 0.1 / (k + 1) ** 0.5 * slope / slope.norm()
        c = c / 2 if reached else c * 10
    return best, least


@pytest.mark.parametrize("form", SPARSITY)
def test_the_papers_preset_is_its_descent_as_a_plain_loop_does_it(form: str) -> None:
    model, manifold, images = _problem()
    axis = LatentCoordinate(manifold=manifold, index=0, sign=-1, range=(-99, 99))
    how = _Short(manifold, (axis,), preset="paper", beta=2.0, sparsity=form)  # type: ignore[arg-type]
    present = -manifold.encode(images)[:4, 0] >= 0.5
    assert present.any()
    assert not present.all()
    found = counterfactual(model, images[:4], method=how)
    assert found.evaluations == 4 * (120 + 1)  # and once more at the answer
    reached = 0
    for i in range(4):
        z, least = _loop(how, model, images[i : i + 1], form)
        assert bool(found.found[i]) == (least < 1e9)
        if found.found[i]:
            reached += 1
            torch.testing.assert_close(found.latents[i], z, atol=1e-4, rtol=1e-3)
    assert reached > 0


def test_each_question_says_how_it_ended() -> None:
    model, manifold, images = _problem()
    fact = model.logits(images).argmax(1)
    same = counterfactual(model, images[:1], foil=fact[:1], method=_how(manifold))
    assert same.status == ["foil equals fact"]
    model.module[1].weight.data[2] = model.module[1].weight.data[0]  # class 2 is always just below class 0
    model.module[1].bias.data[2] = model.module[1].bias.data[0] - 1
    quick = Schedule(outer_iterations=6, inner_iterations=20, largest_penalty=16.0)
    never = counterfactual(model, images, foil=2, method=_how(manifold, schedule=quick, retries=0))
    assert not never.found.any()
    assert all("misses" in r or "miss violates" in r for r in never.reason), never.reason
    for wrong in ({"preset": "slow"}, {"sparsity": "none"}, {"kappa": -1.0}):
        with pytest.raises(InputError):
            CEMMAF(manifold, **wrong)  # type: ignore[arg-type]


def test_a_reconstruction_of_another_class_is_no_place_to_begin() -> None:
    """The class hangs on what the manifold cannot make: the image has it, no reconstruction does."""
    _, manifold, images = _problem()
    basis = manifold.module[0].basis.detach()
    off = torch.linalg.qr(torch.cat([basis, torch.ones(PIXELS, 1).double()], 1)).Q[:, -1]
    module = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 2)).double()
    module[1].weight.data = torch.stack([0 * off, 20 * off])
    module[1].bias.data = torch.stack([0 * off[0], -10 * off.sum() - 1])  # class 0 on the whole plane
    images = images + 0.2 * off.view(1, 1, 3, 4)
    model = Model(module, channels=1)
    assert model.logits(images).argmax(1).tolist() == [1] * 6
    lost = counterfactual(model, images, method=_how(manifold, residual=False))
    assert lost.status == ["inversion failed"] * 6
    assert all("another class to begin with" in reason for reason in lost.reason)
    assert not lost.class_kept.any()
    kept = counterfactual(model, images[:1], method=_how(manifold, residual=True, retries=0))
    assert kept.status != ["inversion failed"]


def test_an_answer_that_has_lost_an_attribute_in_a_fresh_pass_is_none() -> None:
    model, manifold, images = _problem()
    calls = {"made": 0, "honest": 10**9}

    def fickle(images: Tensor) -> Tensor:
        calls["made"] += 1
        return images.new_ones(len(images)) * (calls["made"] <= calls["honest"])

    how = _how(manifold, attributes=(fickle,), retries=0)
    assert counterfactual(model, images, method=how).found.all()
    # the last call asks how many attributes there are, the one before looks at the answers
    calls.update(honest=calls["made"] - 2, made=0)
    denied = counterfactual(model, images, method=how)
    assert not denied.found.any()
    assert denied.status == ["not found"] * 6
    assert all("fresh pass" in reason for reason in denied.reason)


def test_both_halves_in_one_sentence(tmp_path: Path) -> None:
    model, manifold, images = _problem()
    model = model.replace(class_names=["shirt", "coat", "dress"])
    fact = int(model.logits(images[:1]).argmax())
    longer = tuple(
        LatentCoordinate(manifold=manifold, index=k, sign=s, names=(f"{'more' if s > 0 else 'less'} {k}",))
        for k in range(LATENTS)
        for s in (1, -1)
    )
    whole = complete(model, images[:1], negative=_how(manifold, attributes=longer[:1]))
    assert len(whole) == 1
    assert str(whole) == f"image 0: {whole.text(0)}"
    (page,) = whole.save(tmp_path / "both.html")
    (shown,) = cases_of(page.read_text())
    assert shown["enough"]["text"] in whole.positive.text(0)
    assert shown["change"][0]["text"] in whole.negative.text(0)
    positive, negative = whole.save(tmp_path / "both.png")
    assert (positive.name, negative.name) == ("both.positive.png", "both.negative.png")
    with pytest.raises(InputError, match="give objects as positive="):
        complete(model, images, method=_how(manifold))  # type: ignore[arg-type]
    told = whole.text(0)
    assert told.startswith(f"It is {model.class_names[fact]} because of ")  # type: ignore[index]
    assert ", and because " in told
    other = model.class_names[int(model.logits(whole.negative.example).argmax())]  # type: ignore[index]
    assert told.endswith(f" absent, else it would be {other}.")


# ------------------------------------------------------------------------------------------ attribute functions
def test_thresholds_are_quantiles_of_the_differences() -> None:
    images = torch.rand(9, 1, 3, 3, dtype=torch.float64)
    attribute = Attribute(lambda x: x.mean((1, 2, 3)), ("lighter",)).calibrated(images, 0.25)
    values = images.mean((1, 2, 3))
    apart = sorted(float((values[i] - values[j]).abs()) for i in range(9) for j in range(i))
    assert attribute.thresholds[0] == pytest.approx(apart[8] * 0.25 + apart[9] * 0.75, abs=0.02)  # type: ignore[index]
    assert sum(each < attribute.thresholds[0] for each in apart) == 9  # type: ignore[index]


def test_latent_coordinates_are_read_off_or_encoded() -> None:
    _, manifold, images = _problem()
    z = manifold.encode(images)
    less = LatentCoordinate(manifold=manifold, index=2, sign=-1, range=(-0.5, 0.5))
    expected = (-z[:, 2:3]).clamp(-0.5, 0.5)
    torch.testing.assert_close(less.measure(images), expected)
    torch.testing.assert_close(less.measure(images * 0, z, manifold), expected)
    with pytest.raises(InputError, match="coordinate 4"):
        LatentCoordinate(manifold=manifold, index=4)


def test_classes_are_attributes() -> None:
    model, _, images = _problem()
    p = model.logits(images).softmax(1)
    torch.testing.assert_close(class_attributes(model, [2, 0]).measure(images), p[:, [2, 0]])
    assert class_attributes(model.replace(class_names=["a", "b", "c"]), "b").names == ("b",)
    with pytest.raises(InputError, match="attribute function gives"):
        Attribute(lambda x: x, ("y",)).measure(images)


class _Discs(nn.Module):
    """Dark discs: z0 is the size, z1 the darkness, z2 does nothing."""

    def forward(self, z: Tensor) -> Tensor:
        across = torch.arange(40.0) - 19.5
        far = (across.view(-1, 1) ** 2 + across**2).sqrt()
        radius, dark = 9 + 1.5 * z[:, 0], 0.5 + 0.1 * z[:, 1]
        inside = torch.sigmoid(3 * (radius.view(-1, 1, 1) - far))
        return (0.9 - dark.view(-1, 1, 1) * inside).unsqueeze(1)


def test_what_latents_do_is_measured() -> None:
    disc = _Discs()
    measured = shape_of(disc(torch.zeros(1, 3))[0])
    assert measured["size"] == pytest.approx(3.14159 * 81 / 1600, rel=0.05)
    assert measured["roundness"] > 0.85
    assert measured["darkness"] == pytest.approx(0.5, abs=0.05)
    bar = torch.full((1, 40, 40), 0.9)
    bar[:, 18:22, 4:36] = 0.2
    assert shape_of(bar)["roundness"] < 0.5
    assert all(value != value for value in shape_of(torch.ones(3, 8, 8)).values())
    manifold = Manifold(disc, 3)
    start = torch.tensor([[-1.0, 1.0, 0.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
    found = effects(manifold, start, steps=5)
    assert found["size"].correlation[0] > 0.95
    assert found["darkness"].correlation[1] > 0.95
    assert found["size"].strength[2] == found["size"].correlation[2] == 0
    # darkness is 0.5 + 0.1 z1, and z1 of the three begun at has a standard deviation of sqrt(2/3)
    assert found["darkness"].strength[1] == pytest.approx(1.5**0.5, rel=0.1)
    words = {"size": "larger", "-darkness": "lighter"}
    found = {concept: found[concept] for concept in ("size", "darkness")}  # z1 makes edges steeper, too
    told = [(each.index, each.sign, each.names[0]) for each in named(manifold, found, words)]
    assert told == [(0, 1, "larger"), (1, -1, "lighter")]
    assert named(manifold, found, words, least=1.01) == ()
    with pytest.raises(InputError, match="unknown concept 'weight'"):
        named(manifold, found, {"weight": "heavier"})


def test_a_coordinate_has_the_name_of_what_it_moves_most() -> None:
    manifold = Manifold(_Discs(), 3)
    one, most, less = torch.tensor([0.9, 0.9, 0.9]), torch.tensor([2.0, 3.0, 0.05]), torch.tensor([1.0, 4.0, 0.01])
    found = {"size": Effect(one, most), "darkness": Effect(-one, -less)}
    told = [(each.index, each.names[0]) for each in named(manifold, found, {"size": "larger", "darkness": "darker"})]
    assert told == [(0, "larger"), (1, "darker")], "the third is not felt"
    assert [each.index for each in named(manifold, found, {"size": "larger"})] == [0], "the second is darkness"
    twice = {"size": Effect(one * torch.tensor([1, -1, 1]), torch.tensor([2.0, -3.0, 1.0]))}
    assert [each.index for each in named(manifold, twice, {"size": "larger"}, most=2)] == [1, 0]
    assert named(manifold, twice, {"size": "larger"}, most=1)[0].sign == -1
    turned = {"size": Effect(one, torch.tensor([2.0, -3.0, 1.0]))}
    assert [each.index for each in named(manifold, turned, {"size": "larger"})] == [0, 2], "z1 now rises, now falls"
    assert named(manifold, {}, {}) == ()


def test_effects_are_measured_in_evaluation_mode_and_only_where_pictures_differ() -> None:
    trained = nn.Sequential(nn.Linear(3, 36), nn.BatchNorm1d(36), nn.Sigmoid(), nn.Unflatten(1, (1, 6, 6)))
    before = trained[1].running_mean.clone()
    found = effects(Manifold(trained, 3), torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), garment_of)
    assert torch.equal(trained[1].running_mean, before)
    assert trained[1].training
    assert found["mass"].strength.isfinite().all()
    alike = effects(Manifold(_Discs(), 3), torch.zeros(2, 3))
    assert alike["size"].strength.isnan().all(), "there is no spread to compare with"
    assert alike["size"].correlation[0] > 0.95
    for latents in (torch.zeros(1, 3), torch.zeros(4, 3, 1, 1)):
        with pytest.raises(InputError, match="at least two latents"):
            effects(Manifold(_Discs(), 3), latents)
    nearly = torch.full((1, 8, 8), 0.5)
    nearly[0, 0, 0] += 2e-6
    assert all(value != value for picture in (nearly, nearly * torch.nan) for value in shape_of(picture).values())


def test_coordinates_of_a_manifold_without_an_encoder_are_attributes_too() -> None:
    model, _, images = _problem()
    generator = nn.Sequential(nn.Linear(LATENTS, PIXELS), nn.Sigmoid(), nn.Unflatten(1, images.shape[1:])).double()
    manifold = Manifold(generator, LATENTS)
    more = LatentCoordinate(manifold=manifold, index=1, names=("more",))
    found = counterfactual(model, images[:1], method=CEMMAF(manifold, (more,), inversion=Inversion(largest_error=9.0)))
    assert found.attribute_names == ("more",)
    torch.testing.assert_close(found.attributes[0, 0, 0], found.latents[0, 0, 1].clamp(-3, 3))


def test_attributes_of_one_name_have_columns_of_their_own() -> None:
    model, manifold, images = _problem()
    both = tuple(LatentCoordinate(manifold=manifold, index=i, names=(name,)) for i, name in enumerate("aa"))
    same = LatentCoordinate(manifold=manifold, index=2, names=("distance",))
    found = counterfactual(model, images[:1], method=_how(manifold, attributes=(*both, same)))
    row = found.to_frame().iloc[0]
    assert [row["a"], row["a (2)"], row["distance (2)"]] == found.attributes[0, 0].tolist()
    assert row["distance"] == found.distance[0, 0].item()


def test_settings_tell_attribute_functions_apart() -> None:
    model, manifold, _ = _problem()
    bare = Model(model.module)
    pairs = [
        (class_attributes(bare, [0]), class_attributes(bare, [2])),
        (partial(torch.sum, dim=1), partial(torch.sum, dim=2)),
        (LatentCoordinate(manifold=manifold, index=0), LatentCoordinate(manifold=manifold, index=0, sign=-1)),
    ]
    for one, other in pairs:
        first, second, again = (_how(manifold, attributes=(each,)).settings() for each in (one, other, one))
        assert str(first) != str(second)
        assert str(first) == str(again)
        assert "0x" not in str(first), "an address changes every time"
    how = _how(manifold, attributes=(model.module, LatentCoordinate(manifold=manifold, index=0)))
    assert how.modules() == [manifold.module, model.module, manifold.module]
    with pytest.raises(InputError, match="an attribute function is a callable"):
        measure([3], torch.zeros(1, 1, 8, 8))  # type: ignore[list-item]


def test_a_garment_is_measured() -> None:
    image = torch.zeros(1, 28, 28)
    image[0, 7:28, 10:18] = 0.5
    measured = garment_of(image)
    assert measured["length"] == pytest.approx(21 / 28)
    assert measured["waist"] == pytest.approx(8 / 28)
    assert measured["mass"] == pytest.approx(0.5 * 21 * 8 / 784)
    assert measured["sides"] == measured["heel"] == 0
    image[0, 20, 27] = 1.0
    assert garment_of(image)["heel"] == pytest.approx(1 / 80)
    assert garment_of(image)["sides"] == pytest.approx(1 / 392)


def test_a_zoo_model_has_words_for_what_its_manifold_was_seen_to_do() -> None:
    model = load("zoo:fashion_mnist")
    manifold = Manifold.of(model)
    images = torch.zeros(1, 1, 28, 28)
    images[0, 0, 4:24, 8:20] = 0.7
    how = CEMMAF().prepared(model)
    assert {"wider waist", "greater length"} <= {name for each in how.attributes or () for name in each.names}
    assert worded(load("zoo:mnist"), manifold) == ()
    assert worded(Model(model.module), manifold) == ()
    found = counterfactual(model, images)
    assert found.attributes is None
    told = counterfactual(model, images, method="cem-maf")
    assert told.attribute_names == tuple(each.names[0] for each in how.attributes or ())
    assert counterfactual(model, images, method=CEMMAF(attributes=())).attributes is None


@pytest.mark.parametrize("preset", ["sound", "paper"])
def test_ctrl_c_in_an_inversion_ends_the_whole(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, manifold, images = _problem()
    stopped = Stopped()
    monkeypatch.setattr(Manifold, "decode", stopped.at_call(30, Manifold.decode))
    how = counterfactual(model, images, method=_how(manifold, preset=preset))
    assert how.interrupted
    assert stopped.calls < 60, "no search followed"
    assert how.reason[0] == "interrupted before it began"


def test_both_halves_are_refused_before_either_is_sought(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, images = _problem()
    monkeypatch.setattr(Model, "logits", lambda *_: pytest.fail("the network was asked"))
    with pytest.raises(InputError, match="names no manifold"):
        complete(model, images)
    with pytest.raises(InputError, match="manifold of cem-maf is a Manifold or None"):
        CEMMAF(nn.Identity())  # type: ignore[arg-type]
