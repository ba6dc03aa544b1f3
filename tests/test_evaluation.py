"""Every measure against a brute-force reference, counts against those the notes give, and the tables."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import ratherthan as rt
from ratherthan import ArrayReader, Dataset, EqualMask, Experiment, Mask, evaluate, experiments
from ratherthan.baselines import blur
from ratherthan.evaluation.masking import highest, ranks
from ratherthan.evaluation.sanity import spearman

CLASSES, SIDE, SAMPLES = 5, 12, 7


@pytest.fixture(scope="module")
def model() -> rt.Model:
    generator = torch.Generator().manual_seed(3)
    module = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(inplace=True),
        nn.Flatten(), nn.Linear(8 * (SIDE // 2) ** 2, CLASSES),
    )  # fmt: skip
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.35
    return rt.Model(module, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), layer="4")


def images_and_labels(count: int = SAMPLES) -> tuple[np.ndarray, tuple[int, ...]]:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    return pixels, tuple(random.integers(0, CLASSES, count).tolist())


def dataset(count: int = SAMPLES) -> Dataset:
    pixels, labels = images_and_labels(count)
    names = tuple(f"img{i}" for i in range(count))
    return Dataset("toy", tuple("abcde"), names, labels, ArrayReader(pixels))


def one(index: int) -> Tensor:
    return dataset()[index][0].unsqueeze(0)


def forward(model: rt.Model, image: Tensor) -> Tensor:
    with torch.no_grad():
        return model.logits(image.clone())[0]


def pixels_of(model: rt.Model, image: Tensor, fact: int, contrast: str, corners: bool, **target: Any) -> Tensor:
    """Grad-CAM by hand, on the pixels: (H, W)."""
    x = (image - torch.tensor(model.inputs.mean).view(-1, 1, 1)) / torch.tensor(model.inputs.std).view(-1, 1, 1)
    activation = model.module[:5](x).detach().requires_grad_()
    y = model.module[5:](activation)[0]
    others = [k for k in range(CLASSES) if k != fact] if "foil" not in target else [target["foil"]]
    scalar = y[fact] if contrast == "none" else y[fact] - y[others].logsumexp(0)
    (gradient,) = torch.autograd.grad(scalar, activation)
    cam = (gradient.mean((2, 3), keepdim=True) * activation.detach()).sum(1, keepdim=True)
    return nn.functional.interpolate(cam, (SIDE, SIDE), mode="bilinear", align_corners=corners)[0, 0]


def naive_blur(image: Tensor, sigma: float, radius: int, stride: int = 1) -> Tensor:
    """A two-dimensional kernel, padded by reflection; at every so many pixels."""
    axis = torch.arange(-radius, radius + 1).to(image)
    kernel = torch.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / (2 * sigma**2))
    padded = nn.functional.pad(image, [radius] * 4, mode="reflect")
    return nn.functional.conv2d(padded.transpose(0, 1), (kernel / kernel.sum())[None, None], stride=stride).transpose(
        0, 1
    )


def replaced_by_hand(model: rt.Model, image: Tensor, baseline: str, sigma: float) -> Tensor:
    if baseline == "blur":
        return naive_blur(image, sigma * SIDE / 224, max(1, round(50 * SIDE / 224)))
    if baseline == "model-mean":
        return torch.tensor(model.inputs.mean).view(1, 3, 1, 1).expand_as(image)
    return image.mean((2, 3), keepdim=True).expand_as(image)


def run(model: rt.Model, tmp_path: Path, name: str, **settings: Any) -> Any:
    options = {"methods": ["gradcam"], "contrasts": ["none", "weighted"], "batch_size": 3, **settings}
    return evaluate(name, model, dataset(), out=tmp_path / "run", **options)


# --------------------------------------------------------------------------------------------- the tools
def test_the_blur_is_the_two_dimensional_one_with_reflected_borders() -> None:
    images = torch.rand(2, 3, 224, 224, dtype=torch.float64)
    expected = torch.cat([naive_blur(images[:1], 11.0, 50, 31), naive_blur(images[1:], 17.5, 50, 31)])
    assert torch.allclose(blur(images, torch.tensor([11.0, 17.5]))[..., ::31, ::31], expected, atol=1e-12)
    wide = torch.rand(1, 2, 24, 40, dtype=torch.float64)  # the shorter side says how strong it is
    for image in (wide, wide.mT.contiguous()):
        assert torch.allclose(blur(image, 20.0), naive_blur(image, 20.0 * 24 / 224, 5), atol=1e-12)
    small = torch.rand(1, 1, 3, 9)  # a border wider than the image is reflected again
    assert torch.allclose(blur(torch.ones_like(small), 500.0), torch.ones_like(small))


def test_ranks_put_the_first_of_equals_first() -> None:
    maps = torch.tensor([[3.0, 1.0, 1.0], [2.0, 1.0, 3.0]])
    assert ranks(maps).tolist() == [[4, 0, 1], [3, 2, 5]]
    assert highest(torch.zeros(4, 10, 10), 0.05).sum((1, 2)).tolist() == [5] * 4


def test_spearman_shares_ranks_among_equals() -> None:
    a, b = torch.randint(0, 4, (3, 5, 5)).float(), torch.randint(0, 4, (3, 5, 5)).float()
    expected = [spearmanr(x.flatten(), y.flatten()).statistic for x, y in zip(a, b, strict=True)]
    assert spearman(a, b).tolist() == pytest.approx(expected)
    of_pixels = a[:2].unsqueeze(0), b[:2].unsqueeze(0)  # two channels of one image
    summed = spearmanr(*(maps.sum(1).flatten() for maps in of_pixels)).statistic
    assert spearman(*of_pixels).tolist() == pytest.approx([summed])
    assert math.isnan(spearman(torch.ones(1, 2, 2), b[:1, :2, :2]).item())


# --------------------------------------------------------------------------------------------- mask
def two_maps(positive: tuple[int, int], zeros: int = 0) -> Tensor:
    """Ramps of 224 x 224 with so many positive pixels, as the maps of two contrasts: (2, 1, 1, 224, 224)."""
    ramps = [torch.arange(224 * 224.0) - (224 * 224 - count) + 0.5 for count in positive]
    return torch.stack(ramps).reshape(2, 1, 1, 224, 224)


def test_reference_replaces_what_the_authors_code_replaces() -> None:
    ramp = torch.linspace(-1, 1, 224 * 224).reshape(1, 1, 1, 224, 224).repeat(2, 1, 1, 1, 1)
    replaced = EqualMask(preset="reference").replaced(ramp)
    assert replaced["positive"].sum((-2, -1)).flatten().tolist() == [25_088] * 2
    assert replaced["negative"].sum((-2, -1)).flatten().tolist() == [25_087] * 2
    maps = two_maps((40_140, 25_088))
    wrong = EqualMask(preset="reference").replaced(maps)["positive"]
    assert wrong.sum((-2, -1)).flatten().tolist() == [25_088] * 2
    assert (wrong & (maps > 0)).sum((-2, -1)).flatten().tolist() == [15_052, 0]


def test_paper_counts_the_sign_that_is_replaced() -> None:
    replaced = EqualMask(preset="paper").replaced(two_maps((40_000, 20_000)))
    assert replaced["positive"].sum((-2, -1)).flatten().tolist() == [224 * 224 - 20_000] * 2  # max of negatives
    assert replaced["negative"].sum((-2, -1)).flatten().tolist() == [20_000] * 2  # min of positives


@pytest.mark.parametrize("levels", [2, 3, 7])
def test_sound_replaces_exactly_n_pixels_ties_included(levels: int) -> None:
    maps = torch.randint(-levels, levels + 1, (3, 4, 2, 16, 16)).float()
    maps[1] = maps[1].clamp_min(-1)  # many ties at the lowest value
    replaced = EqualMask(preset="sound").replaced(maps)
    for keep, sign in (("positive", -1), ("negative", 1)):
        fewest = (maps * sign > 0).sum((-2, -1)).amin(0)
        assert torch.equal(replaced[keep].sum((-2, -1)), fewest.expand(3, -1, -1))
        assert (maps[replaced[keep]] * sign > 0).all()


@pytest.mark.parametrize("preset", ["paper", "reference", "sound"])
def test_mask_equals_a_loop(model: rt.Model, tmp_path: Path, preset: str) -> None:
    frame = run(model, tmp_path, "mask", preset=preset, threshold=0.1, sigma=40.0).to_frame()
    expected = {}
    for i in range(SAMPLES):
        image, y = one(i), forward(model, one(i))
        top = y.topk(2).indices.tolist()
        if y.softmax(0)[top[1]] <= 0.1:
            continue
        for t, contrast in [(t, c) for t in (0, 1) for c in ("none", "weighted")]:
            phi = pixels_of(model, image, top[t], contrast, corners=preset != "sound")
            for baseline in ("blur", "model-mean", "mean"):
                for keep, gone in (("positive", phi < 0), ("negative", phi > 0)):
                    altered = torch.where(gone, replaced_by_hand(model, image, baseline, 40.0), image)
                    pair = forward(model, altered)[top].double()
                    key = (f"img{i}", contrast, f"t{t + 1}", baseline, keep)
                    expected[key] = (pair.exp()[t] / pair.exp().sum()).item()
    assert 0 < len(expected) < 24 * SAMPLES  # the threshold leaves some out
    measured = frame.set_index(["sample", "contrast", "target", "baseline", "keep"])["relative"].to_dict()
    assert measured == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("preset", ["reference", "paper"])
def test_reference_draws_a_sigma_for_each_sample_and_call(model: rt.Model, tmp_path: Path, preset: str) -> None:
    """The same map under two names is two calls; only a fixed sigma gives both the same images."""
    twice = ["gradcam", rt.GradCAM(layer="4")]
    done = run(model, tmp_path, "mask", threshold=0.0, baselines=("blur",), preset=preset, methods=twice)
    first, second = (rows.reset_index(drop=True) for _, rows in done.to_frame().groupby("method"))
    assert first["replaced"].equals(second["replaced"])
    altered = first["replaced"] > 0
    assert altered.sum() > 20
    differ = (first["relative"] - second["relative"]).abs() > 1e-7
    assert differ[altered].all() if preset == "reference" else not differ.any()


def test_reference_does_not_shift_its_exponentials(model: rt.Model, tmp_path: Path) -> None:
    """Above 88 they overflow."""
    plain = run(model, tmp_path / "plain", "mask", threshold=0.0, preset="sound").to_frame()
    layers = copy.deepcopy(model.module)
    layers[6].bias.data += 200  # type: ignore[index, union-attr]
    shifted = rt.Model(layers, mean=model.inputs.mean, std=model.inputs.std, layer="4")
    strict = run(shifted, tmp_path / "sound", "mask", threshold=0.0, preset="sound").to_frame()
    assert strict["relative"].to_numpy() == pytest.approx(plain["relative"].to_numpy(), abs=1e-3)
    theirs = run(shifted, tmp_path / "theirs", "mask", threshold=0.0, preset="reference").to_frame()
    assert theirs["relative"].isna().all()


def test_presets_differ_in_their_threshold_and_grid() -> None:
    assert [Mask(preset=p).protocol.threshold for p in ("paper", "reference", "sound")] == [0.1, 0.4, 0.1]
    assert Mask(preset="reference").protocol.sigma == (10.0, 20.0)
    assert Mask(sigma=12.0).protocol.sigma == (12.0, 12.0)


# --------------------------------------------------------------------------------------------- the others
def test_sign_perturbation_equals_a_loop(model: rt.Model, tmp_path: Path) -> None:
    options = {"methods": ["gradient"], "contrasts": ["mean", "weighted"], "epsilon": 0.02}
    frame = run(model, tmp_path, "sign-perturbation", **options).to_frame()
    labels = images_and_labels()[1]
    weigh: dict[str, Callable[[Tensor], Tensor]] = {"mean": lambda s: s.mean(), "weighted": lambda s: s.logsumexp(0)}
    expected = {}
    for i, t in enumerate(labels):
        clean, y = one(i), forward(model, one(i))
        for contrast, steps in [(c, n) for c in weigh for n in (1, 2, 10)]:
            x = clean.clone()
            for _ in range(steps):
                x.requires_grad_()
                scores = model.logits(x.clone())[0]
                others = torch.cat([scores[:t], scores[t + 1 :]])
                (gradient,) = torch.autograd.grad(scores[t] - weigh[contrast](others), x)
                x = (x.detach() + 0.02 / steps * gradient.sign()).clamp(clean - 0.02, clean + 0.02).clamp(0, 1)
            after = forward(model, x)
            right = float(after.argmax() == t) - float(y.argmax() == t)
            gained = (after.softmax(0)[t] - y.softmax(0)[t]).item()
            expected[f"img{i}", contrast, steps] = ((after[t] - y[t]).item(), gained, right)
    frame = frame.set_index(["sample", "contrast", "iterations"])
    for column, measure in enumerate(("logit", "probability", "accuracy")):
        assert frame[measure].to_dict() == pytest.approx({k: v[column] for k, v in expected.items()}, abs=1e-4)


@pytest.mark.parametrize("baseline", ["model-mean", "blur"])
def test_confidence_drop_equals_a_loop(model: rt.Model, tmp_path: Path, baseline: str) -> None:
    frame = run(model, tmp_path, "confidence-drop", share=0.1, baseline=baseline).to_frame()
    expected = {}
    for i in range(SAMPLES):
        image, y = one(i), forward(model, one(i))
        p, q = y.topk(2).indices.tolist()
        for contrast in ("none", "weighted"):
            phi = pixels_of(model, image, p, contrast, corners=False, foil=q).flatten()
            gone = torch.zeros(SIDE * SIDE, dtype=torch.bool)
            gone[phi.argsort(descending=True)[: round(0.1 * SIDE * SIDE)]] = True
            z = forward(
                model, torch.where(gone.view(SIDE, SIDE), replaced_by_hand(model, image, baseline, 15.0), image)
            )
            before, after = (v[[p, q]].softmax(0)[0].item() for v in (y, z))
            lost = (y.softmax(0) - z.softmax(0))[[p, q]].tolist()
            expected[f"img{i}", contrast] = ((before - after) / before, *lost)
    frame = frame.set_index(["sample", "contrast"])
    for column, measure in enumerate(("drop", "fact_drop", "foil_drop")):
        assert frame[measure].to_dict() == pytest.approx({k: v[column] for k, v in expected.items()}, abs=1e-5)


@pytest.mark.parametrize("name", ["deletion", "insertion"])
@pytest.mark.parametrize("foil", ["runner-up", "others"])
def test_deletion_and_insertion_equal_a_loop(model: rt.Model, tmp_path: Path, name: str, foil: str) -> None:
    frame = run(model, tmp_path, name, steps=5, foil=foil).to_frame().set_index(["sample", "contrast"])
    baseline = {"deletion": "model-mean", "insertion": "blur"}[name]
    expected = {}
    for i in range(SAMPLES):
        image, y = one(i), forward(model, one(i))
        p, q = y.topk(2).indices.tolist()
        target = {"foil": q} if foil == "runner-up" else {}
        foils = [q] if foil == "runner-up" else [k for k in range(CLASSES) if k != p]
        for contrast in ("none", "weighted"):
            order = pixels_of(model, image, p, contrast, corners=False, **target).flatten().argsort(descending=True)
            curve = []
            for step in range(6):
                top = torch.zeros(SIDE * SIDE, dtype=torch.bool)
                top[order[: round(step * SIDE * SIDE / 5)]] = True
                away = top if name == "deletion" else ~top
                z = forward(
                    model, torch.where(away.view(SIDE, SIDE), replaced_by_hand(model, image, baseline, 15.0), image)
                )
                curve.append((z[p] - z[foils].logsumexp(0)).item())
            expected[f"img{i}", contrast] = np.trapezoid(curve) / 5
    assert frame["area"].to_dict() == pytest.approx(expected, abs=1e-4)


def test_sanity_compares_classes_and_randomises_from_the_top(model: rt.Model, tmp_path: Path) -> None:
    weights = {name: each.clone() for name, each in model.module.state_dict().items()}
    frame = run(model, tmp_path, "sanity", stages=3).to_frame().set_index(["sample", "contrast", "check", "randomised"])
    assert all(torch.equal(each, weights[name]) for name, each in model.module.state_dict().items())
    for i in range(SAMPLES):
        t1, t2 = forward(model, one(i)).topk(2).indices.tolist()
        for contrast in ("none", "weighted"):
            first, second = (rt.explain(model, one(i), t, contrast=contrast).attribution for t in (t1, t2))
            expected = spearmanr(first.flatten(), second.flatten()).statistic
            assert frame["correlation"][f"img{i}", contrast, "swap", 0.0] == pytest.approx(expected, abs=1e-6)
    assert sorted(set(frame.index.get_level_values("randomised"))) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    cascade = frame["correlation"].xs("cascade", level="check").abs().groupby("randomised").mean()
    assert (cascade < 0.9).all()  # a map of random weights is another map


class Weights:
    """The weights with which a network, or a copy of it, runs, in the order in which they are first seen."""

    def __init__(self, module: nn.Module) -> None:
        self.seen: list[dict[str, Tensor]] = []
        module.register_forward_pre_hook(self.note)

    def __deepcopy__(self, memo: object) -> Weights:
        return self

    def note(self, module: nn.Module, inputs: object) -> None:
        now = {name: each.clone() for name, each in module.state_dict().items()}
        if not any(all(torch.equal(now[name], before[name]) for name in now) for before in self.seen):
            self.seen.append(now)


def test_the_cascade_goes_from_the_last_layer_to_the_first(model: rt.Model, tmp_path: Path) -> None:
    layers = copy.deepcopy(model.module)
    weights = Weights(layers)
    frame = run(rt.Model(layers, layer="4"), tmp_path, "sanity", stages=3).to_frame()
    assert (frame["check"] == "cascade").sum() == 3 * 2 * SAMPLES
    intact, *stages = weights.seen[:4]
    for stage, randomised in zip(stages, ({"6"}, {"6", "3"}, {"6", "3", "0"}), strict=True):
        assert {name.split(".")[0] for name in intact if not torch.equal(intact[name], stage[name])} == randomised
    for name in ("6.weight", "3.weight"):  # draws from a normal distribution with the mean and spread of the tensor
        before, after = intact[name], stages[-1][name]
        assert after.std() == pytest.approx(before.std().item(), rel=0.15)
        assert after.mean() == pytest.approx(before.mean().item(), abs=4 * before.std().item() / before.numel() ** 0.5)
        assert abs(np.corrcoef(before.flatten(), after.flatten())[0, 1]) < 0.2


class Shifted(nn.Module):
    """Adds a learnt constant to each score."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([0.1, -0.2, 0.05]))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


