"""ResNet9, the lesion classifier named in section 4.2 of the CEM-MAF paper, in a width that two CPU cores can train."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from torch import Tensor, nn

from ratherthan.zoo.concepts import GARMENT_WORDS
from ratherthan.zoo.registry import SHIPPED, ZooEntry, register_zoo_model
from ratherthan.zoo.training.recipes import Augmentation, Recipe


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
        parts: dict[str, nn.Module] = {
            "stem": nn.Sequential(_block(channels, width, pool=not fine), _block(width, 2 * width, pool=True)),
            "residual1": Residual(2 * width),
            "middle": nn.Sequential(_block(2 * width, 4 * width, pool=True), _block(4 * width, 6 * width)),
            "residual2": Residual(6 * width),
        }
        parts |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "dropout": nn.Dropout(0.2)}
        super().__init__(OrderedDict(**parts, head=nn.Linear(6 * width, classes)))


class Residual(nn.Module):
    """Two convolutions added to what they were given."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = _block(channels, channels), _block(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, channels, h, w)."""
        change: Tensor = self.second(self.first(x))
        return x + change


_garments = Recipe("fashion_mnist", 5, 0.01, augmentation=Augmentation(flips="h"))
_turned = Augmentation(1.0, 0.05, 0.15, 180, "hv", 0.1, padding="reflection")
_lesions = Recipe("ham10000", 12, 4e-3, 64, 0.05, augmentation=_turned, tests=("test", "isic_test"), balance=0.7)
_WORDS = {"size": "larger size", "roundness": "rounder shape", "darkness": "darker colour", "border": "sharper border"}

register_zoo_model(
    ZooEntry(
        "fashion_mnist_resnet", partial(ResNet9, 8, 10, 1, fine=True), "residual2", (28, 28), 1, (0.286,), (0.353,),
        crop_fraction=1.0, shipped=SHIPPED, recipe=_garments, manifold="fashion_mnist_vae", words=GARMENT_WORDS,
    ),
    ZooEntry(
        "ham10000", partial(ResNet9, 12), "residual2", (128, 128),
        recipe=_lesions, manifold="ham10000_dip", words=_WORDS,
    ),
)  # fmt: skip
