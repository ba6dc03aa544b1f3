"""LRP and DeepLIFT against Captum where Captum is right, against closed forms and twins where it is not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.attr import LRP as CaptumLRP
from captum.attr import DeepLift as CaptumDeepLift
from captum.attr._utils.custom_modules import Addition_Module
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule
from torch import Tensor, nn

import ratherthan as rt
from nets import CONVOLUTIONAL, Dense, Tokens, images, make
from ratherthan.contrast import get_contrast, resolve
from ratherthan.zoo.architectures import ResNet9, SqueezeNet
from test_pullback import State

CLASSES = 5
RULES: dict[str, Callable[[], Any]] = {
    "z": lambda: EpsilonRule(1e-12),
    "epsilon": lambda: EpsilonRule(0.1),
    "gamma": lambda: GammaRule(0.3),
    "alpha1-beta0": Alpha1_Beta0_Rule,
}


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-8) -> None:
    scale = expected.abs().max().clamp_min(1e-300)
    torch.testing.assert_close(actual / scale, expected / scale, atol=tolerance, rtol=tolerance)


class Plain(nn.Module):
    """What Captum's LRP can explain by itself."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 6, 3, bias=bias), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 8, 3, bias=bias), nn.ReLU(), nn.AvgPool2d(3)),
        )
        self.head = nn.Linear(8, CLASSES, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


def captum_classes(module: nn.Module, x: Tensor, rule: Callable[[], Any]) -> Tensor:
    """Captum's relevance of every class, (N, classes, C, H, W), one call each."""
    maps = []
    for c in range(CLASSES):
        for layer in module.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.rule = rule()  # type: ignore[assignment]
        maps.append(CaptumLRP(module).attribute(x.clone().requires_grad_(), target=c).detach())
    return torch.stack(maps, 1)


# --------------------------------------------------------------------------------------------- LRP
@pytest.mark.parametrize("contrast", ["none", "mean", "weighted", "loss"])
@pytest.mark.parametrize("rule", RULES)
def test_lrp_is_captum_per_class_combined(rule: Any, contrast: str) -> None:
    model, x = make(lambda: Plain(bias=rule != "alpha1-beta0")), images()
    ours = rt.explain(model, x, 1, [0, {2, 3, 4}], rt.LRP(rule, epsilon=0.1, gamma=0.3), contrast)
    seeds = get_contrast(contrast).seed(ours.logits, resolve(ours.logits, 1, [0, {2, 3, 4}]))
    expected = torch.einsum("nqk,nkchw->nqchw", seeds, captum_classes(model.module, x, RULES[rule]))
    close(ours.attribution, expected, 1e-6)
    relevance = torch.einsum("nqk,nk->nq", seeds, ours.logits)
    delta = expected.sum((2, 3, 4)) - relevance
    torch.testing.assert_close(ours.diagnostics["convergence delta"], delta, atol=1e-6, rtol=1e-6)


def test_relevance_adds_up_to_the_contrast_where_captum_on_a_wrapped_one_loses_it() -> None:
    """Captum multiplies by the scalar it is run on, as if all of it were one class."""
    model, x = make(lambda: Plain(bias=False)), images()
    pairwise = nn.Linear(CLASSES, 1, bias=False).double()
    pairwise.weight.data = torch.tensor([[-1.0, 1, 0, 0, 0]], dtype=torch.float64)
    wrapped = nn.Sequential(model.module, pairwise, nn.ReLU())  # asked from the side that wins nothing
    why = rt.explain(model, x, 1, 0, rt.LRP("z"), "mean")
    close(why.attribution.sum((1, 2, 3)), why.score)
    sign = torch.sign(why.score)
    assert (sign < 0).any()
    theirs = CaptumLRP(wrapped).attribute(x.clone().requires_grad_(), target=0).sum((1, 2, 3))
    assert not theirs[sign < 0].any()


@pytest.mark.parametrize("build", ["pooled", "squeezed", "dense", "zoo resnet9", "zoo squeezenet"])
def test_lrp_z_is_input_times_gradient_on_relu_networks(build: str) -> None:
    """Functional pooling, residuals, batch norm, concatenation and Flatten included; x as the first layer sees it."""
    if build.startswith("zoo"):
        torch.manual_seed(0)
        module = (ResNet9 if "resnet" in build else SqueezeNet)(classes=CLASSES).double()
        module(torch.rand(8, 3, 32, 32, dtype=torch.float64))
        x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    else:
        module, x = make(CONVOLUTIONAL[build]).module, images()  # type: ignore[assignment]
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    model = rt.Model(module.eval(), mean=mean, std=std)
    gradient = rt.explain(model, x, 1, "each", "gradient", "weighted").attribution
    inside = x - torch.tensor(mean, dtype=torch.float64).view(3, 1, 1)  # gradient * std * (x - mean) / std
    lrp = rt.explain(model, x, 1, "each", rt.LRP("z"), "weighted").attribution
    close(lrp, gradient * inside.unsqueeze(1), 1e-5)


class Block(nn.Module):
    """A residual whose input feeds a convolution and the addition; the addition an operator or Captum's module."""

    def __init__(self, module: bool) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.add = Addition_Module() if module else None
        self.relu = nn.ReLU()
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        low = self.relu(self.stem(x))
        high = self.inner(low)
        out = self.add(high, low) if self.add is not None else high + low
        return self.head(F.relu(out).mean((2, 3)))


@pytest.mark.parametrize("rule", RULES)
def test_a_residual_sum_is_captums_addition(rule: Any) -> None:
    maps = [
        rt.explain(make(lambda m=m: Block(m)), images(), 1, "each", rt.LRP(rule), "mean").attribution  # type: ignore[misc]
        for m in (True, False)
    ]
    close(maps[1], maps[0])


def test_alpha1_beta0_divides_positive_contributions_whatever_the_sign_of_the_input() -> None:
    """Bach et al. 2015, by a loop over two layers, with negative inputs and biases of both signs."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, CLASSES)).double()
    model = rt.Model(net, mean=[0.5] * 3, channels=3)
    x = torch.rand(2, 3, 2, 2, dtype=torch.float64)
    why = rt.explain(model, x, 1, "each", rt.LRP("alpha1-beta0"), "mean")
    for n in range(2):
        given = (x[n] - 0.5).flatten()
        hidden = net[2](net[1](given))
        seeds = get_contrast("mean").seed(why.logits, resolve(why.logits, 1, "each"))[n]
        for q in range(CLASSES):
            relevance = seeds[q] * why.logits[n]
            for layer, values in ((net[3], hidden), (net[1], given)):
                parts = (layer.weight * values).clamp(min=0)  # type: ignore[operator]
                whole = parts.sum(1) + layer.bias.clamp(min=0)  # type: ignore[union-attr, operator]
                relevance = (parts / (whole + 1e-12).unsqueeze(1) * relevance.unsqueeze(1)).sum(0)
            close(why.attribution[n, q].flatten(), relevance.detach())


def test_a_rule_that_a_module_carries_is_kept() -> None:
    model, x = make(lambda: Plain(bias=False)), images()
    model.module.features[0].rule = GammaRule(0.3)  # type: ignore[index, union-attr, operator]
    mixed = rt.explain(model, x, 1, None, rt.LRP("z"), "mean").attribution
    assert isinstance(model.module.features[0].rule, GammaRule)  # type: ignore[index, union-attr, operator]
    del model.module.features[0].rule  # type: ignore[index, union-attr, operator]
    assert (mixed - rt.explain(model, x, 1, None, rt.LRP("z"), "mean").attribution).abs().max() > 1e-3 * mixed.max()


@pytest.mark.parametrize("method", [rt.LRP("z"), rt.DeepLift()], ids=lambda m: m.name)
def test_single_scores_are_two_logits_and_values_are_values(method: Any) -> None:
    x = images()
    sigmoid = make(lambda: Dense(1))
    plain = rt.explain(rt.Model(sigmoid.module, output="value"), x, method=method, contrast="none").attribution
    close(rt.explain(sigmoid, x, 1, 0, method, "weighted").attribution, plain)
    close(rt.explain(sigmoid, x, 0, None, method, "none").attribution, -plain / 2)
    value = rt.Model(sigmoid.module, output="value")
    y = value.logits(x).detach()
    for q, foil in enumerate((0.75, -0.5, 0.1)):
        why = rt.explain(value, x, foil=[0.75, -0.5, 0.1], method=method)
        close(why.attribution[:, q], 2 * (y - foil).view(-1, 1, 1, 1) * plain)


# --------------------------------------------------------------------------------------------- DeepLIFT
def captum_deeplift(module: nn.Module, x: Tensor, start: Tensor) -> Tensor:
    """Captum's contributions to every class, (N, classes, C, H, W)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.stack([CaptumDeepLift(module).attribute(x, start, target=c).detach() for c in range(CLASSES)], 1)


def smooth() -> nn.Module:
    """No two nonlinear modules next to each other, where Captum's hooks would collide."""
    features = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU()),
        *(nn.Conv2d(8, 8, 1), nn.Tanh(), nn.AvgPool2d(3), nn.Flatten()),
    )
    return nn.Sequential(features, nn.Linear(8, 7), nn.Sigmoid(), nn.Linear(7, CLASSES), nn.Softplus())