def test_the_cascade_leaves_maps_alone_where_they_do_not_depend_on_weights(tmp_path: Path) -> None:
    """Each class is one channel's mean, so Grad-CAM is the channel itself whatever the bias of the head."""
    module = nn.Sequential(nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Shifted())
    weights = Weights(module)
    frame = run(rt.Model(module, layer="0"), tmp_path, "sanity", stages=1, contrasts=["none"]).to_frame()
    assert len(weights.seen) >= 2  # something was randomised
    kept = frame[frame["check"] == "cascade"]["correlation"]
    assert len(kept) == SAMPLES
    assert kept.to_numpy() == pytest.approx(1.0)


def test_localisation_equals_a_loop(model: rt.Model, tmp_path: Path) -> None:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[2:7, 3:9] = True
    regions = {"img1": mask, "img4": [[3 / SIDE, 2 / SIDE, 9 / SIDE, 7 / SIDE]]}
    frame = run(model, tmp_path, "localisation", regions=regions, target="predicted").to_frame()
    assert sorted(set(frame["sample"])) == ["img1", "img4"]
    for row in frame.to_dict("records"):
        image = one(row["position"])
        fact = int(forward(model, image).argmax())
        phi = pixels_of(model, image, fact, row["contrast"], corners=False).numpy()
        gain = np.maximum(phi, 0)
        assert row["inside"] == pytest.approx(gain[mask].sum() / gain.sum(), abs=1e-5)
        assert row["pointing"] == mask.flat[phi.argmax()]
        assert row["region"] == pytest.approx(mask.mean())


