"""Explanations of networks of every make, used as they come; each is compared with an answer found another way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from captum.attr import LayerGradCam, LayerGradientXActivation
from torch import Tensor, nn

import ratherthan as rt
from addresses import kept
from ratherthan import LayerError, ModelError, find_layer, get_contrast, resolve

CLASSES = 6


# --------------------------------------------------------------------------------------------- networks of our own
class Residual(nn.Module):
    """Residuals, functional and in-place ReLUs, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1))
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 12), nn.ReLU(inplace=True), nn.Linear(12, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x), inplace=True)
        x = self.norm(F.relu_(self.block(x) + x))
        return self.head(F.relu(x, inplace=True).mean((2, 3)))


class Dense(nn.Module):
    """Dense connections by concatenation, in-place ReLUs directly on their result."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2)
        self.grow = nn.ModuleList(nn.Conv2d(6 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.last = nn.Conv2d(18, 8, 1)
        self.head = nn.Linear(8 * 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        parts = [F.relu_(self.stem(x))]
        for each in self.grow:
            parts.append(each(F.relu(torch.cat(parts, 1))))
        x = F.relu_(self.last(torch.cat(parts, 1)))
        return self.head(F.adaptive_max_pool2d(x, 2).flatten(1))


class ChannelsLast(nn.Module):
    """Blocks on (N, h, w, ch), as in Swin and ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 4, stride=4)
        self.mix = nn.Sequential(nn.LayerNorm(10), nn.Linear(10, 10), nn.GELU())
        self.norm = nn.LayerNorm(10)
        self.head = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        x = self.norm(x + self.mix(x))
        return self.head(x.square().mean((1, 2)))


class Attention(nn.Module):
    """Softmax as a module and normalised keys: (N, heads, tokens, ...) tensors that are no grid."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.keys = nn.LayerNorm(12), nn.Linear(12, 36), nn.LayerNorm(6)
        self.softmax, self.out = nn.Softmax(-1), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        weights = self.softmax(q @ self.keys(k).transpose(-1, -2))
        return x + self.out((weights @ v).transpose(1, 2).flatten(2))


class Tokens(nn.Module):
    """Two attention blocks; the class token alone feeds the head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.blocks = nn.ModuleList([Attention(), Attention()])
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


class SharedReLU(nn.Module):
    """One ReLU module for every layer, the last one to run included."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.relu = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), nn.ReLU(inplace=True)
        self.unused, self.aside = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.aside(x)
        return self.head(self.relu(self.second(self.relu(self.first(x)))).mean((2, 3)))


def hf(kind: str, **config: object) -> Callable[[], nn.Module]:
    """A tiny transformers network."""
    settings = {"num_labels": CLASSES, **config}
    return lambda: getattr(transformers, f"{kind}ForImageClassification")(
        getattr(transformers, f"{kind}Config")(**settings)
    )


_VIT = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}


def _channels_first(x: Tensor) -> Tensor:
    return x


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _tokens(prefix: int, height: int, width: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x[:, prefix:].reshape(len(x), height, width, -1).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Net:
    build: Callable[[], nn.Module]
    image: tuple[int, int]
    layer: str
    fold: Callable[[Tensor], Tensor] = _channels_first


NETS = {
    "residual": Net(Residual, (16, 24), "relu()#3"),
    "dense": Net(Dense, (18, 18), "relu()#5"),
    "channels last": Net(ChannelsLast, (16, 24), "square()", _channels_last),
    "tokens": Net(Tokens, (16, 24), "blocks.1.norm", _tokens(1, 4, 6)),
    "shared relu": Net(SharedReLU, (14, 10), "relu#2"),
    "resnet": Net(
        hf("ResNet", embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], layer_type="basic"),
        (64, 96), "resnet.encoder.stages.3",
    ),
    "convnext": Net(
        hf("ConvNext", hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1]), (96, 64), "convnext.encoder.stages.3"
    ),
    "vit": Net(
        hf("ViT", image_size=32, patch_size=8, **_VIT), (32, 32), "vit.layers.2.layernorm_before", _tokens(1, 4, 4)
    ),
    "eager vit": Net(
        hf("ViT", image_size=(24, 40), patch_size=8, attn_implementation="eager", **_VIT),
        (24, 40), "vit.layers.2.layernorm_before", _tokens(1, 3, 5),
    ),
    "swin": Net(
        hf("Swin", image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4),
        (32, 64), "swin.layernorm", _tokens(0, 4, 8),
    ),
    "dinov2 with registers": Net(
        hf("Dinov2WithRegisters", image_size=32, patch_size=8, num_register_tokens=4, **_VIT),
        (32, 32), "dinov2_with_registers.layernorm", _tokens(5, 4, 4),
    ),
    "segformer": Net(
        hf(
            "Segformer", hidden_sizes=[8, 8, 12, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=16,
        ),
        (64, 96), "segformer.stages.3",
    ),
    "mobilenet": Net(hf("MobileNetV2", depth_multiplier=0.25, image_size=64), (64, 64), "mobilenet_v2.conv_1x1"),
}  # fmt: skip
# Captum explains what a module gives that runs once
MODULES = {
    "residual": "norm", "dense": "last", "shared relu": "second", "resnet": "resnet.encoder.stages.3",
    "convnext": "convnext.encoder.stages.3", "mobilenet": "mobilenet_v2.conv_1x1",
}  # fmt: skip


def make(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The network in eval mode, with weights that let signals and gradients through to every layer."""
    torch.manual_seed(1)
    net = NETS[name]
    module = net.build()
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            nn.init.uniform_(parameter, 0.2, 1.2)
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.momentum = None  # the average over all batches seen, of which there is one
    module.train()(torch.rand(4, 3, *net.image))
    return module.eval().to(dtype)


