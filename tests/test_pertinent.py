"""Pertinent positives: against all subsets, against a plain loop, and one by one."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from ratherthan import (
    CEMMAFPositive,
    CEMPositive,
    FewestWords,
    InputError,
    Model,
    PertinentPositive,
    SegmentedImages,
    Superpixels,
    complete,
    margin,
    pertinent_positive,
    segment,
)
from ratherthan.baselines import blur, quietest
from ratherthan.contrast import odds
from ratherthan.render.figure import figure_png
from ratherthan.search.method import SearchQuestion
from ratherthan.search.pertinent_positive import rank_correlation
from ratherthan.search.solver import Status
from ratherthan.words import percent

GRID = Superpixels("grid", 12)


def _network(seed: int = 3, classes: int = 4) -> Model:
    """Random and not linear; class 0 is what nothing at all is taken for."""
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.Tanh(), nn.Linear(24, classes)).double()
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    for layer, scale in ((module[1], 0.2), (module[3], 0.6)):
        layer.weight.data *= scale
        layer.bias.data *= 0
    module[3].bias.data[0] += 2.8
    return Model(module, channels=1)


def _images(model: Model, count: int) -> Tensor:
    """Images that are not taken for class 0."""
    images = torch.rand(40 * count, 1, 6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return images[(model.logits(images).argmax(1) > 0)][:count]


def _smallest(model: Model, images: Tensor, grounds: tuple[float, ...], kappa: float, confidence: float) -> list[int]:
    """The least number of superpixels that are enough on every ground, by trying all 4096 sets; 0: none is needed."""
    masks = torch.tensor([[code >> s & 1 for s in range(12)] for code in range(4096)], dtype=images.dtype)
    best = []
    for row, y in enumerate(model.logits(images)):
        fact = int(y.argmax())
        wanted = min(kappa, float(y[fact] - y.topk(2).values[1]))
        kept = torch.ones(4096, dtype=torch.bool)
        for ground in grounds:
            parts = SegmentedImages(images, segment(images, GRID), torch.full_like(images, ground))
            logits = model.logits(parts.render(masks, torch.full((4096,), row)))
            others = torch.cat([logits[:, :fact], logits[:, fact + 1 :]], 1).amax(1)
            kept &= (logits[:, fact] - others > 0) & (logits[:, fact] - others >= wanted - 2e-3)
            kept &= logits.softmax(1)[:, fact] >= confidence * y.softmax(0)[fact]
        best.append(int(masks[kept].sum(1).amin()))
    return best


@torch.no_grad()
@pytest.mark.parametrize(
    ("grounds", "margin_kept", "count"),
    [
        ((0.0,), {"kappa": 0.0}, 50),
        ((0.0,), {"kappa": 1.2}, 30),
        ((0.0, 0.4), {"kappa": 1.2}, 30),
        ((0.0,), {"confidence": 0.9}, 30),
        ((0.4, 0.0, 0.7), {"confidence": 0.8}, 20),
    ],
)
def test_parts_are_within_one_superpixel_of_the_smallest_there_are(
    grounds: tuple[float, ...], margin_kept: dict[str, float], count: int
) -> None:
    model = _network()
    images = _images(model, count)
    kappa, confidence = margin_kept.get("kappa", 0.0), margin_kept.get("confidence", 0.0)
    smallest = torch.tensor(_smallest(model, images, grounds, kappa, confidence))
    assert smallest.double().mean() > 1.3
    where: Any = {"baselines": grounds} if len(grounds) > 1 else {"baseline": grounds[0]}
    found = pertinent_positive(model, images, method=CEMMAFPositive(superpixels=GRID, **where, **margin_kept))
    assert found.status == ["found" if size else "nothing needed" for size in smallest.tolist()]
    assert (found.features >= smallest).all()
    assert (found.features <= smallest + 1).double().mean() >= 0.95
    assert found.evaluations <= 110 * count * len(grounds)
    # what is said to be kept, is kept, and nothing else, on each of the grounds, the hardest first
    pixels = torch.stack(
        [torch.isin(labels, kept) for labels, kept in zip(found.superpixels, found.order, strict=True)]
    )
    assert torch.equal(found.mask, pixels)
    for i, words in enumerate(found.grounds):
        values = [float(word.removesuffix("% grey")) / 100 if word != "black" else 0.0 for word in words]
        assert sorted(values) == sorted(grounds)
        expected = torch.stack([torch.where(pixels[i], images[i], value) for value in values])
        torch.testing.assert_close(found.examples[i], expected)
        p = model.logits(expected).softmax(1)[:, found.fact[i]]
        assert p.tolist() == sorted(p.tolist())
        assert found.curve[i][~found.curve[i].isnan()][-1] == pytest.approx(float(p[0]))


@torch.no_grad()
def test_on_a_linear_network_it_is_the_largest_shares_of_the_lead_until_it_is_enough() -> None:
    """Two classes: the lead is a sum over pixels, so what is enough needs no search, whatever the ground."""
    generator = torch.Generator().manual_seed(5)
    module = nn.Sequential(nn.Flatten(), nn.Linear(30, 2)).double()
    weight = 3 * torch.randn(30, generator=generator, dtype=torch.float64)
    weight += 0.1 - weight.mean()
    module[1].weight.data, module[1].bias.data = torch.stack([weight, 0 * weight]), torch.zeros(2).double()
    images = torch.rand(12, 1, 5, 6, generator=generator, dtype=torch.float64)
    seen, capped = set(), 0
    for ground, kappa in ((0.0, 5.0), (0.25, 5.0), (1.0, 2.0)):
        found = pertinent_positive(
            Model(module, channels=1), images, method=CEMMAFPositive("pixels", ground, kappa=kappa)
        )
        for i, image in enumerate(images.flatten(1)):
            sign = 1 if weight @ image > 0 else -1
            gains = (sign * weight * (image - ground)).sort(descending=True).values
            alone, whole = sign * float(weight.sum()) * ground, float((weight @ image).abs())
            leads = alone + torch.cat([torch.zeros(1).double(), gains.cumsum(0)])
            wanted = min(kappa + 1e-3, whole - 1e-3)
            count = int((leads < wanted).int().argmin())
            seen.add(found.status[i])
            assert found.status[i] == ("found" if count else "nothing needed")
            assert int(found.features[i]) == count
            row = found[i].to_frame().loc[0]
            assert (row["lead"], row["lead_whole"]) == (pytest.approx(float(leads[count])), pytest.approx(whole))
            assert ("but the whole leads by" in found.reason[i]) == (whole < kappa and count > 0)
            capped += whole < kappa
    assert seen == {"found", "nothing needed"}
    assert 5 < capped < 30


def _two_classes(bias: float, slope: float = 0.0) -> Model:
    """The first class leads by bias + slope * the sum of four pixels."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double()
    module[1].weight.data = torch.tensor([[slope] * 4, [0.0] * 4]).double()
    module[1].bias.data = torch.tensor([bias, 0.0]).double()
    return Model(module, class_names=("T-shirt", "coat"), channels=1)


