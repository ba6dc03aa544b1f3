"""What every method costs for 1, 10 and all foils, in forward and backward passes, beside Captum called per foil.

    python benchmarks/cost.py            # prints the table
    python benchmarks/cost.py --write    # and puts it into docs/methods.md, between its markers

Counted, not timed. A forward pass is one image going through the network, seen by a hook on it. A backward pass is one
seed of one image pulled back by `torch.autograd.grad`, from the logits to the layer or the image; what rules compute
within a backward pass is part of it. The network has 100 classes, 28 x 28 pixels and seeded random weights.

Captum is asked as sparingly as it can be: once per foil, on the network followed by y_P - y_Q; LRP, which would lose
the relevance of such a scalar, once for the fact and once for each foil.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import captum.attr as captum
import torch
from captum.attr._utils.lrp_rules import EpsilonRule
from torch import Tensor, nn

import ratherthan as rt
from ratherthan.zoo.architectures import PlainNet

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
START, END = "<!-- costs: made by benchmarks/cost.py -->\n", "<!-- end of costs -->\n"
CLASSES, SAMPLES = 100, 25
FOILS = {"1": 1, "10": 10, "all 99": CLASSES - 1}


class Dense(nn.Module):
    """A fully connected head, as in VGG: every seed needs a backward pass down to the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(676, 32), nn.ReLU(), nn.Linear(32, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 28, 28) to (N, 100)."""
        return self.head(self.features(x))


class Pairwise(nn.Module):
    """A network followed by y_P - y_Q, for Captum."""

    def __init__(self, network: nn.Module, foil: int) -> None:
        super().__init__()
        self.network, self.difference = network, nn.Linear(CLASSES, 1, bias=False)
        weight = torch.zeros(1, CLASSES)
        weight[0, 0], weight[0, foil] = 1, -1
        self.difference.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 28, 28) to (N, 1)."""
        return self.difference(self.network(x))


class Passes:
    """How many images went forward, and how many seeds of an image came back."""

    def __init__(self) -> None:
        self.forward = self.backward = 0

    def __str__(self) -> str:
        return f"{self.forward:,} / {self.backward:,}"


