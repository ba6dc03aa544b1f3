"""LRP and DeepLIFT against Captum where Captum is right, against formulas and loops where it is not."""

from __future__ import annotations

import itertools
import warnings
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
from nets import CONVOLUTIONAL, Dense, images, make
from ratherthan import get_contrast, resolve
from ratherthan.attribution.rules import DEEPLIFT_RULES, LRP_RULES
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


def test_epsilon_is_added_with_the_sign_of_the_output() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES)).double()
    x = images()[:, :, :2, :2]
    why = rt.explain(rt.Model(net, channels=3), x, "each", None, rt.LRP("epsilon", epsilon=0.3), "none")
    assert (why.logits < 0).any()
    assert (why.logits > 0).any()
    share = why.logits / (why.logits + 0.3 * why.logits.sign())
    expected = x.flatten(1).unsqueeze(1) * net[1].weight.detach() * share.unsqueeze(2)  # type: ignore[union-attr, operator]
    close(why.attribution.flatten(2), expected)


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


@pytest.mark.parametrize(
    ("layers", "gamma"),
    [
        ({"features.0": "gamma"}, [0]),
        ({"features": "gamma"}, [0, 3]),
        ({"features": "z", "features.3": "gamma"}, [3]),
        ({"feat": "gamma", "features.30": "gamma"}, []),
    ],
)
def test_layers_may_have_rules_of_their_own(layers: Any, gamma: list[int]) -> None:
    model, x = make(lambda: Plain(bias=False)), images()
    if "feat" in layers:
        with pytest.raises(rt.LayerError, match=r"unknown layer 'feat'; did you mean 'features'"):
            rt.explain(model, x, 1, None, rt.LRP("z", layers=layers), "none")
        return
    found = rt.explain(model, x, 1, None, rt.LRP("z", gamma=0.3, layers=layers), "none").attribution
    for i, layer in enumerate(model.module.features):  # type: ignore[arg-type]
        if isinstance(layer, nn.Conv2d):
            layer.rule = GammaRule(0.3) if i in gamma else EpsilonRule(1e-12)
    model.module.head.rule = EpsilonRule(1e-12)  # type: ignore[union-attr, assignment]
    expected = CaptumLRP(model.module).attribute(x.clone().requires_grad_(), target=1).detach()
    close(found, expected, 1e-6)


def test_a_layers_rule_does_not_hold_for_one_whose_name_begins_alike() -> None:
    def two() -> nn.Module:
        return nn.Sequential(OrderedDict(flat=nn.Flatten(), layer=nn.Linear(432, 6), layer2=nn.Linear(6, CLASSES)))

    model, x = make(two), images()
    named = rt.explain(model, x, 1, None, rt.LRP("z", layers={"layer": "alpha1-beta0", "layer2": "z"})).attribution
    close(rt.explain(model, x, 1, None, rt.LRP("z", layers={"layer": "alpha1-beta0"})).attribution, named)


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


# --------------------------------------------------------------------------------------------- every operation
class Calls(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class With(nn.Module):
    """A network with something in the middle, on (N, 4, 10, 10)."""

    def __init__(self, middle: Any) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3)
        self.middle = middle if isinstance(middle, nn.Module) else None
        self.function = middle
        self.head = nn.LazyLinear(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.head((self.middle or self.function)(x).flatten(1))


class Calibrated(nn.BatchNorm2d):
    """Batch norm that has seen something."""

    def __init__(self) -> None:
        super().__init__(4)
        self.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
        self.running_var.uniform_(0.3, 2)  # type: ignore[union-attr]
        nn.init.uniform_(self.weight, -1, 1)
        nn.init.uniform_(self.bias, -1, 1)


class Normed(nn.Module):
    """Batch norm and activation in one module, as timm has it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act = Calibrated(), nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        return self.act(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias))


class Moved(nn.Module):
    """Half of the usual ways to move values, by parameters and buffers too."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(101, 4))

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.token.expand(len(x), -1, -1), x.flatten(2).mT], 1) + self.position
        x = tokens[:, 1:].transpose(1, 2).unflatten(2, (10, 10)).roll((1, 2), (2, 3))
        left, right = x.chunk(2, dim=1)
        x = torch.stack([left, right.flip(3)], 1).flatten(1, 2).repeat_interleave(2, 1).view(len(x), 2, 4, 10, 10)
        x, rest = x.unbind(1)
        filled = torch.zeros(len(x), 4, 10, 10, dtype=x.dtype)
        filled[:, :, 2:] = x[:, :, :-2]
        filled[:, :, 0] += rest[:, :, 3] - 0.5
        return (
            F.unfold(filled, 2, stride=2) + 2 - F.pixel_unshuffle(1 - rest[:, ::2], 2).flatten(1).unsqueeze(1)[..., :25]
        )


