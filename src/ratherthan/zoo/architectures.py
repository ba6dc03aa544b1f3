"""The classifiers of the zoo: their architectures, how each is trained, and what they are called."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch
from torch import Tensor, nn

from ratherthan.zoo.concepts import GARMENT_WORDS
from ratherthan.zoo.registry import SHIPPED, ZooEntry, grey_entry, register_zoo_model
from ratherthan.zoo.training.recipes import Augmentation, Recipe


def digit_network(side: int = 28) -> nn.Sequential:
    """The digit classifier of CDeepEx, section 6.1: grey images (N, 1, side, side) in [0, 1] to logits (N, 10).

    The paper's side is 64, which makes the first linear map 3380 x 50. Nothing stands between the two linear maps, as
    printed.
    """
    features = nn.Sequential(
        nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.ReLU()
    )
    cells = ((side - 4) // 2 - 4) // 2
    head = nn.Sequential(nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(20 * cells**2, 50), nn.Linear(50, 10))
    return nn.Sequential(OrderedDict(features=features, head=head))


def _convolution(channels: int, filters: int, size: int, dilation: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(channels, filters, size, padding=dilation * (size // 2), dilation=dilation, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


class PlainNet(nn.Sequential):
    """Four convolutions and a global mean: (N, 1, 28, 28) in [0, 1] to logits (N, classes).

    A relative of the discriminator in section 6.1 of the CDeepEx paper (5x5 convolution, pooling, more convolutions,
    dropout, linear), altered so that its explanations are easy to read and to check:

    - the last convolution keeps a 14 x 14 grid (`features.8`) and only a mean and a linear map follow, so a Grad-CAM
      map is exactly the evidence each position adds to a logit;
    - no layer has a bias, so the network is homogeneous, black stays exactly zero in every layer, and maps are zero
      where no ink is in view; attributions add up to the logits with nothing left over for biases.

    Args:
        width: Channels of the first convolution; the others have 2, 2 and 4 times as many.
        classes: How many classes it tells apart.
        cells: The mean is taken over each of cells x cells parts of the grid: 1 is the whole; more tell where things
            are, which garments need and digits do not.
    """

    def __init__(self, width: int = 16, classes: int = 10, cells: int = 1) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _convolution(1, width, 5), nn.ReLU(), nn.MaxPool2d(2),
            _convolution(width, 2 * width, 3), nn.ReLU(),
            _convolution(2 * width, 2 * width, 3), nn.ReLU(),
            _convolution(2 * width, 4 * width, 3, dilation=2), nn.ReLU(),
        )  # fmt: skip
        self.pool, self.flatten, self.dropout = nn.AdaptiveAvgPool2d(cells), nn.Flatten(), nn.Dropout(0.1)
        self.head = nn.Linear(4 * width * cells**2, classes, bias=False)


def _block(channels: int, filters: int, pool: bool = False) -> nn.Sequential:
    layers = [nn.Conv2d(channels, filters, 3, padding=1, bias=False), nn.BatchNorm2d(filters), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


class ResNet9(nn.Sequential):
    """Eight convolutions, two of the blocks residual, and a linear map: (N, 3, H, W) to logits (N, classes).

    The paper names the architecture and no more; this is the usual one with 16 instead of 64 first channels, pooled
    after the first convolution instead of the fourth, so that the last grid (`residual2`) of a 128 x 128 image is
    16 x 16.

    Args:
        width: Channels of the first block; the others have 2, 4 and 6 times as many.
        classes: How many classes it tells apart.
        channels: Channels of the images.
        fine: Leave the first pooling out, for images of 28 x 28 pixels: the last grid is 7 x 7.
    """

    def __init__(self, width: int = 16, classes: int = 7, channels: int = 3, fine: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(_block(channels, width, pool=not fine), _block(width, 2 * width, pool=True))
        self.residual1 = Residual(2 * width)
        self.middle = nn.Sequential(_block(2 * width, 4 * width, pool=True), _block(4 * width, 6 * width))
        self.residual2 = Residual(6 * width)
        self.pool, self.flatten, self.dropout = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2)
        self.head = nn.Linear(6 * width, classes)


class Residual(nn.Module):
    """Two convolutions added to what they were given."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = _block(channels, channels), _block(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, channels, h, w)."""
        return x + self.second(self.first(x))  # type: ignore[no-any-return]


