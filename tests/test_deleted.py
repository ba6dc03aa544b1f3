"""`single-deletion`, `irof` and `f-fidelity` against closed forms and loops that do what the papers say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import ratherthan as rt
from ratherthan import ArrayReader, Dataset
from ratherthan.evaluation.bench.contestants import RandomMaps
from ratherthan.superpixels import segment
from test_measures import frozen, logits

SIDE, CLASSES, COUNT = 12, 4, 3
MEAN = torch.tensor([0.4, 0.5, 0.6]).double().view(3, 1, 1)
CONTRASTS = ("none", "weighted")


@pytest.fixture(scope="module")
def model() -> rt.Model:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(150, CLASSES)).double()
    layers[3].weight.data *= 8  # sure enough that what is deleted matters
    return rt.Model(layers, layer="1", mean=(0.4, 0.5, 0.6))


def noise(count: int = COUNT, channels: int = 3) -> Dataset:
    """Blocks of colour with noise, of which superpixels make different numbers of parts."""
    chance = np.random.default_rng(0)
    blocks = chance.integers(0, 200, (count, 4, 4, channels)).repeat(3, 1).repeat(3, 2)
    pixels = (blocks + chance.integers(0, 56, blocks.shape)).astype(np.uint8)
    names = tuple(f"s{i}" for i in range(count))
    return Dataset("noise", tuple("abcd"), names, tuple(i % CLASSES for i in range(count)), ArrayReader(pixels))


def linear() -> rt.Model:
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES, bias=False)).double()
    layers[1].weight.data *= 5
    return rt.Model(layers, channels=1)


def measured(name: str, model: rt.Model, data: Dataset, out: Path, methods: list[Any], **settings: Any) -> Any:
    settings = {"contrasts": list(CONTRASTS), **settings}
    frame = rt.evaluate(name, model, data, out=out, methods=methods, batch_size=3, **settings).to_frame()
    return frame.set_index(["sample", "contrast"]).sort_index()


# --------------------------------------------------------------------------------------------- single deletion
@pytest.mark.parametrize("foil", ["others", "runner-up"])
def test_a_map_that_adds_up_foretells_what_every_part_is_worth(foil: str, tmp_path: Path) -> None:
    """Of input x gradient of a linear map the sums *are* the falls; turned round, they are their opposite."""
    data = noise(4, 1)
    right = measured("single-deletion", linear(), data, tmp_path / "a", ["ixg"], foil=foil)
    assert right["own"].to_numpy() == pytest.approx(1)
    assert right.xs("weighted", level=1)["lead"].to_numpy() == pytest.approx(1)
    assert (right.xs("none", level=1)["lead"] < 0.999).all()  # it was asked something else
    wrong = rt.Peer("turned", lambda net, x, fact, foil: -x[:, 0] * net[1].weight[fact].view(-1, SIDE, SIDE))
    found = measured("single-deletion", linear(), data, tmp_path / "b", [wrong], contrasts=["none"], foil=foil)
    assert found["own"].to_numpy() == pytest.approx(-1)


@pytest.mark.parametrize(("foil", "method"), [("others", "gradcam"), ("runner-up", "ixg")])
def test_single_deletion_equals_a_loop(model: rt.Model, foil: str, method: str, tmp_path: Path) -> None:
    data = noise()
    found = measured("single-deletion", model, data, tmp_path, [method], count=9, foil=foil)
    for i in range(COUNT):
        image = data[i][0].double()
        y = logits(model, image)
        fact, second = y.topk(2).indices.tolist()
        other = second if foil == "runner-up" else None
        for contrast in CONTRASTS:
            shown = rt.explain(model, image[None], fact, other, method, contrast).heatmap()[0]
            weights = {name: frozen(y, fact, name) for name in CONTRASTS}
            if foil == "runner-up":
                weights["weighted"] = nn.functional.one_hot(torch.tensor([fact, second]), CLASSES).double()
                weights["weighted"] = weights["weighted"][0] - weights["weighted"][1]
            sums, falls = [], {name: list[float]() for name in CONTRASTS}
            for top in range(0, SIDE, 4):
                for left in range(0, SIDE, 4):
                    without = image.clone()
                    without[:, top : top + 4, left : left + 4] = MEAN
                    sums.append(float(shown[top : top + 4, left : left + 4].sum()))
                    for name in CONTRASTS:
                        falls[name].append(float(weights[name] @ (y - logits(model, without))))
            row = found.loc[(f"s{i}", contrast)]
            assert row["own"] == pytest.approx(spearmanr(sums, falls[contrast]).statistic)
            assert row["lead"] == pytest.approx(spearmanr(sums, falls["weighted"]).statistic)


# --------------------------------------------------------------------------------------------- removal in order
def share_of(model: rt.Model, image: Tensor, fact: int, foil: int | None) -> float:
    """The probability of the fact, or its share of the two."""
    p = logits(model, image).softmax(0)
    return float(p[fact] if foil is None else p[fact] / (p[fact] + p[foil]))


def order_of(parts: np.ndarray[Any, Any], shown: np.ndarray[Any, Any]) -> list[int]:
    """Superpixels by the mean of the map in them, the highest first."""
    means = [shown[parts == part].mean() for part in range(parts.max() + 1)]
    return sorted(range(len(means)), key=lambda part: (-means[part], part))


@pytest.mark.parametrize(("foil", "method"), [("others", "gradcam"), ("runner-up", "ixg")])
def test_irof_equals_a_loop(model: rt.Model, foil: str, method: str, tmp_path: Path) -> None:
    data = noise()
    found = measured("irof", model, data, tmp_path, [method], superpixels="felzenszwalb", foil=foil)
    sizes = set()
    for i in range(COUNT):
        image = data[i][0].double()
        parts = segment(image[None].float(), rt.Superpixels("felzenszwalb"))[0].numpy()
        fact, second = logits(model, image).topk(2).indices.tolist()
        other = second if foil == "runner-up" else None
        for contrast in CONTRASTS:
            shown = rt.explain(model, image[None], fact, other, method, contrast).heatmap()[0].numpy()
            left, curve = image.clone(), [1.0]
            whole = share_of(model, image, fact, other)
            for part in order_of(parts, shown):  # iteratively: what is gone stays away
                left[:, parts == part] = image.mean((1, 2))[:, None]
                curve.append(share_of(model, left, fact, other) / whole)
            steps = len(curve) - 1
            assert found.loc[(f"s{i}", contrast), "area"] == pytest.approx(
                (steps - np.trapezoid(curve)) / steps, abs=1e-7
            )
            sizes.add(steps)
    assert len(sizes) > 1  # images with different numbers of superpixels share a batch


@pytest.mark.parametrize(
    ("superpixels", "foil", "method"), [("grid", "others", "gradcam"), ("slic", "runner-up", "ixg")]
)
def test_f_fidelity_equals_a_loop(model: rt.Model, superpixels: Any, foil: str, method: str, tmp_path: Path) -> None:
    data, settings = noise(), {"shares": (0.25, 0.6), "draws": 3, "alpha": 0.5, "beta": 0.2, "count": 28}
    found = measured("f-fidelity", model, data, tmp_path, [method], superpixels=superpixels, foil=foil, **settings)
    for i in range(COUNT):
        image = data[i][0].double()
        parts = segment(image[None].float(), rt.Superpixels(superpixels, 28))[0].numpy()
        count = parts.max() + 1
        fact, second = logits(model, image).topk(2).indices.tolist()
        other = second if foil == "runner-up" else None
        for contrast in CONTRASTS:
            shown = rt.explain(model, image[None], fact, other, method, contrast).heatmap()[0].numpy()
            ordered = order_of(parts, shown)
            falls: dict[str, list[float]] = {"plus": [], "minus": []}
            for share in (0.25, 0.6):
                size = round(share * count)
                for draw in range(3):
                    key = f"0|s{i}|f-fidelity|{share} {draw}"
                    numbers = np.random.default_rng(list(key.encode())).random(count)
                    for name, some in (("plus", ordered[:size]), ("minus", ordered[size:])):
                        most = min(int(0.5 * len(some)), int(0.2 * count))
                        without = image.clone()
                        for part in sorted(some, key=lambda each: numbers[each])[:most]:
                            without[:, parts == part] = MEAN[:, 0]
                        falls[name].append(share_of(model, image, fact, other) - share_of(model, without, fact, other))
            plus, minus = (float(np.mean(each)) for each in falls.values())
            row = found.loc[(f"s{i}", contrast)]
            assert (row["plus"], row["minus"], row["gap"]) == pytest.approx((plus, minus, plus - minus), abs=1e-7)


def test_never_more_than_a_share_is_deleted_at_random(tmp_path: Path) -> None:
    """A network that counts: the fact's lead is the number of patches that are there."""
    net = rt.Model(Counts(), channels=1)
    white = Dataset("white", ("a", "b"), ("s",), (0,), ArrayReader(np.full((1, 16, 16, 1), 255, np.uint8)))
    run = rt.evaluate("f-fidelity", net, white, out=tmp_path, methods=[RandomMaps()], beta=0.1, foil="others")
    # of 64 patches: min(half of the part, 6 of all); 10 % are 6 patches, of which 3
    gone = {"plus": (3, 6, 6, 6, 6), "minus": (6, 6, 6, 6, 3)}
    row = run.to_frame().iloc[0]
    for name, counts in gone.items():
        after = [1 / (1 + np.exp(-(64 - count) / 16)) for count in counts]
        assert row[name] == pytest.approx(1 / (1 + np.exp(-4)) - np.mean(after), rel=1e-5)


