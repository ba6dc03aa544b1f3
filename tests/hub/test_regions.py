"""Segmentation and detection networks of torchvision and transformers, random weights: maps equal to autograd."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import transformers
from torch import Tensor, nn

import ratherthan as rt
from ratherthan import Detection, Model, Region
from turns import of_today

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import networks

detection, segmentation = torchvision.models.detection, torchvision.models.segmentation
BOX = (10.0, 20.0, 70.0, 90.0)


def image(side: int = 96) -> Tensor:
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))


def compare(model: Model, x: Tensor, scores: Callable[[Tensor], Tensor]) -> None:
    """Logits, the map of the image and that of a layer, against autograd on what the network itself gives."""
    why = rt.explain(model, x, 1, 3, "ixg")
    leaf = x.clone().requires_grad_()
    y = scores(leaf)
    torch.testing.assert_close(why.logits, y.detach(), atol=1e-4, rtol=1e-4)
    (gradient,) = torch.autograd.grad(y[0, 1] - y[0, 3], leaf)
    near = 1e-3 * float((x * gradient).abs().max())
    assert near > 0
    torch.testing.assert_close(why.attribution, x * gradient, atol=near, rtol=1e-3)


def within(dense: Tensor, side: int) -> Tensor:
    left, top, right, bottom = (round(each * dense.shape[-1] / side) for each in BOX)
    return dense[:, :, top:bottom, left:right].mean((2, 3))


@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large", "fcn_resnet50"])
def test_segmentation_of_torchvision(name: str) -> None:
    torch.manual_seed(0)
    net = segmentation.__dict__[name](weights=None, weights_backbone=None, num_classes=5).eval()
    x = image()
    model = Model(net, output=Region(BOX))
    compare(model, x, lambda leaf: within(net(leaf)["out"], 96))
    why = rt.explain(model, x, 1, 3, "la")
    assert why.layer
    assert why.attribution.any()


def test_segformer() -> None:
    handled, (_, side, _) = networks._segformer()
    net = next(each for each in handled.modules() if isinstance(each, transformers.SegformerForSemanticSegmentation))
    net.eval()
    x = image(side)
    box = (32, 64, 128, 192)  # whole cells of a quarter of the image's resolution
    cells = [each // 4 for each in box]
    compare(
        Model(net, output=Region(box)),
        x,
        lambda leaf: net(leaf).logits[:, :, cells[1] : cells[3], cells[0] : cells[2]].mean((2, 3)),
    )


@pytest.mark.parametrize("make", [networks._detr, networks._yolos])
def test_queries_of_transformers(make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    handled, (_, side, _) = make()
    net = next(each for each in handled.modules() if hasattr(each, "config") and "Detection" in type(each).__name__)
    net.eval()
    x = image(side)
    with torch.no_grad():
        boxes = net(x).pred_boxes[0] * side
    middle, size = boxes[5].split(2)
    wanted = torch.cat([middle - size / 2, middle + size / 2]).tolist()
    found = Detection.overlapping(Model(net), x, wanted)
    assert torch.allclose(boxes[found.index], boxes[5], atol=1e-3), "another detection fits this one's box better"
    compare(Model(net, output=found), x, lambda leaf: net(leaf).logits[:, found.index])
    with pytest.raises(rt.InputError, match="no detection overlaps"):
        Detection.overlapping(Model(net), x, (10_000, 10_000, 10_001, 10_001))
    with pytest.raises(rt.ModelError, match="there is no 99"):
        rt.explain(Model(net, output=Detection(99)), x, method="ixg")


def test_anchors_of_ssd() -> None:
    torch.manual_seed(0)
    net = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5).eval()

    def scores(module: nn.Module, x: Tensor) -> Tensor:
        return module.head(list(module.backbone(x).values()))["cls_logits"]  # type: ignore[operator,union-attr]

    compare(Model(net, forward=scores, output=Detection(40)), image(), lambda leaf: scores(net, leaf)[:, 40])


@pytest.mark.parametrize("name", of_today(["fasterrcnn_mobilenet_v3_large_320_fpn", "maskrcnn_resnet50_fpn"], 2))
def test_what_two_stage_detectors_see_in_a_box(name: str) -> None:
    torch.manual_seed(0)
    net = detection.__dict__[name](
        weights=None, weights_backbone=None, num_classes=5, min_size=128, max_size=160
    ).eval()
    x = image()

    def scores(leaf: Tensor) -> Tensor:
        """What the second stage scores when the first proposes the box: its own forward pass, caught on the way."""
        caught = list[Tensor]()

        class Caught(Exception):
            pass

        def stop(module: nn.Module, inputs: object, output: tuple[Tensor, Tensor]) -> None:
            caught.append(output[0])
            raise Caught

        proposed = torch.tensor([BOX]) * 128 / 96
        hooks = [
            net.rpn.register_forward_hook(lambda module, inputs, output: ([proposed], {})),
            net.roi_heads.box_predictor.register_forward_hook(stop),
        ]
        try:
            net(list(leaf))
        except Caught:
            return caught[0]
        finally:
            for hook in hooks:
                hook.remove()
        raise AssertionError

    # the first stage ends in operators that this environment lacks: it is left out
    net.rpn.forward = lambda images, features, targets=None: None  # type: ignore[method-assign]
    # without its own operators torchvision compiles the pooling of boxes, in a way that is gone back through only once
    with torch._functorch.config.patch(donated_buffer=False):
        compare(Model(net, output=Detection(box=BOX)), x, scores)
