"""LRP and DeepLIFT on networks of torchvision and timm: exact sums, and zennit's maps where its rules are ours."""

from __future__ import annotations

import sys
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from zennit.attribution import Gradient
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import LayerMapComposite
from zennit.core import BasicHook
from zennit.layer import Sum
from zennit.rules import AlphaBeta, Epsilon, Gamma, Norm, Pass, ZPlus
from zennit.torchvision import ResNetCanonizer
from zennit.types import Activation, AvgPool, BatchNorm, Convolution
from zennit.types import Linear as LinearLayer

import ratherthan as rt
from ratherthan import get_contrast, resolve
from turns import of_today

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from networks import networks, prepare

FACT, FOIL = 1, 3
NETS = """
    torchvision:resnet18 torchvision:vgg11_bn torchvision:mobilenet_v2 torchvision:mobilenet_v3_small
    torchvision:efficientnet_b0 torchvision:convnext_tiny torchvision:vit_b_32 torchvision:swin_t torchvision:swin_v2_t
    torchvision:shufflenet_v2_x0_5 torchvision:googlenet torchvision:maxvit_t
    timm:resnetv2_18 timm:skresnet18 timm:convnextv2_atto timm:mobilenetv3_small_050 timm:ghostnet_050 timm:tinynet_e
    timm:edgenext_xx_small timm:poolformer_s12 timm:efficientvit_m0 timm:mobilevitv2_050 timm:vit_tiny_r_s16_p8_224
    timm:xcit_nano_12_p16_224 timm:levit_128s timm:swiftformer_xs timm:convnext_zepto_rms timm:lambda_resnet26t
""".split()  # noqa: SIM905


@cache
def network(name: str) -> tuple[nn.Module, Tensor]:
    return prepare(networks()[name], torch.float64)


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert expected.abs().max() > 0
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("name", of_today(NETS, 2))
def test_maps_add_up(name: str) -> None:
    module, x = network(name)
    lrp = rt.explain(module, x, FACT, FOIL, "lrp", "mean")
    seeds = get_contrast("mean").seed(lrp.logits, resolve(lrp.logits, FACT, FOIL))
    relevance, constants = rt.LRP().propagate(rt.Model(module), x, seeds)[1:]
    assert torch.equal(relevance[:, 0], lrp.attribution)
    close(relevance.sum() + constants, lrp.score.sum(), 1e-7)
    lift = rt.explain(module, x, FACT, FOIL, "deeplift", "mean")
    logits = lift.logits - rt.Model(module).logits(torch.zeros_like(x)).detach()
    close(lift.attribution.sum((1, 2, 3)), logits[:, FACT] - logits[:, FOIL], 1e-7)


def zennit(module: nn.Module, x: Tensor, rule: Callable[[], BasicHook], canonizers: Any, fact: int = FACT) -> Tensor:
    layers = [
        *((Activation, Pass()), (BatchNorm, Pass()), (Sum, Norm(1e-12)), (AvgPool, Norm(1e-12))),
        *((Convolution, rule()), (LinearLayer, rule())),
    ]
    composite = LayerMapComposite(layers, canonizers=canonizers)  # type: ignore[arg-type]
    seed = torch.eye(module(x).shape[1], dtype=x.dtype)[fact].expand(len(x), -1)
    with Gradient(module, composite) as attributor:
        return attributor(x.clone(), seed * module(x).detach())[1]


@pytest.mark.parametrize(
    ("name", "canonizers"),
    [
        ("torchvision:vgg11", []),
        ("torchvision:vgg11_bn", [SequentialMergeBatchNorm()]),
        ("torchvision:resnet18", [ResNetCanonizer()]),
    ],
)
def test_epsilon_is_zennits(name: str, canonizers: Any) -> None:
    module, x = network(name)
    module = deepcopy(module)
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):  # zennit leaves its epsilon where it merges the rest
            each.running_var, each.eps = each.running_var + each.eps, 0.0  # type: ignore[operator]
    ours = rt.explain(module, x, FACT, None, rt.LRP("epsilon", 1e-9), "none").attribution
    close(ours, zennit(module, x, lambda: Epsilon(1e-9), canonizers), 1e-5)


def small_vgg(bias: bool) -> nn.Module:
    torch.manual_seed(0)
    module = torchvision.models.VGG(torchvision.models.vgg.make_layers([16, "M", 24, "M", 32, 32, "M", 48, 48, "M"]))
    module.avgpool, module.classifier = (
        nn.AdaptiveAvgPool2d(3),
        nn.Sequential(nn.Linear(432, 32), nn.ReLU(), nn.Linear(32, 5)),
    )
    for each in module.modules():
        if isinstance(each, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(each.weight)
            nn.init.normal_(each.bias, std=0.1) if bias else nn.init.zeros_(each.bias)
    return module.eval().double()


@pytest.mark.parametrize(
    ("ours", "theirs", "bias"),
    [
        (rt.LRP("epsilon", epsilon=0.1), lambda: Epsilon(0.1), True),
        (rt.LRP("gamma", gamma=0.3), lambda: Gamma(0.3, stabilizer=1e-12), False),
        (rt.LRP("alpha1-beta0"), lambda: AlphaBeta(1, 0, stabilizer=1e-12), True),
        (rt.LRP("alpha1-beta0"), lambda: ZPlus(stabilizer=1e-12), True),
    ],
    ids=["epsilon", "gamma", "alpha-beta", "z plus"],
)
def test_the_other_rules_are_zennits(ours: Any, theirs: Any, bias: bool) -> None:
    """Zennit's gamma asks for the sign of an output; where that is positive, and without biases, it is ours."""
    module, x = small_vgg(bias), torch.rand(4, 3, 64, 64, dtype=torch.float64)
    logits = module(x).detach()
    fact = int(logits.mean(0).argmax())
    x = x[logits[:, fact] > 0]
    assert len(x)
    close(rt.explain(module, x, fact, None, ours, "none").attribution, zennit(module, x, theirs, [], fact), 1e-5)
