"""Occlusion, prediction difference, LIME and scan: closed forms, brute force, Captum."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import Lime as CaptumLime
from captum.attr import Occlusion as CaptumOcclusion
from torch import Tensor, nn

import ratherthan as rt
from nets import Counter, Dense, Linear, Pooled, images, make
from ratherthan import PatchGaussian, Superpixels, get_contrast, resolve, segment
from ratherthan.attribution.perturbation import ridge

CLASSES = 5
WEIGHTS = [step / 200 for step in range(1, 401)]  # .005, .010 ... 2.000
CONTRASTS = ["none", "mean", "max", "weighted", "probability", "loss"]
GRID = Superpixels("grid", 9)
DATA = torch.rand(20, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
METHODS: dict[str, Any] = {
    "occlusion": rt.Occlusion(size=5, stride=3),
    "occlusion live": rt.Occlusion(size=5, stride=3, foil_weights="live"),
    "pda conditional": rt.PredictionDifference(DATA, window=3, pad=1, samples=2, stride=2),
    "pda marginal": rt.PredictionDifference(
        DATA, sampling="marginal", window=3, samples=2, stride=3, foil_weights="live"
    ),
    "pda alone": rt.PredictionDifference(window=3, samples=2, stride=3, evidence="probability"),
    "lime": rt.Lime(superpixels=GRID, samples=40),
    "lime live": rt.Lime(superpixels=GRID, samples=40, foil_weights="live", distance="euclidean", kernel_width=3.0),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


class Toy(nn.Module):
    """A small nonlinear network on 3 x 4 grey pixels, float64."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, classes))

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.body(x)


@pytest.fixture
def toy() -> tuple[nn.Module, Tensor]:
    return Toy().double().eval(), torch.rand(2, 1, 3, 4, dtype=torch.float64)


# --------------------------------------------------------------------------------------------- occlusion
@pytest.mark.parametrize("contrast", CONTRASTS)
@pytest.mark.parametrize("foil", [None, 2, "each"])
def test_occlusion_of_a_linear_model_has_a_closed_form(contrast: str, foil: object) -> None:
    model, x = make(lambda: Linear(432, CLASSES)), images()
    logits = model.module(x)
    question = resolve(logits, 1, foil)
    weight = model.module.head.weight.view(CLASSES, 3, 12, 12)  # type: ignore[union-attr, operator]
    removed = x - x.mean((-2, -1), keepdim=True)
    pixels = torch.einsum("nqk,kchw,nchw->nqhw", get_contrast(contrast).seed(logits, question), weight, removed)
    expected, held = torch.zeros_like(pixels), torch.zeros(12, 12, dtype=torch.float64)
    for top, left in product(range(0, 12, 3), repeat=2):  # windows of 5: the last ones reach over the border
        if top <= 9 and left <= 9:
            window = (..., slice(top, top + 5), slice(left, left + 5))
            expected[window] += pixels[window].sum((-2, -1), keepdim=True)
            held[window[1:]] += 1
    found = rt.explain(model, x, 1, foil, rt.Occlusion(size=5, stride=3), contrast).attribution
    expected = (expected / held).detach().unsqueeze(2)
    close(found, expected if question.axis else expected.squeeze(1))


@pytest.mark.parametrize(("size", "stride"), [(5, 3), (4, 4), ((3, 6), (2, 5)), (12, 12), (1, 1)])
def test_occlusion_equals_captum(size: Any, stride: Any) -> None:
    model, x = make(Dense), images()
    height, width = size if isinstance(size, tuple) else (size, size)
    down, across = stride if isinstance(stride, tuple) else (stride, stride)
    captum = CaptumOcclusion(model.module)
    expected = [
        captum.attribute(x, (3, height, width), (3, down, across), 0.2, c)[:, :1].detach().double() for c in (1, 3)
    ]
    method = rt.Occlusion(size=size, stride=stride, baseline=0.2)
    close(rt.explain(model, x, [1, 3], None, method, "none").attribution, torch.stack(expected, 1), 1e-6)
    close(rt.explain(model, x, 1, 3, method, "weighted").attribution, expected[0] - expected[1], 1e-6)