class Fire(nn.Module):
    """A 1x1 convolution that squeezes the channels, then 1x1 and 3x3 convolutions side by side that expand them.

    Args:
        channels: Channels of the input.
        squeeze: Channels between the two stages.
        expand: Channels that each of the two expanding convolutions adds to the output.
    """

    def __init__(self, channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeeze, 1)
        self.squeeze_activation = nn.ReLU()
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand1x1_activation = nn.ReLU()
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.expand3x3_activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, h, w) to (N, 2 * expand, h, w)."""
        x = self.squeeze_activation(self.squeeze(x))
        small, large = self.expand1x1(x), self.expand3x3(x)
        return torch.cat([self.expand1x1_activation(small), self.expand3x3_activation(large)], dim=1)


class SqueezeNet(nn.Sequential):
    """SqueezeNet v1.0: (N, 3, H, W), H and W at least 21, normalised, to logits (N, classes).

    The last layer with a spatial grid and a spatial mixture is `features.12`; a 1x1 convolution, a ReLU and a global
    mean follow it, so logits are never negative.

    Args:
        classes: How many classes it tells apart.
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        pools = [nn.MaxPool2d(3, stride=2, ceil_mode=True) for _ in range(3)]
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, 7, stride=2), nn.ReLU(), pools[0],
            Fire(96, 16, 64), Fire(128, 16, 64), Fire(128, 32, 128), pools[1],
            Fire(256, 32, 128), Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), pools[2],
            Fire(512, 64, 256),
        )  # fmt: skip
        head = nn.Conv2d(512, classes, 1)
        # Almost equal positive scores at first: a class that starts below the last ReLU would learn nothing
        nn.init.normal_(head.weight, std=0.001)
        nn.init.constant_(head.bias, 1.0)  # type: ignore[arg-type]
        self.classifier = nn.Sequential(nn.Dropout(0.5), head, nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.flatten = nn.Flatten()


# ----------------------------------------------------------------------------------------- what they are called
PAPER_DIGITS = Recipe("mnist", 10, 4e-3, augmentation=Augmentation(shift=0.04, scale=0.05, rotation=5))
_digits = Recipe("mnist", 8, 0.008, augmentation=Augmentation(shift=0.06, scale=0.08, rotation=8))
_garments = Recipe("fashion_mnist", 8, 0.008, augmentation=Augmentation(shift=0.04, scale=0.05, flips="h"))
_garments_in_short = Recipe("fashion_mnist", 5, 0.01, augmentation=Augmentation(flips="h"))
_turned = Augmentation(1.0, 0.05, 0.15, 180, "hv", 0.1, padding="reflection")
_lesions = Recipe("ham10000", 12, 4e-3, 64, 0.05, augmentation=_turned, tests=("test", "isic_test"), balance=0.7)
_flowers = Recipe(
    "flowers102", 8, 4e-4, 32, 0.02, start="squeezenet/squeezenet1_0_caffe.safetensors", workers=1,
    frozen=tuple(f"features.{index}" for index in range(9)), tests=("valid", "test"),
    augmentation=Augmentation(144 / 224, 0.05, 0.2, 15, "h", 0.2, padding="reflection"), uncropped=2,
)  # fmt: skip

_WORDS = {"size": "larger size", "roundness": "rounder shape", "darkness": "darker colour", "border": "sharper border"}
_grey = partial(grey_entry, shipped=SHIPPED)
_wide = partial(ResNet9, 12)
_of_garments = partial(_grey, manifold="fashion_mnist_vae", words=GARMENT_WORDS)
_fine = partial(
    _of_garments, build=partial(ResNet9, 8, 10, 1, fine=True), layer="residual2", mean=(0.286,), std=(0.353,)
)

register_zoo_model(
    _grey("mnist_paper", digit_network, "features.3", recipe=PAPER_DIGITS, manifold="mnist_vae"),
    _grey("mnist", PlainNet, "features.8", recipe=_digits, manifold="mnist_vae"),
    _of_garments("fashion_mnist", partial(PlainNet, cells=7), "features.8", recipe=_garments),
    _fine("fashion_mnist_resnet", recipe=_garments_in_short),
    ZooEntry("ham10000", _wide, "residual2", (128, 128), recipe=_lesions, manifold="ham10000_dip", words=_WORDS),
    ZooEntry("squeezenet1_0", SqueezeNet, "features.12", fit="crop"),
    ZooEntry("flowers102", partial(SqueezeNet, 102), "features.12", recipe=_flowers),
)