BRIGHT = torch.full((1, 1, 2, 2), 0.75, dtype=torch.float64)


@torch.no_grad()
@pytest.mark.parametrize(("bias", "nothing"), [(0.0, False), (4.9, False), (5.1, True)])
def test_nothing_is_needed_where_the_ground_has_the_class_with_the_margin(
    bias: float, nothing: bool, tmp_path: Path
) -> None:
    """Black leads by the bias; level with the other class, it has none."""
    found = pertinent_positive(_two_classes(bias, 2.0), BRIGHT, method=CEMMAFPositive(baseline=0.0))
    assert found.found.item() is not nothing
    assert found.status == ["nothing needed" if nothing else "found"]
    if not nothing:
        assert int(found.features) == math.ceil((5 - bias) / 1.5)
        return
    assert found.reason == ["black is already T-shirt to this network"]
    assert not found.mask.any()
    assert (int(found.features), found.order.numel()) == (0, 0)
    assert torch.equal(found.example, torch.zeros_like(BRIGHT))
    p, whole = (float(torch.tensor(lead).sigmoid()) for lead in (bias, bias + 6))
    assert found.text(0) == (
        f"Nothing is needed for T-shirt: black is already T-shirt to this network ({percent(p)} T-shirt, the whole "
        f"image {percent(whole)})."
    )
    back = PertinentPositive.load(found.save(tmp_path / "x.safetensors"))
    assert (back.text(0), back.grounds) == (found.text(0), [["black"]])
    for ending in ("png", "html"):
        assert found.save(tmp_path / f"x.{ending}").stat().st_size > 2000
    assert "nothing needed" in (tmp_path / "x.html").read_text()
    half = pertinent_positive(_two_classes(bias, 2.0), BRIGHT, method=CEMMAFPositive(baselines=(0.0, "mean")))
    assert half.reason == ["black and its mean colour are already T-shirt to this network"]
    both = complete(_two_classes(bias, 2.0), BRIGHT, method="cem", positive=CEMMAFPositive(baseline=0.0))
    assert both.text(0).startswith(
        "It is T-shirt for which nothing is needed: black is already T-shirt to this network"
    )
    cem = pertinent_positive(_two_classes(bias, 2.0), BRIGHT, method=CEMPositive(kappa=5.0))
    assert (cem.status, cem.text(0)) == (["nothing needed"], found.text(0))


