"""Segmentation within a mask, a box or at a point: closed forms on linear networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ratherthan as rt
from ratherthan import DetectedLabels, Detection, Model, Region

CLASSES = 4


class Dense(nn.Module):
    """Scores of every pixel, or of every cell of two by two pixels, linear in the image."""

    def __init__(self, step: int = 1, named: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scores, self.named = nn.Conv2d(3, CLASSES, step, step).double(), named

    def forward(self, x: Tensor) -> Any:
        found = self.scores(x)
        return {self.named: found, "aux": -found} if self.named else found


def photographs(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def mask(rows: slice, columns: slice) -> Tensor:
    found = torch.zeros(6, 8, dtype=torch.bool)
    found[rows, columns] = True
    return found


REGIONS: list[tuple[Any, Tensor]] = [
    ((2, 5), mask(slice(5, 6), slice(2, 3))),
    ((1, 2, 4, 6), mask(slice(2, 6), slice(1, 4))),
    (mask(slice(0, 3), slice(2, 7)), mask(slice(0, 3), slice(2, 7))),
]


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("named", ["", "out"])
@pytest.mark.parametrize(("where", "inside"), REGIONS)
@pytest.mark.parametrize("method", ["ixg", "ig", "lrp", "deeplift"])
def test_a_linear_network_has_a_closed_form(step: int, named: str, where: Any, inside: Tensor, method: str) -> None:
    net, x = Dense(step, named), photographs()
    nn.init.zeros_(net.scores.bias)
    how = rt.LRP("z") if method == "lrp" else method
    why = rt.explain(Model(net, output=Region(where)), x, 1, 3, how)
    kernel = (net.scores.weight[1] - net.scores.weight[3]).detach()
    # a cell counts by the share of the region in it
    shares = inside.double().view(6 // step, step, 8 // step, step).mean((1, 3))
    shares = shares / shares.sum()
    slope = torch.einsum("ij,crs->cirjs", shares, kernel).reshape(3, 6, 8)
    torch.testing.assert_close(why.attribution, x * slope, atol=1e-9, rtol=1e-7)
    torch.testing.assert_close(why.score, (x * slope).sum((1, 2, 3)), atol=1e-9, rtol=1e-7)
    assert not why.attribution[0][:, shares.repeat_interleave(step, 0).repeat_interleave(step, 1) == 0].any()


@pytest.mark.parametrize("as_list", [True, False])
@pytest.mark.parametrize("method", ["ixg", "smoothgrad", rt.Occlusion(size=2, stride=1), rt.Lime(superpixels="grid")])
def test_each_image_has_its_own_region(as_list: bool, method: Any) -> None:
    net, x = nn.Sequential(Dense(), nn.Tanh()), photographs()
    regions: Any = [REGIONS[i][0] for i in range(3)] if as_list else torch.stack([REGIONS[i][1] for i in range(3)])
    together = rt.explain(Model(net, output=Region(regions)), x, 1, [0, 2], method)
    for i in range(3):
        alone = rt.explain(Model(net, output=Region(REGIONS[i][0])), x[i : i + 1], 1, [0, 2], method)
        torch.testing.assert_close(together.attribution[i], alone.attribution[0])
        torch.testing.assert_close(together.logits[i], alone.logits[0])


class Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        coarse = self.head(self.features(x))
        return {"out": nn.functional.interpolate(coarse, x.shape[-2:], mode="bilinear")}


@pytest.mark.parametrize("method", ["gradcam", "la"])
def test_the_layer_is_below_the_scores_and_maps_are_those_of_autograd(method: str) -> None:
    net, x = Segmenter().double().eval(), photographs(2)
    why = rt.explain(Model(net, output=Region((1, 2, 4, 6))), x, 1, 3, method)
    assert why.layer == "features"
    features = net.features(x).detach().requires_grad_()
    dense = nn.functional.interpolate(net.head(features), (6, 8), mode="bilinear")[:, :, 2:6, 1:4].mean((2, 3))
    (gradient,) = torch.autograd.grad((dense[:, 1] - dense[:, 3]).sum(), features)
    weights = gradient.mean((2, 3), keepdim=True) if method == "gradcam" else gradient
    expected = (weights * features.detach()).sum(1)
    torch.testing.assert_close(why.attribution, expected, atol=1e-10, rtol=1e-8)
    everywhere = rt.explain(Model(net, forward=lambda m, x: m(x)["out"].mean((2, 3))), x, 1, 3, method)
    # Grad-CAM averages the place away: under a head that looks at each cell by itself, all regions have one map
    assert torch.allclose(everywhere.attribution, why.attribution) == (method == "gradcam")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda: Region((1, 2, 3)), "a region is a point"),
        (lambda: Region("sky"), "a region is a point"),
        (lambda: Region((20, 2)), "holds no pixel of images of 6 x 8"),
        (lambda: Region((4, 4, 2, 2)), "holds no pixel"),
        (lambda: Region(torch.ones(5, 5)), r"a mask of \(5, 5\) for images of 6 x 8"),
        (lambda: Region([(1, 1)]), "1 regions for more images"),
        (lambda: Detection(), "by its index, or a box"),
        (lambda: Detection(0), r"returns shape \(3, 4, 6, 8\); scores \(N, detections, classes\)"),
        (lambda: Detection(box=(1, 1, 3, 3)), "no second stage"),
    ],
)
def test_what_is_no_region_is_refused(output: Any, message: str) -> None:
    with pytest.raises(rt.RatherThanError, match=message):
        rt.explain(Model(Dense(), output=output()), photographs(), 1, 3, "ixg")


def test_scores_that_are_not_dense_are_refused() -> None:
    flat = nn.Sequential(Dense(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(rt.ModelError, match=r"returns shape \(1, 4\); a region is about scores \(N, K, h, w\)"):
        rt.explain(Model(flat, output=Region((1, 1))), photographs(1), 1, 3, "ixg")


class Anchors(nn.Module):
    """Of the shape of Ultralytics' networks: boxes in pixels and probabilities of labels for 24 detections."""

    def __init__(self, labels: int = CLASSES, alone: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features, self.head, self.alone = nn.Conv2d(3, 5, 2, 2), nn.Conv2d(5, 2 * (4 + labels), 1), alone

    def raw(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).tanh()).unflatten(1, (-1, 2)).flatten(2)

    def forward(self, x: Tensor) -> Any:
        boxes, labels = self.raw(x)[:, :4], self.raw(x)[:, 4:]
        height, width = x.shape[-2:]
        across = (torch.arange(boxes.shape[2]) % (width // 2) * 2 + 1).to(x)
        down = (torch.arange(boxes.shape[2]) // (width // 2) % (height // 2) * 2 + 1).to(x)
        moved = torch.stack(
            [across + boxes[:, 0].tanh(), down + boxes[:, 1].tanh(), *(2 + boxes[:, 2:].tanh()).unbind(1)], 1
        )
        found = torch.cat([moved, labels.sigmoid()], 1)
        return found if self.alone else (found, [labels])


@pytest.mark.parametrize("alone", [True, False])
def test_labels_of_a_detection_are_asked_about_by_their_log_odds(alone: bool) -> None:
    net, x = Anchors(alone=alone).double().eval(), photographs(2)
    model = Model(net, ["cat", "dog", "car", "truck"], output=DetectedLabels(17))
    leaf = x.clone().requires_grad_()
    y = net.raw(leaf)[:, 4:, 17]
    against = rt.explain(model, x, "car", "truck", "ixg")
    torch.testing.assert_close(against.logits[:, :-1], y.detach())
    torch.testing.assert_close(against.probabilities()[:, :-1], y.sigmoid().detach())
    for foil, score in (("truck", y[:, 2] - y[:, 3]), (None, y[:, 2])):  # rather than truck; rather than not car
        (gradient,) = torch.autograd.grad(score.sum(), leaf, retain_graph=True)
        torch.testing.assert_close(rt.explain(model, x, "car", foil, "ixg").attribution, x * gradient)
    assert rt.explain(model, x, "car", method="ixg").question(0) == "Why car, rather than not car?"


def test_a_detection_with_labels_is_found_by_its_box() -> None:
    net, x = Anchors(alone=False).double().eval(), photographs(1)
    boxes = net(x)[0][0, :4].T
    corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    for index in (0, 5, 13, 23):
        assert Detection.overlapping(Model(net), x, corners[index].tolist()) == DetectedLabels(index)
    with pytest.raises(rt.InputError, match="no detection overlaps"):
        Detection.overlapping(Model(net), x, (100, 100, 101, 101))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: Model(Anchors(), output=DetectedLabels(24)), "gives 24 detections; there is no 24"),
        (
            lambda: Model(Anchors(), [*"abc"], output=DetectedLabels(1)),
            "for 3 labels; a box and probabilities of K labels",
        ),
        (lambda: Model(Anchors(20), output=DetectedLabels(1)), r"shape \(3, 24, 24\) for K labels"),
        (lambda: Model(Dense(), output=DetectedLabels(1)), r"shape \(3, 4, 6, 8\); a box and"),
        (lambda: Model(Anchors(), output=Detection(1)), r"probabilities, not logits.* say DetectedLabels\(1\)"),
        (lambda: Model(Anchors(alone=False), output=Detection(1)), r"returns tuple; .* say DetectedLabels\(1\)"),
    ],
)
def test_detections_of_another_layout_are_refused(model: Any, message: str) -> None:
    with pytest.raises(rt.ModelError, match=message):
        rt.explain(model(), photographs().float(), 1, method="ixg")


def test_a_counterfactual_may_be_about_a_region() -> None:
    net, x = Segmenter().eval(), photographs(2).float()
    regions = [(1, 2, 4, 6), (3, 3)]
    model = Model(net, output=Region(regions))
    found = rt.counterfactual(model, x, method="cem")
    for i, region in enumerate(regions):
        alone = Model(net, output=Region(region))
        torch.testing.assert_close(found.logits[i], alone.logits(x[i : i + 1])[0].detach())
        if found[i].statuses[0] == "found":
            assert alone.logits(found.examples[i : i + 1]).argmax() == found.foil[i]
