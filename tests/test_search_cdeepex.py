"""CDeepEx, xGEM, inversion and what they return, on linear networks and manifolds whose answers are known."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nets import Linear
from ratherthan import (
    XGEM,
    CDeepEx,
    Counterfactual,
    InputError,
    Inversion,
    Manifold,
    Model,
    ModelError,
    Schedule,
    counterfactual,
    explain,
    invert,
)
from ratherthan.render.figure import figure_png
from stopping import Stopped

FINE = Schedule(
    outer_iterations=25, inner_iterations=50, rate=0.1, decay=0.7, feasibility_tol=1e-6, tol=0.0, largest_penalty=100
)
EXACT = Inversion(schedule=Schedule(outer_iterations=8, inner_iterations=50, rate=0.2, decay=0.5, tol=0.0))


class Plane(nn.Module):
    """Images 0.5 + A z: 1 x 4 x 4 pixels from 5 latents; encoding is least squares, the posterior mean of a tuple."""

    def __init__(self) -> None:
        super().__init__()
        basis = torch.linalg.qr(numbers(16, 5, seed=1)).Q
        self.basis = nn.Parameter(basis)

    def decode(self, z: Tensor) -> Tensor:
        return (0.5 + z @ self.basis.T).reshape(-1, 1, 4, 4)

    def encode(self, images: Tensor) -> tuple[Tensor, None]:
        return (images.flatten(1) - 0.5) @ self.basis, None


class Pair(nn.Module):
    """What many autoencoders return: images and something else."""

    def __init__(self, plane: nn.Module) -> None:
        super().__init__()
        self.plane = plane

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.plane.decode(z), z


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def model() -> Model:
    module = Linear(16, 4).double()
    with torch.no_grad():
        module.head.weight.copy_(numbers(4, 16, seed=2))
        module.head.bias.copy_(0.05 * numbers(4, seed=3) - module.head.weight.sum(1) / 2)  # grey has no class
    return Model(module, ["ant", "bee", "cat", "dog"], channels=1)


@pytest.fixture
def manifold() -> Manifold:
    return Manifold(Plane().double(), 5, name="plane")


@pytest.fixture
def images() -> Tensor:
    return 0.5 + 0.08 * numbers(6, 1, 4, 4, seed=4).clamp(-2, 2)


def boundary(model: Model, manifold: Manifold, images: Tensor, fact: Tensor, foil: Tensor) -> Tensor:
    """The nearest images with equal logits, by projection, ignoring the other classes."""
    head, basis = model.module.head, manifold.module[0].basis
    gap = head.weight[fact] - head.weight[foil]
    height = (gap * images.flatten(1)).sum(1) + head.bias[fact] - head.bias[foil]
    normal = gap @ basis
    step = -(height / normal.square().sum(1)).unsqueeze(1) * normal
    return (images.flatten(1) + step @ basis.T).reshape(images.shape).detach()


def test_xgem_is_the_projection_on_the_boundary(model: Model, manifold: Manifold, images: Tensor) -> None:
    how = counterfactual(model, images, method=XGEM(manifold, schedule=FINE, inversion=EXACT))
    assert how.found.all()
    expected = boundary(model, manifold, images, how.fact, how.foil)
    assert expected.min() > 0
    assert expected.max() < 1
    assert (how.example - expected).abs().max() < 1e-4


def test_cdeepex_keeps_every_other_class_below(model: Model, manifold: Manifold, images: Tensor) -> None:
    """Feasible always; the answer of xGEM where that is feasible too, and farther away where it is not."""
    free = counterfactual(model, images, foil="each", method=XGEM(manifold, schedule=FINE))
    held = counterfactual(model, images, foil="each", method=CDeepEx(manifold, margin=0.2, schedule=FINE))
    compared = 0
    for i in range(len(images)):
        for q in range(4):
            if not held.found[i, q]:
                continue
            fact, foil = int(held.fact[i, q]), int(held.foil[i, q])
            logits = model.logits(held.example[i, q : q + 1])[0]
            others = [k for k in range(4) if k not in (fact, foil)]
            assert abs(logits[fact] - logits[foil]) < 1e-4
            assert logits[others].max() + 0.2 < min(logits[fact], logits[foil]) + 1e-4
            blocked = free.example_logits[i, q, 0][others].max() + 0.2 > free.example_logits[i, q, 0][foil] + 1e-3
            if free.found[i, q] and not blocked:
                assert held.distance[i, q, 0].item() == pytest.approx(free.distance[i, q, 0].item(), rel=0.01, abs=1e-3)
            elif free.found[i, q]:
                compared += 1
                assert held.distance[i, q, 0] > free.distance[i, q, 0]
    assert compared > 0


def test_random_starts_depend_on_no_batch_and_no_other_foil(model: Model, manifold: Manifold, images: Tensor) -> None:
    method = CDeepEx(manifold, restarts=3, schedule=Schedule(outer_iterations=5, inner_iterations=20))
    whole = counterfactual(model, images, foil="top2", method=method)
    pieces = counterfactual(model, images, foil="top2", method=method, batch_size=1)
    assert torch.allclose(whole.examples, pieces.examples, atol=1e-8)
    assert torch.allclose(whole.path, pieces.path, atol=1e-8)
    assert whole.status == pieces.status
    first = counterfactual(model, images, foil="runner-up", method=method)
    assert torch.allclose(first.example, whole.example[:, 0], atol=1e-8)
    again = counterfactual(model, images, foil="top2", method=method)
    assert torch.equal(whole.examples, again.examples)


def test_answers_are_ranked_and_copies_marked(model: Model, manifold: Manifold, images: Tensor) -> None:
    how = counterfactual(model, images, method=XGEM(manifold, restarts=4, schedule=FINE))
    assert (how.distance.diff(dim=1) >= 0).all()
    assert how.distinct().sum(1).eq(1).all(), "a convex problem has one answer"
    assert how.path.shape[1] == how.path_logits.shape[1]
    assert torch.allclose(how.path[:, -1], how.example)
    assert torch.allclose(how.path[:, 0], images, atol=1e-6), "at z0 the residual makes it the image"


def test_inversion_finds_the_plane_with_and_without_encoder(model: Model, manifold: Manifold, images: Tensor) -> None:
    basis = manifold.module[0].basis.detach()
    nearest = 0.5 + ((images.flatten(1) - 0.5) @ basis) @ basis.T
    blind = Manifold(Blind(manifold), 5)
    for each in (manifold, blind):
        found = invert(each, images, settings=EXACT)
        assert torch.allclose(found.reconstruction.flatten(1), nearest, atol=1e-4)
        assert torch.allclose(found.error, (images.flatten(1) - nearest).square().mean(1).sqrt(), atol=1e-4)
    kept = invert(manifold, images, model)
    facts = model.logits(images).argmax(1)
    free = model.logits(invert(manifold, images).reconstruction).argmax(1)
    assert (free != facts).any(), "the constraint has something to do"
    assert kept.class_kept.all()
    assert torch.equal(model.logits(kept.reconstruction).argmax(1), facts)


class Blind(nn.Module):
    """The decoder alone, in [-1, 1] as a GAN gives it."""

    def __init__(self, manifold: Manifold) -> None:
        super().__init__()
        self.inner = manifold.module[0]

    def forward(self, z: Tensor) -> Tensor:
        return self.inner.decode(z)


def test_tanh_generators_are_brought_to_image_space(manifold: Manifold, images: Tensor) -> None:
    class Signed(Blind):
        def forward(self, z: Tensor) -> Tensor:
            return 2 * super().forward(z) - 1

        def encode(self, images: Tensor) -> Tensor:
            return self.inner.encode((images + 1) / 2)[0]

    z, signed = numbers(3, 5), Manifold(Signed(manifold), 5, scale=(-1, 1))
    assert torch.allclose(signed.decode(z), manifold.decode(z))
    assert torch.allclose(signed.encode(signed.decode(z)), z)


STANDING = Schedule(outer_iterations=1, inner_iterations=1, rate=1e-9)


def test_without_an_encoder_an_inversion_begins_near_the_image(manifold: Manifold, images: Tensor) -> None:
    """Nearer than all but few of a thousand latents drawn at random."""
    blind = Manifold(Blind(manifold), 5)
    begun = invert(blind, images, settings=Inversion(schedule=STANDING))
    drawn = blind.decode(numbers(1000, 5, seed=7)).flatten(1)
    apart = (drawn.unsqueeze(1) - images.flatten(1)).square().mean(2).sqrt()
    assert ((apart < begun.error).double().mean(0) < 0.05).all()


def test_of_two_starts_the_one_that_keeps_the_class_wins(model: Model, manifold: Manifold, images: Tensor) -> None:
    """The encoder, whose latents are off by little, but in the first, which alone decides; the bank is far away."""

    class Mistaken(Blind):
        def encode(self, images: Tensor) -> Tensor:
            z = self.inner.encode(images)[0]
            return torch.cat([-z[:, :1], z[:, 1:]], 1)

    z = numbers(12, 5, seed=8)
    z[:, 0] = 0.05
    first = manifold.module[0].basis[:, 0].detach()
    decides = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double()
    decides[1].weight.data = torch.stack([first, -first])
    decides[1].bias.data = torch.stack([-first.sum() / 2, first.sum() / 2])
    pictures = manifold.decode(z).detach()
    mistaken = Manifold(Mistaken(manifold), 5)
    one, two = (invert(mistaken, pictures, decides, settings=Inversion(n, STANDING, 9.0)) for n in (1, 2))
    assert not one.class_kept.any()
    assert 3 <= two.class_kept.sum() <= 9, "half of the prior lies on that side"
    assert torch.equal(two.error > one.error + 1e-6, two.class_kept)


# -------------------------------------------------------------------------------------- where a search begins
def two_classes(row: Tensor, bias: float) -> Model:
    """Black and white: foil 1 leads by row @ pixels + bias."""
    module = Linear(len(row), 2).double()
    module.head.weight.data, module.head.bias.data = torch.stack([0 * row, row]), torch.tensor([0.0, bias]).double()
    return Model(module, channels=1)


@torch.no_grad()
def test_it_begins_where_the_mean_way_to_the_foil_crosses_the_boundary(manifold: Manifold) -> None:
    """On a plane the mean way and where each way crosses are known: the lead is linear in the latents."""
    basis = manifold.module[0].basis
    normal = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0]).double()
    model = two_classes(basis @ normal, -float((basis @ normal).sum() / 2) - 0.2)  # leads by z[0] - 0.2
    bank = torch.zeros(4, 5).double()
    bank[1], bank[3] = torch.tensor([[0.6, 0.1, 0, 0, 0], [0.6, 0, 0.7, 0, 0]])
    bank[2, 2] = 0.5
    start = manifold.decode(torch.tensor([[0.03, 0.0, 0.0, 0.1, 0.1]]).double())
    how = counterfactual(
        model, start, foil=1, method=XGEM(manifold, restarts=4, bank=bank, schedule=STANDING, retries=0)
    )
    z0 = invert(manifold, start, model).latents[0]
    # of 1 the nearest other is 0, of 3 it is 2
    ways = torch.tensor([[0.6, 0.1, 0.0, 0.0, 0.0], [0.6, 0.0, 0.2, 0.0, 0.0]]).double()
    mean = ways.mean(0)
    gap = 0.2 - z0[0]
    steps = [gap / way[0] * way for way in (mean, *ways)]
    expected = torch.stack([z0, *[z0 + step for step in steps]])
    found = how.latents[0]
    apart = torch.cdist(found, expected)
    assert sorted(apart.argmin(1).tolist()) == [0, 1, 2, 3]
    assert apart.min(1).values.max() < 0.65 / 2**6, "halved six times"
    alone = counterfactual(model, start, foil=1, method=XGEM(manifold, bank=bank, schedule=STANDING, retries=0))
    assert (alone.latents[0, 0] - expected[1]).norm() < 0.65 / 2**6


class Valley(nn.Module):
    """Class 1 leads where z[0] is above 1, or z[1] above 2; the second alone has a gradient at 0."""

    def forward(self, x: Tensor) -> Tensor:
        z = 4 * (x.flatten(1)[:, :2] - 0.5)
        ahead = 8 * (z[:, 0] - 0.75).clamp_min(0) + z[:, 1].clamp_min(0) - 2
        return torch.stack([torch.zeros_like(ahead), ahead], 1)


class Pixels(nn.Module):
    """Four latents, a pixel each."""

    def decode(self, z: Tensor) -> Tensor:
        return 0.5 + z.view(-1, 1, 2, 2) / 4

    def encode(self, images: Tensor) -> Tensor:
        return 4 * (images.flatten(1) - 0.5)


def test_a_bank_leads_to_a_nearer_boundary_that_has_no_gradient_at_the_image() -> None:
    manifold, grey = Manifold(Pixels(), 4), torch.full((1, 1, 2, 2), 0.5).double()
    bank = torch.tensor([[0.1, 0, 0, 0], [1.5, 0, 0, 0.1], [1.4, 0.1, 0, 0], [0, 0, 0.1, 0]]).double()
    model, quick = Model(Valley(), channels=1), Schedule(outer_iterations=8, inner_iterations=30, rate=0.1)

    def asked(latents: Tensor, restarts: int = 1) -> Counterfactual:
        how = XGEM(manifold, bank=latents, restarts=restarts, schedule=quick, inversion=EXACT)
        return counterfactual(model, grey, foil=1, method=how)

    both = asked(bank, restarts=2)
    assert both.found.all()
    assert both.distance[0].tolist() == pytest.approx([1.0, 2.0], abs=0.02), "from the crossing, from the image"
    assert asked(bank).distance.item() == pytest.approx(1.0, abs=0.02)
    assert asked(bank[:1]).distance.item() == pytest.approx(2.0, abs=0.02), "no foil in the bank"


def test_images_are_a_bank_as_their_latents_are(model: Model, manifold: Manifold, images: Tensor) -> None:
    pictures = manifold.decode(0.3 * numbers(40, 5, seed=6)).detach()
    data = [(image, 0) for image in pictures]
    short = Schedule(outer_iterations=2, inner_iterations=10)
    asked = [pictures, pictures.flatten(1).sub(0.5) @ manifold.module[0].basis.detach(), Held(data)]
    found = [counterfactual(model, images, method=XGEM(manifold, bank=bank, schedule=short)) for bank in asked]
    for other in found[1:]:
        assert torch.allclose(other.examples, found[0].examples, atol=1e-6)
        assert other.evaluations == found[0].evaluations
    assert all(isinstance(each.settings["bank"], str) for each in found)
    large = numbers(2000, 5)
    held = {str(XGEM(bank=bank).settings()["bank"]) for bank in (large, large.index_fill(0, torch.tensor(900), 0.0))}
    assert len(held) == 2, "told apart by all they hold"


class Held(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Items in memory."""

    def __init__(self, items: list[tuple[Tensor, int]]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.items[index]


def test_the_bank_is_asked_about_once_in_a_call(model: Model, manifold: Manifold, images: Tensor) -> None:
    seen = list[int]()
    model.module.register_forward_hook(lambda module, given, output: seen.append(len(given[0])))
    bank, short = 0.3 * numbers(300, 5, seed=6), Schedule(outer_iterations=1, inner_iterations=4)
    method = XGEM(manifold, bank=bank, schedule=short, retries=0)
    whole, together = counterfactual(model, images, method=method), sum(seen)
    seen.clear()
    pieces = counterfactual(model, images, method=method, batch_size=1)
    assert pieces.evaluations == whole.evaluations
    assert sum(seen) == together
    assert (seen.count(256), seen.count(44)) == (1, 1), "300 in two parts"
    lone = counterfactual(model, images, method=replace(method, bank=bank[:1]))  # of one there are no ways
    ways = whole.evaluations - lone.evaluations - 299
    # the end of a mean way and six halvings, where it crosses; else those of single ways, too
    assert 7 * len(images) <= ways <= len(images) * 7 * (1 + 128 + 8)


def test_a_bank_that_cannot_be_is_refused_in_a_line(model: Model, manifold: Manifold, images: Tensor) -> None:
    blind = Manifold(Blind(manifold), 5, name="blind")
    with pytest.raises(InputError, match=r"blind \(5 latents\) has no encoder for a bank of images"):
        counterfactual(model, images, method=CDeepEx(blind, bank=images))
    with pytest.raises(InputError, match=r"a bank of latents \(7,\) for plane"):
        counterfactual(model, images, method=CDeepEx(manifold, bank=numbers(3, 7)))
    with pytest.raises(InputError, match="bank of cdeepex is a Tensor or a Dataset or None, not 3"):
        CDeepEx(manifold, bank=3)  # type: ignore[arg-type]


def test_of_a_miss_the_first_search_is_kept(model: Model, manifold: Manifold, images: Tensor) -> None:
    once = CDeepEx(manifold, margin=100.0, retries=0, schedule=Schedule(outer_iterations=2, inner_iterations=5))
    first = counterfactual(model, images, method=once)
    again = counterfactual(model, images, method=replace(once, retries=2))
    assert not first.found.any()
    assert not again.found.any()
    assert again.reason == first.reason
    assert torch.equal(again.examples, first.examples)


def test_an_image_off_the_manifold_fails_alone(model: Model, manifold: Manifold, images: Tensor) -> None:
    wild = images.clone()
    wild[1] = (numbers(1, 4, 4, seed=9) > 0).double()
    how = counterfactual(model, wild, method=CDeepEx(manifold, inversion=Inversion(largest_error=0.3)))
    assert how.status[1] == "inversion failed"
    assert "off by 0.5" in how.reason[1]
    usual = counterfactual(model, images, method=CDeepEx(manifold))
    assert torch.allclose(how.example[[0, 2]], usual.example[[0, 2]], atol=1e-6)


def test_of_misses_the_one_nearest_to_the_constraints_comes_first(
    model: Model, manifold: Manifold, images: Tensor
) -> None:
    hasty = CDeepEx(
        manifold, restarts=4, retries=0, schedule=Schedule(outer_iterations=1, inner_iterations=2, rate=1e-3)
    )
    how = counterfactual(model, images, foil="each", method=hasty)
    assert not how.found_each.all(2).any()
    for status, violation, distance in zip(
        [s for rows in how.statuses for s in rows], how.violation.flatten(0, 1), how.distance.flatten(0, 1), strict=True
    ):
        found = sum(each == "found" for each in status)
        assert status[:found] == ["found"] * found
        assert distance[:found].tolist() == sorted(distance[:found].tolist())
        assert violation[found:].tolist() == sorted(violation[found:].tolist())
    assert (how.violation[:, :, 0] < how.violation[:, :, -1]).any()


def test_mistakes_get_one_clear_error(model: Model, manifold: Manifold, images: Tensor) -> None:
    method = CDeepEx(manifold)
    with pytest.raises(ModelError, match=r"makes images of \(1, 4, 4\), but these are \(1, 2, 8\)"):
        counterfactual(model, images.reshape(6, 1, 2, 8), method=method)
    with pytest.raises(ModelError, match="cannot decode latents"):
        counterfactual(model, images, method=CDeepEx(Manifold(manifold.module[0], 7)))
    with pytest.raises(InputError, match="how many latents"):
        Manifold(manifold.module[0], -1)
    with pytest.raises(ModelError, match="makes a tuple of latents"):
        counterfactual(model, images, method=CDeepEx(Manifold(Pair(manifold.module[0]), 5)))
    for given in ("zoo:mnist_vae", manifold.module[0]):
        with pytest.raises(InputError, match="manifold of cdeepex is a Manifold or None"):
            CDeepEx(given)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"hand them in \[0, 1\]"):
        counterfactual(model, images + 1, method=method)
    with pytest.raises(InputError, match="names no manifold"):
        counterfactual(model, images)
    with pytest.raises(InputError, match="did you mean 'cdeepex'"):
        counterfactual(model, images, method="cdeepx")
    with pytest.raises(InputError, match="towards one class"):
        counterfactual(model, images, foil="others", method=method)
    with pytest.raises(InputError, match="one fact"):
        counterfactual(model, images, fact="each", foil="runner-up", method=method)