@pytest.mark.parametrize("baseline", [0.0, 0.4, "image"])
def test_deeplift_equals_captum(baseline: Any) -> None:
    model, x = make(smooth, mean=[0.4] * 3, std=[0.2] * 3), images()
    given = torch.rand(3, 12, 12, dtype=torch.float64) if baseline == "image" else baseline
    start = torch.as_tensor(given, dtype=torch.float64).expand(3, 12, 12).expand_as(x)
    why = rt.explain(model, x, 1, None, rt.DeepLift(given), "weighted")
    seeds = get_contrast("weighted").seed(why.logits, resolve(why.logits, 1))[:, 0]
    classes = captum_deeplift(model.module, (x - 0.4) / 0.2, (start - 0.4) / 0.2)
    close(why.attribution, torch.einsum("nk,nkchw->nchw", seeds, classes))
    close(why.attribution.sum((1, 2, 3)), (seeds * (why.logits - model.logits(start).detach())).sum(1))
    assert why.diagnostics["convergence delta"].abs().max() < 1e-10


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)],
        lambda: [nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 2, ceil_mode=True)],
    ],
    ids=["behind a ReLU", "overlapping"],
)
def test_max_pooling_is_complete_where_captum_misses_the_sum(layers: Callable[[], list[nn.Module]]) -> None:
    model, x = make(lambda: nn.Sequential(*layers(), nn.Flatten(), nn.Linear(100, CLASSES))), images()
    start = images(4)[3]
    gain = (model.logits(x) - model.logits(start.expand_as(x))).detach()
    ours = rt.explain(model, x, "each", None, rt.DeepLift(start), "none").attribution
    close(ours.sum((2, 3, 4)), gain)
    theirs = captum_deeplift(model.module, x, start.expand_as(x))
    assert (theirs.sum((2, 3, 4)) - gain).abs().max() > 0.1 * gain.abs().max()


