"""How fast is `mask`, against what the hardware allows and against a plain loop with Captum?

    python benchmarks/evaluation.py [--images 4] [--threads 1] [--device cpu]

The network is SqueezeNet v1.0 on 224 x 224 (random weights; its arithmetic does not depend on them), the experiment
GradCAM and LA, original and weighted, both top classes, three baselines: 48 maskings of every image.

- limit: bare forward passes of as many images (the clean ones and the maskings), in batches of the same size, plus one
  backward pass from the logits to the explained layer for each batch of clean images;
- loop: image by image, a Captum attribution for every method, contrast and class, and a forward pass for every masking;
  the Gaussian blur with the usual two-dimensional kernel, (a) once per image and (b) where it is needed, as in the
  authors' code.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from captum.attr import LayerGradCam, LayerGradientXActivation
from torch import Tensor, nn
from torch.nn import functional

import ratherthan as rt
from ratherthan import ArrayReader, Dataset
from ratherthan.evaluation.run import fitting
from ratherthan.zoo.architectures import SqueezeNet

MASKINGS = 48
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Contrasted(nn.Module):
    """y_t, or the log-odds of t: what Captum is to attribute."""

    def __init__(self, network: nn.Module, target: int, weighted: bool) -> None:
        super().__init__()
        self.network, self.target, self.weighted = network, target, weighted

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, 224, 224) to (n,)."""
        y = self.network(x)
        others = torch.cat([y[:, : self.target], y[:, self.target + 1 :]], 1)
        return y[:, self.target] - others.logsumexp(1) if self.weighted else y[:, self.target]


def two_dimensional_blur(x: Tensor, sigma: float = 15.0) -> Tensor:
    axis = torch.arange(-50, 51, device=x.device).float()
    kernel = torch.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, -1, -1)
    return functional.conv2d(functional.pad(x, [50] * 4, mode="reflect"), kernel, groups=3)


def plain_loop(network: nn.Module, images: Tensor, blur_once: bool) -> Iterator[float]:
    layer = network.features[12]
    for x in images.split(1):
        with torch.no_grad():
            top = network(x)[0].topk(2).indices.tolist()
            blurred = two_dimensional_blur(x) if blur_once else None
        for method, weighted, target in product(("gradcam", "la"), (False, True), (0, 1)):
            forward_pass = Contrasted(network, top[target], weighted)
            kind: type[Any] = LayerGradCam if method == "gradcam" else LayerGradientXActivation
            found = kind(forward_pass, layer).attribute(x)
            phi = functional.interpolate(found.sum(1, keepdim=True), (224, 224), mode="bilinear", align_corners=True)
            for baseline, keep in product(("blur", "model-mean", "mean"), ("positive", "negative")):
                with torch.no_grad():
                    if baseline == "blur":
                        instead = two_dimensional_blur(x) if blurred is None else blurred
                    else:
                        instead = x.mean((2, 3), keepdim=True) if baseline == "mean" else torch.zeros_like(x)
                    altered = torch.where(phi < 0 if keep == "positive" else phi > 0, instead, x)
                    pair = network(altered)[0, top]
                    yield pair.softmax(0)[target].item()


def bare(network: nn.Module, batch: Tensor, at_once: int, images: int) -> None:
    """The forward passes that `mask` needs (one to choose the samples, one recorded, 48 maskings), and one backward."""
    todo = (2 + MASKINGS) * images
    with torch.no_grad():
        while todo > 0:
            network(batch[: min(at_once, todo)])
            todo -= at_once
        activation = network.features(batch[: min(at_once, images)])
    activation.requires_grad_()
    torch.autograd.grad(network.classifier(activation).amax(1).sum(), activation)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock on a GPU; on a processor its own time, which other work on the machine does not lengthen."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    start = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    device = torch.device(given.device)
    network = SqueezeNet(102).eval().to(device)
    model = rt.Model(network, mean=MEAN, std=STD, size=224, layer="features.12")
    pixels = torch.randint(0, 256, (given.images, 224, 224, 3), dtype=torch.uint8).numpy()
    names = tuple(map(str, range(given.images)))
    data = Dataset("noise", tuple(map(str, range(102))), names, (0,) * given.images, ArrayReader(pixels))
    normalised = torch.stack([data[i][0] for i in range(given.images)]).to(device)
    normalised = (normalised - torch.tensor(MEAN).view(3, 1, 1).to(device)) / torch.tensor(STD).view(3, 1, 1).to(device)
    at_once = fitting(normalised[0], model)

    def mask(folder: str) -> None:
        rt.evaluate("mask", model, data, out=folder, threshold=0.0, batch_size=at_once)

    layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format  # the faster one, as in `mask`
    batch = normalised.repeat(-(-at_once // given.images), 1, 1, 1).contiguous(memory_format=layout)
    with tempfile.TemporaryDirectory() as warm, tempfile.TemporaryDirectory() as timed:
        mask(warm)
        limit, full = [], []
        for part in range(3):  # interleaved, and the best of each, for other work on the machine disturbs both
            limit.append(seconds(lambda: bare(network, batch, at_once, given.images), device))
            full.append(seconds(lambda at=f"{timed}/{part}": mask(at), device))
        once = seconds(lambda: list(plain_loop(network, normalised, blur_once=True)), device)
        always = seconds(lambda: list(plain_loop(network, normalised, blur_once=False)), device)
    done, best = min(full), min(limit)
    print(f"{given.images} images, 48 maskings each, {given.threads} threads, {device}, {at_once} images per pass")
    print(f"mask          {given.images / done:8.3f} images/s")
    print(f"limit         {given.images / best:8.3f} images/s: mask reaches {best / done:.2f} of it (wanted: 0.7)")
    print(f"Captum loop   {given.images / always:8.3f} images/s: mask is {always / done:.1f} times as fast (wanted: 2)")
    print(f"  blurred once {given.images / once:7.3f} images/s: mask is {once / done:.1f} times as fast")


if __name__ == "__main__":
    main()