@pytest.mark.parametrize(
    ("sides", "size", "stride"),
    [((12, 12), (1, 1), (1, 1)), ((32, 32), (4, 4), (2, 2)), ((16, 40), (2, 5), (1, 2)), ((7, 25), (1, 3), (1, 1))],
)
def test_windows_are_an_eighth_of_the_image_and_move_by_half(
    sides: tuple[int, int], size: tuple[int, int], stride: tuple[int, int]
) -> None:
    model = rt.Model(Linear(3 * sides[0] * sides[1], CLASSES).double())
    x = torch.rand(2, 3, *sides, dtype=torch.float64)
    by_default, by_hand = (
        rt.explain(model, x, 1, method=m).attribution for m in ("occlusion", rt.Occlusion(size, stride))
    )
    close(by_default, by_hand)


def test_live_weights_follow_the_network() -> None:
    model, x = make(Dense), images(1)
    contrast, question = get_contrast("weighted"), resolve(model.logits(x), 1, None)
    half = x.clone()
    half[..., :6, :] = 0.5
    drop = contrast.scalar(model.logits(x), question) - contrast.scalar(model.logits(half), question)
    live = rt.explain(model, x, 1, None, rt.Occlusion(size=(6, 12), stride=(6, 12), baseline=0.5, foil_weights="live"))
    frozen = rt.explain(model, x, 1, None, rt.Occlusion(size=(6, 12), stride=(6, 12), baseline=0.5))
    close(live.attribution[0, 0, :6], drop.detach().expand(6, 12))
    assert (live.attribution - frozen.attribution).abs().max() > 1e-6


def test_occlusion_of_a_single_class_is_not_constant() -> None:
    found = rt.explain(make(Pooled), images(), 2, None, "occlusion", "none").attribution
    assert found.flatten(1).std(1).min() > 1e-4


def test_baselines_may_be_images() -> None:
    model, x = make(Dense), images(2)
    image = torch.full((3, 12, 12), 0.2, dtype=torch.float64)
    by_image, by_number = (
        rt.explain(model, x, method=rt.Occlusion(baseline=each)).attribution for each in (image, 0.2)
    )
    close(by_image, by_number)


# --------------------------------------------------------------------------------------------- prediction difference
def chain(length: int, correlation: float) -> tuple[Tensor, Tensor]:
    """Covariance and precision of a stationary Markov chain of unit variance, both in closed form."""
    steps = torch.arange(length, dtype=torch.float64)
    covariance = correlation ** (steps[:, None] - steps).abs()
    diagonal = torch.full((length,), 1 + correlation**2, dtype=torch.float64)
    diagonal[[0, -1]] = 1.0
    beside = torch.full((length - 1,), -correlation, dtype=torch.float64)
    precision = torch.diag(diagonal) + torch.diag(beside, 1) + torch.diag(beside, -1)
    return covariance, precision / (1 - correlation**2)


def log2_odds(p: Tensor, n: int) -> Tensor:
    smooth = (p * n + 1) / (n + p.shape[-1])
    return (smooth / (1 - smooth)).log2()


