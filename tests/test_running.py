"""Networks of every make are run right, or refused in one line: threads, compiled, scripted, quantised, half, ..."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import ratherthan as rt
from ratherthan import GradCAM, InputError, LayerError, Model, ModelError, RatherThanError, UnsupportedError
from ratherthan.inference import preserve_state
from ratherthan.search.constrained import ConstrainedSearch, Point
from ratherthan.search.manifold import Manifold
from ratherthan.search.solver import Terms


def convolutional(classes: int = 4, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), norm(8), nn.ReLU(), nn.Dropout(),
        nn.AvgPool2d(6), nn.Flatten(), nn.Linear(32, classes),
    )  # fmt: skip
    for _ in range(5):
        net(torch.rand(16, 3, 12, 12))  # lived-in statistics
    with torch.no_grad():
        net[-1].weight.mul_(40)
    return net.eval()


def photos(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(2))


class Around(nn.Module):
    """A network with something done before and after it."""

    def __init__(self, net: nn.Module, after: Callable[[Tensor], Any] | None = None, before: Any = None) -> None:
        super().__init__()
        self.net, self.after, self.before = net, after or (lambda y: y), before or (lambda x: x)

    def forward(self, x: Tensor) -> Any:
        return self.after(self.net(self.before(x)))


def one_line(error: pytest.ExceptionInfo[RatherThanError]) -> None:
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


# --------------------------------------------------------------------------------------------- threads
class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 3 * 144)
        self.drop = nn.Dropout()

    def decode(self, z: Tensor) -> Tensor:
        return self.drop(self.up(z)).sigmoid().view(-1, 3, 12, 12)

    def encode(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5) @ self.up.weight / 30


VERBS: dict[str, Callable[..., Tensor]] = {
    "gradcam": lambda net, x, _: rt.explain(net, x, 0, 1).attribution,
    "ig": lambda net, x, _: rt.explain(net, x, 0, 1, "ig").attribution,
    "occlusion": lambda net, x, _: rt.explain(net, x, 0, 1, "occlusion").attribution,
    "lrp": lambda net, x, _: rt.explain(net, x, 0, 1, "lrp").attribution,
    "each": lambda net, x, _: rt.explain(net, x, foil="each").attribution,
    "pertinent positive": lambda net, x, _: rt.pertinent_positive(net, x, method="cem").examples,
    "cem": lambda net, x, _: rt.counterfactual(net, x, method=rt.CEM(binary_search_steps=1, iterations=3)).examples,
    "xgem": lambda net, x, manifold: rt.counterfactual(net, x, method=rt.XGEM(manifold, retries=0)).examples,
}


@pytest.mark.parametrize("verb", VERBS)
def test_eight_threads_on_one_network_in_training_mode(verb: str) -> None:
    net, x, manifold = convolutional().train(), photos(8), Manifold(Decoder(), 6)
    ask = VERBS[verb]
    alone = [ask(net, image[None], manifold) for image in x]
    before, generator = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    start = threading.Barrier(8)

    def asked(i: int) -> Tensor:
        start.wait()
        return ask([net, Model(net)][i % 2], x[i : i + 1], manifold)

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(asked, range(8)))
    for one, same in zip(alone, together, strict=True):
        assert torch.equal(one, same)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_network_and_a_part_of_it_take_turns() -> None:
    part = convolutional().train()
    whole = Around(part)
    whole.train()
    x = photos(8)
    alone = [rt.explain(net, x[i : i + 1], 0, 1, "ig").attribution for i, net in enumerate([part, whole] * 4)]
    with ThreadPoolExecutor(8) as pool:
        together = pool.map(lambda i: rt.explain([part, whole][i % 2], x[i : i + 1], 0, 1, "ig").attribution, range(8))
        assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))
    assert part.training
    assert part[1].training


def test_networks_explained_inside_each_other_do_not_wait_for_ever() -> None:
    nets, inside = [convolutional(), convolutional()], threading.Barrier(2)

    def nested(i: int) -> str:
        with preserve_state(nets[i]):
            inside.wait()
            try:
                with preserve_state(nets[1 - i]):
                    return "both"
            except InputError as error:
                return str(error)

    with ThreadPoolExecutor(2) as pool:
        told = sorted(pool.map(nested, range(2), timeout=60))
    assert told == ["both", "two threads wait for each other's networks: explain both in one thread"]
    with preserve_state(nets[0]), preserve_state(nets[0]):  # a contrast may explain inside an explanation
        rt.explain(nets[0], photos(1))


def test_an_explanation_inside_a_forward_pass_is_refused() -> None:
    net = convolutional()
    net[0].register_forward_hook(lambda *_: rt.explain(net, photos(1)))
    for ask in (lambda: rt.explain(net, photos(1)), lambda: net(photos(1))):
        with pytest.raises(ModelError, match="inside its own forward pass, by a hook"):
            ask()
    net[0]._forward_hooks.clear()
    assert torch.equal(rt.explain(net, photos(1)).logits, net(photos(1)))


class Cached(nn.Module):
    """Keeps something in evaluation mode that training would make wrong, as LeViT and TinyViT do."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.bias = convolutional(), nn.Parameter(torch.ones(4))
        self.cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> Cached:
        super().train(mode)
        if mode:
            self.cache = {}
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.net(x) + 3 * self.bias
        if "bias" not in self.cache:
            self.cache["bias"] = 3 * self.bias
        return self.net(x) + self.cache["bias"]