# --------------------------------------------------------------------------------------------- tables
def test_summary_gives_means_and_intervals_of_the_samples(model: rt.Model, tmp_path: Path) -> None:
    done = run(model, tmp_path, "deletion")
    frame, summary = done.to_frame(), done.summary()
    row = summary[(summary["measure"] == "area") & (summary["contrast"] == "weighted")].iloc[0]
    values = frame[frame["contrast"] == "weighted"]["area"].to_numpy()
    random = np.random.default_rng(7)
    drawn = [random.choice(values, len(values)).mean() for _ in range(4000)]
    spread = values.std() / math.sqrt(len(values))
    assert row["mean"] == pytest.approx(values.mean())
    assert [row["low"], row["high"]] == pytest.approx(np.quantile(drawn, [0.025, 0.975]).tolist(), abs=0.25 * spread)
    difference = done.difference().query("measure == 'area'").iloc[0]
    other = frame[frame["contrast"] == "none"]["area"].to_numpy()
    assert difference["mean"] == pytest.approx((values - other).mean())
    drawn = [random.choice(values - other, len(values)).mean() for _ in range(4000)]
    spread = (values - other).std() / math.sqrt(len(values))
    assert difference["low"] == pytest.approx(np.quantile(drawn, 0.025), abs=0.25 * spread)