def known_patches() -> tuple[PatchGaussian, Tensor]:
    """Patches of 3 x 3 whose rows and columns are Markov chains, and their precision."""
    (rows, rows_inverse), (columns, columns_inverse) = chain(3, 0.7), chain(3, 0.4)
    covariance, precision = 0.09 * torch.kron(rows, columns), torch.kron(rows_inverse, columns_inverse) / 0.09
    bounds = torch.tensor([0.0], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    return PatchGaussian(torch.full((1, 9), 0.5, dtype=torch.float64), covariance[None], *bounds), precision


def pixel_by_pixel(net: nn.Module, x: Tensor, precision: Tensor, samples: int, seed: int) -> Tensor:
    """Mean probabilities with each of 12 pixels drawn given its 3 x 3 neighbourhood, one network call a draw."""
    means = []
    for pixel, (row, column) in enumerate(product(range(3), range(4))):
        left = min(max(column - 1, 0), 1)  # the patch is moved to lie inside the image; it always holds all three rows
        patch = x[0, 0, :, left : left + 3].flatten() - 0.5
        i = 3 * row + column - left
        others = [j for j in range(9) if j != i]
        centre = 0.5 - (precision[i, others] @ patch[others]) / precision[i, i]
        noise = np.random.Generator(np.random.Philox(key=[seed, pixel])).standard_normal(samples)
        draws = []
        for z in noise:
            altered = x.clone()
            altered[0, 0, row, column] = (centre + z / precision[i, i].sqrt()).clamp(0, 1)
            draws.append(net(altered).softmax(1)[0])
        means.append(torch.stack(draws).mean(0))
    return torch.stack(means).detach()


def test_prediction_difference_equals_brute_force_on_twelve_pixels(toy: tuple[nn.Module, Tensor]) -> None:
    net, x = toy
    patches, precision = known_patches()
    method = rt.PredictionDifference(patches, window=1, pad=1, samples=6, seed=7, training_samples=500)
    found = rt.explain(net, x, "each", None, method, "none").attribution
    by_probability = dataclasses.replace(method, evidence="probability")
    found_probability = rt.explain(net, x, "each", None, by_probability, "none").attribution
    for n in range(2):
        p, p_bar = net(x[n : n + 1]).softmax(1).detach(), pixel_by_pixel(net, x[n : n + 1], precision, 6, 7)
        close(found[n].reshape(3, 12).T, log2_odds(p, 500) - log2_odds(p_bar, 500))
        close(found_probability[n].reshape(3, 12).T, p - p_bar)


def test_prediction_difference_of_a_contrast_is_its_scalar_on_averaged_probabilities(
    toy: tuple[nn.Module, Tensor],
) -> None:
    net, x = toy
    x = x[:1]
    patches, precision = known_patches()
    method = rt.PredictionDifference(patches, window=1, pad=1, samples=4, foil_weights="live", training_samples=500)
    p, p_bar = ((q * 500 + 1) / 503 for q in (net(x).softmax(1), pixel_by_pixel(net, x, precision, 4, 0)))
    for contrast, expected in {
        "weighted": (p[:, 1] / (1 - p[:, 1])).log2() - (p_bar[:, 1] / (1 - p_bar[:, 1])).log2(),
        "max": (p[:, 1] / p[:, ::2].amax(1)).log2() - (p_bar[:, 1] / p_bar[:, ::2].amax(1)).log2(),
        "loss": (p_bar[:, ::2].log2().mean(1)) - p[:, ::2].log2().mean(1),
    }.items():
        close(rt.explain(net, x, 1, None, method, contrast).attribution.flatten(), expected.detach())
    frozen = rt.explain(net, x, 1, 2, dataclasses.replace(method, foil_weights="frozen"), "weighted").attribution
    close(frozen.flatten(), ((p[:, 1] / p[:, 2]).log2() - (p_bar[:, 1] / p_bar[:, 2]).log2()).detach())


@pytest.mark.parametrize("given", [True, False])
def test_marginal_windows_come_from_the_data_or_from_the_image(toy: tuple[nn.Module, Tensor], given: bool) -> None:
    net, x = toy
    pool = torch.rand(5, 1, 3, 4, dtype=torch.float64)
    expected, held = torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.float64)
    p = net(x[:1]).softmax(1)
    for window, (top, left) in enumerate(product(range(2), range(3))):
        noise, draws = np.random.Generator(np.random.Philox(key=[3, window])), []
        picked = noise.integers(5, size=4).tolist() if given else noise.integers((2, 3), size=(4, 2)).tolist()
        for pick in picked:
            altered = x[:1].clone()
            row, column = (top, left) if given else pick
            source = pool[pick] if given else x[0]
            altered[0, :, top : top + 2, left : left + 2] = source[:, row : row + 2, column : column + 2]
            draws.append(net(altered).softmax(1))
        difference = log2_odds(p, 1_000_000) - log2_odds(torch.stack(draws).mean(0), 1_000_000)
        expected[top : top + 2, left : left + 2] += difference[0, 2].detach()
        held[top : top + 2, left : left + 2] += 1
    settings: dict[str, Any] = {"patches": pool, "sampling": "marginal"} if given else {}
    method = rt.PredictionDifference(**settings, window=2, samples=4, seed=3)
    close(rt.explain(net, x[:1], 2, None, method, "none").attribution[0, 0], expected / held)


