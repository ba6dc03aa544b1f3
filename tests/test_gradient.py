"""SmoothGrad and integrated gradients against loops, Captum and the theorems they are built on."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients as CaptumIG
from torch import Tensor, nn

import ratherthan as rt
from nets import Counter, Dense, Residual, images, make
from ratherthan import Target, get_contrast, resolve


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


# --------------------------------------------------------------------------------------------- integrated gradients
def captum_ig(model: rt.Model, x: Tensor, contrast: str, weights: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """Captum's maps and deltas of the contrast as a scalar, image by image."""
    maps, deltas = [], []
    for each in x:
        logits = model.logits(each[None]).detach()
        target = Target(logits, resolve(logits, 1, {0, 3}), get_contrast(contrast))

        def scalar(altered: Tensor, target: Target = target) -> Tensor:
            return target.scalar(model.logits(altered).unsqueeze(1), weights)[:, 0, 0]

        map_, delta = CaptumIG(scalar).attribute(each[None], return_convergence_delta=True, **options)
        maps.append(map_)
        deltas.append(delta)
    return torch.cat(maps), torch.cat(deltas)


@pytest.mark.parametrize("weights", ["frozen", "live"])
@pytest.mark.parametrize("quadrature", ["gausslegendre", "riemann_left", "riemann_middle", "riemann_right"])
@pytest.mark.parametrize("contrast", ["weighted", "probability"])
def test_integrated_gradients_equal_captum(contrast: str, quadrature: Any, weights: Any) -> None:
    model, x = make(Dense, mean=[0.4] * 3, std=[0.2] * 3), images()
    baseline = torch.rand(3, 12, 12, dtype=torch.float64)
    for given, theirs in ((0.0, 0), (0.3, 0.3), (baseline, baseline[None])):
        ours = rt.IntegratedGradients(7, given, foil_weights=weights, quadrature=quadrature)
        why = rt.explain(model, x, 1, {0, 3}, ours, contrast)
        options = {"baselines": theirs, "n_steps": 7, "method": quadrature}
        expected, delta = captum_ig(model, x, contrast, weights, **options)
        assert expected.abs().max() > 1e-4
        close(why.attribution, expected, 1e-8)  # Captum rounds positions and weights to single precision
        close(why.diagnostics["convergence delta"], delta, 1e-6)


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_the_internal_batch_size_changes_passes_only(size: int) -> None:
    model, x = make(Residual), images()
    expected = rt.explain(model, x, 1, "each", rt.IntegratedGradients(6), "weighted")
    with Counter(model) as counter:
        parts = rt.IntegratedGradients(6, internal_batch_size=size)
        close(rt.explain(model, x, 1, "each", parts, "weighted").attribution, expected.attribution)
    # the images themselves, the points of the way, the baselines
    assert counter.passes == 1 + -(-18 // size) + -(-3 // size)
    assert counter.images == 3 + 18 + 3


def test_values_add_up_to_the_contrast_better_with_more_steps() -> None:
    model, x = make(Residual), images()
    missed = []
    for steps in (2, 16, 128):
        why = rt.explain(model, x, 1, [0, 2], rt.IntegratedGradients(steps, foil_weights="live"), "probability")
        start = model.logits(torch.zeros_like(x)).detach()
        gain = why.score - get_contrast("probability").scalar(start, resolve(start, 1, [0, 2]))
        close(why.diagnostics["convergence delta"], why.attribution.sum((2, 3, 4)) - gain)
        missed.append(why.diagnostics["convergence delta"].abs().max().item())
    assert missed[0] > missed[1] > missed[2]
    assert missed[2] < 1e-3


@pytest.mark.parametrize(("steps", "warned"), [(1, 2), (2, 0)])
def test_sums_that_miss_by_more_than_a_twentieth_are_warned_of(steps: int, warned: int) -> None:
    """Along the way the gradient of x^4 / 4 is a^3 x^3, whose mean is 1/4: one point in the middle gives 1/8, half."""

    class Fourth(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            powers = x.flatten(1).sum(1) ** 4 / 4
            return torch.stack([powers, 0 * powers], 1)

    x = torch.rand(2, 1, 2, 2, dtype=torch.float64) + 0.5
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        rt.explain(rt.Model(Fourth(), channels=1), x / 1.5, 0, contrast="none", method=rt.IntegratedGradients(steps))
    said = [str(each.message) for each in told if "maps of ig miss" in str(each.message)]
    assert [each.partition(" maps")[0] for each in said] == [f"{warned} of 2"] * bool(warned)


def test_frozen_and_live_weights_are_two_explanations() -> None:
    model, x = make(Dense), images()
    frozen, live = (rt.IntegratedGradients(20, foil_weights=w) for w in ("frozen", "live"))  # type: ignore[arg-type]
    a, b = (rt.explain(model, x, 1, None, ig, "weighted").attribution for ig in (frozen, live))
    assert (a - b).abs().max() > 1e-3 * a.abs().max()
    for contrast in ("none", "mean"):  # no weights to hold
        a, b = (rt.explain(model, x, 1, None, ig, contrast).attribution for ig in (frozen, live))
        close(a, b)


def test_values_are_contrasted_along_the_way() -> None:
    model = make(lambda: Dense(1), output="value")
    x = images()
    ig = rt.IntegratedGradients(64, foil_weights="live")
    why = rt.explain(model, x, foil=[0.75, -0.5], method=ig)
    start, end = (model.logits(each).detach() for each in (torch.zeros_like(x), x))
    for q, value in enumerate((0.75, -0.5)):
        gain = ((end - value) ** 2 - (start - value) ** 2)[:, 0]
        torch.testing.assert_close(why.attribution[:, q].sum((1, 2, 3)), gain, atol=1e-3, rtol=1e-2)


# --------------------------------------------------------------------------------------------- SmoothGrad
@pytest.mark.parametrize("weights", ["frozen", "live"])
def test_smoothgrad_equals_a_loop(weights: Any) -> None:
    model = make(Dense, mean=[0.4] * 3, std=[0.2] * 3)
    x = 0.25 + 0.5 * images()
    seeds = rt.explain(model, x, 1, 2).logits
    seeds = get_contrast("probability").seed(seeds, resolve(seeds, 1, 2))[:, 0]
    expected = torch.zeros_like(x)
    for i, each in enumerate(x):
        for draw in range(4):
            pattern = torch.from_numpy(np.random.default_rng([7, draw]).standard_normal((3, 12, 12)))
            noisy = (each + 0.2 * (each.max() - each.min()) * pattern)[None].requires_grad_()
            logits = model.logits(noisy)
            probability = (logits[0, 1] - logits[0, 2]).sigmoid()
            score = probability if weights == "live" else logits[0] @ seeds[i]
            expected[i] += torch.autograd.grad(score, noisy)[0][0] / 4
    ours = rt.SmoothGrad(4, 0.2, seed=7, foil_weights=weights)
    close(rt.explain(model, x, 1, 2, ours, "probability").attribution, expected)


def test_noise_follows_seed_and_range() -> None:
    model, x = make(Dense), images()
    maps = [rt.explain(model, x, 1, method=rt.SmoothGrad(3, seed=seed)).attribution for seed in (0, 0, 1)]
    assert torch.equal(maps[0], maps[1])
    assert not torch.allclose(maps[0], maps[2])
    flat = torch.full_like(x, 0.5)  # an image without a range has no noise
    close(
        rt.explain(model, flat, 1, method="smoothgrad").attribution,
        rt.explain(model, flat, 1, method="gradient").attribution,
    )
    still = rt.explain(model, x, 1, method=rt.SmoothGrad(3, noise=0.0)).attribution
    close(still, rt.explain(model, x, 1, method="gradient").attribution)


def test_all_foils_share_the_forward_passes() -> None:
    model, x = make(Dense), images()
    with Counter(model) as counter:
        rt.explain(model, x, 1, "each", rt.SmoothGrad(5))
    assert (counter.passes, counter.images) == (6, 18)


# --------------------------------------------------------------------------------------------- bad settings
@pytest.mark.parametrize(
    ("make_method", "message"),
    [
        (lambda: rt.SmoothGrad(0), "samples of smoothgrad is a whole number of at least 1, not 0"),
        (lambda: rt.SmoothGrad(noise=-1.0), "noise of smoothgrad is a number of at least 0"),
        (lambda: rt.SmoothGrad(seed=-1), "seed of smoothgrad is a whole number of at least 0"),
        (lambda: rt.SmoothGrad(foil_weights="thawed"), "unknown foil_weights of smoothgrad 'thawed'"),
        (lambda: rt.IntegratedGradients(0), "n_steps of ig is a whole number of at least 1"),
        (
            lambda: rt.IntegratedGradients(internal_batch_size=0),
            "internal_batch_size of ig is a whole number of at least 1 or None",
        ),
        (lambda: rt.IntegratedGradients(quadrature="gauss"), "did you mean 'gausslegendre'"),
        (lambda: rt.IntegratedGradients(foil_weights="thawed"), "unknown foil_weights"),
    ],
)
def test_bad_settings_are_refused(make_method: Any, message: str) -> None:
    with pytest.raises(rt.InputError, match=message):
        make_method()


@pytest.mark.parametrize("method", [rt.IntegratedGradients, rt.DeepLift])
def test_baselines_that_do_not_fit_are_refused(method: Any) -> None:
    for bad in (torch.zeros(3, 5, 5), torch.zeros(3, 3, 12, 12), torch.zeros(2, 1, 1, 1, 1)):
        with pytest.raises(rt.InputError, match=r"baseline of shape .* fit images of \(3, 12, 12\)"):
            rt.explain(make(Dense), images(), method=method(baseline=bad))