def test_a_result_says_shows_and_keeps_itself(model: Model, manifold: Manifold, images: Tensor, tmp_path: Path) -> None:
    how = counterfactual(model, images[:2], foil=["bee", "cat"], method=CDeepEx(manifold, restarts=2))
    frame = how.to_frame()
    assert len(frame) == 2 * 2 * 2
    row = frame.iloc[0]
    assert row.l2 == pytest.approx(how.difference[0, 0].square().sum().sqrt().item())
    assert row.p_foil == pytest.approx(how.example_logits[0, 0, 0].softmax(0)[1].item())
    assert "bee" in str(how)
    again = Counterfactual.load(how.save(tmp_path / "how.safetensors"))
    assert torch.equal(again.examples, how.examples)
    assert (again.reason, again.names, again.class_names) == (how.reason, how.names, how.class_names)
    assert str(again) == str(how)
    pictures = [axes.images[0].get_array() / 255 for axes in how.plot(frames=1).axes if axes.images]
    assert len(pictures) == 4 * 5, "of four questions: the image, its reconstruction, the path, the answer, the change"
    for number, (i, q) in enumerate(itertools.product(range(2), range(2))):
        for place, expected in ((0, how.images[i]), (1, how.reconstruction[i]), (3, how.examples[i, q, 0])):
            shown = torch.from_numpy(pictures[5 * number + place]).permute(2, 0, 1)
            torch.testing.assert_close(shown, expected.clamp(0, 1).expand(3, -1, -1).double(), atol=0.51 / 255, rtol=0)
    assert how.save(tmp_path / "how.png").read_bytes() == figure_png(how.plot())
    page = how.save(tmp_path / "how.html").read_text()
    assert how.text(0, 1).split("?")[0] in page
    assert len(how.plot_path(0).axes[0].lines) == 3
    with pytest.raises(InputError, match="holds no counterfactual"):
        Counterfactual.load(explain(model, images, method="gradient").save(tmp_path / "why.safetensors"))