def self_attention(x: Tensor) -> Tensor:
    q, k, v = x.flatten(2).view(len(x), 2, 2, 50, 2).unbind(1)[0].repeat(1, 1, 1, 3).chunk(3, -1)
    return F.scaled_dot_product_attention(q, k, v)


def masked_attention(x: Tensor) -> Tensor:
    q = x.flatten(2).mT
    mask = torch.ones(100, 100, dtype=torch.bool).tril()
    weights = (q @ q.mT * 0.5).masked_fill(~mask, -torch.inf).softmax(-1)
    return weights @ q + F.scaled_dot_product_attention(q, q, q, is_causal=True) + 0 * weights.sum()


def multihead() -> nn.Module:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(2).permute(2, 0, 1)  # tokens first: the batch is the second dimension
            return (x + self.attention(x, x, x)[0]).permute(1, 0, 2)

    return Attends()


def global_response(x: Tensor) -> Tensor:
    size = x.norm(p=2, dim=(2, 3), keepdim=True)
    return x + 0.3 * (x * (size / (size.mean(1, keepdim=True) + 1e-6))) + 0.1


def added_products(x: Tensor) -> Tensor:
    batched = torch.baddbmm(x[:, 0], x[:, 1], x[:, 2], beta=0.5, alpha=0.3)
    return batched + torch.stack([torch.addmm(each[0], each[1], each[3], beta=0.7, alpha=0.2) for each in x])


def rotated(x: Tensor) -> Tensor:
    angle = torch.arange(10, dtype=x.dtype)
    return x * angle.sin() + torch.cat([-x[..., 5:], x[..., :5]], -1) * angle.cos()


