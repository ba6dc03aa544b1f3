"""Which layer is found, and where its values lie: on networks whose shapes tell nothing, or something wrong.

The reference moves pixels: where a cell of the map lies on the image is where its gradient with respect to the image
lies. The networks have random weights; each cell must be drawn nearest to where it looks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ratherthan as rt
from addresses import kept
from nets import Counter
from ratherthan import ForwardPass, LayerError
from ratherthan.attribution.layers import located

CLASSES = 4


def pooled(*layers: nn.Module, width: int, classes: int = CLASSES) -> nn.Module:
    """Layers, global average pooling and a linear head."""
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


class Net(nn.Module):
    """A network whose forward is a function of its modules."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **modules: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, module in modules.items():
            setattr(self, name, module)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.queries = nn.Parameter(torch.randn(1, 16, 12))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)  # type: ignore[no-any-return]


def patches(width: int = 12, side: int = 4, channels: int = 3) -> nn.Module:
    return nn.Conv2d(channels, width, side, stride=side)


def encoder(width: int = 12) -> nn.Module:
    return nn.TransformerEncoderLayer(width, 2, 24, dropout=0.0, batch_first=True, norm_first=True)


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def token_behind(net: Any, x: Tensor) -> Tensor:
    x = torch.cat([tokens(net.cut(x)), net.token.expand(len(x), -1, -1)], 1)
    return net.head(net.norm(x).square().mean(1))


def token_among(net: Any, x: Tensor) -> Tensor:
    cut = tokens(net.cut(x))
    x = net.block(torch.cat([cut[:, :5], net.token.expand(len(x), -1, -1), cut[:, 5:]], 1))
    return net.head(x.square().mean(1))


def recurrent_over_rows(net: Any, x: Tensor) -> Tensor:
    x = net.cut(x)
    steps, _ = net.recurrent(x.permute(0, 2, 1, 3).flatten(2))
    return net.head(steps.mean(1))


def recurrent_over_columns(net: Any, x: Tensor) -> Tensor:
    x = F.relu(net.second(F.relu(net.cut(x))))
    steps, _ = net.recurrent(x.mean(2).permute(2, 0, 1))
    return net.head(steps[-1])


def attention_over_rows(net: Any, x: Tensor) -> Tensor:
    x = net.cut(x)
    n, c, h, w = x.shape
    x = net.block(x.permute(0, 3, 2, 1).reshape(n * w, h, c)).reshape(n, w, h, c).permute(0, 3, 2, 1)
    return net.head(net.out(x).square().mean((2, 3)))


def learned_queries(net: Any, x: Tensor) -> Tensor:
    memory = tokens(net.cut(x))
    seen, _ = net.cross(net.queries.expand(len(x), -1, -1), memory, memory)
    return net.head(net.norm(seen)[:, 3])


def two_outputs(net: Any, x: Tensor) -> Tensor:
    _, x = net.block(x, net.cut(x))
    return net.head(x.mean((2, 3)))


class Both(nn.Module):
    """Hands one input on untouched; the other's result is its second output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a, F.relu(self.conv(b) + b)


class Probe(nn.Module):
    """Returns what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def probed(net: Any, x: Tensor) -> Tensor:
    x = net.cut(x)
    net.probe(x)
    return net.head(F.relu(x).mean((2, 3)))


def windows(net: Any, x: Tensor) -> Tensor:
    """Attention in windows of 2 x 2 patches, shifted by one, as in Swin; channels last."""
    x = net.cut(x).permute(0, 2, 3, 1)
    n, h, w, c = x.shape
    x = x.roll((-1, -1), (1, 2)).view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
    x = (x + 0.1 * net.block(x)).view(n, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
    return net.head(net.norm(x.roll((1, 1), (1, 2))).square().mean((1, 2)))


def unrolled(net: Any, x: Tensor) -> Tensor:
    """Tokens in the order of 2 x 2 blocks, as in Hiera."""
    x = net.cut(x)
    n, c, h, w = x.shape
    x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 2, 4, 1).reshape(n, h * w, c)
    return net.head(net.norm(x).square().mean(1))


def resized(net: Any, x: Tensor) -> Tensor:
    x = net.norm(tokens(net.cut(F.interpolate(x, (16, 16), mode="bilinear"))))
    return net.head(x.square().mean(1))