def test_undefined_values_are_left_out_and_counted(tmp_path: Path) -> None:
    class Sometimes(Experiment):
        name, measures, reads_labels = "sometimes", ("value",), False

        def measure(self, batch: Any) -> Any:
            values = torch.tensor([float("nan") if p == 2 else float(p) for p in batch.positions])
            yield batch.rows("gradcam", "none", value=values)

    row = evaluate(Sometimes(), nn.Flatten(), dataset(), out=tmp_path, methods=["gradient"]).summary().iloc[0]
    assert (row["mean"], row["n"]) == (pytest.approx((0 + 1 + 3 + 4 + 5 + 6) / 6), 6)


def test_tables_have_the_layout_of_the_paper(model: rt.Model, tmp_path: Path) -> None:
    done = run(model, tmp_path, "mask", methods=["gradcam", "la"], threshold=0.0)
    head, _, *lines = done.to_markdown().splitlines()
    cells = [cell.strip() for cell in head.strip("|").split("|")]
    assert cells[:5] == ["method", "target", "before", "blur positive original", "blur positive weighted"]
    assert cells[5] == "blur negative original"
    assert [line.split(" | ")[:2] for line in lines[:2]] == [["| Grad-CAM", "t1"], ["| Grad-CAM", "t2"]]
    summary = done.summary().set_index(["method", "contrast", "target", "baseline", "keep", "measure"])["mean"]
    want = [f"{summary['gradcam', c, 't1', 'blur', 'positive', 'relative']:.3f}" for c in ("none", "weighted")]
    found = [cell.split(" (")[0].strip("* ") for cell in lines[0].strip("|").split("|")][3:5]
    assert found == want
    apart = done.difference().set_index(["method", "target", "baseline", "keep", "measure"])[["low", "high"]]
    for keep, columns, sign in (("positive", slice(3, 5), 1), ("negative", slice(5, 7), -1)):
        low, high = sorted(sign * apart.loc[("gradcam", "t1", "blur", keep, "relative")])
        bold = ["**" in cell for cell in lines[0].strip("|").split("|")[columns]]
        assert bold == [high < 0, low > 0]
    latex = done.to_latex()
    assert r"\multicolumn{2}{c}{positive}" in latex
    assert want[0] in latex
    assert len(done.plot().axes) == 2


