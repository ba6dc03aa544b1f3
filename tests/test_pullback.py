"""One forward pass, many seeds, closed forms, and nothing left behind."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam, LayerGradientXActivation
from torch import Tensor, nn

import ratherthan as rt
from nets import CONVOLUTIONAL, Counter, Dense, Linear, Pooled, Squeezed, Tokens, images, make
from ratherthan import ForwardPass, get_contrast, preserve_state, resolve
from ratherthan.attribution.activation import pointwise_head

CLASSES = 5
CONTRASTS = rt.contrasts()
METHODS = {"gradcam": rt.GradCAM, "la": rt.LinearApproximation}


# --------------------------------------------------------------------------------------------- right
@pytest.mark.parametrize("contrast", CONTRASTS)
@pytest.mark.parametrize("foil", [None, 2, {1, 3}, [0, 4], "each"])
def test_linear_models_have_a_closed_form(contrast: str, foil: object) -> None:
    model = make(lambda: Linear(3 * 12 * 12, CLASSES))
    x = images()
    logits = model.module(x)
    question = resolve(logits, 1, foil)
    weights = model.module.head.weight.view(CLASSES, 3, 12, 12)  # type: ignore[union-attr, operator]
    expected = torch.einsum("nqk,kchw->nqchw", get_contrast(contrast).seed(logits, question), weights).detach()
    gradient = rt.explain(model, x, 1, foil, "gradient", contrast).attribution
    times_input = rt.explain(model, x, 1, foil, "ixg", contrast).attribution
    expected = expected if question.axis else expected.squeeze(1)
    torch.testing.assert_close(gradient, expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(times_input, (x.unsqueeze(1) if question.axis else x) * expected, atol=1e-10, rtol=1e-10)


def captum_map(model: rt.Model, x: Tensor, layer: str, method: str, weights: Tensor) -> Tensor:
    """Captum's maps of single logits, summed over channels and weighed by hand."""
    kind = LayerGradCam if method == "gradcam" else LayerGradientXActivation
    explainer = kind(model.module, model.module.get_submodule(layer))
    options = {"relu_attributions": False} if method == "gradcam" else {}
    maps = torch.stack([explainer.attribute(x, target=c, **options).sum(1) for c in range(CLASSES)], 1)
    return torch.einsum("nc,nchw->nhw", weights, maps).detach()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("net", [*CONVOLUTIONAL, "early"])
def test_layer_methods_equal_captum(net: str, method: str) -> None:
    model = make(CONVOLUTIONAL.get(net, Dense), torch.float32)
    layer = "features" if net != "early" else "features.0"  # followed by an in-place ReLU
    x = images(dtype=torch.float32)
    for contrast, foil in (("none", None), ("mean", None), ("weighted", None), ("weighted", 2)):
        why = rt.explain(model, x, 1, foil, METHODS[method](layer), contrast)
        weights = get_contrast(contrast).seed(why.logits, resolve(why.logits, 1, foil))[:, 0]
        expected = captum_map(model, x.clone(), layer, method, weights)
        peak = expected.abs().max()
        assert peak > 1e-5
        torch.testing.assert_close(why.attribution / peak, expected / peak, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["gradcam", "la", "gradient", "ixg"])
