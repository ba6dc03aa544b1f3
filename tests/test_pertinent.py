"""Pertinent positives: against all subsets, against a plain loop, and one by one."""

from __future__ import annotations

import itertools
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from ratherthan import (
    CEMMAFPositive,
    InputError,
    Model,
    PertinentPositive,
    SegmentedImages,
    Superpixels,
    margin,
    pertinent_positive,
    segment,
)
from ratherthan.render.figure import figure_png
from ratherthan.search.cem_maf import odds
from ratherthan.search.pertinent_positive import rank_correlation

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


def _smallest(model: Model, images: Tensor) -> Tensor:
    """The least number of superpixels that keep the class, by trying all 4095 sets."""
    parts = SegmentedImages(images, segment(images, GRID), torch.zeros_like(images))
    masks = torch.tensor([[code >> s & 1 for s in range(12)] for code in range(1, 4096)], dtype=images.dtype)
    best = []
    for row, fact in enumerate(model.logits(images).argmax(1).tolist()):
        kept = model.logits(parts.render(masks, torch.full((4095,), row))).argmax(1) == fact
        best.append(masks[kept].sum(1).amin())
    return torch.stack(best)


@torch.no_grad()
def test_parts_are_within_one_superpixel_of_the_smallest_there_are() -> None:
    model = _network()
    images = _images(model, 100)
    smallest = _smallest(model, images)
    assert len(images) == 100
    assert smallest.mean() > 1.5
    found = pertinent_positive(model, images, method=CEMMAFPositive(superpixels=GRID))
    assert found.found.all()
    assert (found.features >= smallest).all()
    assert (found.features <= smallest + 1).sum() >= 95
    assert found.evaluations <= 90 * 100
    # what is said to be kept, is kept, and nothing else
    masks = torch.zeros(100, 12, dtype=images.dtype)
    for mask, order in zip(masks, found.order, strict=True):
        mask[order[order >= 0]] = 1
    pixels = masks.gather(1, found.superpixels.flatten(1)).view(100, 1, 6, 8)
    torch.testing.assert_close(found.example, pixels * images)
    assert torch.equal(model.logits(found.example).argmax(1), found.fact)
    assert torch.equal(found.mask, pixels[:, 0] > 0)


@torch.no_grad()
def test_no_feature_kept_could_be_left_out() -> None:
    model = _network()
    images = _images(model, 20)
    found = pertinent_positive(model, images, method=CEMMAFPositive(superpixels=GRID))
    for i, order in enumerate(found.order):
        for gone in order[order >= 0].tolist():
            part = found.example[i] * (found.superpixels[i] != gone)
            if found.features[i] > 1:
                assert model.logits(part.unsqueeze(0)).argmax() != found.fact[i]


@torch.no_grad()
def test_the_curve_is_the_confidence_with_the_first_k_features() -> None:
    model = _network()
    found = pertinent_positive(model, _images(model, 12), method=CEMMAFPositive(superpixels=GRID, kappa=1.0))
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
        Model(module, channels=1), torch.ones(2, 1, 10, 12).double(), method=CEMMAFPositive(superpixels="pixels")
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
    found = pertinent_positive(model, images, method=CEMMAFPositive(superpixels=GRID, kappa=1.0))

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
            assert found.correlation()[i] == pytest.approx(-1)
    assert compared >= 10


def test_ranks_fall_evenly_from_the_first_feature_to_the_last() -> None:
    model = _network()
    found = pertinent_positive(model, _images(model, 12), method=CEMMAFPositive(superpixels=GRID, kappa=1.0))
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
    for _ in range(9):
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


def test_the_papers_preset_is_ista_as_a_plain_loop_does_it() -> None:
    model = _network()
    images = _images(model, 2)
    found = pertinent_positive(model, images, method=CEMMAFPositive(superpixels=GRID, preset="paper", kappa=1.0))
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

    plain = pertinent_positive(model, image, method=CEMMAFPositive())
    assert plain.order.tolist() == [[0]]
    held = pertinent_positive(model, image, method=CEMMAFPositive(attributes=(lit,)))
    assert sorted(held.order[0].tolist()) == [1, 2]


def test_what_is_odd_about_an_image_is_said() -> None:
    model = _network()
    images = _images(model, 1)
    far = pertinent_positive(model, images, method=CEMMAFPositive(superpixels=GRID, kappa=50.0))
    assert far.found.all()
    assert "not by 50" in far.reason[0] + "whole image"
    assert "whole image" in far.reason[0]
    one = pertinent_positive(model, images, method=CEMMAFPositive(superpixels=torch.zeros(6, 8, dtype=torch.long)))
    assert one.found.all()
    assert one.features.tolist() == [1]
    assert "one superpixel" in one.reason[0]
    black = pertinent_positive(model, torch.zeros(1, 1, 6, 8, dtype=torch.float64), method=CEMMAFPositive())
    assert black.found.all()
    assert black.features.tolist() == [1]
    assert "nothing is there" in black.reason[0]
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
    found = pertinent_positive(model, _images(model, 2), method=CEMMAFPositive(superpixels=GRID))
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
    found = pertinent_positive(model, _images(model, 2), method=CEMMAFPositive(superpixels=GRID))
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
    with pytest.raises(InputError, match="one class"):
        pertinent_positive(_network(), torch.rand(1, 1, 6, 8, dtype=torch.float64), fact=[0, 1])


def test_a_margin_beyond_the_whole_image_is_the_same_in_every_batch() -> None:
    model = Model(_network().module.float(), channels=1)
    images = _images(_network(), 8).float()
    how = CEMMAFPositive(superpixels=GRID, kappa=50.0)
    together = pertinent_positive(model, images, method=how)
    for i in range(8):
        alone = pertinent_positive(model, images[i : i + 1], method=how)
        assert torch.equal(alone.mask[0], together.mask[i])
        assert "the whole image" in alone.reason[0]
