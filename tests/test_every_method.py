"""What holds for every registered method under every contrast; a method that is registered is tested here or fails."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import outside.contrasts
import outside.layercam
import outside.scorecam  # noqa: F401 (each registers what it holds)
import ratherthan as rt
from nets import Dense, images, make, of_kind
from ratherthan import get_contrast, get_method, resolve
from test_pullback import State, mixed_flags

CLASSES = 5
CONTRASTS = rt.contrasts()
QUADRANTS = torch.arange(12).div(6, rounding_mode="floor")[:, None] * 2 + torch.arange(12).div(6, rounding_mode="floor")

SMALL: dict[str, Any] = {
    "smoothgrad": rt.SmoothGrad(3),
    "ig": rt.IntegratedGradients(8),
    "lrp": rt.LRP("z"),
    "occlusion": rt.Occlusion(size=4, stride=4, baseline=0.0),
    "pda": rt.PredictionDifference(window=4, stride=4, samples=2),
    "lime": rt.Lime(superpixels=QUADRANTS, samples="all", baseline=0.0, alpha=0.0),
}
METHODS = [name for name in rt.methods() if name != "scan"]  # combines maps of its own choice, see test_scan
LAYER_METHODS = ("gradcam", "la", "layercam", "scorecam")
KINDS = ("images", "volumes", "signals", "table", "text")
REFUSED = {  # and that of these kinds, in one line; scorecam is an example that asks for rows and columns
    "volumes": ("pda", "scorecam"), "signals": ("pda", "scorecam"),
    "table": ("pda", *LAYER_METHODS), "text": ("pda", *LAYER_METHODS),
}  # fmt: skip
OF_KINDS = [(kind, name) for kind in KINDS for name in METHODS if name not in REFUSED.get(kind, ())]
NOT_LINEAR = ("pda", "layercam", "scorecam")  # pda averages probabilities, then takes odds
LINEAR_IN_THE_CONTRAST = [name for name in METHODS if name not in NOT_LINEAR]
PAIRS: dict[str, Any] = {
    "gradcam": (rt.GradCAM("features"), rt.GradCAM("features.0")),
    "la": (rt.LinearApproximation("features"), rt.LinearApproximation("features.0")),
    "smoothgrad": (rt.SmoothGrad(3, seed=0), rt.SmoothGrad(3, seed=1)),
    "ig": (rt.IntegratedGradients(3), rt.IntegratedGradients(8)),
    "lrp": (rt.LRP("z"), rt.LRP("gamma")),
    "occlusion": (rt.Occlusion(size=3), rt.Occlusion(size=6)),
    "pda": (rt.PredictionDifference(window=4, stride=4, samples=2), rt.PredictionDifference(window=6, stride=6)),
    "lime": (SMALL["lime"], rt.Lime(superpixels=QUADRANTS, samples=20, baseline=0.5)),
}


def method(name: str) -> Any:
    """A method with settings that keep it quick."""
    return SMALL.get(name, name)


def of(kind: str, name: str) -> Any:
    """The same for a kind of input."""
    if kind == "images":
        return method(name)
    quick = {"occlusion": rt.Occlusion(size=4, stride=3), "lime": rt.Lime(samples=40)}
    return quick[name] if name in quick else method(name)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-8) -> None:
    scale = expected.abs().max().clamp_min(1e-300)
    torch.testing.assert_close(actual / scale, expected / scale, atol=tolerance, rtol=tolerance)


def ask(model: Any, x: Tensor, fact: Any, foil: Any, name: str, contrast: str) -> Tensor:
    return rt.explain(model, x, fact, foil, method(name), contrast).attribution


# --------------------------------------------------------------------------------------------- right
class Seen(nn.Module):
    """A linear model with a layer that hands the image on, so that layer methods have something to explain."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.features = nn.Identity()
        self.head = nn.Linear(3 * 12 * 12, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


def by_quadrant(values: Tensor) -> Tensor:
    sums = torch.stack([(values * QUADRANTS.eq(i)).sum((-3, -2, -1)) for i in range(4)], -1)
    return sums[..., QUADRANTS].unsqueeze(2)


CLOSED_FORMS: dict[str, Any] = {
    "gradient": lambda x, g: g,
    "smoothgrad": lambda x, g: g,
    "ixg": lambda x, g: x * g,
    "ig": lambda x, g: x * g,
    "lrp": lambda x, g: x * g,
    "deeplift": lambda x, g: x * g,
    "la": lambda x, g: (x * g).sum(2),
    "gradcam": lambda x, g: (x * g.mean((3, 4), keepdim=True)).sum(2),
    "occlusion": lambda x, g: (x * g).sum(2, keepdim=True).unflatten(3, (3, 4)).unflatten(5, (3, 4)).mean((4, 6)),
    "lime": lambda x, g: by_quadrant(x * g),
    "layercam": lambda x, g: (x * g.clamp_min(0)).sum(2),
}


@pytest.mark.parametrize("contrast", CONTRASTS)
@pytest.mark.parametrize("name", CLOSED_FORMS)  # that of pda is in test_perturbation
def test_linear_models_have_a_closed_form(name: str, contrast: str) -> None:
    model, x = make(Seen, layer="features"), images()
    for foil in ([2, {0, 3}, {0, 2, 3, 4}], "each"):
        logits = model.module(x).detach()
        seeds = get_contrast(contrast).seed(logits, resolve(logits, 1, foil))
        weight = model.module.head.weight.view(CLASSES, 3, 12, 12)  # type: ignore[union-attr, operator]
        pulled = torch.einsum("nqk,kchw->nqchw", seeds, weight).detach()
        found = ask(model, x, 1, foil, name, contrast)
        expected = CLOSED_FORMS[name](x.unsqueeze(1), pulled)
        if name == "occlusion":  # of whole windows: each pixel bears the sum over its window
            expected = 16 * expected.repeat_interleave(4, 3).repeat_interleave(4, 4)
        close(found, expected)


@pytest.mark.parametrize(("kind", "name"), [each for each in OF_KINDS if each[1] in LINEAR_IN_THE_CONTRAST])
def test_contrasts_are_weighted_sums_of_class_maps(kind: str, name: str) -> None:
    """Proposition 3."""
    model, x = of_kind(kind)
    classes = rt.explain(model, x, "each", None, of(kind, name), "none")
    assert classes.attribution.abs().max() > 0
    for contrast in CONTRASTS[1:]:
        logits = model.module(model.normalise(x)).detach()
        seeds = get_contrast(contrast).seed(logits, resolve(logits, 2))
        expected = torch.einsum("nk,nk...->n...", seeds[:, 0], classes.attribution)
        close(rt.explain(model, x, 2, None, of(kind, name), contrast).attribution, expected, 1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_does_not_take_is_refused_in_a_line(name: str, kind: str) -> None:
    if (kind, name) in OF_KINDS or name == "scorecam":
        return
    model, x = of_kind(kind, 1)
    with pytest.raises(rt.RatherThanError, match=r"on the image's plane|alters parts of images") as refused:
        rt.explain(model, x, method=method(name))
    assert "\n" not in str(refused.value)


class Homogeneous(nn.Module):
    """ReLUs and poolings without a single bias."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2)),
            *(nn.Conv2d(6, 8, 3, bias=False), nn.LeakyReLU(0.1), nn.AvgPool2d(2), nn.Flatten()),
        )
        self.head = nn.Linear(8, CLASSES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_four_methods_agree_on_networks_without_biases(contrast: str) -> None:
    """Weighted-contrast section 4: LRP, DeepLIFT, input times gradient and integrated gradients are one."""
    model, x = make(Homogeneous), images()
    expected = ask(model, x, None, "each", "ixg", contrast)
    assert expected.abs().max() > 1e-4
    for name in ("ig", "deeplift", "lrp"):
        close(ask(model, x, None, "each", name, contrast), expected)
    why = rt.explain(model, x, None, "each", rt.LRP("z"), contrast)
    assert why.diagnostics["convergence delta"].abs().max() < 1e-8 * why.logits.abs().max()


@pytest.mark.parametrize("name", METHODS)
def test_two_classes_leave_one_contrast(name: str) -> None:
    model, x = make(lambda: Dense(2), layer="features"), images()
    maps = {contrast: ask(model, x, None, None, name, contrast) for contrast in ("mean", "max", "weighted")}
    assert maps["mean"].abs().max() > 0
    close(maps["max"], maps["mean"])
    close(maps["weighted"], maps["mean"])
    if name not in ("layercam", "scorecam"):  # rectified, normalised: foil over fact is no mirror of fact over foil
        close(ask(model, x, 0, 1, name, "weighted"), -ask(model, x, 1, 0, name, "weighted"))


# --------------------------------------------------------------------------------------------- batches and foils
@pytest.mark.parametrize("contrast", CONTRASTS)
@pytest.mark.parametrize(("kind", "name"), OF_KINDS)
def test_a_batch_is_its_inputs_one_by_one(kind: str, name: str, contrast: str) -> None:
    model, x = of_kind(kind)
    if kind == "images":
        x[1, :, :6] = 0  # black areas: activations that are exactly those of a baseline
    asked: Any = (None, None, of(kind, name), contrast)
    together = rt.explain(model, x, *asked).attribution
    close(together, torch.cat([rt.explain(model, each[None], *asked).attribution for each in x]))
    close(together, rt.explain(model, x, *asked, batch_size=2).attribution)


@pytest.mark.parametrize("contrast", CONTRASTS)
@pytest.mark.parametrize(("kind", "name"), OF_KINDS)
def test_many_foils_are_as_many_calls(kind: str, name: str, contrast: str) -> None:
    model, x = of_kind(kind, 2)
    many = [0, 2, 3, {0, 4}, 4, {2, 3, 4}, {0, 2, 3, 4}]  # more questions than classes
    each = rt.explain(model, x, 1, many, of(kind, name), contrast).attribution
    alone = [rt.explain(model, x, 1, foil, of(kind, name), contrast).attribution for foil in many]
    close(each, torch.stack(alone, 1))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_is_linear_says_so_and_no_other(name: str) -> None:
    model, x = make(Dense, layer="features"), images()
    classes = ask(model, x, "each", None, name, "none")
    mixed = torch.einsum("k,nk...->n...", torch.tensor([1.0, -1.0, 0, 0, 0]).double(), classes)
    difference = ask(model, x, 0, 1, name, "mean")
    added_up = bool((mixed - difference).abs().max() < 1e-6 * difference.abs().max())
    assert added_up or not get_method(name).linear
    assert added_up == (name not in NOT_LINEAR)


@pytest.mark.parametrize("name", METHODS)
def test_the_images_of_a_result_are_its_own(name: str) -> None:
    """Whatever the caller does with what was handed in."""
    model, x = make(Dense, layer="features"), images()
    given = x.clone()
    why = rt.explain(model, x, None, None, method(name))
    x.zero_()
    assert torch.equal(why.images, given)


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_one_name_are_told_apart(name: str) -> None:
    """Compared side by side, with their forward passes shared, they give what each gives alone."""
    model, x = make(Dense, layer="features"), images()
    pair = PAIRS.get(name, (method(name), method(name)))
    found = rt.compare(model, x, None, 2, pair, ["none", "weighted"])
    alone = [rt.explain(model, x, None, 2, each, contrast) for each in pair for contrast in ("none", "weighted")]
    for one, other in zip(found, alone, strict=True):
        close(one.attribution, other.attribution)
    if name in PAIRS:
        first, second = (float(found[i].attribution.abs().mean()) for i in (0, 2))
        assert first != pytest.approx(second, rel=1e-4)


# --------------------------------------------------------------------------------------------- nothing left behind
@pytest.mark.parametrize(("kind", "name"), OF_KINDS)
def test_nothing_is_left_behind(kind: str, name: str) -> None:
    model, x = of_kind(kind)
    in_eval = rt.explain(model, x, None, [0, 1], of(kind, name)).attribution
    mixed_flags(model.module)
    state, given = State(model.module), x.clone()
    tensors = [each.data_ptr() for each in model.module.state_dict().values()]
    close(rt.explain(model, x, None, [0, 1], of(kind, name)).attribution, in_eval)
    state.unchanged()
    assert tensors == [each.data_ptr() for each in model.module.state_dict().values()]
    assert torch.equal(x, given)
    assert not x.requires_grad


class Breaks(Exception):
    pass


@pytest.mark.parametrize("name", METHODS)
def test_nothing_is_left_behind_by_a_failure_in_any_forward_pass(name: str) -> None:
    model = make(Dense, layer="features")
    mixed_flags(model.module)
    passes = {"left": 0}

    def fail(*_: object) -> None:
        passes["left"] -= 1
        if passes["left"] == 0:
            raise Breaks

    model.module.tail[1].register_forward_pre_hook(fail)  # type: ignore[index, union-attr, operator]
    for number in range(1, 5):
        passes["left"] = number
        state = State(model.module)
        try:
            ask(model, images(1), None, [0, 1], name, "weighted")
            assert number > 1
        except Breaks:
            pass
        state.unchanged()


# --------------------------------------------------------------------------------------------- right or refused
class Undefined(rt.Gradient):
    """A method whose map is undefined at one pixel of one sample."""

    name = "undefined"

    def attribute(self, *given: Any) -> Any:
        found = super().attribute(*given)
        found.values[-1, 0, 0, 2, 3] = torch.nan
        return found


def test_a_map_that_is_not_a_number_is_refused() -> None:
    model = make(Dense)
    with pytest.raises(rt.InputError, match="method 'undefined' gives NaN or infinite values"):
        rt.explain(model, images(), method=Undefined())


class Tied(nn.Module):
    """A convolution, an activation and a pooling that run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 3, 3, padding=1)
        self.activation, self.pool = nn.ReLU(), nn.MaxPool2d(2)
        self.head = nn.Linear(3 * 9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.activation(self.features(x)))
        return self.head(self.pool(self.activation(self.features(x))).flatten(1))


class Untied(nn.Module):
    """The same with a module for each run, in a row, and a Flatten."""

    def __init__(self, tied: Any) -> None:
        super().__init__()
        stages = [copy.deepcopy(each) for _ in range(2) for each in (tied.features, tied.activation, tied.pool)]
        self.stages = nn.Sequential(*stages, nn.Flatten(), tied.head)

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(x)


IMAGE_METHODS = [name for name in METHODS if name not in LAYER_METHODS]


@pytest.mark.parametrize("name", IMAGE_METHODS)
def test_modules_that_run_twice_are_explained_like_an_untied_copy(name: str) -> None:
    model, x = make(Tied), images()
    close(ask(model, x, 0, "each", name, "mean"), ask(Untied(model.module), x, 0, "each", name, "mean"))


class Functional(nn.Module):
    """A residual block; its activations functions or modules, its addition in place or not."""

    def __init__(self, style: str = "module") -> None:
        super().__init__()
        self.style = style
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.activations = nn.ModuleList(nn.ReLU(inplace=style == "in place") for _ in range(2))
        self.head = nn.Linear(3 * 144, CLASSES)

    def activate(self, x: Tensor, number: int) -> Tensor:
        if self.style == "function":
            return F.relu(x)
        return F.relu(x, inplace=True) if self.style == "function in place" else self.activations[number](x)

    def forward(self, x: Tensor) -> Tensor:
        low = self.activate(self.first(x), 0)
        high = self.second(low)
        if self.style == "in place":
            high += low
        else:
            high = high + low
        return self.head(torch.flatten(self.activate(high, 1), 1))


@pytest.mark.parametrize("style", ["in place", "function", "function in place"])
@pytest.mark.parametrize("name", IMAGE_METHODS)
def test_functions_and_residuals_are_explained_like_modules(name: str, style: str) -> None:
    x = images()
    expected = ask(make(Functional), x, 0, "each", name, "mean")
    close(ask(make(lambda: Functional(style)), x, 0, "each", name, "mean"), expected)
