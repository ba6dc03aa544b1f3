"""Our maps against those of pytorch-grad-cam, torch-cam and zennit, on networks of torchvision and timm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from pytorch_grad_cam import GradCAM as PytorchGradCAM
from torch import Tensor, nn
from torchcam.methods import GradCAM as TorchCAM
from torchcam.methods import LayerCAM
from zennit.attribution import Gradient
from zennit.composites import LayerMapComposite
from zennit.rules import Epsilon, Norm, Pass
from zennit.types import Activation, AvgPool, Convolution
from zennit.types import Linear as LinearLayer

import ratherthan as rt

FACT, FOIL, CLASSES = 3, 7, 10


def _channels_first(x: Tensor) -> Tensor:
    return x


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _tokens(x: Tensor) -> Tensor:
    side = int((x.shape[1] - 1) ** 0.5)
    return x[:, 1:].reshape(len(x), side, side, -1).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Net:
    build: Callable[[], nn.Module]
    found: str
    """The layer that is found automatically."""
    compared: str
    """The layer at which we compare: the one found, unless a function gives it, or the next operation alters it: then
    the other libraries cannot see it, or read altered activations."""
    fold: Callable[[Tensor], Tensor] = _channels_first


def _vision(name: str) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, num_classes=CLASSES)


def _small_vgg() -> nn.Module:
    module = torchvision.models.VGG(torchvision.models.vgg.make_layers([16, "M", 24, "M", 32, 32, "M", 48, 48, "M"]))
    module.avgpool = nn.AdaptiveAvgPool2d(3)
    module.classifier = nn.Sequential(
        nn.Linear(48 * 9, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 32), nn.ReLU(True), nn.Linear(32, CLASSES)
    )
    return module


def _timm_vit(**settings: object) -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=CLASSES, **settings)


NETS = {
    "resnet18": Net(partial(_vision, "resnet18"), "layer4", "layer4"),
    "vgg": Net(_small_vgg, "features", "features"),
    "densenet121": Net(partial(_vision, "densenet121"), "relu()", "features.denseblock4"),
    "squeezenet1_1": Net(partial(_vision, "squeezenet1_1"), "features", "features"),
    "convnext_tiny": Net(partial(_vision, "convnext_tiny"), "features", "features"),
    "swin_t": Net(partial(_vision, "swin_t"), "permute", "norm", _channels_last),
    "vit_tiny": Net(_timm_vit, "blocks.11.norm1", "blocks.11.norm1", _tokens),
    "vit_qk_norm": Net(partial(_timm_vit, qk_norm=True, depth=4), "blocks.3.norm1", "blocks.3.norm1", _tokens),
}


@cache
def network(name: str) -> nn.Module:
    """Random weights that let signals through; batch norm statistics of one random batch."""
    torch.manual_seed(1)
    module = NETS[name].build()
    for each in module.modules():
        if isinstance(each, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(each.weight)
        elif isinstance(each, nn.BatchNorm2d):
            each.momentum = None
    with torch.no_grad():
        module.train()(torch.rand(4, 3, 64, 64))
    return module.eval()


@pytest.fixture(params=NETS)
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param
    for parameter in network(request.param).parameters():
        parameter.grad = None  # pytorch-grad-cam leaves them


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 64, 64)


def ours(
    name: str, images: Tensor, foil: int | None, method: type[rt.GradCAM] | type[rt.LinearApproximation]
) -> Tensor:
    """Raw signed maps at the layer; for a foil the pairwise contrast."""
    contrast = "none" if foil is None else "max"
    how = method(layer=NETS[name].compared)
    return rt.explain(network(name), images, FACT, foil, method=how, contrast=contrast).attribution


def scaled(maps: Tensor) -> Tensor:
    """Each map brought to [0, 1] as pytorch-grad-cam does."""
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / (1e-7 + maps.amax((1, 2), keepdim=True))


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> bool:
    return bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max()) and bool(theirs.abs().max() > 0)


def test_the_layer_is_found(name: str, images: Tensor) -> None:
    assert rt.explain(network(name), images).layer == NETS[name].found


def score(foil: int | None, sign: int = 1) -> Callable[[Tensor], Tensor]:
    """What the other libraries explain: the logit of the fact, less that of the foil."""
    return lambda output: sign * (output[FACT] - (0 if foil is None else output[foil]))


@pytest.mark.parametrize("foil", [None, FOIL])
def test_pytorch_grad_cam(name: str, images: Tensor, foil: int | None) -> None:
    """Its ReLU hides half of a contrast: explaining the negated score as well shows the other half."""
    layer = network(name).get_submodule(NETS[name].compared)
    raw, shown = ours(name, images, foil, rt.GradCAM), 0.0
    for sign in (1, -1):
        with PytorchGradCAM(network(name), [layer], reshape_transform=NETS[name].fold) as cam:
            theirs = torch.from_numpy(cam(images, [score(foil, sign)] * len(images)))
        expected = F.interpolate(scaled((sign * raw).relu()).unsqueeze(1), (64, 64), mode="bilinear")[:, 0]
        assert (scaled(expected) - theirs).abs().max() < 1e-3
        shown += float(theirs.sum())
    assert shown > 0


def torch_cam(name: str, images: Tensor, foils: list[int | None]) -> Tensor:
    """Signed maps of torch-cam, (N, foils, h, w): the ReLU of one less that of the negated score."""
    maps = []
    with TorchCAM(network(name), NETS[name].compared, (3, 64, 64), reshape_transform=NETS[name].fold) as cam:
        scores = network(name)(images)
        for foil in foils:
            both = [
                cam(scores=scores, targets=score(foil, sign), normalized=False, retain_graph=True)[0].detach()
                for sign in (1, -1)
            ]
            maps.append(both[0] - both[1])
    return torch.stack(maps, 1)


@pytest.mark.parametrize("foil", [None, FOIL])
def test_torch_cam(name: str, images: Tensor, foil: int | None) -> None:
    assert close(ours(name, images, foil, rt.GradCAM), torch_cam(name, images, [foil])[:, 0])


def test_many_foils_from_one_pass_equal_the_loop_of_torch_cam(name: str, images: Tensor) -> None:
    how, foils = rt.GradCAM(layer=NETS[name].compared), [each for each in range(CLASSES) if each != FACT]
    maps = rt.explain(network(name), images, FACT, foils, method=how, contrast="max").attribution
    assert close(maps, torch_cam(name, images, list(foils)))


def test_la_is_layer_cam_before_its_relus(name: str, images: Tensor) -> None:
    fold = NETS[name].fold
    with LayerCAM(network(name), NETS[name].compared, (3, 64, 64), reshape_transform=fold) as cam:
        scores = network(name)(images)
        (positive,) = cam(class_idx=FACT, scores=scores, normalized=False)
        activation, gradient = cam.hook_a[0], cam.hook_g[0]
    assert torch.allclose((activation * gradient.relu()).sum(1).relu(), positive.detach(), atol=1e-6)
    assert close(ours(name, images, None, rt.LinearApproximation), (activation * gradient).sum(1).detach())


def seeds(images: Tensor, foil: int | None) -> Tensor:
    seed = torch.zeros(len(images), CLASSES, dtype=images.dtype)
    seed[:, FACT] = 1
    if foil is not None:
        seed[:, foil] = -1
    return seed


@pytest.mark.parametrize("foil", [None, FOIL])
def test_zennit_gradients(name: str, images: Tensor, foil: int | None) -> None:
    seed = seeds(images, foil)
    with Gradient(network(name)) as attributor:
        _, theirs = attributor(images.clone(), seed)
    contrast = "none" if foil is None else "max"
    for method, expected in (("gradient", theirs), ("ixg", theirs * images)):
        why = rt.explain(network(name), images, FACT, foil, method=method, contrast=contrast)
        assert close(why.attribution, expected)


@pytest.mark.parametrize("foil", [None, FOIL])
@pytest.mark.parametrize("name", ["vgg", "squeezenet1_1"])
def test_zennit_lrp_epsilon_is_ixg_without_biases(name: str, images: Tensor, foil: int | None) -> None:
    """For ReLU networks without biases LRP-epsilon tends to image times gradient as epsilon tends to zero."""
    module = deepcopy(network(name)).double()
    for each in module.modules():
        if isinstance(each, (nn.Conv2d, nn.Linear)):
            nn.init.zeros_(each.bias)
    images = images.double()
    rule = Epsilon(1e-12)
    composite = LayerMapComposite(
        [(Activation, Pass()), (AvgPool, Norm(1e-12)), (Convolution, rule), (LinearLayer, rule)]
    )
    with Gradient(module, composite) as attributor:
        _, theirs = attributor(images.clone(), seeds(images, foil) * module(images).detach())
    contrast = "none" if foil is None else "max"
    assert close(rt.explain(module, images, FACT, foil, method="ixg", contrast=contrast).attribution, theirs, 1e-6)