def test_what_cannot_be_done_is_said(model: rt.Model, tmp_path: Path) -> None:
    assert {"mask", "equal-mask", "sign-perturbation", "sanity", "localisation"} <= set(experiments())
    with pytest.raises(rt.InputError, match="did you mean 'mask'"):
        run(model, tmp_path, "masks")
    with pytest.raises(rt.InputError, match="setting of mask 'presett'"):
        run(model, tmp_path, "mask", presett="paper")
    with pytest.raises(rt.UnsupportedError, match="map of the image"):
        run(model, tmp_path, "sign-perturbation")
    with pytest.raises(rt.InputError, match="regions"):
        run(model, tmp_path, "localisation")
    for damaged in (b"[" * 100_000, b"\xff", b"{"):
        (tmp_path / "regions.json").write_bytes(damaged)
        with pytest.raises(rt.InputError, match="regions: cannot read"):
            rt.Localisation(tmp_path / "regions.json")
    nobody = run(model, tmp_path, "mask", threshold=0.9)
    with pytest.raises(rt.InputError, match="not one sample took part"):
        nobody.summary()


class Viewing(nn.Module):
    """A network that only takes images whose channels come first in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * (SIDE - 2) ** 2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.convolution(x).view(len(x), -1))


def test_a_network_that_views_its_tensors_is_fed_as_it_needs(tmp_path: Path) -> None:
    done = evaluate("mask", rt.Model(Viewing(), layer="convolution"), dataset(), out=tmp_path, threshold=0.0)
    assert done.to_frame()["relative"].between(0, 1).all()