MIDDLES: dict[str, Callable[[], Any]] = {
    **{
        kind.__name__: kind
        for kind in (
            *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.GELU),
            *(nn.Sigmoid, nn.Tanh, nn.ELU, nn.SELU, nn.CELU, nn.Softplus, nn.Softsign, nn.Mish, nn.Softshrink),
            *(nn.Identity, nn.Dropout, Calibrated, Normed, Moved, nn.Tanhshrink, nn.Hardshrink),
        )
    },
    "GELU by tanh": lambda: nn.GELU("tanh"),
    "in place": lambda: nn.Sequential(nn.Hardswish(inplace=True), nn.ReLU6(inplace=True), nn.Dropout(inplace=True)),
    "LayerNorm": lambda: nn.LayerNorm([10, 10]),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "RMSNorm": lambda: nn.RMSNorm(10),
    "InstanceNorm": lambda: nn.InstanceNorm2d(4, affine=True),
    "norm by hand": lambda: lambda x: (x - x.mean(1, True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt(),
    "RMS by hand": lambda: lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6),
    "standardised": lambda: lambda x: (x - x.mean(2, True)) / (x.std(2, keepdim=True) + 0.1),
    "normalize": lambda: lambda x: F.normalize(x, dim=1),
    "global response": lambda: global_response,
    "Softmax": lambda: nn.Softmax(2),
    "attention": lambda: self_attention,
    "masked attention": lambda: masked_attention,
    "attention at a temperature": lambda: lambda x: F.scaled_dot_product_attention(x, x, x.flip(2), scale=0.05),
    "attention of groups": lambda: lambda x: F.scaled_dot_product_attention(x, x[:, :2], x[:, 1:3], enable_gqa=True),
    "multihead": multihead,
    "encoder": lambda: nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(100, 4, 8, 0.0, batch_first=True)),
    "rotary": lambda: rotated,
    "gate": lambda: lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "gate in place": lambda: lambda x: (x * 1).mul_(F.hardsigmoid(x.mean((2, 3), keepdim=True))),
    "glu": lambda: lambda x: F.glu(x, 1),
    "einsum": lambda: lambda x: torch.einsum("nchw,ncvw->nhv", x, x.relu()),
    "products added": lambda: added_products,
    "maximum": lambda: lambda x: torch.maximum(x, x.flip(1)) + torch.minimum(x, x.flip(2)),
    "max": lambda: lambda x: x.max(1).values + x.amax((2, 3), keepdim=True)[:, 0] + x.max(2, keepdim=True)[0][:, 0],
    "pooling": lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.AdaptiveMaxPool2d(3), nn.AvgPool2d(2), nn.Upsample(5)),
    "interpolate": lambda: lambda x: F.interpolate(F.interpolate(x, (7, 13), mode="bilinear"), (9, 9), mode="bicubic"),
    "reflected": lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    "padded": lambda: lambda x: F.pad(F.pad(x, (1, 1, 1, 1), value=1.5), (0, 1, 2, 0), mode="replicate"),
    "padded for max": lambda: lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-torch.inf), 3, 2),
    "transposed": lambda: nn.ConvTranspose2d(4, 3, 3, stride=2),
    "dynamic": lambda: lambda x: F.conv2d(x.reshape(1, -1, 10, 10), x[:, :, :3, :3], groups=len(x)).mT[0],
    "divided": lambda: lambda x: x.square() / (x.exp().sum(1, keepdim=True) + 2) / 3,
    "reciprocal": lambda: lambda x: 1 / (2 + x.abs()),
    "powers": lambda: lambda x: x**3 + 2**x - (x.abs() + 1) ** 0.5 + torch.addcmul(x, x, x, value=0.3).lerp(x, 0.3),
    "clamped": lambda: lambda x: x.clamp(-0.1, 0.3) + x.clamp_min(0.05) + torch.where(x > 9, 2.0, x).clip(max=0.2),
    "constants": lambda: nn.Sequential(nn.Linear(10, 8), Calls(lambda x: x - (x * 0).detach().exp() * 0.3)),
}  # fmt: skip


def build(name: str) -> rt.Model:
    torch.manual_seed(3)
    module = With(MIDDLES[name]())
    module.eval()(torch.rand(3, 3, 12, 12))
    return rt.Model(module.double())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", MIDDLES)
def test_relevance_and_what_constants_absorb_add_up_to_the_contrast(name: str, rule: Any) -> None:
    model, x = build(name), images()
    method = rt.LRP(rule, epsilon=0.1, gamma=0.3)
    seeds = torch.randn(3, 2, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores, relevance, constants = method.propagate(model, x, seeds)
    torch.testing.assert_close(scores, model.logits(x).detach(), rtol=1e-9, atol=1e-9)
    start = torch.einsum("nqc,nc->q", seeds, scores)
    close(relevance.sum((0, 2, 3, 4)) + constants, start, 1e-7)
    why = rt.explain(model, x, 1, "each", method, "mean")
    total = why.attribution.sum((2, 3, 4)) + why.diagnostics["absorbed"]
    close(total, why.logits[:, 1:2] - why.logits)


@pytest.mark.parametrize("name", MIDDLES)
def test_deeplift_is_complete(name: str) -> None:
    model, x, start = build(name), images(), images(4)[3]
    x[1, :, :6] = start[:, :6]  # where nothing changes, there is nothing to divide by
    why = rt.explain(model, x, 1, "each", rt.DeepLift(start), "mean")
    at_start = model.logits(start.expand_as(x)).detach()
    gain = (why.logits - at_start)[:, 1:2] - (why.logits - at_start)
    close(why.attribution.sum((2, 3, 4)), gain, 1e-8)
    if name == "constants":
        assert (why.attribution[1, 0, :, :5] == 0).all()


@pytest.mark.parametrize("method", [rt.LRP(), rt.DeepLift(0.3)], ids=lambda m: m.name)
@pytest.mark.parametrize("name", MIDDLES)
def test_images_do_not_mix_and_nothing_is_left_behind(name: str, method: Any) -> None:
    model, x = build(name), images()
    state = State(model.module)
    together = rt.explain(model, x, 1, [0, 2, 3], method).attribution
    state.unchanged()
    alone = [rt.explain(model, each[None], 1, [0, 2, 3], method).attribution for each in x]
    close(together, torch.cat(alone), 1e-7)


# --------------------------------------------------------------------------------------------- rules by hand
def handed_down(operation: Callable[[Tensor], Tensor], x: Tensor, method: Any) -> tuple[Tensor, Tensor]:
    """The map of a network of one operation and a linear head, and the head's weight at the operation's output."""
    torch.manual_seed(0)
    size = operation(x).flatten(1).shape[1]
    module = nn.Sequential(Calls(operation), nn.Flatten(), nn.Linear(size, CLASSES, bias=False)).double()
    why = rt.explain(rt.Model(module, channels=3), x, 2, None, method, "none")
    return why.attribution, module[2].weight[2].detach().view(operation(x).shape[1:])


CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu, "silu": F.silu, "hardswish": F.hardswish, "relu6": lambda x: F.relu6(5 * x), "tanh": torch.tanh,
    "sigmoid": torch.sigmoid, "hardsigmoid": F.hardsigmoid, "exp": torch.exp, "softplus": F.softplus,
    "square": torch.square,
}  # fmt: skip