@pytest.mark.parametrize("training", [True, False])
def test_what_a_module_keeps_in_evaluation_mode_is_not_left_over(training: bool) -> None:
    net = Cached().train(training)
    kept = net.cache
    rt.explain(net, photos(2), foil="each")
    assert net.cache is kept
    assert not kept
    with torch.no_grad():
        net.bias.add_(1)  # a step of training
    assert torch.allclose(net.eval()(photos(1)) - net.net(photos(1)), torch.full((1, 4), 6.0), atol=1e-5)


# --------------------------------------------------------------------------------------------- kinds of module
def test_compiled_networks_are_explained_by_the_original() -> None:
    net, x = convolutional(), photos()
    compiled = torch.compile(net, backend="aot_eager")
    assert Model(compiled).module is net
    assert Model(compiled).name == "Sequential"
    for method in ("gradcam", "ixg", "lrp", "occlusion", GradCAM("0")):
        plain, same = (rt.explain(each, x, 0, 1, method) for each in (net, compiled))
        assert torch.equal(plain.attribution, same.attribution)
        assert plain.layer == same.layer
    found = [rt.counterfactual(each, x, foil="any", method="cem").examples for each in (net, compiled)]
    assert torch.equal(*found)


def _closed() -> Iterator[nn.Module]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield torch.jit.script(convolutional())
        yield torch.jit.trace(convolutional(), photos())
        yield torch.jit.freeze(torch.jit.script(convolutional()))


@pytest.mark.parametrize("which", [0, 1, 2], ids=["scripted", "traced", "frozen"])
def test_scripted_networks(which: int) -> None:
    net, x, closed = convolutional(), photos(), list(_closed())[which]
    for method in ("ixg", "ig", "occlusion"):
        open_map, same = (rt.explain(each, x, 0, 1, method).attribution for each in (net, closed))
        torch.testing.assert_close(open_map, same, atol=1e-5, rtol=1e-4)
    for layer in (None, "0"):
        with pytest.raises(LayerError, match=r"scripted or traced.*e.g. by ixg or occlusion") as error:
            rt.explain(closed, x, layer=layer)
        one_line(error)
    for method in ("lrp", "deeplift"):
        with pytest.raises(UnsupportedError, match="holds scripted modules"):
            rt.explain(closed, x, method=method)


def _quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(convolutional(), {nn.Linear})


