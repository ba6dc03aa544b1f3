"""What a network's numbers mean is found out: sigmoids, softmaxes, labels, values, batches that are coupled."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import ratherthan as rt
from ratherthan import InputError, Model, ModelError
from ratherthan.outputs import Labels, Value

LABELS = "independent labels, not classes. Say so: Model(net, output=Labels('probabilities'))"
PROBABILITIES = "returns probabilities: hand in its logits, or give output='probabilities'"


def head(outputs: int = 4) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AvgPool2d(10), nn.Flatten(), nn.Linear(8, outputs)
    ).eval()  # fmt: skip


class Then(nn.Module):
    """Logits, and what a network makes of them."""

    def __init__(self, then: Callable[[Tensor], Tensor], outputs: int = 4) -> None:
        super().__init__()
        self.net, self.then = head(outputs), then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.net(x))


def photos(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(2))


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], int, str]] = {
    "sigmoid": (torch.sigmoid, 4, LABELS),
    "in place": (lambda y: y.sigmoid_(), 4, LABELS),
    "hard sigmoid": (nn.functional.hardsigmoid, 4, LABELS),
    "clamped": (lambda y: y.sigmoid().clamp(1e-6, 1 - 1e-6), 4, LABELS),
    "one by one": (lambda y: torch.cat([y[:, :1].sigmoid(), y[:, 1:].sigmoid()], 1), 4, LABELS),
    "seen as another shape": (lambda y: y.sigmoid().unsqueeze(2).squeeze(-1), 4, LABELS),
    "sigmoid in half": (lambda y: y.bfloat16().sigmoid().float(), 4, LABELS),
    "without a graph": (lambda y: y.detach().sigmoid(), 4, LABELS),
    "one sigmoid": (torch.sigmoid, 1, PROBABILITIES),
    "softmax": (lambda y: y.softmax(1), 4, PROBABILITIES),
    "softmax by hand": (lambda y: y.exp() / y.exp().sum(1, keepdim=True), 4, PROBABILITIES),
    "log-softmax, then exp": (lambda y: y.log_softmax(1).exp(), 4, PROBABILITIES),
    "mean of two softmaxes": (lambda y: (y.softmax(1) + (2 * y).softmax(1)) / 2, 4, PROBABILITIES),
    "softmax in bfloat16": (lambda y: y.bfloat16().softmax(1), 4, PROBABILITIES),
    "softmax in bfloat16, as float32": (lambda y: (3 * y).bfloat16().softmax(1).float(), 50, PROBABILITIES),
    "softmax in float16, as float32": (lambda y: y.half().softmax(1).float(), 1000, PROBABILITIES),
    "sigmoid and what is left": (lambda y: torch.cat([1 - y.sigmoid(), y.sigmoid()], 1), 1, PROBABILITIES),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_logits_is_refused(kind: str) -> None:
    then, outputs, message = REFUSED[kind]
    net = Then(then, outputs)
    for images in (photos(), photos(1)):
        for method in ("occlusion",) if kind == "without a graph" else ("gradcam", "ixg", "lrp", "occlusion"):
            with pytest.raises(ModelError) as error:
                rt.explain(net, images, method=method)
            assert message in str(error.value)
            assert "\n" not in str(error.value)
    if kind != "without a graph":
        with pytest.raises(ModelError):
            rt.counterfactual(net, photos(), method="cem")
        with pytest.raises(ModelError):
            rt.pertinent_positive(net, photos())


@pytest.mark.parametrize("kind", ["scripted", "traced", "exported", "quantised"])
def test_a_sigmoid_is_seen_in_networks_that_are_closed(kind: str) -> None:
    net, x = nn.Sequential(*head(), nn.Sigmoid()).eval(), photos()
    made = {
        "scripted": lambda: torch.jit.script(net),
        "traced": lambda: torch.jit.freeze(torch.jit.trace(net, x)),
        "exported": lambda: torch.export.unflatten(torch.export.export(net, (x,))),
        "quantised": lambda: torch.ao.quantization.quantize_dynamic(net, {nn.Linear}),
    }
    with pytest.raises(ModelError, match="independent labels"):
        rt.explain(made[kind](), x, method="occlusion")


ACCEPTED: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "logits in [0, 1]": (lambda y: 0.5 + y / 100, 4),
    "of ReLU": (lambda y: (0.5 + y / 100).relu(), 4),
    "log-probabilities": (lambda y: y.log_softmax(1), 4),
    "one logit in [0, 1]": (lambda y: 0.5 + y / 100, 1),
    "gated": (lambda y: 0.2 + y.sigmoid() * 0.1, 4),
    "two logits whose sum is nearly one": (lambda y: torch.cat([0.3 + y * 1e-3, 0.699 + y * 1e-3], 1), 1),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_logits_that_lie_where_probabilities_do_are_logits(kind: str) -> None:
    then, outputs = ACCEPTED[kind]
    net, x = Then(then, outputs), photos()
    for images in (x, x[:1]):
        logits = rt.explain(net, images, method="ixg").logits
        expected = net(images)
        assert torch.allclose(logits if outputs > 1 or "two" in kind else logits[:, 1:] * 2, expected, atol=1e-6)


def test_what_comes_straight_from_a_sum_is_not_looked_at_twice() -> None:
    net = head()
    with torch.no_grad():
        net[-1].weight.mul_(0.01)
        net[-1].bias.fill_(0.5)
    assert ((net(photos()) >= 0) & (net(photos()) <= 1)).all()
    passes = list[int]()
    net.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    rt.explain(net, photos(), method="ixg")
    assert passes == [3]


def test_every_batch_is_looked_at() -> None:
    x = torch.cat([photos(1) * 0, photos(1)])
    dark = head()(x)[0, 0].item()
    net = Then(
        lambda y: torch.where((y[:, :1] - dark).abs() < 1e-5, 5 + y, y.softmax(1))
    )  # right for black images only
    rt.explain(net, x[:1], method="ixg")
    with pytest.raises(ModelError, match="probabilities"):
        rt.explain(net, x, method="ixg", batch_size=1)


# --------------------------------------------------------------------------------------------- output="probabilities"
@pytest.mark.parametrize(
    ("then", "right"),
    [
        (lambda y: y.softmax(1), True),
        (lambda y: (5 * y).bfloat16().softmax(1), True),
        (lambda y: (5 * y).half().softmax(1).float(), True),
        (lambda y: y.sigmoid(), False),
        (lambda y: (y - y.logsumexp(1, keepdim=True)).sigmoid(), False),
        (lambda y: y.softmax(1) * 0.9, False),
    ],
)
def test_probabilities_have_a_sum_of_one(then: Callable[[Tensor], Tensor], right: bool) -> None:
    model, x = Model(Then(then), output="probabilities"), photos()
    if right:
        why = rt.explain(model, x, 0, 1, "ixg")
        p = then(model.module.net(x)).float()  # type: ignore[operator, union-attr]
        assert torch.allclose(why.score, (p[:, 0] / p[:, 1]).log(), atol=0.02)
    else:
        with pytest.raises(ModelError, match=re.escape(LABELS)):
            rt.explain(model, x, 0, 1, "ixg")


class Linear(nn.Module):
    def __init__(self, labels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(12, labels).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x.flatten(1))


FOILS: list[tuple[Any, Callable[[Tensor], Tensor]]] = [  # what is asked, and the weight of each label in the contrast
    (None, lambda y: torch.tensor([0, 1, 0, 0.0])),
    (3, lambda y: torch.tensor([0, 1, 0, -1.0])),
    ({0, 3}, lambda y: torch.tensor([-y[0].exp(), 0, 0, -y[3].exp()]) / (y[0].exp() + y[3].exp()) + torch.eye(4)[1]),
]


@pytest.mark.parametrize("given", ["logits", "probabilities"])
@pytest.mark.parametrize("method", ["ixg", "gradient", "lrp", "ig", "deeplift"])
@pytest.mark.parametrize("asked", range(3))
def test_a_linear_model_of_labels_has_closed_forms(given: Any, method: Any, asked: int) -> None:
    if given == "probabilities" and method in ("lrp", "ig", "deeplift"):
        method = "ixg"  # not linear any more
    net, (foil, weigh) = Linear(4), FOILS[asked]
    x = torch.rand(3, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    forward = None if given == "logits" else lambda m, x: m(x).sigmoid()
    model = Model(net, ["a", "b", "c", "d"], output=Labels(given), forward=forward)
    why = rt.explain(model, x, "b", foil, method if method != "lrp" else rt.LRP("z"))
    for i, y in enumerate(net(x).detach()):
        weights = weigh(y).double()
        score = y[1] - y[[0, 3]].logsumexp(0) if foil == {0, 3} else weights @ y
        torch.testing.assert_close(why.score[i], score, atol=1e-6, rtol=1e-6)
        slope = (weights @ net.map.weight.detach()).view(3, 2, 2)
        expected = slope if method == "gradient" else slope * x[i]
        torch.testing.assert_close(why.attribution[i], expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(why.probabilities()[i, :4], y.sigmoid(), atol=1e-6, rtol=1e-6)
    row = why.to_frame().iloc[0]
    p = net(x)[0].sigmoid()
    assert row["fact"] == "b"
    assert row["p_fact"] == pytest.approx(p[1].item(), abs=1e-6)
    wanted = {0: ("not b", 1 - p[1]), 1: ("d", p[3]), 2: ("a or d", p[0] + p[3])}[asked]
    assert row["foil"] == wanted[0]
    assert row["p_foil"] == pytest.approx(wanted[1].item(), abs=1e-6)


def test_labels_that_hold_are_an_axis() -> None:
    net = Linear(4)
    x = torch.rand(2, 3, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        net.map.weight.zero_()
        net.map.bias.copy_(torch.tensor([1.0, -1.0, 2.0, -3.0]))
    model = Model(net, ["a", "b", "c", "d"], output="labels")
    why = rt.explain(model, x, "positive", method="ixg")
    assert why.axis == "fact"
    assert why.fact.tolist() == [[2, 0], [2, 0]]
    assert torch.equal(why.score, torch.tensor([[2.0, 1.0]] * 2, dtype=torch.float64))
    assert why.question(0, 1) == "Why a, rather than not a?"
    assert rt.explain(model, x, method="ixg").fact.tolist() == [2, 2]
    assert rt.explain(model, x, foil="runner-up", method="ixg").foil.tolist() == [0, 0]
    assert rt.explain(model, x, foil="each", method="ixg").foil.tolist() == [[0, 1, 2, 3]] * 2
    assert rt.explain(model, x, foil="top3", method="ixg").foil.tolist() == [[0, 1, 3]] * 2


def test_what_cannot_be_asked_of_labels_is_refused(tmp_path: Any) -> None:
    model, x = Model(Linear(3), ["a", "b", "c"], output="labels"), torch.rand(2, 3, 2, 2, dtype=torch.float64)
    for given, message in (
        ({"foil": "others"}, "there are no 'others'"),
        ({"fact": "(none)"}, "unknown class"),
        ({"fact": 3}, "classes 0 to 2"),
        ({"contrast": "loss", "foil": 1}, "contrast 'loss' is about classes of which one holds"),
        ({"method": "pda"}, "pda is about classes of which one holds"),
        ({"method": "scan", "foil": 1}, "scan is about classes of which one holds"),
    ):
        with pytest.raises(rt.RatherThanError, match=message):
            rt.explain(model, x, **{"method": "ixg", **given})
    with pytest.raises(ModelError, match="ask about one label"):
        rt.pertinent_positive(model, x)
    with pytest.raises(ModelError, match="they are not all in"):
        rt.explain(Model(Linear(3), output=Labels("probabilities")), 9 * x, method="ixg")
    sigmoids = Model(Then(torch.sigmoid), output="labels")
    with pytest.raises(ModelError, match="the labels are probabilities"):
        rt.explain(sigmoids, photos(), method="ixg")
    with torch.no_grad():
        model.module.map.bias.copy_(torch.tensor([9.0, -9.0, -9.0]))
        model.module.map.weight.zero_()
        model.module.map.weight[1, 0] = 100.0
    with pytest.raises(InputError, match="here hold 1 and 2: ask about one sample"):
        rt.explain(model, torch.stack([0 * x[0], 0 * x[0] + 1]), "positive", method="ixg")


def test_one_label_as_the_refusal_says() -> None:
    net, x = Then(torch.sigmoid), photos()
    model = Model(net, ["not A", "A"], output="probabilities", forward=lambda m, x: m(x)[:, [2]])
    why = rt.explain(model, x, "A", "not A", "ixg")
    y = net.net(x)[:, 2]
    assert torch.allclose(why.score, y, atol=1e-4)  # the log-odds of the label
    assert torch.allclose(why.logits.softmax(1)[:, 1], net(x)[:, 2], atol=1e-6)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(net.net(leaf)[:, 2].sum(), leaf)
    assert torch.allclose(why.attribution, x * slope, atol=1e-4)


# --------------------------------------------------------------------------------------------- transformers
def transformer(**config: Any) -> nn.Module:
    torch.manual_seed(0)
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic", **config)
    ).eval()


def test_a_config_that_says_labels_or_several_values() -> None:
    x = torch.rand(2, 3, 32, 32)
    several = transformer(num_labels=3, problem_type="regression")
    for refused in (lambda: rt.explain(several, x), lambda: rt.counterfactual(several, x, method="cem")):
        with pytest.raises(ModelError, match=r"gives several values, by its config: .*output=Value\(0\)"):
            refused()
    why = rt.explain(Model(several, output=Value(2)), x, method="ixg")
    assert torch.equal(why.score, several(x).logits[:, 2])
    with pytest.raises(ModelError, match="gives 3 values; there is no value 3"):
        rt.explain(Model(several, output=Value(3)), x, method="ixg")
    labels = transformer(num_labels=3, problem_type="multi_label_classification")
    assert torch.allclose(rt.explain(labels, x, 1).score, labels(x).logits[:, 1])
    with pytest.raises(ModelError, match="ask about one label"):
        rt.counterfactual(labels, x, method="cem")
    classes = transformer(num_labels=3, problem_type="single_label_classification")
    assert torch.equal(rt.explain(classes, x, method="ixg").logits, classes(x).logits)


def test_a_transformers_head_of_one_label() -> None:
    x = torch.rand(2, 3, 32, 32)
    value = transformer(num_labels=1, problem_type="regression")
    why = rt.explain(value, x, method="ixg")
    assert why.output == "value"
    assert torch.equal(why.score, value(x).logits[:, 0])
    unclear = Model(transformer(num_labels=1), ["LABEL_0"])
    with pytest.raises(
        ModelError, match="if its only output is a value, give output='value'; if log-odds, the names of"
    ):
        rt.explain(unclear, x)
    assert rt.explain(unclear.replace(output="value"), x).output == "value"
    assert rt.explain(unclear.replace(class_names=["no", "yes"]), x, "yes").class_names == ("no", "yes")


# --------------------------------------------------------------------------------------------- over the batch
def coupled() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(), nn.AvgPool2d(5), nn.Flatten(),
        nn.Linear(32, 4),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("method", ["gradcam", "ixg", "ig", "occlusion", "lrp"])
@pytest.mark.parametrize("count", [1, 3])
def test_networks_coupled_over_the_batch_are_refused(method: str, count: int) -> None:
    with pytest.raises(ModelError, match=r"layer '1' keeps no running statistics. Run one at a time: forward=lambda"):
        rt.explain(coupled(), photos(count), method=method)


def test_one_at_a_time_as_the_refusal_says() -> None:
    net, x = coupled(), photos()
    model = Model(net, forward=lambda m, x: torch.cat([m(image) for image in x.split(1)]))
    for i in range(3):
        leaf = x[i : i + 1].clone().requires_grad_()
        y = net(leaf)
        (slope,) = torch.autograd.grad(y[0, 0] - y[0, 1], leaf)
        why = rt.explain(model, x, 0, 1, "ixg")
        assert torch.allclose(why.attribution[i], (leaf * slope)[0], atol=1e-5)
    for method in ("occlusion", "ig"):
        together = rt.explain(model, x, 0, 1, method).attribution
        alone = torch.cat([rt.explain(model, x[i : i + 1], 0, 1, method).attribution for i in range(3)])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    with pytest.raises(ModelError, match="running statistics"):
        rt.counterfactual(net, x, method="cem")


def test_batch_norm_that_changes_nothing_is_accepted() -> None:
    net = Then(lambda y: y)
    net.unused = nn.BatchNorm2d(3, track_running_stats=False)  # registered, and run; its output is not used
    net.register_forward_hook(lambda module, inputs, output: output + 0 * module.unused(inputs[0]).sum())
    expected = rt.explain(head(), photos(), 0, 1, "ixg").attribution
    assert torch.allclose(rt.explain(net, photos(), 0, 1, "ixg").attribution, expected, atol=1e-6)
    tracked = copy.deepcopy(coupled())
    tracked[1] = nn.BatchNorm2d(8)
    rt.explain(tracked.eval(), photos())