@torch.no_grad()
def test_a_tie_at_the_ground_is_no_class_however_little_the_image_leads() -> None:
    found = pertinent_positive(_two_classes(0.0, 1e-5), BRIGHT, method=CEMMAFPositive(baseline=0.0))
    assert (found.status, found.features.tolist()) == (["found"], [4])


def test_a_part_that_a_fresh_pass_refutes_on_one_ground_is_none() -> None:
    model, ends = _two_classes(-1.0, 2.0), [(Status.FOUND, "believe me")]
    question = SearchQuestion(model, BRIGHT, torch.tensor([0]), None, range(1))
    for second, status in ((BRIGHT, "found"), (0 * BRIGHT, "not found")):
        both = torch.stack([BRIGHT, second], 1)
        found = PertinentPositive.of(CEMMAFPositive(), question, both, ends, BRIGHT[:, 0] > 0, grounds=[["a", "b"]])
        assert found.statuses == [[status] * 2]


@torch.no_grad()
def test_the_ground_is_what_says_least() -> None:
    """The lead is s (value - v), whatever the pixels but for their mean, so the entropy is greatest at the grey v."""
    for quiet, word in ((0.0, "black"), (0.25, "25% grey"), (0.5, "mid grey"), (0.75, "75% grey"), (1.0, "white")):
        found = pertinent_positive(_two_classes(-8 * quiet, 2.0), 0.6 * BRIGHT, method=CEMMAFPositive())
        assert found.grounds == [[word]]
    # an image's own mean, where no other is level; and of what says as little the first
    images = torch.stack([BRIGHT[0] * 0.16 / 0.75, torch.tensor([[[0.1, 0.3], [0.2, 0.04]]]).double()])
    assert pertinent_positive(_two_classes(-1.28, 2.0), images).grounds == [["its mean colour"]] * 2
    assert pertinent_positive(_two_classes(0.0, 1e-3), BRIGHT, method=CEMMAFPositive(kappa=1.0)).grounds == [["black"]]
    # a network that is level at the brightest pixel of the second one's blur
    blurred = blur(images[1:], 15.0)

    def look(each: Tensor) -> Tensor:
        return torch.stack([50 * (each.amax((1, 2, 3)) - blurred.amax()), torch.zeros(len(each)).double()], 1)

    ground, words = quietest(images, look)
    assert words[1] == "its blur"
    torch.testing.assert_close(ground[1:], blurred)


