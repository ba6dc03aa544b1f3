"""`properties`, `road` and `class-sensitivity` against loops that do what the papers say."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import ratherthan as rt
from ratherthan import ArrayReader, Dataset
from ratherthan.evaluation.properties import impute, residue

SIDE, CLASSES, COUNT = 12, 4, 3


@pytest.fixture(scope="module")
def model() -> rt.Model:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 6, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(150, CLASSES))
    return rt.Model(nn.Sequential(*layers).double(), layer="1", mean=(0.4, 0.5, 0.6))


@pytest.fixture(scope="module")
def data() -> Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)
    return Dataset("noise", tuple("abcd"), tuple(f"s{i}" for i in range(COUNT)), (0, 1, 2), ArrayReader(pixels))


def logits(model: rt.Model, image: Tensor) -> Tensor:
    with torch.no_grad():
        return model.logits(image[None])[0]


def frozen(y: Tensor, fact: int, contrast: str) -> Tensor:
    """The contrast's derivative: what its number is linear in."""
    seed = -torch.cat([y[:fact], y[fact + 1 :]]).softmax(0) if contrast == "weighted" else y.new_zeros(CLASSES - 1)
    return torch.cat([seed[:fact], torch.ones(1).double(), seed[fact:]])


# --------------------------------------------------------------------------------------------- properties
@pytest.mark.parametrize("method", ["gradcam", "ixg"])
def test_properties_equal_loops(model: rt.Model, data: Dataset, method: str, tmp_path: Path) -> None:
    run = rt.evaluate("properties", model, data, out=tmp_path, methods=[method], squares=5, noises=3, batch_size=2)
    frame = run.to_frame().set_index(["sample", "contrast"]).sort_index()
    for i in range(COUNT):
        image = data[i][0].double()
        y = logits(model, image)
        fact = int(y.argmax())
        for contrast in ("none", "weighted"):
            row, weights = frame.loc[(f"s{i}", contrast)], frozen(y, fact, contrast)
            why = rt.explain(model, image[None], fact, None, method, contrast)
            raw, shown = why.attribution[0].flatten().tolist(), why.heatmap()[0].numpy()
            sizes = [abs(each) / np.abs(shown).sum() for each in shown.flatten()]
            assert row["complexity"] == pytest.approx(-sum(p * np.log(p) for p in sizes if p))
            black = float((weights * (y - logits(model, torch.zeros_like(image)))).sum())
            assert row["completeness"] == pytest.approx(abs(sum(raw) - black) / abs(black), rel=1e-6)

            foretold, lost = [], []
            for number in range(5):
                top, left = (
                    int(Random("|".join(("0", f"s{i}", f"square {number}", axis))).uniform(0, SIDE - 3 + 1))
                    for axis in ("row", "column")
                )
                without = image.clone()
                without[:, top : top + 3, left : left + 3] = 0
                foretold.append(shown[top : top + 3, left : left + 3].sum())
                lost.append(float((weights * (y - logits(model, without))).sum()))
            s, d = np.array(foretold), np.array(lost)
            scale = (s @ d) / (s @ s)  # least squares
            assert row["infidelity"] == pytest.approx(np.mean((scale * s - d) ** 2) / np.mean(d**2), abs=1e-7)

            moves = []
            for number in range(3):
                noise = np.random.default_rng(list(f"0|s{i}|n|{number}".encode())).uniform(-0.02, 0.02, image.shape)
                near = (image + torch.from_numpy(noise)).clamp(0, 1)
                other = rt.explain(model, near[None], fact, None, method, contrast).attribution[0].flatten()
                moves.append(float(np.linalg.norm(other.numpy() - np.array(raw)) / np.linalg.norm(raw)))
            assert row["sensitivity"] == pytest.approx(max(moves), rel=1e-6)

            mask = torch.from_numpy(shown).clamp_min(0)
            before, after = (float(logits(model, each).softmax(0)[fact]) for each in (image, image * mask / mask.max()))
            assert row["drop"] == pytest.approx(max(0.0, before - after) / before, abs=1e-9)
            assert row["increase"] == float(after > before)


def test_properties_of_what_adds_up(tmp_path: Path) -> None:
    """Input x gradient of a linear map: complete, and it foretells what every square takes away."""
    layers = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES, bias=False)).double()
    pixels = np.random.default_rng(1).integers(0, 256, (2, SIDE, SIDE, 1), dtype=np.uint8)
    two = Dataset("two", tuple("abcd"), ("a", "b"), (0, 1), ArrayReader(pixels))
    frame = rt.evaluate("properties", rt.Model(layers, channels=1), two, out=tmp_path, methods=["ixg"]).to_frame()
    assert frame[["completeness", "infidelity"]].to_numpy() == pytest.approx(0, abs=1e-9)
    assert residue(torch.zeros(3, 1), torch.rand(3, 1)).tolist() == [1.0]