def text_beside(net: Any, x: Tensor) -> Tensor:
    """Prompts, encoded in the same forward pass, after the image."""
    image = net.norm(tokens(net.cut(x))).square().mean(1)
    words = net.text(net.queries.view(CLASSES, -1, 12)).mean(1)
    return image @ words.T


def transposed(net: Any, x: Tensor) -> Tensor:
    return net.head(net.cut(x).transpose(2, 3).flip(2).relu().mean((2, 3)))


def unshuffled(net: Any, x: Tensor) -> Tensor:
    return net.head(F.relu(net.cut(F.pixel_unshuffle(x, 2))).mean((2, 3)))


class Swish(torch.autograd.Function):
    """With a backward of its own, as in memory-saving activations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return gradient * (x.sigmoid() * (1 + x * (1 - x.sigmoid())))


def own_backward(net: Any, x: Tensor) -> Tensor:
    x = Swish.apply(net.cut(x))
    return net.head(Swish.apply(net.second(x)).mean((2, 3)))


def gated(net: Any, x: Tensor) -> Tensor:
    """A gate of one channel runs last, but everything the logits know goes through the product."""
    x = F.relu(net.cut(x))
    return net.head((x * net.gate(x).sigmoid()).mean((2, 3)))


def streams(net: Any, x: Tensor) -> Tensor:
    x = F.relu(net.cut(x))
    return net.head((net.second(x) + 0.001 * net.third(x).relu()).mean((2, 3)))


def changed_in_place(net: Any, x: Tensor) -> Tensor:
    x = net.cut(x)
    x[:, :6] = x[:, :6].relu()
    x[:, 6:].mul_(0.5)
    return net.head(F.relu_(x).mean((2, 3)))


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    image: tuple[int, int, int]
    layer: str
    size: tuple[int, int]


def net(forward: Callable[[Any, Tensor], Tensor], **modules: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    usual: dict[str, Callable[[], nn.Module]] = {"cut": patches, "head": lambda: nn.Linear(12, CLASSES)}
    return lambda: Net(forward, **{name: make() for name, make in {**usual, **modules}.items()})


def stride(*stride: int) -> Callable[[], nn.Module]:
    return lambda: pooled(nn.Conv2d(1, 16, 3, stride=stride, padding=1), nn.ReLU(), width=16)  # type: ignore[arg-type]


def two_convolutions(classes: int, first: int = 16) -> Callable[[], nn.Module]:
    return lambda: pooled(
        *(nn.Conv2d(3, first, 3, 2, 1), nn.ReLU(), nn.Conv2d(first, 32, 3, 2, 1), nn.ReLU()), width=32, classes=classes
    )


def norm() -> nn.Module:
    return nn.LayerNorm(12)


CASES = {
    "as many channels as rows": Case(stride(1, 2), (1, 16, 16), "1", (16, 8)),
    "as many channels as columns": Case(stride(2, 1), (1, 16, 16), "1", (8, 16)),
    "unpadded, many channels": Case(
        lambda: pooled(nn.Conv2d(3, 16, 5), nn.ReLU(), width=16), (3, 16, 12), "1", (12, 8)
    ),
    "one class less than channels": Case(two_convolutions(31), (3, 16, 16), "3", (4, 4)),
    "as many classes as channels": Case(two_convolutions(32), (3, 16, 16), "3", (4, 4)),
    "as many classes as any layer has channels": Case(two_convolutions(32, 32), (3, 16, 16), "3", (4, 4)),
    "token behind": Case(net(token_behind, norm=norm), (3, 16, 16), "square()", (4, 4)),
    "token among": Case(net(token_among, block=encoder), (3, 12, 20), "square()", (3, 5)),
    "recurrent over rows": Case(
        net(recurrent_over_rows, cut=lambda: patches(8, 4, 1), recurrent=lambda: nn.GRU(56, 12, batch_first=True)),
        (1, 28, 28), "cut", (7, 7),
    ),
    "recurrent over columns": Case(
        net(
            recurrent_over_columns, cut=lambda: nn.Conv2d(1, 12, 3, (2, 2), 1),
            second=lambda: nn.Conv2d(12, 12, 3, (2, 1), 1), recurrent=lambda: nn.LSTM(12, 6, bidirectional=True),
        ),
        (1, 16, 66), "relu()#2", (4, 33),
    ),
    "attention over rows": Case(
        net(attention_over_rows, cut=lambda: patches(12, 8), block=encoder, out=lambda: nn.Conv2d(12, 12, 1)),
        (3, 64, 64), "square()", (8, 8),
    ),
    "learned queries": Case(
        net(learned_queries, cross=lambda: nn.MultiheadAttention(12, 2, batch_first=True), norm=norm),
        (3, 24, 16), "cut", (6, 4),
    ),
    "two outputs": Case(net(two_outputs, block=Both), (3, 16, 24), "block.relu()", (4, 6)),
    "probe": Case(net(probed, probe=Probe), (3, 16, 24), "relu()", (4, 6)),
    "windows": Case(net(windows, block=encoder, norm=norm), (3, 16, 24), "square()", (4, 6)),
    "unrolled": Case(net(unrolled, norm=norm), (3, 16, 24), "square()", (4, 6)),
    "resized inside": Case(net(resized, norm=norm), (3, 24, 48), "square()", (4, 4)),
    "text beside": Case(net(text_beside, norm=norm, text=encoder), (3, 16, 24), "square()", (4, 6)),
    "transposed": Case(net(transposed), (3, 16, 24), "relu()", (4, 6)),
    "pixels in channels": Case(net(unshuffled, cut=lambda: patches(12, 2, 12)), (3, 16, 24), "relu()", (4, 6)),
    "gate": Case(net(gated, gate=lambda: nn.Conv2d(12, 1, 3, padding=1)), (3, 16, 24), "mul()", (4, 6)),
    "streams": Case(
        net(streams, second=lambda: nn.Conv2d(12, 12, 3, padding=1), third=lambda: nn.Conv2d(12, 12, 1)),
        (3, 16, 24), "add()", (4, 6),
    ),
    "changed in place": Case(net(changed_in_place), (3, 16, 24), "relu()#2", (4, 6)),
    "gradients of its own": Case(net(own_backward, second=lambda: nn.Conv2d(12, 12, 1)), (3, 16, 24), "second", (4, 6)),
}  # fmt: skip


def built(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(2)
    module = CASES[name].build().double().eval()
    return module, torch.rand(2, *CASES[name].image, generator=torch.Generator().manual_seed(3)).double()


def looked_at(module: nn.Module, address: str, fold: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Where on the image each cell looks, by its gradient: (h, w, 2) in pixels."""
    leaf = x.clone().requires_grad_()
    activation, _ = kept(module, address, lambda: module(leaf))
    cells = fold(activation)[0].mul(torch.rand_like(fold(activation)[0])).sum(0)
    down, across = (torch.arange(side, dtype=x.dtype) for side in x.shape[2:])
    places = []
    for cell in cells.flatten():
        (gradient,) = torch.autograd.grad(cell, leaf, retain_graph=True)
        weight = gradient[0].square().sum(0)
        places.append(torch.stack([(weight.sum(1) * down).sum(), (weight.sum(0) * across).sum()]) / weight.sum())
    return torch.stack(places).view(*cells.shape, 2)