@pytest.mark.parametrize("name", CURVES)
def test_activations_hand_all_on_but_their_value_at_zero(name: str) -> None:
    x = images() * 2 - 1
    x[0, 0] = 0
    found, weight = handed_down(CURVES[name], x, rt.LRP("z"))
    at_zero = CURVES[name](torch.zeros(1, dtype=torch.float64))
    close(found, (CURVES[name](x) - at_zero) * weight)


@pytest.mark.parametrize("name", CURVES)
def test_activations_are_rescaled(name: str) -> None:
    x, start = images() * 2 - 1, 0.3
    found, weight = handed_down(CURVES[name], x, rt.DeepLift(start))
    close(found, (CURVES[name](x) - CURVES[name](torch.tensor(start, dtype=torch.float64))) * weight)


def test_softmax_layer_norm_and_products_by_the_formulas_of_attnlrp() -> None:
    """Achtibat et al. 2024: softmax by Taylor's rule, the norm's scale a constant, products in equal parts."""
    x = images() * 4 - 2
    found, weight = handed_down(lambda x: x.softmax(3), x, rt.LRP("z"))
    share = x.softmax(3)
    relevance = share * weight
    close(found, x * (relevance - share * relevance.sum(3, keepdim=True)))

    found, weight = handed_down(lambda x: F.layer_norm(x, [12]), x, rt.LRP("z"))
    deviation = (x.var(3, keepdim=True, unbiased=False) + 1e-5).sqrt()
    expected = torch.zeros_like(x)
    for i in range(12):
        for j in range(12):
            expected[..., i] += x[..., i] * (float(i == j) - 1 / 12) / deviation[..., 0] * weight[..., j]
    close(found, expected)

    for norm in (
        lambda x: F.rms_norm(x, [12], eps=1e-6),
        lambda x: x * (x.square().mean(3, keepdim=True) + 1e-6) ** -0.5,
        lambda x: x / (x.square().mean(3, keepdim=True) + 1e-6).sqrt(),
    ):
        found, weight = handed_down(norm, x, rt.LRP("z"))
        close(found, F.rms_norm(x, [12], eps=1e-6) * weight)

    found, weight = handed_down(lambda x: x[:, 0] @ x[:, 1], x, rt.LRP("z"))
    expected = torch.zeros_like(x)
    made = x[:, 0] @ x[:, 1]
    for n, j, i, p in itertools.product(range(3), range(12), range(12), range(12)):
        part = x[n, 0, j, i] * x[n, 1, i, p] / (2 * made[n, j, p]) * (made[n, j, p] * weight[j, p])
        expected[n, 0, j, i] += part
        expected[n, 1, i, p] += part
    close(found, expected)

    found, weight = handed_down(lambda x: x * x.mean((2, 3), keepdim=True), x, rt.LRP("z"))
    level = x.mean((2, 3), keepdim=True)
    gate = (x * level * weight).sum((2, 3), keepdim=True) * x / (144 * level)
    close(found, x * level * weight / 2 + gate / 2)