def test_patches_are_fitted_and_conditioned_as_numpy_does() -> None:
    gaussian = PatchGaussian.fit(DATA[:2], 3)
    patches = torch.nn.functional.unfold(DATA[:2, 1:2], 3).movedim(1, 0).flatten(1).numpy()
    close(gaussian.covariance[1], torch.from_numpy(np.cov(patches)))
    close(gaussian.mean[1], torch.from_numpy(patches.mean(1)))
    close(gaussian.high, DATA[:2].amax((0, 2, 3)))
    inside = torch.zeros(9, dtype=torch.bool)
    inside[[4, 5]] = True
    gain, root = gaussian.given_surround(inside)
    precision = gaussian.covariance[1].inverse()
    close(root[1] @ root[1], precision[inside][:, inside].inverse(), 1e-8)
    close(gain[1], -precision[inside][:, inside].inverse() @ precision[inside][:, ~inside], 1e-8)


def test_pixels_that_never_vary_stay_as_they_are() -> None:
    flat = DATA.clone()
    flat[:, :, :, 6:] = 0.25
    method = rt.PredictionDifference(flat, window=2, pad=1, samples=3)
    x = images(1)
    x[:, :, :, 6:] = 0.25
    assert rt.explain(make(Dense), x, method=method).attribution.isfinite().all()


def test_regressors_are_contrasted_by_their_value() -> None:
    model = make(lambda: Linear(432, 1), output="value")
    method = rt.PredictionDifference(DATA, sampling="marginal", window=12, samples=3)
    x = images(1)
    mean = model.module(DATA[np.random.Generator(np.random.Philox(key=[0, 0])).integers(20, size=3)]).mean()
    found = rt.explain(model, x, None, 0.3, dataclasses.replace(method, foil_weights="live"), "loss").attribution
    expected = (model.module(x).squeeze() - 0.3).square() - (mean - 0.3).square()
    close(found, expected.detach().expand(1, 1, 12, 12))


# --------------------------------------------------------------------------------------------- LIME
@pytest.mark.parametrize("contrast", CONTRASTS)
def test_lime_of_a_linear_model_has_a_closed_form(contrast: str) -> None:
    model, x = make(lambda: Linear(432, CLASSES)), images()
    logits, cells = model.module(x), segment(x, GRID)
    question = resolve(logits, 1, "each")
    weight = model.module.head.weight.view(CLASSES, 3, 12, 12)  # type: ignore[union-attr, operator]
    pixels = torch.einsum("nqk,kchw,nchw->nqhw", get_contrast(contrast).seed(logits, question), weight, x - 0.2)
    sums = torch.zeros(3, CLASSES, 9, dtype=torch.float64).index_add_(2, cells[0].flatten(), pixels.detach().flatten(2))
    why = rt.explain(model, x, 1, "each", rt.Lime(superpixels=GRID, samples=200, baseline=0.2, alpha=0), contrast)
    close(why.attribution, sums[..., cells[0]].unsqueeze(2), 1e-8)
    close(why.diagnostics["r2"], torch.ones(3, CLASSES, dtype=torch.float64))


def test_lime_with_every_mask_equals_brute_force_on_twelve_pixels(toy: tuple[nn.Module, Tensor]) -> None:
    net, x = toy
    x = x[:1]
    shown = np.array(list(product([0.0, 1.0], repeat=12)))
    pixels = shown * x.flatten().numpy()
    targets = net(torch.from_numpy(pixels).view(-1, 1, 3, 4)).detach().numpy()
    lengths = np.linalg.norm(pixels, axis=1) * np.linalg.norm(x)
    cosine = (pixels @ x.flatten().numpy()) / np.maximum(lengths, 1e-300)
    root = np.exp(-0.25 * ((1 - cosine) / 0.25) ** 2)[:, None]
    design = np.concatenate([shown, np.ones((4096, 1))], 1)
    penalty = 0.7 * np.diag([1.0] * 12 + [0.0])
    normal = (root * design).T @ (root * design) + penalty
    expected = np.linalg.solve(normal, (root * design).T @ (root * targets))[:12]
    method = rt.Lime(superpixels="pixels", samples="all", baseline=0.0, alpha=0.7, kernel_width=0.25)
    found = rt.explain(net, x, "each", None, method, "none").attribution[0].reshape(3, 12).T
    close(found, torch.from_numpy(expected), 1e-8)