def images(name: str, count: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(count, 3, *NETS[name].image, generator=torch.Generator().manual_seed(2)).to(dtype)


def logits_of(module: nn.Module, x: Tensor) -> Tensor:
    output = module(x)
    return getattr(output, "logits", output)


def by_hand(name: str, module: nn.Module, x: Tensor, score: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Grad-CAM and LA of a score, image by image, each by a backward pass through the whole network."""
    maps: dict[str, list[Tensor]] = {"gradcam": [], "la": []}
    for image in x.split(1):
        run = partial(logits_of, module, image.clone().requires_grad_())
        activation, logits = kept(module, NETS[name].layer, run)
        gradient = NETS[name].fold(torch.autograd.grad(score(logits).sum(), activation)[0])
        activation = NETS[name].fold(activation.detach())
        maps["la"].append((activation * gradient).sum(1))
        maps["gradcam"].append((activation * gradient.mean((2, 3), keepdim=True)).sum(1))
    return {method: torch.cat(rows) for method, rows in maps.items()}


# --------------------------------------------------------------------------------------------- every network
@pytest.mark.parametrize("name", NETS)
def test_layer_and_maps_as_by_hand(name: str) -> None:
    module, x = make(name), images(name)
    assert find_layer(rt.Model(module), x[:1]) == NETS[name].layer
    plain = by_hand(name, module, x, lambda y: y[:, 1])
    pair = by_hand(name, module, x, lambda y: y[:, 1] - y[:, 4])
    odds = by_hand(name, module, x, lambda y: y[:, 1] - torch.cat([y[:, :1], y[:, 2:]], 1).logsumexp(1))
    for method in ("gradcam", "la"):
        for expected, foil, contrast in ((plain, None, "none"), (pair, 4, "max"), (odds, None, "weighted")):
            why = rt.explain(module, x, fact=1, foil=foil, method=method, contrast=contrast)
            assert why.layer == NETS[name].layer
            scale = expected[method].abs().max()
            assert scale > 1e-6
            assert (why.attribution - expected[method]).abs().max() < 1e-9 * scale, (method, contrast)
        every = rt.explain(module, x, fact=1, foil="each", method=method).attribution
        assert (every[:, 4] - pair[method]).abs().max() < 1e-9 * pair[method].abs().max()


@pytest.mark.parametrize("name", MODULES)
def test_maps_as_captum(name: str) -> None:
    module, x = make(name, torch.float32), images(name, dtype=torch.float32)
    layer = module.get_submodule(MODULES[name])
    for method, theirs in ((rt.GradCAM, LayerGradCam), (rt.LinearApproximation, LayerGradientXActivation)):
        ours = rt.explain(module, x, fact=3, contrast="none", method=method(MODULES[name])).attribution
        expected = theirs(lambda z: logits_of(module, z), layer).attribute(x.clone(), target=3).sum(1).detach()
        assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", NETS)
def test_explained_in_eval_mode_and_given_back_as_it_was(name: str) -> None:
    module, x = make(name), images(name)
    expected = rt.explain(module, x, fact=1, foil=4).attribution
    for i, each in enumerate(module.modules()):
        each.training = i % 3 != 1
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    flags = [each.training for each in module.modules()]
    state = {key: value.clone() for key, value in module.state_dict().items()}
    assert torch.equal(rt.explain(module, x, fact=1, foil=4).attribution, expected)
    assert [each.training for each in module.modules()] == flags
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in module.parameters())
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.15)])
def test_lower_precision_gives_the_same_map(name: str, dtype: torch.dtype, tolerance: float) -> None:
    x = images(name, dtype=dtype)  # the rounded images, so that only the computation differs
    module = make(name, dtype)
    reference = make(name, dtype).double()
    for foil in ("each", 4):
        expected = rt.explain(reference, x.double(), fact=1, foil=foil).attribution
        why = rt.explain(module, x, fact=1, foil=foil)
        assert why.attribution.dtype == dtype
        error = (why.attribution.double() - expected).norm() / expected.norm()
        assert error < tolerance


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("name", NETS)
def test_cuda_gives_the_same_map(name: str) -> None:
    module, x = make(name), images(name)
    expected = rt.explain(module, x, fact=1, foil="each").attribution
    why = rt.explain(module.cuda(), x, fact=1, foil="each")
    assert why.attribution.is_cuda
    assert (why.attribution.cpu() - expected).abs().max() < 1e-9 * expected.abs().max()


@pytest.mark.parametrize("name", NETS)
def test_maps_of_lrp_and_deeplift_add_up(name: str) -> None:
    module, x = make(name), images(name)
    lrp = rt.explain(module, x, fact=1, foil=4, method="lrp", contrast="mean")
    seeds = get_contrast("mean").seed(lrp.logits, resolve(lrp.logits, 1, 4))
    _, relevance, constants = rt.LRP().propagate(rt.Model(module), x, seeds)
    exact = 1e-5 if name == "eager vit" else 1e-9  # its softmax is in single precision
    assert (relevance.sum() + constants - lrp.score.sum()).abs() < exact * relevance.abs().sum()
    assert torch.equal(relevance[:, 0], lrp.attribution)
    lift = rt.explain(module, x, fact=1, foil=4, method="deeplift", contrast="mean")
    gain = logits_of(module, x).detach() - logits_of(module, torch.zeros_like(x)).detach()
    missed = lift.attribution.sum((1, 2, 3)) - (gain[:, 1] - gain[:, 4])
    assert (missed.abs() < exact * lift.attribution.abs().sum((1, 2, 3))).all()


def test_input_methods_take_shared_modules_and_in_place_first_layers() -> None:
    class InPlace(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.sub_(0.5)).mean((2, 3))

    module = InPlace(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, CLASSES + 1, 3), nn.ReLU(inplace=True)).double()
    x = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    before = x.clone()
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(module(leaf.clone())[:, 2].sum(), leaf)
    assert torch.allclose(rt.explain(module, x, fact=2, contrast="none", method="gradient").attribution, expected)
    assert rt.explain(module, x, fact=2).layer == "1"  # the layers above hold one channel per class
    assert torch.equal(x, before)


class EndsTwice(nn.Module):
    """The last module with a grid runs twice; the one before runs once."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.shared = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shared(self.shared(self.before(x))).mean((2, 3)))


def test_a_layer_that_runs_twice_is_explained_at_the_time_that_is_meant() -> None:
    module, x = EndsTwice().double().eval(), torch.rand(2, 3, 8, 10, dtype=torch.float64)
    for layer, address in ((None, "shared#2"), ("shared#1", "shared#1"), ("shared#2", "shared#2")):
        why = rt.explain(module, x, fact=1, contrast="none", method=rt.LinearApproximation(layer))
        activation, logits = kept(module, address, lambda: module(x))
        (gradient,) = torch.autograd.grad(logits[:, 1].sum(), activation)
        torch.testing.assert_close(why.attribution, (activation * gradient).sum(1).detach())
        assert why.layer == address


# --------------------------------------------------------------------------------------------- right or refused
@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        ("shared relu", "relu", "'relu' runs more than once"),
        ("shared relu", "unused", "'unused' does not run"),
        ("shared relu", "aside", "'aside' does not reach the logits"),
        ("shared relu", "relu", "say which time, e.g. 'relu#2'"),
        ("shared relu", "relu#3", "does not run"),
        ("shared relu", "tanh()", "does not run"),
        ("shared relu", "relu#two", "does not run"),
        ("shared relu", "head", r"gives shape \(2, 6\), which lies on no grid"),
        ("tokens", "blocks.1", "class token only.*'blocks.1.norm'"),
        ("vit", "vit.layernorm", "class token only.*'vit.layers.2.layernorm_before'"),
        ("resnet", "resnet.encoder.stages.4", "did you mean 'resnet.encoder.stages.3'"),
        ("resnet", "resnet.encoder", "not a tensor"),
    ],
)
def test_a_layer_that_cannot_be_explained_is_refused(name: str, layer: str, message: str) -> None:
    module, x = make(name), images(name)
    with pytest.raises(LayerError, match=message):
        rt.explain(module, x, method=rt.GradCAM(layer=layer))