def test_products_and_maxima_of_deeplift_by_their_formulas() -> None:
    x = images() * 4 - 2
    start = torch.rand(3, 12, 12, dtype=torch.float64)
    change = x - start
    found, weight = handed_down(lambda x: x[:, 0] @ x[:, 1], x, rt.DeepLift(start))
    expected = torch.zeros_like(x)
    middle = (x + start) / 2
    expected[:, 0] = change[:, 0] * (weight @ middle[:, 1].mT)
    expected[:, 1] = change[:, 1] * (middle[:, 0].mT @ weight)
    close(found, expected)

    found, weight = handed_down(lambda x: x[:, 0] / (x[:, 1] + 5), x, rt.DeepLift(start))
    inverse, inverse0 = 1 / (x[:, 1] + 5), 1 / (start[1] + 5)
    close(found[:, 0], change[:, 0] * weight * (inverse + inverse0) / 2)
    close(found[:, 1], (inverse - inverse0) * weight * middle[:, 0])

    found, weight = handed_down(lambda x: x.amax(3), x, rt.DeepLift(start))
    expected = torch.zeros_like(x)
    for n, c, h in itertools.product(range(3), range(3), range(12)):
        row, row0 = x[n, c, h], start[c, h]
        top = max(row.max(), row0.max())
        expected[n, c, h, row.argmax()] += (top - row0.max()) * weight[c, h]
        expected[n, c, h, row0.argmax()] += (row.max() - top) * weight[c, h]
    close(found, expected)


def test_a_maximum_that_stays_hands_on_what_cancels_below_it() -> None:
    start, x = torch.rand(3, 12, 12, dtype=torch.float64), torch.zeros(2, 3, 12, 12, dtype=torch.float64)
    x[:] = start
    x[:, 0], x[:, 1] = x[:, 0] + 0.1, x[:, 1] - 0.1
    found, weight = handed_down(lambda x: (x[:, 0] + x[:, 1]).amax(2), x, rt.DeepLift(start))
    top = F.one_hot((start[0] + start[1]).argmax(1), 12) * weight.unsqueeze(1)
    close(found, torch.stack([0.1 * top, -0.1 * top, 0 * top]).expand(2, -1, -1, -1))


@pytest.mark.parametrize("rule", ["gamma", "alpha1-beta0"])
def test_transposed_convolutions_have_the_rule_too(rule: Any) -> None:
    """By their matrix, element by element."""
    torch.manual_seed(0)
    conv, x = nn.ConvTranspose2d(3, 2, 3, stride=2, bias=False).double(), images()[:, :, :3, :3]
    found, weight = handed_down(conv, x, rt.LRP("z", gamma=0.3, layers={"0": rule}))
    matrix = conv(torch.eye(27, dtype=torch.float64).view(27, 3, 3, 3)).flatten(1).detach()
    parts = x.flatten(1).unsqueeze(2) * (matrix + 0.3 * matrix.clamp(min=0) if rule == "gamma" else matrix.clamp(min=0))
    relevance = conv(x).flatten(1).detach() * weight.flatten()
    close(found.flatten(1), (parts / (parts.sum(1, keepdim=True) + 1e-12) * relevance.unsqueeze(1)).sum(2))


def test_the_number_of_runs_may_depend_on_the_input() -> None:
    class Depends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(1 + len(x)):
                x = self.features(x)
            return self.head(x.mean((2, 3)))

    model, x = make(Depends), images()
    rows = nn.Sequential(*[model.module.features] * 4, nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.module.head)  # type: ignore[list-item]
    for method in (rt.LRP(), rt.LRP("gamma"), rt.DeepLift()):
        expected = rt.explain(rows, x, 1, 2, method).attribution
        close(rt.explain(model, x, 1, 2, method).attribution, expected)