def test_the_correlation_is_of_an_order_that_was_fixed_before() -> None:
    """By the gradient of the log-odds at two hundredths of the image, as a plain loop takes it."""
    model = _network(4)
    model.module[1].weight.data *= 8
    model.module[3].bias.data[0] += 2
    images = _images(model, 12)
    found = pertinent_positive(model, images, method=CEMMAFPositive(superpixels=GRID, baseline=0.0, kappa=1.0))
    measured = found.correlation()
    for i, order in enumerate(found.order):
        mask = torch.full((12,), 0.02, dtype=torch.float64, requires_grad=True)
        y = model.logits(images[i : i + 1] * mask[found.superpixels[i]])[0]
        fact, labels = int(found.fact[i]), found.superpixels[i]
        others = torch.cat([y[:fact], y[fact + 1 :]])
        (slope,) = torch.autograd.grad(y[fact] - others.logsumexp(0), mask)
        ranked = [label for label in slope.argsort(descending=True).tolist() if label in order.tolist()]
        shown = [images[i] * torch.isin(labels, torch.tensor(ranked[:k])) for k in range(1, len(ranked) + 1)]
        p = model.logits(torch.stack(shown)).softmax(1)[:, fact]
        expected = stats.spearmanr(range(len(p)), -p.detach().numpy()).statistic if len(p) > 2 else torch.nan
        assert measured[i] == pytest.approx(expected, nan_ok=True)
    assert (measured > -0.9).sum() >= 2, "an order sorted afterwards would have -1"


@torch.no_grad()
@pytest.mark.parametrize("kappa", [0.0, 1.0])
def test_no_feature_kept_could_be_left_out(kappa: float) -> None:
    model = _network(4)
    model.module[1].weight.data *= 8
    model.module[3].bias.data[0] += 2
    images = _images(model, 40)
    found = pertinent_positive(model, images, method=CEMMAFPositive(superpixels=GRID, baseline=0.0, kappa=kappa))
    assert found.found.all()
    for i, order in enumerate(found.order):
        fact = int(found.fact[i])
        for gone in order[order >= 0].tolist():
            logits = model.logits((found.example[i] * (found.superpixels[i] != gone)).unsqueeze(0))[0]
            if found.features[i] > 1:
                lead = logits[fact] - torch.cat([logits[:fact], logits[fact + 1 :]]).max()
                whole = found.logits[i][fact] - torch.cat([found.logits[i][:fact], found.logits[i][fact + 1 :]]).max()
                assert lead < min(kappa, whole) + 1e-3


@torch.no_grad()
def test_the_curve_is_the_confidence_with_the_first_k_features() -> None:
    model = _network()
    found = pertinent_positive(
        model, _images(model, 12), method=CEMMAFPositive(superpixels=GRID, baseline=0.0, kappa=1.0)
    )
    for i, order in enumerate(found.order):
        kept = order[order >= 0].tolist()
        for k in range(len(kept) + 1):
            shown = torch.isin(found.superpixels[i], torch.tensor(kept[:k], dtype=torch.long))
            p = model.logits((found.images[i] * shown).unsqueeze(0)).softmax(1)[0, found.fact[i]]
            torch.testing.assert_close(found.curve[i, k], p)
        assert found.curve[i, len(kept) + 1 :].isnan().all()