@contextmanager
def counted(network: nn.Module) -> Iterator[Passes]:
    """Count the passes of a network while the block runs."""
    passes, gradient, inside = Passes(), torch.autograd.grad, []

    def forward(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        passes.forward += len(inputs[0])

    def backward(outputs: Any, inputs: Any, grad_outputs: Any = None, *rest: Any, **options: Any) -> Any:
        if inside:
            return gradient(outputs, inputs, grad_outputs, *rest, **options)
        images = len(outputs)
        passes.backward += images * (len(grad_outputs) if options.get("is_grads_batched") else 1)
        inside.append(True)
        try:
            return gradient(outputs, inputs, grad_outputs, *rest, **options)
        finally:
            inside.pop()

    hook = network.register_forward_pre_hook(forward)
    torch.autograd.grad = backward
    try:
        yield passes
    finally:
        torch.autograd.grad = gradient
        hook.remove()


def each_foil(make: Callable[[nn.Module], Callable[[Tensor], Any]]) -> Callable[[nn.Module, Tensor, int], None]:
    """Captum's method on the pairwise scalar, called once for each of so many foils."""

    def run(network: nn.Module, x: Tensor, foils: int) -> None:
        for foil in range(1, foils + 1):
            make(Pairwise(network, foil))(x)

    return run


def each_class(network: nn.Module, x: Tensor, foils: int) -> None:
    """Captum's LRP, once for the fact and once for each foil."""
    for target in range(foils + 1):
        for module in network.modules():
            if isinstance(module, nn.Flatten):
                module.rule = EpsilonRule()  # Captum has none for it
        captum.LRP(network).attribute(x.clone().requires_grad_(), target=target)


def with_options(method: Callable[[nn.Module], Any], **options: Any) -> Callable[[nn.Module, Tensor, int], None]:
    """Captum's method with settings, called once per foil."""
    return each_foil(lambda pair: lambda x: method(pair).attribute(x.clone().requires_grad_(), target=0, **options))


def on_layer(method: Any) -> Callable[[nn.Module, Tensor, int], None]:
    """Captum's layer method, called once per foil."""
    return each_foil(lambda pair: lambda x: method(pair, pair.network.features).attribute(x, target=0))


Row = tuple[str, str, Callable[[], nn.Module], Any, Callable[[nn.Module, Tensor, int], None] | None]


def plain() -> nn.Module:
    """A head that looks at each position by itself."""
    return PlainNet(width=4, classes=CLASSES)


def rows() -> list[Row]:
    """Method, settings, network, our method, Captum's."""
    occlusion = {"sliding_window_shapes": (1, 7, 7), "strides": (1, 7, 7)}
    steps = {"n_steps": 50}
    mask = (torch.arange(28) // 7)[:, None] * 4 + torch.arange(28) // 7
    lime = {"n_samples": 200, "feature_mask": mask[None, None]}
    noise = {"nt_samples": SAMPLES}
    return [
        ("`gradcam`", "global pooling and a linear map", plain, rt.GradCAM("features"), on_layer(captum.LayerGradCam)),
        ("`gradcam`", "any other head", Dense, rt.GradCAM("features"), on_layer(captum.LayerGradCam)),
        (
            "`la`",
            "any other head",
            Dense,
            rt.LinearApproximation("features"),
            on_layer(captum.LayerGradientXActivation),
        ),
        ("`gradient`", "", plain, "gradient", with_options(captum.Saliency, abs=False)),
        ("`ixg`", "", plain, "ixg", with_options(captum.InputXGradient)),
        (
            *("`smoothgrad`", f"{SAMPLES} samples", plain, rt.SmoothGrad(SAMPLES)),
            with_options(lambda pair: captum.NoiseTunnel(captum.Saliency(pair)), **noise),
        ),
        ("`ig`", "50 steps", plain, rt.IntegratedGradients(50), with_options(captum.IntegratedGradients, **steps)),
        ("`lrp`", "", plain, rt.LRP(), each_class),
        ("`deeplift`", "", plain, rt.DeepLift(), with_options(captum.DeepLift)),
        (
            *("`occlusion`", "16 windows", plain, rt.Occlusion(size=7, stride=7, baseline=0.0)),
            with_options(captum.Occlusion, **occlusion),
        ),
        ("`pda`", "16 windows, 10 draws", plain, rt.PredictionDifference(window=7, stride=7, samples=10), None),
        (
            *("`lime`", "200 samples", plain, rt.Lime(superpixels=mask, samples=200, baseline=0.0)),
            with_options(captum.Lime, **lime),
        ),
    ]


def cells(network: nn.Module, x: Tensor, ours: Any, theirs: Any) -> list[str]:
    """The counts of one row: ours, then Captum's."""
    found = []
    for foils in FOILS.values():
        with counted(network) as passes:
            rt.explain(network, x, 0, list(range(1, foils + 1)), ours)
        found.append(str(passes))
    for foils in FOILS.values():
        with counted(network) as passes:
            if theirs is not None:
                theirs(network, x, foils)
        found.append(str(passes) if theirs is not None else "")
    return found


def table() -> str:
    """The table in Markdown."""
    lines = [
        "| method | | " + " | ".join(f"{f} foil{'s' * (f != '1')}" for f in FOILS) + " | "
        + " | ".join(f"Captum, {f}" for f in FOILS) + " |",
        "| --- | --- |" + " ---: |" * 2 * len(FOILS),
    ]  # fmt: skip
    for name, settings, build, ours, theirs in rows():
        torch.manual_seed(0)
        network = build().eval()
        x = torch.rand(1, 1, 28, 28)
        lines.append(f"| {name} | {settings} | " + " | ".join(cells(network, x, ours, theirs)) + " |")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    made = table()
    if "--write" in sys.argv:
        page = PAGE.read_text(encoding="utf-8")
        before, after = page.split(START)[0], page.split(END)[1]
        PAGE.write_text(before + START + "\n" + made + "\n" + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