# -------------------------------------------------------------------------------------- xGEM's second meaning
def test_the_penalty_of_xgem_is_minimised(model: Model, manifold: Manifold, images: Tensor) -> None:
    """Against L-BFGS on |x - G(z)|^2 + w CE, image by image."""
    foils, weight = torch.tensor([1, 2, 3, 0, 1, 2]), 0.5
    facts = model.logits(images).argmax(1)
    foils = torch.where(foils == facts, (foils + 1) % 4, foils)
    how = counterfactual(
        model, images, foil=foils, method=XGEM(manifold, objective="penalty", weight=weight, retries=0, schedule=FINE)
    )
    for i, foil in enumerate(foils):
        z = manifold.encode(images[i : i + 1]).detach().requires_grad_()
        descent = torch.optim.LBFGS([z], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

        def loss(z: Tensor = z, i: int = i, foil: Tensor = foil) -> Tensor:
            made = manifold.decode(z)
            surprise = nn.functional.cross_entropy(model.logits(made), foil.view(1))
            return (made - images[i]).square().sum() + weight * surprise

        def closure(z: Tensor = z, loss: object = loss) -> Tensor:
            value = loss()  # type: ignore[operator]
            (z.grad,) = torch.autograd.grad(value, z)
            return value

        descent.step(closure)
        expected = manifold.decode(z.detach())
        assert (how.example[i] - expected[0]).abs().max() < 1e-3
        reached = model.logits(expected).argmax() == foil
        assert how.found[i] == reached
    assert how.found.all()


def test_a_small_penalty_finds_nothing_and_says_so_and_retries_raise_it(
    model: Model, manifold: Manifold, images: Tensor
) -> None:
    weak = XGEM(
        manifold,
        objective="penalty",
        weight=1e-4,
        retries=0,
        schedule=Schedule(outer_iterations=5, inner_iterations=30),
    )
    how = counterfactual(model, images, method=weak)
    assert 0 <= how.found.sum() <= 1, "one image lies beside its runner-up"
    for i, (reason, violation) in enumerate(zip(how.reason, how.violation[:, 0], strict=True)):
        assert how.found[i] == (violation <= 0) == (model.logits(how.example)[i].argmax() == how.foil[i])
        assert how.found[i] or "at its best the class is" in reason
    raised = counterfactual(model, images, method=replace(weak, retries=5))
    assert raised.found.all()
    assert torch.equal(model.logits(raised.example).argmax(1), raised.foil)
    with pytest.raises(InputError, match="unknown objective of xgem 'penalt'; did you mean 'penalty'"):
        XGEM(manifold, objective="penalt")  # type: ignore[arg-type]


def test_ctrl_c_in_an_inversion_ends_the_whole(
    model: Model, manifold: Manifold, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = Stopped()
    monkeypatch.setattr(Manifold, "decode", stopped.at_call(30, Manifold.decode))
    how = counterfactual(model, images, method=CDeepEx(manifold))
    assert how.interrupted
    assert stopped.calls < 60, "no search followed"
    assert how.reason[0] == "interrupted before it began"