NOT_DIFFERENTIABLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "int8": (_quantised, "quantised"),
    "detached": (lambda: Around(convolutional(), before=lambda x: x.detach()), "detaches|do not reach"),
    "no_grad": (lambda: Around(convolutional(), after=lambda y: y.detach()), "detaches|do not reach|reach the logits"),
    "checkpointed": (
        lambda: Around(nn.Identity(), before=lambda x: checkpoint(_CHECKPOINTED, x, use_reentrant=True)),
        "use_reentrant=False|reach the logits",
    ),
}  # fmt: skip
_CHECKPOINTED = convolutional()


@pytest.mark.parametrize("kind", NOT_DIFFERENTIABLE)
def test_networks_without_a_gradient(kind: str) -> None:
    make, message = NOT_DIFFERENTIABLE[kind]
    net, x = make(), photos(2)
    manifold = Manifold(Decoder(), 6)
    made = manifold.decode(torch.randn(2, 6)).detach()
    for ask in (
        lambda: rt.explain(net, x, 0, 1, "ixg"),
        lambda: rt.explain(net, x, 0, 1, "ig"),
        lambda: rt.counterfactual(net, x, foil="any", method="cem"),
        lambda: rt.counterfactual(net, made, method=rt.XGEM(manifold)),
        lambda: rt.counterfactual(net, made, method=rt.CDeepEx(manifold)),
        lambda: rt.pertinent_positive(net, x, method="cem"),
        lambda: rt.pertinent_positive(net, x, method=rt.CEMMAFPositive(superpixels="grid")),
    ):
        with pytest.raises(RatherThanError, match=message) as error:
            ask()
        one_line(error)
    logits = net(x)
    why = rt.explain(net, x, 0, 1, "occlusion")
    assert torch.allclose(why.logits, logits, atol=1e-5)
    if kind == "int8":
        for method in ("gradcam", "la", "lrp", "deeplift"):
            with pytest.raises(RatherThanError, match=r"quantised.*'occlusion' or 'lime'"):
                rt.explain(net, x, 0, 1, method)


def test_lrp_does_not_show_zeros_for_a_network_that_detaches_its_image() -> None:
    net = Around(convolutional(), before=lambda x: x.detach())
    with pytest.raises(UnsupportedError, match="constants absorb all relevance"):
        rt.explain(net, photos(), 0, 1, "lrp")


def test_inference_mode() -> None:
    digit = torch.zeros(1, 1, 28, 28)
    digit[..., 4:24, 13:16] = 1
    model = rt.load("zoo:mnist")
    schedule = rt.Schedule(outer_iterations=2, inner_iterations=4)
    how = rt.CDeepEx(schedule=schedule, retries=0)
    expected = [
        rt.explain(model, digit, foil=7).attribution,
        rt.counterfactual(model, digit, foil=7, method=how).examples,
    ]
    with torch.inference_mode():
        loaded = rt.load("zoo:mnist")
        made = convolutional()
        for each in (model, loaded):
            assert torch.equal(rt.explain(each, digit, foil=7).attribution, expected[0])
            assert torch.equal(rt.counterfactual(each, digit, foil=7, method=how).examples, expected[1])
    with pytest.raises(ModelError, match=r"made under torch.inference_mode: make it outside"):
        rt.explain(made, photos())