@torch.no_grad()
def test_large_parts_are_ordered_several_features_a_round() -> None:
    worth = torch.rand(120, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    module = nn.Sequential(nn.Flatten(), nn.Linear(120, 2)).double()
    module[1].weight.data = torch.stack([worth, 0 * worth])
    module[1].bias.data = torch.stack([-0.9 * worth.sum(), 0 * worth.sum()])
    found = pertinent_positive(
        Model(module, channels=1),
        torch.ones(2, 1, 10, 12).double(),
        method=CEMMAFPositive(superpixels="pixels", baseline=0.0, kappa=0.0),
    )
    kept = int(found.features[0])
    assert 64 < kept < 120
    assert kept == int((worth.sort(descending=True).values.cumsum(0) < 0.9 * worth.sum()).sum()) + 1
    assert worth[found.order[0]].tolist() == sorted(worth[found.order[0]].tolist(), reverse=True)
    assert found.correlation().tolist() == pytest.approx([-1, -1])
    one_a_round = kept * (kept + 1) // 2
    assert found.evaluations < 2 * one_a_round


@torch.no_grad()
def test_features_come_in_an_order_in_which_each_adds_confidence_where_there_is_one() -> None:
    """All orders are tried; that in which the features were found is none of them for a third of these images."""
    model = _network(4)
    model.module[1].weight.data *= 8
    model.module[3].bias.data[0] += 2
    images = _images(model, 40)
    found = pertinent_positive(model, images, method=CEMMAFPositive(superpixels=GRID, baseline=0.0, kappa=1.0))

    def confidence(i: int, kept: tuple[int, ...]) -> list[float]:
        shown = [torch.isin(found.superpixels[i], torch.tensor(kept[:k])) for k in range(1, len(kept) + 1)]
        return model.logits(images[i] * torch.stack(shown).unsqueeze(1)).softmax(1)[:, found.fact[i]].tolist()

    compared = 0
    for i, order in enumerate(found.order):
        kept = tuple(order[order >= 0].tolist())
        orders = itertools.permutations(kept) if 3 <= len(kept) <= 5 else ()
        if any(p == sorted(p) for p in (confidence(i, each) for each in orders)):
            compared += 1
            assert confidence(i, kept) == sorted(confidence(i, kept))
    assert compared >= 10


def test_ranks_fall_evenly_from_the_first_feature_to_the_last() -> None:
    model = _network()
    found = pertinent_positive(
        model, _images(model, 12), method=CEMMAFPositive(superpixels=GRID, baseline=0.0, kappa=1.0)
    )
    assert found.features.max() > 2
    for i, order in enumerate(found.order.tolist()):
        kept = [label for label in order if label >= 0]
        worth = {label: 1 - place / len(kept) for place, label in enumerate(kept)}
        expected = [[worth.get(label, 0.0) for label in row] for row in found.superpixels[i].tolist()]
        torch.testing.assert_close(found.ranks()[i], torch.tensor(expected))


@pytest.mark.parametrize("count", [10, 100])
def test_slic_divides_into_about_so_many(count: int) -> None:
    model = Model(nn.Sequential(nn.Flatten(), nn.Linear(3 * 40 * 40, 2)), channels=3)
    across = torch.linspace(0, 1, 40).expand(40, 40)
    picture = torch.stack([across, across.T, 0 * across]).unsqueeze(0)
    how = CEMMAFPositive(superpixels=Superpixels("slic", count))
    found = pertinent_positive(model, picture, method=how)
    assert 0.5 * count <= int(found.feature_count[0]) <= 1.5 * count


def test_correlation_is_spearmans() -> None:
    for p in (torch.rand(9), torch.tensor([0.1, 0.4, 0.4, 0.4, 0.9]), torch.tensor([0.1, 0.2, 0.3])):
        expected = stats.spearmanr(range(len(p)), stats.rankdata(-p.numpy())).statistic
        assert rank_correlation(p) == pytest.approx(expected)
    assert rank_correlation(torch.tensor([0.1, 0.2, 0.3])) == pytest.approx(-1)
    assert torch.tensor([rank_correlation(torch.rand(2)), rank_correlation(torch.ones(4))]).isnan().all()


def _paper(model: Model, image: Tensor, labels: Tensor, kappa: float) -> list[int]:
    """Eq. 2 by ISTA for one image, as a plain loop; the superpixels kept, in order."""
    fact, c = int(model.logits(image).argmax()), 1.0
    best, least = torch.ones(12, dtype=image.dtype), 1e9
    for _ in range(3):
        m, reached = torch.ones(12, dtype=image.dtype), False
        for _ in range(100):
            leaf = m.clone().requires_grad_()
            y = model.logits(leaf[labels] * image)[0]
            margin = y[fact] - torch.cat([y[:fact], y[fact + 1 :]]).max()
            (slope,) = torch.autograd.grad(c * torch.clamp(kappa - margin, min=0), leaf)
            size = float(m.sum()) + (24 if margin < kappa else 0)
            if margin >= 1e-3 and size < least:
                best, least = m, size
            reached |= bool(margin >= kappa)
            m = m - 0.1 * slope
            m = (m - 0.1 * 0.1).clamp(0, 1)
        c = c / 2 if reached else c * 10
    ranked = sorted(range(12), key=lambda s: -float(best[s]))
    for k in range(1, 13):
        shown = torch.isin(labels, torch.tensor(ranked[:k]))
        if model.logits(image * shown).argmax() == fact:
            return ranked[:k]
    raise AssertionError


class ThreeWeights(CEMMAFPositive):
    """The paper's preset, a third as long."""

    binary_search_steps: ClassVar[int] = 3


def test_the_papers_preset_is_ista_as_a_plain_loop_does_it() -> None:
    model = _network()
    images = _images(model, 2)
    found = pertinent_positive(
        model, images, method=ThreeWeights(superpixels=GRID, baseline=0.0, preset="paper", kappa=1.0)
    )
    for i in range(2):
        expected = _paper(model, images[i : i + 1], found.superpixels[i], 1.0)
        assert found.order[i][: int(found.features[i])].tolist() == expected


def test_margin_and_odds_equal_their_formulas() -> None:
    logits, fact = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 1])
    for y, t, of_lead, of_odds in zip(logits, fact.tolist(), margin(logits, fact), odds(logits, fact), strict=True):
        others = torch.cat([y[:t], y[t + 1 :]])
        assert of_lead == y[t] - others.max()
        p = y.softmax(0)[t]
        torch.testing.assert_close(of_odds, torch.log(p / (1 - p)))