@pytest.mark.parametrize("method", [rt.LRP("gamma"), rt.DeepLift()], ids=lambda m: m.name)
def test_threads_do_not_see_each_other(method: Any) -> None:
    model, x = build("encoder"), images()
    expected = rt.explain(model, x, 1, "each", method).attribution
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(rt.explain, model, x, 1, "each", method) for _ in range(8)]
        assert all(torch.equal(each.result().attribution, expected) for each in runs)


# --------------------------------------------------------------------------------------------- rules of one's own
def test_a_rule_is_added_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (LRP_RULES, DEEPLIFT_RULES):
        for name in ("logit", "torch.nn.functional.normalize"):
            monkeypatch.setitem(table, name, None)  # what is added here goes with the test
            del table[name]
    x = images().clamp(0.01, 0.99)
    for method in (rt.LRP(), rt.DeepLift(0.3)):
        with pytest.raises(rt.UnsupportedError, match="no rule for logit"):
            handed_down(torch.logit, x, method)
    rt.register_lrp_rule("logit", "tanh")
    rt.register_deeplift_rule("logit", "tanh")
    found, weight = handed_down(torch.logit, x, rt.LRP("z"))
    close(found, torch.logit(x) * weight)
    found, weight = handed_down(torch.logit, x, rt.DeepLift(0.3))
    close(found, (torch.logit(x) - torch.logit(torch.tensor(0.3, dtype=torch.float64))) * weight)

    rt.register_lrp_rule(F.normalize, lambda op, x, **_: x * (op(x) / x).detach())  # R = R
    found, weight = handed_down(F.normalize, x, rt.LRP("z"))
    close(found, F.normalize(x) * weight)
    with pytest.raises(rt.InputError, match="unknown operation 'tahn'; did you mean 'tanh'"):
        rt.register_lrp_rule("logit", "tahn")


# --------------------------------------------------------------------------------------------- what sums cannot hide
def alone(x: Tensor) -> Tensor:
    """A norm without what it divides."""
    return (x.square().mean((1, 2, 3), keepdim=True) + 1).rsqrt() + 0 * x


@pytest.mark.parametrize(
    "middle", [lambda x: x.detach() + 0 * x, lambda x: x.detach(), alone], ids=["detach and zero", "detach", "norm"]
)
def test_lrp_refuses_a_map_of_zeros_where_constants_absorb_the_whole_contrast(middle: Any) -> None:
    model, x = make(lambda: With(middle)), images()
    with pytest.raises(rt.UnsupportedError, match="constants absorb all relevance that LRP hands down in With"):
        rt.explain(model, x, 1, 2, "lrp")
    if middle is not alone:
        with pytest.raises(rt.UnsupportedError, match="DeepLift misses all of the contrast for With"):
            rt.explain(model, x, 1, 2, "deeplift")


def test_the_share_that_constants_absorb_is_stated() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(432, CLASSES)).double()
    x = images()
    why = rt.explain(rt.Model(net, channels=3), x, 1, 2, rt.LRP("z"), "mean")
    bias = (net[1].bias[1] - net[1].bias[2]).detach()  # type: ignore[union-attr, index]
    parts = x.flatten(1) * (net[1].weight[1] - net[1].weight[2]).detach()  # type: ignore[union-attr, index]
    close(why.diagnostics["absorbed"], bias.expand(3))
    close(why.diagnostics["absorbed share"], bias.abs() / (bias.abs() + parts.abs().sum(1)))
    x[1] = 0
    why = rt.explain(rt.Model(net, channels=3), x, 1, 2, rt.LRP("z"), "mean")  # black: all is the biases', rightly
    assert not why.attribution[1].any()
    assert why.diagnostics["absorbed share"][1] == 1
    assert (why.diagnostics["absorbed share"][[0, 2]] < 1).all()