def test_lime_equals_captum_called_for_each_class() -> None:
    from captum._utils.models.linear_model import SkLearnRidge

    model, x = make(Dense, torch.float32), images(1, torch.float32)
    method = rt.Lime(superpixels=GRID, samples=60, baseline=0.1, alpha=0.5)

    def same_masks(original: Tensor, **settings: Any) -> Iterator[Tensor]:
        yield from method.masks(9).split(1)

    captum = CaptumLime(model.module, SkLearnRidge(alpha=0.5), perturb_func=same_masks)
    cells = segment(x, GRID)[:, None]
    found = rt.explain(model, x, "each", None, method, "none").attribution[0]
    for c in range(CLASSES):
        expected = captum.attribute(x, 0.1, c, feature_mask=cells, n_samples=60, perturbations_per_eval=7)
        close(found[c], expected[0, :1], 1e-5)


def test_ridge_equals_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y, w = torch.randn(30, 4).double(), torch.randn(30, 3).double(), torch.rand(30).double()
    reference = linear_model.Ridge(alpha=0.3).fit(x.numpy(), y.numpy(), sample_weight=w.numpy())
    found, quality = ridge(x, y, w, 0.3)
    close(found, torch.from_numpy(reference.coef_).T)
    score = linear_model.Ridge(alpha=0.3).fit(x.numpy(), y[:, 0].numpy(), w.numpy()).score(x.numpy(), y[:, 0], w)
    assert quality[0].item() == pytest.approx(score)


# --------------------------------------------------------------------------------------------- every method
@every_method
@pytest.mark.parametrize("contrast", [*CONTRASTS, "scan"])
def test_a_batch_is_its_images_one_by_one(method: Any, contrast: str) -> None:
    model, x = make(Dense), images()
    foil = None
    if contrast == "scan":
        foil, method, contrast = "runner-up", rt.Scan(method), "weighted"
    together = rt.explain(model, x, None, foil, method, contrast)
    alone = [rt.explain(model, x[n : n + 1], None, foil, method, contrast).attribution for n in range(3)]
    close(together.attribution, torch.cat(alone))
    assert together.attribution.abs().amax((1, 2, 3)).min() > 0 or isinstance(method, rt.Scan)


@every_method
def test_passes_change_nothing_but_memory(method: Any) -> None:
    model, x = make(Dense), images()
    whole = rt.explain(model, x, None, "each", method)
    parts = rt.explain(model, x, None, "each", dataclasses.replace(method, batch_size=7), memory_budget=1)
    close(parts.attribution, whole.attribution)


@every_method
def test_many_foils_and_contrasts_cost_the_forward_passes_of_one(method: Any) -> None:
    model, x = make(Dense), images(1)
    with Counter(model) as one:
        rt.explain(model, x, 1, 2, method)
    with Counter(model) as all_of_them:
        each, *_ = rt.compare(model, x, 1, [0, 2, 4], [method], ["weighted", "none", "loss"])
    assert all_of_them.images == one.images
    for q, foil in enumerate([0, 2, 4]):
        close(each.attribution[:, q], rt.explain(model, x, 1, foil, method).attribution)


@every_method
def test_two_classes_leave_one_contrast(method: Any) -> None:
    model, x = make(lambda: Dense(2)), images()
    mean, most, weighted = rt.compare(model, x, None, None, [method], ["mean", "max", "weighted"])
    close(mean.attribution, weighted.attribution)
    close(most.attribution, weighted.attribution)
    swapped = rt.explain(model, x, 1 - weighted.fact, None, method)
    close(swapped.attribution, -weighted.attribution)


@every_method
def test_nothing_is_left_behind(method: Any) -> None:
    model, x = make(Dense), images()
    model.module.tail.train()  # type: ignore[operator, union-attr]
    flags, before = (
        [m.training for m in model.module.modules()],
        {k: v.clone() for k, v in vars(method).items() if isinstance(v, Tensor)},
    )
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    given = x.clone()
    rt.explain(model, x, None, "runner-up", rt.Scan(method))
    with pytest.raises(rt.InputError):
        rt.explain(model, x, None, None, rt.Scan(method))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]
    assert [m.training for m in model.module.modules()] == flags
    assert all(p.grad is None for p in model.module.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())
    assert torch.equal(x, given)
    assert all(torch.equal(vars(method)[k], v) for k, v in before.items())


@every_method
def test_results_can_be_saved(method: Any, tmp_path: Any) -> None:
    why = rt.explain(make(Dense), images(), None, None, method)
    close(rt.Explanation.load(why.save(tmp_path / "why.safetensors")).attribution, why.attribution)
    assert why.heatmap().shape == (3, 12, 12)