@pytest.mark.parametrize("net", CONVOLUTIONAL)
def test_many_foils_equal_single_calls_with_one_forward_pass(net: str, method: str) -> None:
    model = make(CONVOLUTIONAL[net], layer="features")
    x = images()
    rt.explain(model, x[:1], method=method)  # where a layer lies is found out once
    with Counter(model) as counter:
        each = rt.explain(model, x, None, "each", method)
    assert (counter.passes, counter.images) == (1, 3)
    assert each.attribution.shape[:2] == (3, CLASSES)
    for foil in range(CLASSES):
        single = rt.explain(model, x, None, torch.full((3,), foil), method)
        torch.testing.assert_close(each.attribution[:, foil], single.attribution, atol=1e-10, rtol=1e-10)
    facts = rt.explain(model, x, "each", None, method, "none")
    single = rt.explain(model, x, 3, None, method, "none")
    torch.testing.assert_close(facts.attribution[:, 3], single.attribution, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("method", ["gradcam", "la", "gradient", "ixg"])
@pytest.mark.parametrize("contrast", CONTRASTS)
def test_a_batch_equals_one_by_one(method: str, contrast: str) -> None:
    model = make(CONVOLUTIONAL["residual"], layer="features")
    x, fact = images(5), torch.tensor([0, 1, 2, 3, 4])
    foils = [[1, {2, 3}], [0, 2], [0, 1], [0, {1, 2, 4}], [0, 1]]
    together = rt.explain(model, x, fact, foils, method, contrast)
    in_parts = rt.explain(model, x, fact, foils, method, contrast, batch_size=2)
    torch.testing.assert_close(in_parts.attribution, together.attribution, atol=1e-10, rtol=1e-10)
    for i in range(5):
        alone = rt.explain(model, x[i : i + 1], fact[i : i + 1], foils[i : i + 1], method, contrast)
        torch.testing.assert_close(alone.attribution[0], together.attribution[i], atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(alone.score[0], together.score[i], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("method", ["gradcam", "la", "gradient", "ixg"])
def test_contrasts_are_weighted_sums_of_class_maps(method: str) -> None:
    """Proposition 3 and equation 1, on a network that is not linear."""
    model = make(CONVOLUTIONAL["dense"], layer="features")
    x = images()
    per_class = rt.explain(model, x, "each", None, method, "none")
    for contrast in ("mean", "max", "weighted", "probability", "loss"):
        why = rt.explain(model, x, 1, None if contrast != "loss" else 2, method, contrast)
        question = resolve(why.logits, 1, None if contrast != "loss" else 2)
        seed = get_contrast(contrast).seed(why.logits, question)[:, 0]
        expected = torch.einsum("nc,nc...->n...", seed, per_class.attribution)
        torch.testing.assert_close(why.attribution, expected, atol=1e-10, rtol=1e-10)


def test_propagating_the_contrast_from_any_layer_is_the_same() -> None:
    """Proposition 3 as it is stated: contrast at a hidden layer and propagate on, or propagate and then contrast."""
    model = make(CONVOLUTIONAL["dense"])
    x = images().requires_grad_()
    hidden = model.module.features(x)  # type: ignore[operator]
    logits = model.module.head(model.module.tail(hidden.clone()))  # type: ignore[operator]
    seed = get_contrast("weighted").seed(logits.detach(), resolve(logits.detach(), 0))[:, 0]
    at_hidden = torch.autograd.grad(logits, hidden, seed, retain_graph=True)[0]
    via_hidden = torch.autograd.grad(hidden, x, at_hidden, retain_graph=True)[0]
    per_class = [torch.autograd.grad(logits[:, c].sum(), x, retain_graph=True)[0] for c in range(CLASSES)]
    combined = sum(seed[:, c].view(-1, 1, 1, 1) * per_class[c] for c in range(CLASSES))
    torch.testing.assert_close(via_hidden, combined, atol=1e-10, rtol=1e-10)
    ours = rt.explain(model, x.detach(), 0, None, "gradient").attribution
    torch.testing.assert_close(ours, combined, atol=1e-10, rtol=1e-10)


# --------------------------------------------------------------------------------------------- pointwise heads
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("net", "found"), [("pooled", True), ("squeezed", True), ("dense", False), ("residual", False)]
)
def test_pointwise_heads_are_recognised_by_value_and_give_the_same_maps(
    net: str, found: bool, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(CONVOLUTIONAL[net], layer="features")
    x = images()
    forward_pass = ForwardPass(model, x)
    from ratherthan.attribution import activation

    _, grid = activation.located(forward_pass, "features")
    assert (pointwise_head(forward_pass, forward_pass.graph("features"), grid) is not None) == found
    closed = rt.explain(model, x, None, "each", method).attribution
    monkeypatch.setattr(activation, "pointwise_head", lambda *_: None)
    pulled = rt.explain(model, x, None, "each", method).attribution
    torch.testing.assert_close(closed, pulled, atol=1e-10, rtol=1e-10)


def test_a_head_that_only_looks_pointwise_on_the_values_is_not_taken_for_one() -> None:
    """A ReLU above a layer that is already rectified changes no value, but it does change the gradient at zeros."""

    class Rectified(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
            self.head = nn.Linear(8, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.features(x).relu().mean((2, 3)))

    model = make(Rectified, layer="features")
    why = rt.explain(model, images(), None, "each", "gradcam", "none")
    single = rt.explain(model, images(), None, torch.tensor([0, 0, 0]), "gradcam", "none")
    torch.testing.assert_close(why.attribution[:, 0], single.attribution, atol=1e-10, rtol=1e-10)


# --------------------------------------------------------------------------------------------- memory
def seeds_at_once(monkeypatch: pytest.MonkeyPatch, model: rt.Model, x: Tensor, **options: Any) -> list[int]:
    """How many seeds each backward pass of an explanation takes."""
    steps: list[int] = []
    grad = torch.autograd.grad

    def noted(outputs: Any, inputs: Any, grad_outputs: Any = None, **more: Any) -> Any:
        steps.append(len(grad_outputs) if more.get("is_grads_batched") else 1)
        return grad(outputs, inputs, grad_outputs, **more)

    with monkeypatch.context() as patched:
        patched.setattr(torch.autograd, "grad", noted)
        rt.explain(model, x, None, "each", "la", **options)
    return steps


def test_pulling_back_stays_within_its_budget_and_the_budget_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(Dense, layer="features")
    x = images()
    activations = 3 * 8 * 8 * 8 * 8  # bytes of the layer's output for three images; a backward pass holds more than one
    assert seeds_at_once(monkeypatch, model, x) == [CLASSES]
    whole = rt.explain(model, x, None, "each", "la").attribution
    largest = []
    for budget in (1, 4 * activations, 8 * activations, 16 * activations, 100 * activations):
        steps = seeds_at_once(monkeypatch, model, x, memory_budget=budget)
        assert sum(steps) == CLASSES
        assert max(steps) * activations <= max(budget, activations)
        largest.append(max(steps))
        tight = rt.explain(model, x, None, "each", "la", memory_budget=budget).attribution
        torch.testing.assert_close(tight, whole)
    assert largest == sorted(largest)
    assert (largest[0], largest[-1]) == (1, CLASSES)
    assert len(set(largest)) > 2
    with pytest.raises(rt.InputError, match="memory_budget is a number above 0, not 0"):
        rt.explain(model, x, memory_budget=0)


# --------------------------------------------------------------------------------------------- nothing left behind
class State:
    """Everything about a network and the process that explaining must not change."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.before = self.read()

    def read(self) -> dict[str, Any]:
        modules = dict(self.module.named_modules())
        return {
            "training": {name: m.training for name, m in modules.items()},
            "hooks": {n: {k: len(v) for k, v in vars(m).items() if "hooks" in k} for n, m in modules.items()},
            "attributes": {name: sorted(vars(m)) for name, m in modules.items()},
            "requires_grad": {name: p.requires_grad for name, p in self.module.named_parameters()},
            "grad": {name: p.grad is None for name, p in self.module.named_parameters()},
            "state": {name: value.clone() for name, value in self.module.state_dict().items()},
            "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),  # type: ignore[index, union-attr]
            "grad mode": torch.is_grad_enabled(),
        }

    def unchanged(self) -> None:
        after = self.read()
        for name, value in self.before.pop("state").items():
            assert torch.equal(value, after["state"].pop(name)), name
        assert not after.pop("state")
        assert after == self.before


def mixed_flags(module: nn.Module) -> nn.Module:
    """Training flags that no call of train() or eval() would give, one frozen parameter."""
    for i, each in enumerate(module.modules()):
        each.training = i % 2 == 0
    next(module.parameters()).requires_grad_(False)
    return module


@pytest.mark.parametrize("method", ["gradcam", "la", "gradient", "ixg"])
@pytest.mark.parametrize("net", CONVOLUTIONAL)
def test_nothing_is_left_behind(net: str, method: str) -> None:
    model = make(CONVOLUTIONAL[net])
    in_eval = rt.explain(model, images(), None, "each", method)
    fresh = rt.Model(mixed_flags(model.module))
    x = images()
    state, given = State(fresh.module), x.clone()
    why = rt.explain(fresh, x, None, "each", method)
    state.unchanged()
    torch.testing.assert_close(why.attribution, in_eval.attribution)  # explained in eval mode all the same
    assert torch.equal(x, given)
    assert not x.requires_grad
    assert not why.attribution.requires_grad


class Breaks(Exception):
    pass


def breaking(where: str, monkeypatch: pytest.MonkeyPatch, model: rt.Model) -> None:
    """Inject a failure at one stage of an explanation."""

    def fail(*_: object, **__: object) -> None:
        raise Breaks(where)

    if where == "below the layer":
        model.module.features[0].register_forward_pre_hook(fail)  # type: ignore[index, union-attr, operator]
    elif where == "above the layer":
        model.module.head.register_forward_pre_hook(fail)  # type: ignore[union-attr, operator]
    elif where == "question":
        monkeypatch.setattr(sys.modules["ratherthan.attribution.explain"], "resolve_in_parts", fail)
    elif where == "backward":
        monkeypatch.setattr(torch.autograd, "grad", fail)
    elif where == "result":
        monkeypatch.setattr(sys.modules["ratherthan.attribution.explain"], "Explanation", fail)


@pytest.mark.parametrize("layer", [None, "features"])
@pytest.mark.parametrize("where", ["below the layer", "above the layer", "question", "backward", "result"])
def test_nothing_is_left_behind_by_a_failure_at_any_stage(
    where: str, layer: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = rt.Model(mixed_flags(make(Dense).module), layer=layer)
    breaking(where, monkeypatch, model)
    state = State(model.module)
    with pytest.raises(Breaks):
        rt.explain(model, images(), None, "each", "gradcam")
    with monkeypatch.context() as normal:
        normal.undo()
        state.unchanged()


def test_works_under_no_grad_and_inference_mode() -> None:
    model = make(Dense, layer="features")
    expected = rt.explain(model, images(), 0).attribution
    with torch.no_grad():
        torch.testing.assert_close(rt.explain(model, images(), 0).attribution, expected)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        torch.testing.assert_close(rt.explain(model, images(), 0).attribution.clone(), expected)


def test_a_random_forward_pass_does_not_move_the_generators() -> None:
    class Noisy(Pooled):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 0.01 * torch.randn_like(x))

    model = make(Noisy, layer="features")
    state = State(model.module)
    rt.explain(model, images())
    state.unchanged()


def test_clean_room_restores_overridden_train_modes() -> None:
    class Stubborn(nn.Module):
        def train(self, mode: bool = True) -> Stubborn:
            raise RuntimeError("this network does not switch modes")

    module = nn.Sequential(Stubborn(), nn.Dropout())
    with preserve_state(module):
        assert not any(each.training for each in module.modules())
    assert all(each.training for each in module.modules())


# --------------------------------------------------------------------------------------------- refusals
def test_tokens_fold_to_a_grid_and_a_block_behind_the_class_token_is_refused() -> None:
    model = make(Tokens)
    x = images()
    why = rt.explain(model, x, 0, 1, "la")
    assert why.layer == "blocks.1.norm1"
    assert why.attribution.shape == (3, 4, 4)
    block = model.module.get_submodule("blocks.1.norm1")
    kept: list[Tensor] = []
    hook = block.register_forward_hook(lambda m, i, o: kept.append(o))
    logits = model.module(x)
    hook.remove()
    (gradient,) = torch.autograd.grad((logits[:, 0] - logits[:, 1]).sum(), kept[0])
    expected = (kept[0] * gradient).sum(-1)[:, 1:].view(3, 4, 4).detach()
    torch.testing.assert_close(why.attribution, expected, atol=1e-10, rtol=1e-10)
    with pytest.raises(rt.LayerError, match=r"class token only.*use 'blocks\.1\.norm1'"):
        rt.explain(model, x, 0, 1, rt.GradCAM("blocks.1"))


def test_activation_times_gradient_is_refused_where_a_norm_cancels_it() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.norm, self.head = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.patches(x).flatten(2).mT).relu().mean(1))

    model = make(Normed)
    assert rt.explain(model, images(), method="la").layer == "relu()"
    with pytest.raises(rt.LayerError, match=r"cancel to under a thousandth.*norm's output"):
        rt.explain(model, images(), method="la", layer="patches", foil="each")
    assert rt.explain(model, images(), method="gradcam", layer="patches").attribution.any()


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 3, 3, padding=1)
        self.idle = nn.Conv2d(3, 3, 3)
        self.aside = nn.Conv2d(3, 3, 3)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.aside(x)
        return self.head(self.features(self.features(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("features", "runs more than once"),
        ("idle", "does not run"),
        ("aside", "does not reach the logits"),
        ("head", r"shape \(3, 5\), which lies on no grid"),
        ("featurs", "unknown layer 'featurs'; did you mean 'features'"),
    ],
)
def test_layers_that_cannot_carry_an_explanation_are_refused(layer: str, message: str) -> None:
    model = make(Twice)
    state = State(model.module)
    with pytest.raises(rt.LayerError, match=message):
        rt.explain(model, images(), method=rt.GradCAM(layer))
    state.unchanged()


class Tokened(nn.Module):
    """Tokens made of a normalised map, so that memory holds the channels last, and a map made of tokens again."""

    def __init__(self, norm: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, CLASSES), norm

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.first(x)).flatten(2).transpose(1, 2).contiguous()
        again = self.norm(tokens.tanh().transpose(1, 2).reshape(len(x), 4, *x.shape[2:]))
        return self.last(again.flatten(2).transpose(1, 2).relu().mean(1))


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(4),
        nn.InstanceNorm2d(4, affine=True),
        lambda x: nn.functional.batch_norm(x, torch.arange(4.0).to(x), torch.arange(1.0, 5.0).to(x)),
    ],
)
@pytest.mark.parametrize("layer", [None, "first"])
def test_the_norm_of_a_single_image_is_gone_back_through_rightly(
    norm: Callable[[Tensor], Tensor], layer: str | None
) -> None:
    model = make(lambda: Tokened(norm))
    x = images()[:1]
    way = 1e-6 * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    before, after = (model.module(each)[0] for each in (x - way, x + way))
    changes = (after - before).detach() / 2
    graph = ForwardPass(model, x).graph(layer)
    step = way if layer is None else nn.functional.conv2d(way, model.module.first.weight, padding=1)  # type: ignore
    gradients = graph.vjp(torch.eye(CLASSES, dtype=x.dtype).unsqueeze(0))[0]
    torch.testing.assert_close((gradients * step).sum((1, 2, 3)), changes, atol=0, rtol=1e-4)


def test_reused_modules_are_right_in_input_space() -> None:
    """A gradient through a module used twice equals that of an untied copy."""
    model = make(Twice)

    class Untied(nn.Module):
        def __init__(self, tied: nn.Module) -> None:
            super().__init__()
            self.first, self.second = tied.features, copy.deepcopy(tied.features)
            self.head = tied.head

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(self.first(x)).mean((2, 3)))  # type: ignore[operator]

    for method in ("gradient", "ixg"):
        tied = rt.explain(model, images(), 0, "each", method).attribution
        untied = rt.explain(Untied(model.module), images(), 0, "each", method).attribution
        torch.testing.assert_close(tied, untied, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("build", [Pooled, Squeezed, Dense])
def test_the_layer_is_found_and_named(build: Callable[[], nn.Module]) -> None:
    model = make(build)
    why = rt.explain(model, images())
    assert why.layer == "features" if build is not Dense else why.layer == "tail.1"
    assert model.layer is None, "what is found is remembered where no one sees it"


def test_a_network_that_detaches_is_refused() -> None:
    class Detached(Pooled):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    with pytest.raises(rt.ModelError, match="detaches its output"):
        rt.explain(make(Detached), images(), method="ixg")
