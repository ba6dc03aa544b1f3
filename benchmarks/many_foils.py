"""All foils at once against one after the other: our Grad-CAM beside Captum's, in one run, as ratios.

    python benchmarks/many_foils.py

Figures are medians of several repetitions, taken alternately, so that a machine that slows down slows down both. Needs
the extras `hf` and Captum; the networks have random weights, which changes no cost.
"""

from __future__ import annotations

import resource
import statistics
import threading
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

import ratherthan as rt

CLASSES = 1000


class VGG16(nn.Module):
    """The shape of VGG-16: thirteen 3 x 3 convolutions and three fully connected layers."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)] if width else [nn.MaxPool2d(2)]
            channels = width or channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512 * 49, 4096), nn.ReLU(inplace=True), nn.Dropout()),
            *(nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(4096, CLASSES)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 224, 224) to (N, 1000)."""
        return self.classifier(self.features(x))


class Logits(nn.Module):
    """A transformers classifier as a plain module, as Captum needs it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """The logits alone."""
        return self.network(x).logits


def resnet50() -> nn.Module:
    """ResNet-50 of transformers, random weights."""
    from transformers import ResNetConfig, ResNetForImageClassification

    return Logits(ResNetForImageClassification(ResNetConfig(num_labels=CLASSES))).eval()


def seconds(repeat: int, *actions: Callable[[], object]) -> list[float]:
    """Median time of each action; they take turns."""
    times: list[list[float]] = [[] for _ in actions]
    for turn in range(repeat + 1):
        for spent, action in zip(times, actions, strict=True):
            start = time.perf_counter()
            action()
            if turn:  # the first turn warms up
                spent.append(time.perf_counter() - start)
    return [statistics.median(each) for each in times]


def forward(module: nn.Module, x: Tensor) -> None:
    """One bare forward pass."""
    with torch.no_grad():
        module(x)


def report(what: str, ratio: float, goal: str) -> None:
    """One line of the table."""
    print(f"{what:<86} {ratio:>9.2f}   goal {goal}")


def resident() -> int:
    """Bytes of memory this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak_growth(action: Callable[[], object]) -> int:
    """By how many bytes the process grows while the action runs, sampled every millisecond."""
    before, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    action()
    done.set()
    watcher.join()
    return max(0, peak - before)


def on_resnet50(x: Tensor) -> None:
    """(a) all 1000 maps, and (c) one map, against Captum."""
    module = resnet50()
    stage = "network.resnet.encoder.stages.3"
    model = rt.Model(module, layer=stage)
    captum = LayerGradCam(module, module.get_submodule(stage))

    def loop() -> None:
        for target in range(100):
            captum.attribute(x, target=target)

    ours, bare = seconds(5, lambda: rt.explain(model, x, foil="each", method="gradcam"), lambda: forward(module, x))
    (theirs,) = seconds(1, loop)
    report("(a) ResNet-50: all 1000 Grad-CAM maps, in forward passes", ours / bare, "<= 1.5")
    report("    Captum's loop over foils (100, scaled to 1000), as a multiple of ours", 10 * theirs / ours, ">= 100")

    def contrasted(contrast: str) -> Callable[[], object]:
        return lambda: rt.explain(model, x, contrast=contrast)

    weighted, plain = seconds(15, contrasted("weighted"), contrasted("none"))
    report("(c) ResNet-50: one weighted Grad-CAM against one plain one of ours", weighted / plain, "<= 1.05")
    weighted, one, alone = seconds(
        9, contrasted("weighted"), lambda: captum.attribute(x, target=0), lambda: forward(module, x)
    )
    report("    one weighted Grad-CAM against Captum's plain one", weighted / one, "<= 0.50")
    report("    the least there can be: a bare forward pass against Captum's plain one", alone / one, "")


def on_other_heads(x: Tensor) -> None:
    """(b) 100 foils through heads that are not global average pooling and a linear map."""
    from ratherthan.zoo.architectures import SqueezeNet

    foils = list(range(100))
    for name, module, layer, goal in (
        ("VGG-16", VGG16().eval(), "features", "<= 3"),
        ("SqueezeNet", SqueezeNet().eval(), "features.12", "<= 10, better 2"),
    ):
        model = rt.Model(module, layer=layer)
        ours, bare = seconds(3, lambda m=model: rt.explain(m, x, foil=foils), lambda m=module: forward(m, x))  # type: ignore[misc]
        report(f"(b) {name}: 100 foils, in forward passes", ours / bare, goal)
        for budget in (2**30, 2**27):
            grown = peak_growth(lambda m=model, b=budget: rt.explain(m, x, foil="each", memory_budget=b))  # type: ignore[misc]
            report(f"    {name}: all 1000 foils grow memory by (GiB), budget {budget / 2**30:.3f}", grown / 2**30, "")


def on_bare_modules(x: Tensor) -> None:
    """(d) all 1000 foils of a module that no `Model` has been made of, the first time and after."""
    from ratherthan.zoo.efficientnet import EfficientNetLite0

    for name, module in (("ResNet-50", resnet50()), ("EfficientNet-Lite0", EfficientNetLite0().eval())):
        unseen = [deepcopy(module) for _ in range(8)]  # what is found about a network is remembered with it
        first, later, bare = seconds(
            len(unseen) - 1,
            lambda unseen=unseen: rt.explain(unseen.pop(), x, foil="each"),  # type: ignore[misc]
            lambda m=module: rt.explain(m, x, foil="each"),  # type: ignore[misc]
            lambda m=module: forward(m, x),  # type: ignore[misc]
        )
        report(
            f"(d) {name}, a bare module: all 1000 foils, first call, in forward passes",
            first / bare,
            "<= 2.5, better 1.4",
        )
        report(f"    {name}: every later call", later / bare, "<= 1.3")


def main() -> None:
    """Run everything."""
    torch.manual_seed(0)
    x = torch.rand(1, 3, 224, 224)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    on_resnet50(x)
    on_other_heads(x)
    on_bare_modules(x)


if __name__ == "__main__":
    main()