def test_attributes_that_rise_are_avoided() -> None:
    """One superpixel carries the class and the attribute, two others carry the class together."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=True)).double()
    module[1].weight.data = torch.tensor([[0.0, 0, 0, 0], [2.0, 0.9, 0.9, -1.0]], dtype=torch.float64)
    module[1].bias.data = torch.tensor([1.0, 0.0], dtype=torch.float64)
    image = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    model = Model(module, channels=1)

    def lit(images: Tensor) -> Tensor:
        return images[:, 0, 0, 0] - images[:, 0, 1, 1]  # 0 in the image, 1 where the first stands without the last

    how = CEMMAFPositive(baseline=0.0, kappa=0.0)
    plain = pertinent_positive(model, image, method=how)
    assert plain.order.tolist() == [[0]]
    held = pertinent_positive(model, image, method=replace(how, attributes=(lit,)))
    assert sorted(held.order[0].tolist()) == [1, 2]


def test_what_is_odd_about_an_image_is_said() -> None:
    model = _network()
    images = _images(model, 1)
    far = pertinent_positive(model, images, method=CEMMAFPositive(superpixels=GRID, baseline=0.0, kappa=50.0))
    assert far.found.all()
    assert "50 were asked for, but the whole leads by" in far.reason[0]
    one = CEMMAFPositive(superpixels=torch.zeros(6, 8, dtype=torch.long), baseline=0.0)
    found = pertinent_positive(model, images, method=one)
    assert found.found.all()
    assert found.features.tolist() == [1]
    assert "one superpixel" in found.reason[0]
    fact = int(model.logits(images).argmin())
    wrong = pertinent_positive(model, images, fact, method=CEMMAFPositive(superpixels=Superpixels("grid", 1)))
    assert not wrong.found.any()
    assert wrong.status == ["not found"]
    assert wrong.mask.all()


def test_the_baseline_is_explicit() -> None:
    model = _network()
    images = _images(model, 3)
    for baseline, value in ((0.25, 0.25), ("mean", images.mean((1, 2, 3)).view(3, 1, 1, 1)), (images[0], images[:1])):
        found = pertinent_positive(model, images, method=CEMMAFPositive(superpixels=GRID, baseline=baseline))  # type: ignore[arg-type]
        expected = torch.where(found.mask.unsqueeze(1), images, torch.as_tensor(value, dtype=images.dtype))
        torch.testing.assert_close(found.example, expected)
    with pytest.raises(InputError, match="mean"):
        pertinent_positive(model, images, method=CEMMAFPositive(baseline="grey"))


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    model = _network()
    found = pertinent_positive(
        model, _images(model, 2), method=CEMMAFPositive(superpixels=GRID, baseline=0.0, kappa=0.0)
    )
    back = PertinentPositive.load(found.save(tmp_path / "x.safetensors"))
    assert str(back) == str(found)
    assert torch.equal(back.order, found.order)
    torch.testing.assert_close(back.curve, found.curve, equal_nan=True)
    assert found.save(tmp_path / "x.png").read_bytes() == figure_png(found.plot())
    page = found.save(tmp_path / "x.html").read_text()
    assert "because of" in page
    assert "superpixels" in page
    assert not re.search(r"\d %", page), "percentages are written in one way"


def test_the_figure_shows_the_part_its_features_in_order_and_the_growing_confidence() -> None:
    model = _network()
    found = pertinent_positive(
        model, _images(model, 2), method=CEMMAFPositive(superpixels=GRID, baseline=0.0, kappa=0.0)
    )
    assert (found.features > 1).any()
    drawn = found.plot().axes
    assert len(drawn) == 2 * 5
    for i in range(2):
        image, part, _, order = (np.asarray(axes.images[0].get_array()) for axes in drawn[5 * i : 5 * i + 4])
        for shown, expected in ((image, found.images[i, 0]), (part, found.example[i, 0])):
            scale = 255 if shown.dtype == np.uint8 else 1
            np.testing.assert_allclose(np.atleast_3d(shown)[..., 0] / scale, expected, atol=0.51 / 255)
        warmth = order[..., 0].astype(int) - order[..., 2]
        kept = [label for label in found.order[i].tolist() if label >= 0]
        strength = [warmth[found.superpixels[i].numpy() == label] for label in kept]
        assert all(before.min() > after.max() > 0 for before, after in pairwise(strength)), "the first is the strongest"
        assert not warmth[~found.mask[i].numpy()].any(), "what is left out is grey"
        curve = found.curve[i][~found.curve[i].isnan()].tolist()
        assert any(list(line.get_ydata()) == pytest.approx(curve) for line in drawn[5 * i + 4].lines)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(InputError, match="sound"):
        CEMMAFPositive(preset="soud")  # type: ignore[arg-type]
    for match, both in (
        ("kappa or confidence", {"kappa": 1.0, "confidence": 0.9}),
        ("baseline, or several", {"baseline": 0.0, "baselines": (0.0, 0.5)}),
        ("leave confidence", {"preset": "paper", "confidence": 0.9}),
        ("confidence of cem-maf", {"confidence": 1.0}),
    ):
        with pytest.raises(InputError, match=match):
            CEMMAFPositive(**both)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="kappa or confidence"):
        FewestWords(kappa=0.0, confidence=0.9)
    with pytest.raises(InputError, match="one class"):
        pertinent_positive(_network(), torch.rand(1, 1, 6, 8, dtype=torch.float64), fact=[0, 1])


def test_a_margin_beyond_the_whole_image_is_the_same_in_every_batch() -> None:
    model = Model(_network().module.float(), channels=1)
    images = _images(_network(), 8).float()
    how = CEMMAFPositive(superpixels=GRID, baseline=0.0, kappa=50.0)
    together = pertinent_positive(model, images, method=how)
    for i in range(8):
        alone = pertinent_positive(model, images[i : i + 1], method=how)
        assert torch.equal(alone.mask[0], together.mask[i])
        assert "but the whole leads by" in alone.reason[0]