def test_networks_without_a_layer_to_explain_say_so() -> None:
    x = torch.rand(2, 3, 8, 8)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 3))
    with pytest.raises(LayerError, match="no layer on the image's plane"):
        rt.explain(flat, x)
    untrained = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    nn.init.zeros_(untrained[3].weight)
    with pytest.raises(LayerError, match="are its weights trained"):
        rt.explain(untrained, x)


# --------------------------------------------------------------------------------------------- other ways to answer
class Wrapped(nn.Module):
    """A network and a function of its logits."""

    def __init__(self, module: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.module(x))


@pytest.mark.parametrize("method", ["gradcam", "la"])
def test_one_output_is_a_sigmoid_classifier(method: str) -> None:
    module, x = make("residual"), images("residual")
    one = Wrapped(module, lambda y: y[:, 2:3] - y[:, 3:4])
    expected = by_hand("residual", module, x, lambda y: y[:, 2] - y[:, 3])[method]
    for_one = rt.explain(one, x, fact=1, foil=0, method=method)
    assert torch.allclose(for_one.attribution, expected, rtol=1e-9)
    assert torch.allclose(rt.explain(one, x, fact=0, method=method).attribution, -expected, rtol=1e-9)
    assert torch.allclose(rt.explain(one, x, fact=1, contrast="none", method=method).attribution, expected / 2)
    assert torch.allclose(for_one.probabilities()[:, 1], one(x)[:, 0].sigmoid())
    likely = rt.Model(Wrapped(one, torch.sigmoid), output="probabilities")
    assert torch.allclose(rt.explain(likely, x, fact=1, method=method).attribution, expected, rtol=1e-9)