def test_what_deletes_nothing_is_undefined(tmp_path: Path) -> None:
    """A tenth of nine parts is less than one."""
    net = rt.Model(Counts(), channels=1)
    white = Dataset("white", ("a", "b"), ("s",), (0,), ArrayReader(np.full((1, 16, 16, 1), 255, np.uint8)))
    run = rt.evaluate("f-fidelity", net, white, out=tmp_path, methods=[RandomMaps()], count=9, draws=1, foil="others")
    assert run.to_frame()[["plus", "minus", "gap"]].isna().all(axis=None)


class Counts(nn.Module):
    """Two classes: the number of white patches of 64, by 16, and nothing."""

    def forward(self, x: Tensor) -> Tensor:
        patches = nn.functional.avg_pool2d(x, 2).flatten(1).sum(1) / 16
        return torch.stack([patches, torch.zeros_like(patches)], 1)


def test_noise_scores_at_chance(tmp_path: Path) -> None:
    """0 where noise should have 0; where it has what any order has (`irof`), less than the order of what counts."""
    few: dict[str, Any] = {"superpixels": "grid", "count": 16}
    for name, measure, given in (
        ("single-deletion", "own", {}),
        ("f-fidelity", "gap", {"draws": 2, "beta": 0.3, **few}),
        ("irof", "area", few),
    ):
        methods, asked = [RandomMaps(), "ixg"], {"contrasts": ["weighted"], "out": tmp_path / name, **given}
        frame = rt.evaluate(name, linear(), noise(48, 1), methods=methods, **asked).to_frame()
        random, right = (each[measure] for _, each in frame.groupby("method", sort=False))
        chance = random.mean() if name == "irof" else 0.0
        assert abs(random.mean() - chance) < 3 * random.std() / np.sqrt(len(random)), name
        assert right.mean() > chance + 0.07, name