@pytest.mark.parametrize("name", CASES)
def test_every_cell_is_drawn_where_it_looks(name: str) -> None:
    module, x = built(name)
    case = CASES[name]
    layer, grid = located(ForwardPass(rt.Model(module, channels=case.image[0]), x), None)
    assert layer == case.layer
    assert grid.size == case.size
    places = looked_at(module, layer, grid.fold, x[:1])
    rows, columns = case.size
    for which, (cells, side) in enumerate(((rows, x.shape[2]), (columns, x.shape[3]))):
        drawn = (torch.arange(cells, dtype=x.dtype) + 0.5) * side / cells - 0.5
        seen = places[..., which].mean(1 - which)
        assert (seen[1:] > seen[:-1]).all(), f"axis {which}: {seen.tolist()}"
        # attention looks at the whole image, but most at the patch itself
        assert ((seen - drawn).abs() <= 0.5 * side / cells + 0.35 * (drawn - drawn.mean()).abs()).all()


@pytest.mark.parametrize("name", CASES)
def test_maps_are_those_of_the_layer_that_is_named(name: str) -> None:
    module, x = built(name)
    model = rt.Model(module, channels=x.shape[1])
    _, grid = located(ForwardPass(model, x), None)
    for given, method in ((x[:1], "la"), (x, "la"), (x, rt.LinearApproximation(CASES[name].layer))):
        why = rt.explain(model, given, fact=1, foil=2, contrast="max", method=method)
        leaf = given.clone().requires_grad_()
        activation, logits = kept(module, why.layer, lambda leaf=leaf: module(leaf))
        (gradient,) = torch.autograd.grad((logits[:, 1] - logits[:, 2]).sum(), activation)
        expected = (grid.fold(activation) * grid.fold(gradient)).sum(1).detach()
        assert expected.abs().max() > 1e-6
        torch.testing.assert_close(why.attribution, expected, rtol=1e-9, atol=1e-12)
        assert why.attribution.shape[1:] == CASES[name].size


