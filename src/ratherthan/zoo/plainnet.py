"""A plain convolutional network without a single bias, for images whose background is black (digits, garments)."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from torch import nn

from ratherthan.zoo.concepts import GARMENT_WORDS
from ratherthan.zoo.registry import SHIPPED, grey_entry, register_zoo_model
from ratherthan.zoo.training.recipes import Augmentation, Recipe


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
        features = nn.Sequential(
            _convolution(1, width, 5), nn.ReLU(), nn.MaxPool2d(2),
            _convolution(width, 2 * width, 3), nn.ReLU(),
            _convolution(2 * width, 2 * width, 3), nn.ReLU(),
            _convolution(2 * width, 4 * width, 3, dilation=2), nn.ReLU(),
        )  # fmt: skip
        pool, head = nn.AdaptiveAvgPool2d(cells), nn.Linear(4 * width * cells**2, classes, bias=False)
        parts = OrderedDict(features=features, pool=pool, flatten=nn.Flatten(), dropout=nn.Dropout(0.1), head=head)
        super().__init__(parts)


_digits = Recipe("mnist", 8, 0.008, augmentation=Augmentation(shift=0.06, scale=0.08, rotation=8))
_garments = Recipe("fashion_mnist", 8, 0.008, augmentation=Augmentation(shift=0.04, scale=0.05, flips="h"))
_entry = partial(grey_entry, layer="features.8", shipped=SHIPPED)
_finer = partial(PlainNet, cells=7)

register_zoo_model(
    _entry("mnist", PlainNet, recipe=_digits, manifold="mnist_vae"),
    _entry("fashion_mnist", _finer, recipe=_garments, manifold="fashion_mnist_vae", words=GARMENT_WORDS),
)