# --------------------------------------------------------------------------------------------- training
def test_patches_are_deleted_as_its_numbers_say() -> None:
    images, numbers = torch.rand(400, 3, 16, 16), torch.Generator().manual_seed(0)
    made = rt.PatchDeletion(deleted=0.5, grids=(4,), ground=(0.1, 2.0, 0.3))(images, numbers)
    gone = made[:, 1] == 2.0  # no pixel of an image
    assert torch.allclose(made[:, 0][gone], torch.tensor(0.1))
    patches = gone.unfold(1, 4, 4).unfold(2, 4, 4).flatten(3)
    assert torch.equal(patches.all(3), patches.any(3))  # whole patches
    there = ~gone.unsqueeze(1).expand_as(images)
    assert torch.allclose(made[there], images[there], atol=1e-6)
    shares = patches.all(3).double().mean((1, 2))
    assert abs(shares.mean() - 0.25) < 0.02
    assert (shares == 0).any()
    assert shares.max() > 0.45
    several = [rt.PatchDeletion(grids=(2, 8))(torch.ones(64, 1, 8, 8), numbers) for _ in range(8)]
    sizes = {bool((each.unfold(2, 4, 4).unfold(3, 4, 4).flatten(4).std(4) > 0).any()) for each in several}
    assert sizes == {True, False}  # fine and coarse grids
    flipped = rt.PatchDeletion(flips="h", deleted=0.0)(images, numbers)
    assert all(
        torch.allclose(a, b, atol=1e-5) or torch.allclose(a, b.flip(2), atol=1e-5)
        for a, b in zip(flipped, images, strict=True)
    )
    recipe = rt.Recipe("mnist", 2, 0.1, augmentation=rt.PatchDeletion(crop=0.5), uncropped=1)
    assert recipe.at(1, 2).augmentation == replace(rt.PatchDeletion(), crop=1.0)  # it stays one