# --------------------------------------------------------------------------------------------- half precision
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_searches_of_networks_in_half_precision(dtype: torch.dtype) -> None:
    net, x = convolutional(), photos(2)
    half = copy.deepcopy(net).to(dtype)
    manifold = Manifold(Decoder(), 6)
    made = manifold.decode(torch.randn(2, 6)).detach()
    seen = list[torch.dtype]()
    half.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    for result in (
        rt.counterfactual(half, x, foil="any", method="cem"),
        rt.counterfactual(half, made, method=rt.XGEM(manifold, retries=0)),
        rt.counterfactual(half, made, method=rt.CDeepEx(manifold, retries=0)),
        rt.pertinent_positive(half, x, method="cem"),
        rt.pertinent_positive(half, x, method=rt.CEMMAFPositive(superpixels="grid")),
    ):
        assert result.examples.dtype == torch.float32
        fresh = half(result.examples.flatten(0, 1).to(dtype)).float()
        torch.testing.assert_close(result.example_logits.flatten(0, 1), fresh, atol=0.05, rtol=0.05)
    assert set(seen) == {dtype}  # the network is handed its own
    found = rt.counterfactual(half, x, foil="any", method="cem")
    assert found.found.any()
    reached = net(found.example[found.found])
    assert (reached.argmax(1) != found.fact[found.found]).all()  # also for the network in float32
    for method in ("gradcam", "ixg", "ig"):
        a, b = (rt.explain(each, x, 0, 1, method).attribution for each in (net, half))
        assert (a - b).norm() < 0.05 * a.norm()


def test_differences_of_logits_that_half_precision_rounds_away_are_refused() -> None:
    net, x = convolutional(), photos(2)
    with torch.no_grad():
        net[-1].bias.add_(30)
    narrow = rt.Occlusion(size=2)
    exact, half = (rt.explain(each, x, 0, 1, narrow).attribution for each in (net, copy.deepcopy(net).half()))
    assert (exact - half).norm() < 0.2 * exact.norm()
    coarse = copy.deepcopy(net).bfloat16()
    for method in ("occlusion", "lime"):
        with pytest.raises(UnsupportedError, match=r"bfloat16 rounds away what .* use float32 weights"):
            rt.explain(coarse, x, 0, 1, method)
    clear, wide = convolutional(), rt.Occlusion(size=6)  # large differences of small logits
    exact, rough = (rt.explain(each, x, 0, 1, wide).attribution for each in (clear, copy.deepcopy(clear).bfloat16()))
    assert (exact - rough).norm() < 0.1 * exact.norm()


# --------------------------------------------------------------------------------------------- what cannot be run
class WantsOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = convolutional()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) != 1:
            raise AssertionError("Expected input at *args[0].shape[0] to be equal to 1")
        return self.net(x)


class Fails(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error, self.weight = error, nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


CANNOT_RUN: dict[str, tuple[Callable[[], Any], str]] = {
    "meta": (lambda: convolutional().to("meta"), "no weights yet, they lie on the device 'meta'"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten()), "no weights yet, they are lazy"),
    "one image": (WantsOne, "one image by itself works: give batch_size=1"),
    "undefined name": (lambda: Fails(NameError("name 'w' is not defined")), "fails on .*: name 'w' is not defined"),
    "file": (lambda: Fails(OSError("no space left")), "fails on images of shape .*: no space left"),
    "long": (lambda: Fails(RuntimeError("word " * 300)), r"fails on .* word \.\.\."),
}


@pytest.mark.parametrize("kind", CANNOT_RUN)
def test_networks_that_cannot_be_run(kind: str) -> None:
    make, message = CANNOT_RUN[kind]
    for method in ("gradient", "lrp", "occlusion"):
        with pytest.raises(ModelError, match=message) as error:
            rt.explain(make(), photos(), method=method)
        one_line(error)


def test_a_network_that_takes_one_image_is_given_one() -> None:
    net, x = WantsOne(), photos()
    why = rt.explain(net, x, 0, 1, "ixg", batch_size=1)
    assert torch.allclose(why.attribution, rt.explain(net.net, x, 0, 1, "ixg").attribution, atol=1e-6)


@pytest.mark.parametrize("device", ["meta", "hpu", "privateuseone", "mps", "lazy", "vulkan", "xla", "abacus"])
def test_devices_that_cannot_be_used(device: str) -> None:
    with pytest.raises(InputError, match=f"device '{device}'") as error:
        Model(convolutional()).to(device)
    one_line(error)