def test_a_bright_patch_lights_up_its_own_cell() -> None:
    """The class token stands behind the patches; nothing else than the patch at row 0, column 0 is not black."""
    torch.manual_seed(0)
    module = Net(token_behind, cut=nn.Conv2d(3, 12, 4, 4, bias=False), norm=nn.Identity(), head=nn.Linear(12, CLASSES))
    x = torch.zeros(1, 3, 32, 32)
    x[..., :4, :4] = 1
    why = rt.explain(module.eval(), x, fact=0, foil=1, method="la")
    assert why.attribution.shape[1:] == (8, 8)
    assert why.attribution[0, 0, 0] != 0
    assert why.attribution.count_nonzero() == 1


@pytest.mark.parametrize("classes", [3, 9])
def test_only_the_map_of_the_scores_is_passed_over(classes: int) -> None:
    """Two layers of as many channels as classes: the second, pooled, is the logits; the first is not."""
    layers = (nn.Conv2d(3, classes, 3), nn.ReLU(), nn.Conv2d(classes, classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    why = rt.explain(nn.Sequential(*layers, nn.Flatten()).eval(), torch.rand(1, 3, 8, 8))
    assert why.layer == "1"


def test_a_layer_whose_rows_are_mixed_is_refused_by_name_and_columns_can_be_asked_for() -> None:
    module, x = built("recurrent over columns")
    model = rt.Model(module, channels=1)
    why = rt.explain(model, x, fact=1, method=rt.GradCAM("relu()#2"))
    assert why.attribution.shape[1:] == (4, 33)
    module, x = built("learned queries")
    with pytest.raises(LayerError, match="lies on no grid"):
        rt.explain(module, x, fact=1, method=rt.GradCAM("norm"))


def two_towers(net: Any, x: Tensor) -> Tensor:
    return net.head(torch.cat([net.fine(x).relu().mean((2, 3)), net.coarse(x).relu().mean((2, 3))], 1))


def test_networks_that_no_single_layer_explains_are_refused() -> None:
    towers = {"fine": nn.Conv2d(3, 8, 3), "coarse": nn.Conv2d(3, 8, 5, stride=2)}
    module, x = Net(two_towers, head=nn.Linear(16, CLASSES), **towers).eval(), torch.rand(2, 3, 12, 12)
    with pytest.raises(LayerError, match=r"no layer on the image's plane.*name one"):
        rt.explain(module, x)
    assert rt.explain(module, x, method=rt.GradCAM("relu()#2")).attribution.shape[1:] == (4, 4)


def one_convolution(forward: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    return Net(forward, conv=nn.Conv2d(3, 8, 3, padding=1), head=nn.Linear(8, CLASSES)).eval()


def test_a_network_that_takes_no_single_image_is_explained_in_its_batch() -> None:
    module = one_convolution(lambda net, x: net.head(net.conv(x.view(2, 3, 12, 12)).relu().mean((2, 3))))
    assert rt.explain(module, torch.rand(2, 3, 12, 12)).layer == "relu()"


def test_operations_are_followed_whose_arguments_are_named() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = F.pad(input=F.conv2d(input=x, weight=net.conv.weight, stride=4), pad=(0, 0, 1, 1))[:, :, 1:-1]
        x = torch.permute(input=x, dims=(0, 2, 3, 1))
        x = F.linear(input=torch.matmul(input=x, other=torch.eye(8)), weight=torch.eye(8))
        return net.head(torch.mean(input=F.relu(input=x), dim=(1, 2)))

    module, x = one_convolution(forward), torch.rand(1, 3, 15, 23)
    layer, grid = located(ForwardPass(rt.Model(module), x), None)
    assert (layer, grid.size, grid.axes) == ("relu()", (4, 6), (0, 1))


def test_what_is_found_is_found_once_in_the_pass_that_explains() -> None:
    module, x = built("streams")
    model = rt.Model(module)
    with Counter(model) as counter:
        rt.explain(model, x[:1])
        assert (counter.passes, counter.images) == (1, 1)
        rt.explain(module, x)  # a bare module, too: the network is remembered, not its wrapping
        assert (counter.passes, counter.images) == (2, 3)
    module, x = built("streams")
    with Counter(rt.Model(module)) as counter:
        rt.explain(module, x)
        assert (counter.passes, counter.images) == (2, 3)
        rt.explain(module, x, method=rt.GradCAM("add()"))
        assert (counter.passes, counter.images) == (4, 6)  # where a named layer lies is found out once, on one image
        rt.explain(module, x, method=rt.GradCAM("add()"))
        assert (counter.passes, counter.images) == (5, 8)


def test_a_network_that_was_rebuilt_is_looked_at_again() -> None:
    module, x = two_convolutions(5)(), torch.rand(1, 3, 16, 16)
    assert rt.explain(module.eval(), x).layer == "3"
    module[2] = nn.Sequential(nn.Conv2d(16, 32, 1), nn.Flatten(2), nn.Unflatten(2, (8, 8)))
    assert rt.explain(module.eval(), x).attribution.shape[1:] == (8, 8)


@pytest.mark.parametrize("foil", [None, 2, "each"])
def test_maps_of_a_pooled_linear_head_add_up_to_score_minus_bias_and_say_so(foil: object) -> None:
    module, x = built("streams")
    module.head.bias.data = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)  # type: ignore[union-attr]
    why = rt.explain(module, x, fact=1, foil=foil, contrast="mean", method="la")
    logits = module(x).detach()
    score = (logits[:, 1:2] - logits).squeeze(0) if foil == "each" else logits[:, 1] - (
        logits[:, 2] if foil else logits[:, [0, 2, 3]].mean(1)
    )  # fmt: skip
    bias = module.head.bias.detach()  # type: ignore[union-attr]
    ours = bias[1] - (bias if foil == "each" else bias[2] if foil else bias[[0, 2, 3]].mean())
    torch.testing.assert_close(why.attribution.sum((-2, -1)), score - ours)
    torch.testing.assert_close(why.diagnostics["bias"], ours.expand_as(score))
    assert why.diagnostics["convergence delta"].abs().max() < 1e-12
    assert "bias" not in rt.explain(*built("gate"), fact=1, method=rt.LinearApproximation("cut")).diagnostics


def test_what_sees_a_cutting_of_the_image_alone_is_not_drawn_over_all_of_it() -> None:
    module = one_convolution(lambda net, x: net.head(net.conv(x[:, :, 8:24, 8:24]).relu().mean((2, 3))))
    x = torch.rand(1, 3, 32, 32)
    with pytest.raises(LayerError, match="no layer on the image's plane"):
        rt.explain(module, x)
    with pytest.raises(LayerError, match="lies on no grid"):
        rt.explain(module, x, method=rt.GradCAM("conv"))


def test_a_layer_that_sees_one_image_of_a_batch_is_not_taken_for_all() -> None:
    module = one_convolution(
        lambda net, x: torch.cat([net.head(net.conv(each[None]).relu().mean((2, 3))) for each in x])
    )
    x = torch.rand(3, 3, 8, 8)
    with pytest.raises(LayerError, match=r"1 rows for 3 images.*batch_size=1"):
        rt.explain(module, x, fact=0)
    together = rt.explain(module, x, fact=0, batch_size=1)
    alone = torch.cat([rt.explain(module, each[None], fact=0).attribution for each in x])
    torch.testing.assert_close(together.attribution, alone)


def overlapping(net: Any, x: Tensor) -> Tensor:
    """Overlapping patches cut out with padding; at the border, zeros are no pixels of row 0 and column 0."""
    return net.head(F.relu(net.norm(F.unfold(x, 6, padding=1, stride=4).transpose(1, 2))).mean(1))


def test_padding_of_cut_out_patches_is_no_pixel() -> None:
    torch.manual_seed(0)
    module = Net(overlapping, norm=nn.Sequential(nn.Linear(108, 12), nn.LayerNorm(12)), head=nn.Linear(12, CLASSES))
    x = torch.rand(1, 3, 16, 24, dtype=torch.float64)
    layer, grid = located(ForwardPass(rt.Model(module.double().eval()), x), None)
    assert (layer, grid.size) == ("relu()", (4, 6))
    assert (looked_at(module, layer, grid.fold, x)[..., 0].mean(1).diff() > 3).all()