def test_an_image_equal_to_the_baseline_has_a_zero_map() -> None:
    model, x = make(Dense), images()
    x[1] = 0
    why = rt.explain(model, x, 1, None, "deeplift")
    assert not why.attribution[1].any()
    assert why.attribution[0].any()


# --------------------------------------------------------------------------------------------- refused
class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.exp()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class With(nn.Module):
    """A network with something in the middle."""

    def __init__(self, middle: Any) -> None:
        super().__init__()
        self.features, self.head = nn.Conv2d(3, 4, 3), nn.Linear(400, CLASSES)
        if isinstance(middle, nn.Module):
            self.middle = middle
        else:
            self.apply_middle = middle

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = self.middle(x) if hasattr(self, "middle") else self.apply_middle(x)
        return self.head(x.flatten(1))


@pytest.mark.parametrize(
    ("middle", "message"),
    [
        (lambda: nn.LayerNorm([10, 10]), r"no rule for layer_norm in 'middle' \(LayerNorm\)"),
        (nn.GELU, r"no rule for gelu in 'middle' \(GELU\)"),
        (nn.Sigmoid, r"no rule for sigmoid in 'middle' \(Sigmoid\)"),
        (lambda: nn.Softmax(1), r"no rule for softmax in 'middle' \(Softmax\)"),
        (lambda: nn.ConvTranspose2d(4, 4, 1), r"no rule for conv_transpose2d in 'middle'"),
        (lambda: lambda x: x * x.mean((2, 3), keepdim=True), "no rule for mul in the network's forward"),
        (lambda: lambda x: 1 / (2 + x.abs()), "no rule for abs in the network's forward"),
        (lambda: Own.apply, "no rule for Own"),
        (lambda: lambda x: F.dropout(x, 0.5), "cannot follow what With computes"),
    ],
)
def test_what_lrp_has_no_rule_for_is_refused_by_name(middle: Any, message: str) -> None:
    model = make(lambda: With(middle()))
    state = State(model.module)
    with pytest.raises(rt.UnsupportedError, match=message):
        rt.explain(model, images(), method="lrp")
    state.unchanged()


