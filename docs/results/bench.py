"""Make foilbench.md: our methods and those of four other libraries against truth that is known by construction.

    python docs/results/bench.py [--samples 100] [--photographs 40] [--out foilbench]

$RATHERTHAN_DATA holds mnist/ and imagenet_samples/. Needs captum, grad-cam, torchcam and zennit, and the package of
EfficientNet-Lite0. The runs lie in --out; the same command goes on with them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import captum.attr
import pytorch_grad_cam
import torch
import torchcam.methods
import zennit.attribution
import zennit.canonizers
import zennit.composites
from pytorch_grad_cam.utils.model_targets import FinerWeightedTarget
from torch import Tensor, nn

import ratherthan as rt

HERE = Path(__file__).parent
OURS = [
    "random", "gradcam", "la", "gradient", "ixg", rt.IntegratedGradients(n_steps=8), "deeplift", "lrp",
    rt.LRP("gamma"), "occlusion",
]  # fmt: skip
NEAREST = [1, 2, 3]
"""The classes that Finer-CAM compares with unless it is told: those whose logits are nearest."""


# --------------------------------------------------------------------------------------------- other libraries
def lead(scores: Tensor, fact: int, foil: int | None) -> Tensor:
    """(1, classes) to (1,): what is asked; foil None: why the fact; -1: rather than any other class."""
    if foil is None:
        return scores[:, fact]
    others = torch.cat([scores[:, :fact], scores[:, fact + 1 :]], 1)
    return scores[:, fact] - (others.logsumexp(1) if foil < 0 else scores[:, foil])


class Lead(nn.Module):
    """The network followed by what is asked: (N, 1)."""

    def __init__(self, module: nn.Module, fact: int, foil: int | None) -> None:
        super().__init__()
        self.module, self.fact, self.foil = module, fact, foil

    def forward(self, images: Tensor) -> Tensor:
        """The score."""
        scores = self.module(images)
        return torch.stack([lead(row[None], self.fact, self.foil)[0] for row in scores]).unsqueeze(1)


Asked = Callable[[nn.Module, Tensor, int, int | None], Any]


def peer(label: str, ask: Asked) -> rt.Peer:
    """A method that is asked about an image (1, C, H, W) at a time, and returns its map, (1, C, h, w) or (1, h, w)."""

    def maps(module: nn.Module, images: Tensor, fact: Tensor, foil: Tensor | None) -> Tensor:
        found = []
        for i, image in enumerate(images):
            asked = image.unsqueeze(0).detach().requires_grad_()
            made = torch.as_tensor(ask(module, asked, int(fact[i]), None if foil is None else int(foil[i]))).detach()
            found.append((made.sum(1) if made.ndim == 4 else made)[0])
        return torch.stack(found)

    return rt.Peer(label, maps)


def plane(module: nn.Module, image: Tensor) -> nn.Module:
    """The last layer whose output has rows and columns: what papers and libraries explain."""
    ran: list[tuple[nn.Module, bool]] = []
    handles = [
        each.register_forward_hook(lambda layer, _, made: ran.append((layer, made.ndim == 4 and made.shape[-1] > 1)))
        for each in module.modules()
        if not list(each.children())
    ]
    with torch.no_grad():
        module(image)
    for handle in handles:
        handle.remove()
    return [layer for layer, spatial in takewhile(lambda each: each[1], ran)][-1]


def by_captum(kind: Any, module: nn.Module, image: Tensor, fact: int, foil: int | None, **more: Any) -> Tensor:
    """Methods of captum that explain the image."""
    return kind(Lead(module, fact, foil)).attribute(image, target=0, **more)


def layer_gradcam(module: nn.Module, image: Tensor, fact: int, foil: int | None) -> Tensor:
    """Grad-CAM of captum, not rectified."""
    return captum.attr.LayerGradCam(Lead(module, fact, foil), plane(module, image)).attribute(image, target=0)


def by_grad_cam(kind: Any, module: nn.Module, image: Tensor, fact: int, foil: int | None) -> Any:
    """Methods of pytorch-grad-cam: rectified, stretched to [0, 1]."""
    with kind(module, [plane(module, image)]) as cam:
        return cam(image, targets=[lambda scores: lead(scores[None], fact, foil)[0]])


def finer_cam(module: nn.Module, image: Tensor, fact: int, foil: int | None) -> Any:
    """Its own target; without a foil, that with nothing to compare (alpha 0); of all others, its three nearest."""
    with pytorch_grad_cam.FinerCAM(module, [plane(module, image)]) as cam:
        if foil is not None and foil < 0:
            return cam(image, target_idx=fact, comparison_categories=NEAREST)
        other = (fact + 1) % module(image).shape[1] if foil is None else foil
        return cam(image, targets=[FinerWeightedTarget(fact, [other], alpha=0 if foil is None else 1)])


def by_torchcam(kind: Any, module: nn.Module, image: Tensor, fact: int, foil: int | None) -> Tensor:
    """Methods of torch-cam: rectified."""
    asked = Lead(module, fact, foil).eval()
    with kind(asked, plane(module, image)) as extractor:
        return extractor(0, asked(image), normalized=False)[0]


def by_zennit(composite: Any, module: nn.Module, image: Tensor, fact: int, foil: int | None) -> Tensor:
    """Rules of zennit, started with the derivative of what is asked."""
    scores = module(image).detach().requires_grad_()
    (seed,) = torch.autograd.grad(lead(scores, fact, foil), scores)
    rules = composite(canonizers=[zennit.canonizers.SequentialMergeBatchNorm()])
    with zennit.attribution.Gradient(module, rules) as attributor:
        return attributor(image, seed)[1]


CAPTUM: dict[str, Any] = {
    "InputXGradient": partial(by_captum, captum.attr.InputXGradient),
    "IntegratedGradients": partial(by_captum, captum.attr.IntegratedGradients, n_steps=8),
    "DeepLift": partial(by_captum, captum.attr.DeepLift),
    "LayerGradCam": layer_gradcam,
}
PEERS = [
    *(peer(f"captum {name}", ask) for name, ask in CAPTUM.items()),
    *(
        peer(f"grad-cam {name}", partial(by_grad_cam, getattr(pytorch_grad_cam, name)))
        for name in ("GradCAM", "GradCAMPlusPlus", "LayerCAM", "HiResCAM")
    ),
    peer("grad-cam FinerCAM", finer_cam),
    *(
        peer(f"torchcam {name}", partial(by_torchcam, getattr(torchcam.methods, name)))
        for name in ("GradCAM", "LayerCAM")
    ),
    peer("zennit EpsilonPlus", partial(by_zennit, zennit.composites.EpsilonPlus)),
]
COSTLY = ("captum InputXGradient", "captum IntegratedGradients", "grad-cam HiResCAM")
CHEAP = [
    "random", "gradcam", "la", "gradient", "ixg", rt.IntegratedGradients(n_steps=8), "deeplift", "lrp",
    *(each for each in PEERS if each.label not in COSTLY),
]  # fmt: skip
"""What is run on photographs, where 225 windows, or the same steps in two libraries, would take hours."""
FEW = ["random", "gradcam", "ixg", *(each for each in PEERS if each.label in ("grad-cam GradCAM", "grad-cam FinerCAM"))]
"""What is asked about each photograph nine times."""


# --------------------------------------------------------------------------------------------- the page
def main() -> None:
    """Run the tasks, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--photographs", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("foilbench"))
    arguments = parser.parse_args()
    small = rt.bench(
        arguments.out, methods=[*OURS, *PEERS], tasks=["exact", "placed", "saturated", "parts"],
        samples=arguments.samples, progress=True,
    )  # fmt: skip
    runs = dict(small.runs)
    for task, methods in (("mosaic", CHEAP), ("sensitivity", FEW)):
        samples = arguments.photographs
        runs |= rt.bench(arguments.out, methods=methods, tasks=[task], samples=samples, progress=True).runs
    found = rt.Bench(runs)
    details = (f"## {task}\n\n{run.to_markdown(intervals=False)}" for task, run in found.runs.items())
    (HERE / "foilbench.md").write_text(TEXT + found.to_markdown() + "\n" + "\n".join(details))


TEXT = """# FoilBench: "why P, rather than Q?" where the answer is known

Written by `python docs/results/bench.py`. [What each task asks, and what its truth is](../bench.md). Each method is
asked why P (original), why P rather than Q (weighted), and why P rather than any other class (any_other). Methods of
other libraries are called by the names they have there, and asked the same through a score of the same difference;
where they rectify and stretch their maps, these are taken as they are.

"""

if __name__ == "__main__":
    main()