def test_gamma_is_refused_in_float32_where_signed_inputs_bring_its_denominators_near_zero() -> None:
    def signed(scale: float) -> rt.Model:
        net = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False), nn.Linear(1, CLASSES, bias=False))
        net[1].weight.data = torch.tensor([[0.8, -1.0 - scale]])  # 0.8 * 1.25 x - (1 + scale) x: a denominator of scale
        net[2].weight.data.fill_(1)[1] = 3
        return rt.Model(net, channels=2)

    x = torch.ones(1, 2, 1, 1) * 0.7
    assert rt.explain(signed(1e-1), x, 1, None, rt.LRP("gamma"), "none").attribution.isfinite().all()
    with pytest.raises(rt.UnsupportedError, match=r"LRP loses .*float32 is too coarse for it; use float64 weights"):
        rt.explain(signed(3e-7), x, 1, None, rt.LRP("gamma"), "none")


def test_what_deeplift_misses_is_stated_as_a_share_of_the_contrast_itself() -> None:
    """Two classes that gain nearly alike: what no gradient shows is little of the gains, a fifth of the difference."""

    class Alike(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            level = x.mean((1, 2, 3)).unsqueeze(1)
            return torch.cat([level + 1e-4 * level.detach(), 0.9996 * level], 1)

    model, x = rt.Model(Alike(), channels=3), images()
    x[1] = 0
    why = rt.explain(model, x, 0, 1, "deeplift", "mean")
    close(why.diagnostics["missed share"], torch.tensor([0.2, 0, 0.2]), 1e-2)


# --------------------------------------------------------------------------------------------- refused
class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.exp()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(100, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x.flatten(2))[0]


@torch.jit.script
def scripted_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x * 2


def branching(x: Tensor) -> Tensor:
    return x.exp() if x.sum() > BLACK_SUM else x.sin()


BLACK_SUM = -20.0


@pytest.mark.parametrize(
    ("middle", "message"),
    [
        (
            Recurrent,
            r"no rule for lstm in 'middle.lstm' \(LSTM\): add one by register_lrp_rule, or use .*'ixg'",
        ),
        (lambda: nn.LogSoftmax(1), r"no rule for log_softmax in 'middle' \(LogSoftmax\)"),
        (lambda: lambda x: x.cumprod(2), "no rule for cumprod in the network's forward"),
        (lambda: lambda x: torch.fft.rfft2(x).abs(), "no rule for fft_rfft2 in the network's forward"),
        (lambda: lambda x: x.cumprod_(2), "no rule for cumprod in the network's forward"),
        (lambda: lambda x: (x.abs() + 1).pow(x), "no rule for pow in .* several of its inputs depend on the image"),
        (lambda: Own.apply, r"no rule for Own in .*what it runs cannot be seen"),
        (lambda: lambda x: x + Own.apply(x), r"no rule for Own in .*what it runs cannot be seen"),
        (lambda: scripted_gelu, r"no rule for DifferentiableGraph in .*what it runs cannot be seen"),
        (lambda: lambda x: F.dropout(x, 0.5), "cannot follow what With computes"),
        (lambda: lambda x: F.dropout(x, 0.01), "cannot follow what With computes"),
        (lambda: lambda x: F.batch_norm(x, None, None, training=True), "takes its statistics from the batch"),
        (
            lambda: lambda x: F.batch_norm(x, x.new_zeros(4), x.new_ones(4), training=True),
            "takes its statistics from the batch",
        ),
    ],
)
def test_what_lrp_has_no_rule_for_is_refused_by_name(middle: Any, message: str) -> None:
    model = make(lambda: With(middle()))
    state = State(model.module)
    with pytest.raises((rt.UnsupportedError, rt.ModelError), match=message):
        rt.explain(model, images(), method="lrp")
    state.unchanged()


@pytest.mark.parametrize(
    ("middle", "message"),
    [
        (Recurrent, r"no rule for lstm in 'middle.lstm' \(LSTM\): add one by register_deeplift_rule"),
        (lambda: lambda x: torch.einsum("nchw,nchw,nchw->nchw", x, x, x), "no rule for einsum .* than two factors"),
        (lambda: lambda x: x * (x > 0), r"misses \d.*a mask, no_grad.*or 'ig'"),
        (lambda: lambda x: x + without_gradient(x), r"misses \d"),
        (lambda: branching, "no rule for (exp|sin) in .*the network runs otherwise at the baseline than at the image"),
        (lambda: lambda x: x.exp() if x.sum() > BLACK_SUM else x, "runs otherwise at the baseline"),
        (lambda: Own.apply, "no rule for Own"),
    ],
)
def test_what_deeplift_has_no_rule_for_or_misses_is_refused(
    middle: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(lambda: With(middle()))
    with torch.no_grad():
        black, shown = (model.module.features(x).sum() for x in (torch.zeros_like(images()), images()))  # type: ignore[operator]
    monkeypatch.setitem(globals(), "BLACK_SUM", float(black + shown) / 2)
    state = State(model.module)
    with pytest.raises(rt.UnsupportedError, match=message):
        rt.explain(model, images(), method="deeplift")
    state.unchanged()


@pytest.mark.parametrize(("hidden", "refused"), [(0.01, True), (0.002, True), (0.0005, False)])
def test_a_thousandth_may_be_missed_and_no_more(hidden: float, refused: bool) -> None:
    """A share of the contrast that no gradient shows: hidden / (1 + hidden) of it."""
    model = make(lambda: With(lambda x: x + hidden * x.detach()))
    if refused:
        with pytest.raises(rt.UnsupportedError, match=f"DeepLift misses {100 * hidden:.1f}% of the contrast for With"):
            rt.explain(model, images(), 1, None, "deeplift", "none")
    else:
        why = rt.explain(model, images(), 1, None, "deeplift", "none")
        gain = (why.logits - model.logits(torch.zeros_like(images())).detach())[:, 1]
        close(why.diagnostics["convergence delta"], -gain * hidden / (1 + hidden))


@pytest.mark.parametrize(("lost", "refused"), [(0.01, True), (0.0005, False)])
def test_a_rule_of_lrp_that_loses_relevance_is_refused(
    lost: float, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losing(op: Any, x: Tensor) -> Tensor:
        return op(x) * (1 - lost) + (op(x) * lost).detach()

    monkeypatch.setitem(LRP_RULES, "positive", LRP_RULES["positive"])
    rt.register_lrp_rule("positive", losing)
    model = make(lambda: nn.Sequential(Calls(torch.Tensor.positive), nn.Flatten(), nn.Linear(432, CLASSES, bias=False)))
    x = images()
    model.module[2].weight.data.abs_()  # type: ignore[index, union-attr, operator]
    if refused:
        with pytest.raises(rt.UnsupportedError, match=r"LRP loses 1\.0% of the relevance for Sequential"):
            rt.explain(model, x, 1, None, "lrp", "none")
    else:
        rt.explain(model, x, 1, None, "lrp", "none")


@pytest.mark.parametrize("method", ["lrp", "deeplift"])
def test_probabilities_scripts_compiled_and_half_networks_are_refused(method: str) -> None:
    with pytest.raises(rt.UnsupportedError, match="hand in its logits"):
        rt.explain(
            rt.Model(nn.Sequential(Dense().double(), nn.Softmax(1)), output="probabilities"), images(), method=method
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.trace(make(Dense).module, images())
    with pytest.raises(rt.UnsupportedError, match="scripted modules"):
        rt.explain(rt.Model(scripted, channels=3), images(), method=method)
    compiled = nn.Sequential(torch.compile(make(Dense).module, backend="eager"))
    with pytest.raises(rt.UnsupportedError, match="compiled modules"):
        rt.explain(rt.Model(compiled, channels=3), images(), method=method)
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(rt.UnsupportedError, match=r"float16 is too coarse .*use float32 weights"):
            rt.explain(make(Dense, dtype), images(dtype=dtype), method=method)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "gama"}, "unknown rule of lrp 'gama'; did you mean 'gamma'"),
        ({"epsilon": -1.0}, "epsilon of lrp is a number of at least 0, not -1.0"),
        ({"gamma": -0.1}, "gamma of lrp is a number of at least 0, not -0.1"),
        (
            {"layers": {"features": "gama"}},
            r"layers of lrp is a mapping of text to 'epsilon' or .*, not \{'features': ",
        ),
        ({"layers": {3: "gamma"}}, "layers of lrp is a mapping of text to"),
        ({"layers": ["features"]}, "layers of lrp is a mapping of text to"),
    ],
)
def test_bad_settings_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(rt.InputError, match=message):
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