@pytest.mark.parametrize("method", ["gradcam", "la"])
def test_probabilities_serve_as_logits(method: str) -> None:
    module, x = make("dense"), images("dense")
    softmax = Wrapped(module, lambda y: y.softmax(1))
    likely = rt.Model(softmax, output="probabilities")
    expected = rt.explain(module, x, fact=1, foil=4, method=method).attribution
    assert torch.allclose(rt.explain(likely, x, fact=1, foil=4, method=method).attribution, expected, atol=1e-12)
    with pytest.raises(ModelError, match="returns probabilities"):
        rt.explain(softmax, x)
    with pytest.raises(ModelError, match="not all in"):
        rt.explain(rt.Model(module, output="probabilities"), x)


@pytest.mark.parametrize("method", ["gradcam", "la"])
@pytest.mark.parametrize("squeeze", [True, False])
def test_values(method: str, squeeze: bool) -> None:
    module, x = make("residual"), images("residual")
    regressor = rt.Model(Wrapped(module, lambda y: y[:, 0] if squeeze else y[:, :1]), output="value")
    plain = by_hand("residual", module, x, lambda y: y[:, 0])[method]
    assert torch.allclose(rt.explain(regressor, x, method=method).attribution, plain)
    y = module(x)[:, 0].detach()
    why = rt.explain(regressor, x, foil=0.7, method=method)
    assert torch.allclose(why.attribution, 2 * (y - 0.7).view(-1, 1, 1) * plain)
    assert torch.allclose(why.score, (y - 0.7) ** 2)


def test_an_exported_program_is_explained_like_the_network_it_came_from(tmp_path: Path) -> None:
    module, x = make("residual", torch.float32), images("residual", 3, torch.float32)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "residual.pt2")
    model = rt.load(tmp_path / "residual.pt2")
    for method in ("gradient", rt.GradCAM(layer="block.0"), rt.LinearApproximation(layer="norm")):
        expected = rt.explain(module, x, fact=1, foil="each", method=method).attribution
        ours = rt.explain(model, x, fact=1, foil="each", method=method).attribution
        assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()
    assert rt.explain(model, x).layer == NETS["residual"].layer