@pytest.mark.parametrize(
    ("middle", "message"),
    [
        (nn.GELU, r"misses \d.*does not see gelu in 'middle' \(GELU\)"),
        (lambda: lambda x: F.relu(x), r"misses \d.*does not see relu in the network's forward"),
        (lambda: lambda x: x * x.mean((2, 3), keepdim=True), r"misses \d.*does not see mul in the network's forward"),
        (lambda: nn.Softmax(1), "no sound rule for Softmax"),
        (lambda: Own.apply, "misses"),
    ],
)
def test_what_deeplift_does_not_see_is_refused(middle: Any, message: str) -> None:
    model = make(lambda: With(middle()))
    state = State(model.module)
    with pytest.raises(rt.UnsupportedError, match=message):
        rt.explain(model, images(), method="deeplift")
    state.unchanged()


@pytest.mark.parametrize("method", ["lrp", "deeplift"])
def test_transformers_probabilities_and_scripts_are_refused(method: str) -> None:
    with pytest.raises(rt.UnsupportedError):
        rt.explain(make(Tokens), images(), method=method)
    with pytest.raises(rt.UnsupportedError, match="hand in its logits"):
        rt.explain(
            rt.Model(nn.Sequential(Dense().double(), nn.Softmax(1)), output="probabilities"), images(), method=method
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.trace(make(Dense).module, images())
    with pytest.raises(rt.UnsupportedError, match="scripted modules"):
        rt.explain(rt.Model(scripted, channels=3), images(), method=method)


def test_a_number_of_runs_that_depends_on_the_input_is_refused() -> None:
    class Depends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(1 + len(x)):
                x = self.features(x)
            return self.head(x.mean((2, 3)))

    with pytest.raises(rt.UnsupportedError, match="a Conv2d runs a number of times that depends on the input"):
        rt.explain(make(Depends), images(), method="lrp")


@pytest.mark.parametrize("settings", [{"rule": "gama"}, {"epsilon": -1.0}, {"gamma": -0.1}])
def test_bad_settings_are_refused(settings: Any) -> None:
    with pytest.raises(rt.InputError, match=r"did you mean 'gamma'|not negative"):
        rt.LRP(**settings)


@pytest.mark.parametrize("method", [rt.LRP(), rt.LRP("gamma"), rt.LRP("alpha1-beta0"), rt.DeepLift()], ids=repr)
def test_single_precision_frozen_networks_and_no_grad(method: Any) -> None:
    double, single = make(Dense), make(Dense, torch.float32)
    single.module.requires_grad_(False)
    expected = rt.explain(double, images(), 1, [0, 2], method).attribution
    with torch.no_grad():
        found = rt.explain(single, images(dtype=torch.float32), 1, [0, 2], method).attribution
    close(found.double(), expected, 1e-3)
    with torch.inference_mode():
        close(rt.explain(double, images(), 1, [0, 2], method).attribution.clone(), expected)