def test_noise_follows_the_seed() -> None:
    model, x = make(Dense), images(1)
    for method in (METHODS["pda conditional"], METHODS["lime"]):
        first, again, other = (
            rt.explain(model, x, method=dataclasses.replace(method, seed=seed)).attribution for seed in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert not torch.allclose(first, other)


# --------------------------------------------------------------------------------------------- scan
@pytest.mark.parametrize("method", [rt.GradCAM("features"), METHODS["lime"], rt.InputXGradient()], ids=lambda m: m.name)
def test_scan_equals_a_loop_over_the_weights(method: Any) -> None:
    model, x = make(Pooled), images(4)[2:]
    why = rt.explain(model, x, None, [0, 3], rt.Scan(method))
    before = model.logits(x).softmax(1)
    kept_somewhere = 0
    for n, (q, foil) in product(range(2), enumerate([0, 3])):
        fact = int(why.fact[n, q])
        plain = [rt.explain(model, x[n : n + 1], c, None, method, "none") for c in (fact, foil)]
        planes = [each.heatmap()[0] for each in plain]
        sizes = [plane.abs().max() for plane in planes]
        kept = []
        for w in WEIGHTS:
            evidence = (planes[0] / sizes[0] - w * planes[1] / sizes[1]).clamp_min(0)
            after = model.logits(x[n : n + 1] * (1 - evidence / evidence.max())).softmax(1)[0]
            if after[fact] < before[n, fact] and after[foil] > before[n, foil]:
                kept.append((plain[0].attribution / sizes[0] - w * plain[1].attribution / sizes[1])[0])
        expected = torch.stack(kept).mean(0) if kept else torch.zeros_like(why.attribution[n, q])
        close(why.attribution[n, q], expected)
        assert why.diagnostics["kept"][n, q] == len(kept)
        kept_somewhere += bool(kept)
    assert kept_somewhere


def test_scan_that_keeps_nothing_says_so() -> None:
    why = rt.explain(make(Pooled), images(2), 1, 1, rt.Scan(rt.GradCAM("features")))
    assert why.diagnostics["kept"].tolist() == [0, 0]
    assert not why.attribution.any()
    assert "zero" in why.diagnostics["scan"]


def test_scan_asks_for_a_single_foil() -> None:
    with pytest.raises(rt.InputError, match="one class at a time"):
        rt.explain(make(Pooled), images(), 1, {0, 2}, "scan")
    with pytest.raises(rt.InputError, match="in its own way"):
        rt.explain(make(Pooled), images(), 1, 2, "scan", "loss")


def test_scan_without_a_foil_is_the_plain_map() -> None:
    model, x = make(Pooled), images(2)
    close(
        rt.explain(model, x, 1, None, "scan", "none").attribution,
        rt.explain(model, x, 1, None, "gradcam", "none").attribution,
    )


# --------------------------------------------------------------------------------------------- LIME's distances
@pytest.mark.parametrize("width", [0.5, 3.0])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_lime_weighs_by_the_distance_between_images(distance: Any, width: float) -> None:
    """All 16 masks of four parts, weighted least squares by hand."""
    model, x = make(Dense), images(2)
    parts = torch.arange(12).div(6, rounding_mode="floor")
    parts = 2 * parts[:, None] + parts
    how = rt.Lime(superpixels=parts, samples="all", baseline=0.3, alpha=0.0, distance=distance, kernel_width=width)
    why = rt.explain(model, x, 1, 3, how, "mean")
    for n, image in enumerate(x):
        masks = np.array(list(product([0, 1], repeat=4)), dtype=float)
        shown = [torch.where(torch.tensor(mask)[parts] > 0, image, 0.3) for mask in masks]
        scores = np.array([(y[1] - y[3]).item() for y in model.logits(torch.stack(shown)).detach()])
        flat, whole = np.stack([each.numpy().ravel() for each in shown]), image.numpy().ravel()
        cosine = 1 - flat @ whole / (np.linalg.norm(flat, axis=1) * np.linalg.norm(whole))
        far = cosine if distance == "cosine" else np.linalg.norm(flat - whole, axis=1)
        root = np.exp(-(far**2) / (2 * width**2)) ** 0.5
        design = np.column_stack([np.ones(16), masks])
        solved = np.linalg.lstsq(design * root[:, None], scores * root, rcond=None)[0]
        expected = torch.tensor(solved[1:])[parts]
        close(why.attribution[n, 0], expected, 1e-5 * float(expected.abs().max()))


# --------------------------------------------------------------------------------------------- superpixels
@pytest.mark.parametrize("kind", ["slic", "quickshift", "felzenszwalb", "grid", "pixels"])
@pytest.mark.parametrize("channels", [1, 3])
def test_superpixels_cover_every_pixel(kind: Any, channels: int) -> None:
    x = torch.rand(2, channels, 17, 23)
    labels = segment(x, kind)
    assert labels.shape == (2, 17, 23)
    for each in labels:
        assert each.unique().tolist() == list(range(int(each.max()) + 1))
    if kind == "pixels":
        assert int(labels[0].max()) + 1 == 17 * 23
    assert torch.equal(labels, segment(x, kind))


@pytest.mark.parametrize(("count", "shape"), [(12, (3, 4)), (1, (1, 1)), (4, (2, 2))])
def test_a_grid_has_the_cells_asked_for(count: int, shape: tuple[int, int]) -> None:
    labels = segment(torch.rand(1, 3, 30, 40), Superpixels("grid", count))[0]
    assert int(labels.max()) + 1 == shape[0] * shape[1]
    assert (labels.flatten().bincount() >= 30 // shape[0] * (40 // shape[1])).all()


def test_label_maps_are_renumbered_or_refused() -> None:
    x = torch.rand(2, 3, 2, 3)
    labels = segment(x, torch.tensor([[1, 1, 7], [7, 3, 3]]))
    assert labels.tolist() == [[[0, 0, 2], [2, 1, 1]]] * 2
    for bad in (torch.zeros(3, 3).long(), torch.zeros(2, 3), torch.tensor([[0, 1, -1], [0, 0, 0]])):
        with pytest.raises(rt.InputError):
            segment(x, bad)


# --------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    "make_method",
    [
        lambda: rt.Occlusion(size=13),
        lambda: rt.Occlusion(size=3, stride=4),
        lambda: rt.Occlusion(baseline="grey"),  # type: ignore[arg-type]
        lambda: rt.Occlusion(baseline=torch.zeros(3, 5, 5)),
        lambda: rt.Occlusion(foil_weights="thawed"),  # type: ignore[arg-type]
        lambda: rt.Occlusion(batch_size=0),
        lambda: rt.PredictionDifference(sampling="conditional"),
        lambda: rt.PredictionDifference(DATA, window=9),
        lambda: rt.PredictionDifference(DATA[:, :1], window=3, stride=3),
        lambda: rt.PredictionDifference(DATA[:1, :, :2], window=1, pad=1),
        lambda: rt.PredictionDifference([], window=1, pad=1),
        lambda: rt.PredictionDifference(DATA[..., :6], sampling="marginal", window=3),
        lambda: rt.PredictionDifference(window=13),
        lambda: rt.PredictionDifference(stride=0),
        lambda: rt.PredictionDifference(known_patches()[0], window=3, pad=2),
        lambda: rt.PredictionDifference(evidence="probability", foil_weights="live"),
        lambda: rt.PredictionDifference(evidence="bits"),  # type: ignore[arg-type]
        lambda: rt.Lime(superpixels="voronoi"),  # type: ignore[arg-type]
        lambda: rt.Lime(superpixels="pixels", samples="all"),
        lambda: rt.Lime(samples=1),
        lambda: rt.Lime(alpha=-1),
        lambda: rt.Lime(superpixels=Superpixels("slic", settings={"colour": 1})),
    ],
)
def test_bad_settings_are_refused(make_method: Any) -> None:
    with pytest.raises(rt.InputError) as caught:
        rt.explain(make(Dense), images(), method=make_method())
    assert "\n" not in str(caught.value)


def test_networks_that_fail_on_altered_images_are_refused() -> None:
    class Divides(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / x.flatten(1).amin(1, keepdim=True)

    with pytest.raises(rt.ModelError, match="altered"):
        rt.explain(make(lambda: Divides(432, CLASSES)), images(), method=rt.Occlusion(baseline=0.0))