# --------------------------------------------------------------------------------------------- ROAD
def imputed_by_loops(image: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """Every missing pixel is the weighted mean of its neighbours: repeated until nothing moves."""
    made = np.where(gone, 0.5, image.astype(float))
    weights = {(i, j): (1 / 12 if i and j else 1 / 6) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j}
    for _ in range(3000):
        before = made.copy()
        for row, column in np.argwhere(gone):
            near = {(row + i, column + j): w for (i, j), w in weights.items()}
            near = {at: w for at, w in near.items() if min(at) >= 0 and at[0] < len(gone) and at[1] < len(gone[0])}
            made[:, row, column] = sum(w * made[:, r, c] for (r, c), w in near.items()) / sum(near.values())
        if np.abs(made - before).max() < 1e-12:
            break
    return made


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_what_is_missing_is_the_mean_of_its_neighbours(share: float) -> None:
    random = np.random.default_rng(0)
    image, gone = random.random((2, 5, 6)), random.random((5, 6)) < share
    np.testing.assert_allclose(impute(image, gone), imputed_by_loops(image, gone), atol=1e-9)


def test_road_equals_a_loop(model: rt.Model, data: Dataset, tmp_path: Path) -> None:
    run = rt.evaluate("road", model, data, out=tmp_path, shares=(0.25, 0.5), noise=0.02, batch_size=2)
    frame = run.to_frame().set_index(["sample", "contrast"]).sort_index()
    for i in range(COUNT):
        image = data[i][0].double()
        y = logits(model, image)
        fact = int(y.argmax())
        noise = np.random.default_rng(list(f"0|s{i}|road".encode())).normal(0, 0.02, image.shape)
        for contrast in ("none", "weighted"):
            shown = rt.explain(model, image[None], fact, None, "gradcam", contrast).heatmap()[0].flatten()
            found: dict[str, list[float]] = {"most": [], "least": []}
            for name, descending in (("most", True), ("least", False)):
                order = np.argsort(shown.numpy(), kind="stable")
                order = order[::-1] if descending else order
                for share in (0.25, 0.5):
                    gone = np.zeros(SIDE * SIDE, bool)
                    gone[order[: round(share * SIDE * SIDE)]] = True
                    gone = gone.reshape(SIDE, SIDE)
                    altered = torch.from_numpy(impute(image.numpy(), gone) + noise * gone)
                    found[name].append(float(logits(model, altered).softmax(0)[fact]))
            row = frame.loc[(f"s{i}", contrast)]
            assert row["most"] == pytest.approx(np.mean(found["most"]), abs=1e-9)
            assert row["least"] == pytest.approx(np.mean(found["least"]), abs=1e-9)
            assert row["gap"] == pytest.approx((row["least"] - row["most"]) / 2)


# --------------------------------------------------------------------------------------------- class sensitivity
def test_class_sensitivity_equals_a_loop(model: rt.Model, data: Dataset, tmp_path: Path) -> None:
    run = rt.evaluate("class-sensitivity", model, data, out=tmp_path, methods=["ixg"], share=0.1, batch_size=2)
    frame: Any = run.to_frame().set_index(["sample", "contrast", "other"]).sort_index()
    for i in range(COUNT):
        image = data[i][0].double()
        first, second, *_ = logits(model, image).argsort(descending=True).tolist()
        others = [each for each in range(CLASSES) if each != first]
        drawn = others[int(3 * Random(f"0|s{i}|other").uniform(0, 1))]
        for contrast in ("none", "weighted"):
            maps = [
                rt.explain(model, image[None], fact, None, "ixg", contrast).heatmap()[0].flatten().numpy()
                for fact in range(CLASSES)
            ]
            for other, fact in (("runner-up", second), ("random", drawn)):
                top = [set(np.argsort(maps[each], kind="stable")[-14:].tolist()) for each in (first, fact)]
                row: pd.Series = frame.loc[(f"s{i}", contrast, other)]
                assert row["agreement"] == pytest.approx(len(top[0] & top[1]) / 14)
                assert row["correlation"] == pytest.approx(spearmanr(maps[first], maps[fact]).statistic)