# --------------------------------------------------------------------------------------------- how it is run
class WithMore(nn.Module):
    """Takes a second argument and returns several things."""

    def __init__(self) -> None:
        super().__init__()
        self.net = convolutional()

    def forward(self, x: Tensor, gain: Tensor, *, bias: float = 0.0) -> Any:
        y = self.net(x) * gain + bias
        return {"scores": y, "aux": y * 0}


def test_forward_says_how_a_network_is_run() -> None:
    module, x, names = WithMore(), photos(), ["a", "b", "c", "d"]
    module.net[-1].bias.data.zero_()
    model = Model(module, names, forward=lambda m, x: m(x, 2.0, bias=1.0)["scores"])
    assert torch.allclose(model.logits(x), 2 * module.net(x) + 1)
    assert model.replace(name="other").forward is model.forward
    for method in ("gradcam", "ixg", "lrp", "occlusion", "ig", "deeplift"):
        plain = rt.explain(module.net, x, 0, 1, method)
        why = rt.explain(model, x, "a", "b", method)
        torch.testing.assert_close(why.attribution, 2 * plain.attribution, atol=1e-5, rtol=1e-4)
        assert why.layer == (None if plain.layer is None else f"net.{plain.layer}")
    assert rt.counterfactual(model, x, foil="any", method="cem").found.any()


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (lambda y: (y, y), r"returns a tuple: pick the logits, Model\(net, forward=lambda m, x: m\(x\)\[0\]\)"),
        (lambda y: [y], r"returns a list: .*m\(x\)\[0\]\)"),
        (lambda y: {"out": y, "aux": y}, r"returns a dict: .*m\(x\)\['out'\]\)"),
        (lambda y: None, "returns a NoneType"),
    ],
)
def test_several_outputs_are_refused_with_the_remedy(after: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        rt.explain(Around(convolutional(), after), photos())


def test_further_arguments_are_asked_for() -> None:
    with pytest.raises(
        ModelError, match=r"missing 1 required .*'gain'; give further arguments by .*forward=lambda m, x"
    ):
        rt.explain(WithMore(), photos())


# --------------------------------------------------------------------------------------------- the layer
def test_a_layer_is_named_as_cam_users_do() -> None:
    net, x = convolutional(), photos()
    expected = rt.explain(net, x, 0, 1, GradCAM("0"))
    for layer in ("0", net[0]):
        why = rt.explain(net, x, 0, 1, layer=layer)
        assert why.layer == "0"
        assert torch.equal(why.attribution, expected.attribution)
    both = rt.compare(net, x, 0, 1, ["gradcam", "la"], ["none"], layer="0")
    assert [each.layer for each in both] == ["0", "0"]
    for method, message in (
        ("ixg", "method 'ixg' explains the image, not a layer"),
        (rt.InputXGradient(), "explains the image, not a layer"),
        (GradCAM(), r"give the settings layer to GradCAM\(...\) itself"),
    ):
        with pytest.raises(InputError, match=message):
            rt.explain(net, x, method=method, layer="0")
    with pytest.raises(LayerError, match="unknown layer 'layer4'"):
        rt.explain(net, x, layer="layer4")


# --------------------------------------------------------------------------------------------- nothing is kept
class Nearest(ConstrainedSearch):
    name = "nearest"

    def terms(self, at: Point) -> Terms:
        return Terms((at.z - at.start).square().flatten(1).sum(1), below=-at.lead)


def test_nothing_holds_on_to_a_network() -> None:
    import gc
    import weakref

    from ratherthan import inference

    gone = list[weakref.ref[Any]]()
    for net in (convolutional(), Cached(), torch.compile(convolutional(), backend="eager")):
        rt.explain(net, photos(1), 0, 1)
        rt.counterfactual(net, photos(1), foil="any", method="cem")
        gone.append(weakref.ref(net))
    with pytest.raises(ModelError):
        rt.explain(Fails(ValueError("no")), photos(1))
    del net
    gc.collect()
    assert [each() for each in gone] == [None, None, None]
    assert not inference._RUN_BY
    assert not inference._WAITS_FOR
    assert not inference._PASSES
